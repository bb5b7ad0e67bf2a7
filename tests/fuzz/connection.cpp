// Any bytes from a TCP peer, as the server meets them: request, route, origin, token, upgrade,
// WebSocket frames, commands, and the end. Everything from the socket to the store is what runs in
// production; the store alone is a few lines that answer from memory.
//
// The bytes come twice, at once and in two pieces: what HTTP answers may not depend on how TCP cut
// them. When the peer has gone, nothing of it may be left.
#include "protocol/codec.hpp"
#include "server/app/shard.hpp"
#include "server/http/http_session.hpp"
#include "server/http/routes.hpp"
#include "tests/fuzz/check.hpp"

#include <nlohmann/json.hpp>
#include <openssl/sha.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <list>
#include <set>
#include <string>
#include <thread>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace presenced;
using namespace presenced::server;
using namespace std::chrono_literals;

namespace {

// Holds rows in memory. Agents with even ids are the token owner's. Acquires are answered when
// answer_all() is called, everything else at once, as far as an answer is ever at once.
class memory_store final : public db::store {
public:
    void acquire(db::acquire_request request) override { asked_.push_back(std::move(request)); }
    void abandon(db::agent_id, db::lease_token const& token) override {
        for (auto it = asked_.begin(); it != asked_.end(); ++it) {
            if (it->token == token) {
                it->box->deliver(answer(it->key, db::lease_outcome::abandoned));
                asked_.erase(it);
                return;
            }
        }
    }
    void release(db::release_request request) override {
        check(rows_.erase(request.token) == 1); // P6: one row, released once
        request.box->deliver(answer(request.key, db::lease_outcome::released));
    }
    void renew(db::renew_request request) override {
        check(rows_.contains(request.token));
        request.box->deliver(answer(request.key, db::lease_outcome::renewed));
    }
    void forget_renewal(db::agent_id, db::lease_token const&) override {}
    void authenticate(db::authenticate_request request) override {
        static constexpr std::array bad{db::token_outcome::unknown, db::token_outcome::expired,
                                        db::token_outcome::revoked, db::token_outcome::unavailable};
        static auto const good = [] {
            std::string_view const token = "good";
            db::token_digest digest;
            SHA256(reinterpret_cast<unsigned char const*>(token.data()), token.size(),
                   digest.data());
            return digest;
        }();
        db::token_answer said{request.key, db::token_outcome::valid, 1, 1, std::nullopt};
        if (request.digest != good) {
            said.outcome = bad[request.digest[0] % bad.size()];
        }
        request.box->deliver(std::vector<db::token_answer>{said});
    }
    void check(db::check_request) override {}
    void subscribe_to_outages(db::mailbox&) override {}
    db::store_health health() const override {
        db::store_health well;
        well.reachable = true;
        well.writable = true;
        well.since_tick = 0ms;
        return well;
    }
    std::size_t stop(std::chrono::steady_clock::time_point) override { return 0; }

    bool answer_all() {
        auto const asked = std::exchange(asked_, {});
        for (auto const& request : asked) {
            bool const owns = request.agent % 2 == 0 && request.owner == 1;
            if (owns) {
                check(rows_.insert(request.token).second);
            }
            request.box->deliver(answer(request.key, owns ? db::lease_outcome::acquired
                                                          : db::lease_outcome::refused));
        }
        return !asked.empty();
    }
    bool is_empty() const { return rows_.empty() && asked_.empty(); }

private:
    static void check(bool holds) { ::check(holds); }
    static std::vector<db::lease_answer> answer(std::uint64_t key, db::lease_outcome outcome) {
        return {{key, outcome}};
    }

    std::list<db::acquire_request> asked_;
    std::set<db::lease_token> rows_;
};

// Both ends of a TCP connection on loopback.
struct tcp_pair {
    int peer = -1;
    int server = -1;

    tcp_pair() {
        static int const listening = [] {
            int const s = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            sockaddr_in any{};
            any.sin_family = AF_INET;
            any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            check(::bind(s, reinterpret_cast<sockaddr*>(&any), sizeof any) == 0);
            check(::listen(s, 8) == 0);
            return s;
        }();
        sockaddr_in const at = address_of(listening, ::getsockname);
        // libFuzzer's alarm may interrupt it, and others may have taken every port for a while.
        for (int tries = 0;; ++tries) {
            peer = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (::connect(peer, reinterpret_cast<sockaddr const*>(&at), sizeof at) == 0) {
                break;
            }
            check(tries < 100);
            ::close(peer);
            std::this_thread::sleep_for(100ms);
        }
        // One that was interrupted may have come through all the same, and waits in front.
        auto const own = address_of(peer, ::getsockname);
        for (;;) {
            server = ::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
            if (server >= 0 && address_of(server, ::getpeername).sin_port == own.sin_port) {
                break;
            }
            check(server >= 0 || errno == EINTR);
            ::close(server);
        }
    }
    ~tcp_pair() {
        // Reset it: millions of these would leave no port that is not in TIME_WAIT.
        linger const reset{1, 0};
        ::setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        ::close(peer);
    }
    tcp_pair(tcp_pair const&) = delete;
    tcp_pair& operator=(tcp_pair const&) = delete;

private:
    static sockaddr_in address_of(int socket, decltype(::getsockname)* end) {
        sockaddr_in address{};
        socklen_t size = sizeof address;
        end(socket, reinterpret_cast<sockaddr*>(&address), &size); // of one that is gone: none
        return address;
    }
};

config const& settings_under_test() {
    static config const settings = [] {
        config c;
        c.allowed_origins = {"*.example.org"};
        c.trusted_proxies = {parse_cidr("127.0.0.0/8")};
        c.max_subscriptions = 5;
        c.node = "fuzz";
        return c;
    }();
    return settings;
}

// One server and one peer, from the first byte to the last.
class run {
public:
    run()
        : home_{node_, routes_} {
        node_.phase = node_phase::serving;
        node_.store = &store_;
        home_.timers().start();
        home_.adopt({home_.context(), tcp::v4(), pair_.server});
    }

    // Sends, and goes on until the server has nothing more to do with it.
    void feed(std::string_view bytes) {
        while (!bytes.empty()) {
            auto const n =
                ::send(pair_.peer, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n < 0 && errno != EAGAIN) {
                return; // the server has closed
            }
            bytes.remove_prefix(n < 0 ? 0 : static_cast<std::size_t>(n));
            settle();
        }
        settle();
    }

    // The peer leaves; returns all that the server has said.
    std::string finish() {
        ::shutdown(pair_.peer, SHUT_WR);
        auto const left_at = std::chrono::steady_clock::now();
        for (settle(); !is_over(); settle()) {
            auto const waited = std::chrono::steady_clock::now() - left_at;
            if (waited > 50ms && has_said_close()) {
                // Beast 1.81: a read that finds a protocol error while our close frame is being
                // written waits for the write lock, and the close for the read lock. Nobody reads
                // until the connection's closing limit, 5 s; what it held is gone all the same.
                check(home_.held_leases() == 0 && store_.is_empty());
                return std::move(said_);
            }
            check(waited < 10s); // the server has forgotten to close
            home_.context().run_one_for(1ms);
        }
        check(home_.standing() == 0);
        check(node_.admission_control.connections() == 0);
        check(store_.is_empty());
        return std::move(said_);
    }

private:
    void settle() {
        for (;;) {
            auto const worked = home_.context().poll() > 0;
            if (!read() && !worked && !store_.answer_all()) {
                return;
            }
        }
    }

    bool is_over() const { return closed_ && home_.load() == 0 && home_.held_leases() == 0; }

    bool has_said_close() const { return said_.ends_with("\x88\x02\x03\xe8"); }

    bool read() {
        std::array<char, 4096> chunk;
        auto const n = closed_ ? 0 : ::recv(pair_.peer, chunk.data(), chunk.size(), MSG_DONTWAIT);
        if (n > 0) {
            said_.append(chunk.data(), static_cast<std::size_t>(n));
        } else if (n == 0 || errno != EAGAIN) {
            closed_ = true;
        }
        return n > 0;
    }

    static metrics& figures() {
        static metrics all{"fuzz", "fuzz"};
        return all;
    }

    tcp_pair pair_;
    memory_store store_;
    node node_{settings_under_test(), figures(), 2};
    router const routes_{make_routes(settings_under_test())};
    shard home_;
    std::string said_;
    bool closed_ = false;
};

// The HTTP responses at the front of what a server said.
struct http_part {
    std::string responses; // status lines, and all of a 101; Beast words its errors by the piece
    unsigned last_status = 0;
    std::string_view rest; // what follows a 101
};

http_part http_part_of(std::string_view said) {
    http_part part;
    while (!said.empty()) {
        check(said.starts_with("HTTP/1.1 "));
        auto const end = said.find("\r\n\r\n");
        check(end != said.npos);
        auto const head = said.substr(0, end + 4);
        said.remove_prefix(head.size());
        part.responses += head.substr(0, 12);
        part.last_status = static_cast<unsigned>(std::stoul(std::string(head.substr(9, 3))));
        if (part.last_status == 101) {
            part.responses += head;
            part.rest = said;
            return part;
        }
        if (part.last_status == 100) {
            continue; // Beast answers `Expect: 100-continue` (RFC 9110 10.1.1); the verdict follows
        }
        static std::set<unsigned> const known{200, 400, 404, 405, 413, 417,
                                              426, 429, 431, 501, 503, 505};
        check(known.contains(part.last_status));
        auto const field = head.find("\r\nContent-Length: ");
        check(field != head.npos);
        auto const length = std::stoul(std::string(head.substr(field + 18, 10)));
        if (!said.starts_with("HTTP/1.1 ")) { // else HEAD was asked
            check(said.empty() || said.size() >= length);
            said.remove_prefix(std::min(length, said.size()));
        }
        check((part.last_status == 503 || part.last_status == 429) ==
              (head.find("\r\nRetry-After: ") != head.npos));
    }
    return part;
}

// What follows a 101: whole, unmasked frames of messages that a client knows, and nothing behind a
// close frame. Returns the texts.
std::vector<std::string> texts_of(std::string_view frames) {
    std::vector<std::string> texts;
    bool closed = false;
    while (!frames.empty()) {
        check(!closed && frames.size() >= 2);
        auto const byte = [&](std::size_t at) {
            return static_cast<unsigned char>(frames[at]);
        };
        auto const opcode = byte(0) & 0x0FU;
        std::size_t length = byte(1);
        std::size_t head = 2;
        check((byte(0) & 0xF0U) == 0x80U && length < 127); // nothing fragmented, masked, or huge
        if (length == 126) {
            check(frames.size() >= 4);
            length = static_cast<std::size_t>(byte(2) << 8U | byte(3));
            head = 4;
        }
        check(frames.size() >= head + length);
        auto const payload = frames.substr(head, length);
        frames.remove_prefix(head + length);
        check(opcode == 1 || opcode == 8 || opcode == 9 || opcode == 10);
        closed = opcode == 8;
        if (opcode == 1) {
            check(protocol::decode_server_frame(payload).has_value());
            texts.emplace_back(payload);
        }
    }
    return texts;
}

void check_cable(std::string_view asked, std::string_view frames) {
    auto const texts = texts_of(frames);
    if (texts.empty()) {
        return; // it went on to break the protocol before a word could be said
    }
    bool const welcomed = texts.front() == protocol::encode_welcome();
    check(welcomed ||
          texts.front() == protocol::encode_disconnect(protocol::disconnect_reason::unauthorized));
    check(!welcomed || asked.find("good") != asked.npos || asked.find('%') != asked.npos);
    check(welcomed || texts.size() == 1);
    for (auto const& text : texts) {
        check(&text == &texts.front() || text != texts.front()); // one welcome
        check(text.find("\"disconnect\"") == text.npos || &text == &texts.back());
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    static bool const quiet = [] {
        auto log = std::make_shared<spdlog::logger>(
            "null", std::make_shared<spdlog::sinks::null_sink_mt>());
        log->set_level(spdlog::level::debug); // so that every line is put together
        spdlog::set_default_logger(std::move(log));
        return true;
    }();
    (void)quiet;
    auto const bytes = text_of(data, size);

    run at_once;
    at_once.feed(bytes);
    auto const said = at_once.finish();
    auto const http = http_part_of(said);
    if (http.last_status == 101) {
        check(bytes.find("/cable") != bytes.npos);
        check_cable(bytes, http.rest);
    }

    run in_pieces;
    auto const cut = size == 0 ? 0 : (size * 7 + data[size / 2]) % size;
    in_pieces.feed(bytes.substr(0, cut));
    in_pieces.feed(bytes.substr(cut));
    auto const said_again = in_pieces.finish();
    auto const again = http_part_of(said_again);
    check(again.responses == http.responses);
    if (again.last_status == 101) {
        check_cable(bytes, again.rest);
    }
    return 0;
}
