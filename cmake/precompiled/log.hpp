// spdlog for a sanitized build. The formatter of fmt, 7 s of compiling in every source that logs,
// comes from fmt's own library; fmt's headers do not say that it is there.
#pragma once

#include <spdlog/spdlog.h>

FMT_BEGIN_NAMESPACE
extern template void detail::vformat_to<char>(detail::buffer<char>&, string_view, format_args,
                                              detail::locale_ref);
FMT_END_NAMESPACE
