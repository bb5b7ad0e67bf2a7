// spdlog, with fmt's formatter compiled once (fmt_once.cpp) instead of in every file that logs,
// where it took six seconds of a sanitized build each. Found before the real header, which it
// includes. fmt 10 has another signature and is left alone.
#pragma once
#pragma GCC system_header

#include_next <spdlog/spdlog.h>

#if FMT_VERSION >= 90000 && FMT_VERSION < 100000 && !defined(FMT_HEADER_ONLY)
#define PRESENCED_FMT_ONCE                                                                         \
    template void detail::vformat_to<char>(detail::buffer<char>&, basic_string_view<char>,         \
                                           basic_format_args<FMT_BUFFER_CONTEXT(char)>,            \
                                           detail::locale_ref);
FMT_BEGIN_NAMESPACE
extern PRESENCED_FMT_ONCE
FMT_END_NAMESPACE
#endif
