// Functions that host and device share.
#ifndef QATFAST_CORE_INLINE_H_
#define QATFAST_CORE_INLINE_H_

#include <cstring>

// Forced inline, so that no copy of a function compiled for a newer instruction set can be linked into code for an
// older one.
#if defined(__CUDACC__)
#define QATFAST_INLINE __host__ __device__ __forceinline__
#else
#define QATFAST_INLINE inline __attribute__((always_inline))
#endif

namespace qatfast {

// The bits of `from` as another type of the same size.
template <typename To, typename From>
QATFAST_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace qatfast

#endif  // QATFAST_CORE_INLINE_H_
