// The one translation unit that holds the code of Asio and Beast: BOOST_ASIO_SEPARATE_COMPILATION
// and BOOST_BEAST_SEPARATE_COMPILATION keep it out of all the others.
#include <boost/asio/impl/src.hpp>
#include <boost/beast/src.hpp>
