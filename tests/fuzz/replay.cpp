// The main of a fuzz target where there is no libFuzzer: every file of the corpus, and damaged
// copies of it, the same ones in every run. With a number it writes that copy and does no more.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size);

namespace {

using random_source = std::mt19937;

std::size_t below(random_source& random, std::size_t end) {
    return std::uniform_int_distribution<std::size_t>(0, end - 1)(random);
}

// One to four small damages: a byte changed, a part removed, repeated, or taken from another file.
std::string damaged(random_source& random, std::string text, std::vector<std::string> const& all) {
    for (auto left = 1 + below(random, 4); left > 0; --left) {
        auto const at = below(random, text.size() + 1);
        switch (below(random, 5)) {
        case 0:
            if (at < text.size()) {
                text[at] = static_cast<char>(below(random, 256));
            }
            break;
        case 1:
            text.insert(at, 1, "\"\\{}[],:=%. \r\n\t0\xFF"[below(random, 18)]);
            break;
        case 2:
            text.erase(at, 1 + below(random, 8));
            break;
        case 3:
            text.insert(at, text.substr(below(random, text.size() + 1), below(random, 40)));
            break;
        default: {
            auto const& other = all[below(random, all.size())];
            text.insert(at, other.substr(below(random, other.size() + 1), below(random, 40)));
        }
        }
    }
    return text;
}

void feed(std::string const& text) {
    // A buffer of just that size, so that a sanitizer sees every step beyond it.
    std::vector<std::uint8_t> const exact(text.begin(), text.end());
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

} // namespace

int main(int count, char** arguments) {
    if (count != 2 && count != 3) {
        std::fprintf(stderr, "usage: %s CORPUS-FOLDER [COPY]\n", arguments[0]);
        return 2;
    }
    std::vector<std::filesystem::path> files;
    for (auto const& file : std::filesystem::directory_iterator(arguments[1])) {
        files.push_back(file.path());
    }
    std::sort(files.begin(), files.end());
    std::vector<std::string> corpus;
    for (auto const& file : files) {
        std::ifstream in(file, std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
    if (corpus.empty()) {
        std::fprintf(stderr, "%s is empty\n", arguments[1]);
        return 1;
    }
    // What is printed last is what a crash came from.
    for (std::size_t n = 0; n < corpus.size() && count == 2; ++n) {
        std::printf("%s\n", files[n].filename().c_str());
        std::fflush(stdout);
        feed(corpus[n]);
    }
    random_source random(20240229);
    constexpr std::size_t copies = 1000;
    for (std::size_t n = 0; n < copies; ++n) {
        auto const text = damaged(random, corpus[n % corpus.size()], corpus);
        if (count == 2) {
            std::printf("copy %zu\n", n);
            std::fflush(stdout);
            feed(text);
        } else if (std::to_string(n) == arguments[2]) {
            std::fwrite(text.data(), 1, text.size(), stdout);
        }
    }
}
