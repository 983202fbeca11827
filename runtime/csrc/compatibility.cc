// What inline code of newer C++ libraries wants of them, so that the library loads beside older ones.

#include <new>

#if defined(__GLIBCXX__) && __GNUC__ >= 11
namespace std {

// std::allocator calls it since GCC 11 where sizes overflow; the rest of what we use is in the libstdc++ of GCC 7. Weak,
// for programs that are linked with a newer one.
[[noreturn]] __attribute__((weak)) void __throw_bad_array_new_length() { throw std::bad_array_new_length(); }

}  // namespace std
#endif
