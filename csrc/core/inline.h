// Functions that host and device share.
#ifndef QATFAST_CORE_INLINE_H_
#define QATFAST_CORE_INLINE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

// Forced inline, so that no copy of a function compiled for a newer instruction set can be linked into code for an
// older one.
#if defined(__CUDACC__)
#define QATFAST_INLINE __host__ __device__ __forceinline__
#else
#define QATFAST_INLINE inline __attribute__((always_inline))
#endif

namespace qatfast {

// Whether this is compiled for a GPU, or for the tests' emulator of one.
#if defined(__CUDA_ARCH__) || defined(QATFAST_EMULATED_GPU)
constexpr bool kOnGpu = true;
#else
constexpr bool kOnGpu = false;
#endif

// The bits of `from` as another type of the same size.
template <typename To, typename From>
QATFAST_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The unsigned integer of a number of bytes.
template <size_t kBytes>
struct BitsOfSize;
template <>
struct BitsOfSize<2> {
  using type = uint16_t;
};
template <>
struct BitsOfSize<4> {
  using type = uint32_t;
};
template <>
struct BitsOfSize<8> {
  using type = uint64_t;
};
template <typename T>
using BitsOf = typename BitsOfSize<sizeof(T)>::type;

// `condition ? chosen : other`, by their bits. The compiler makes a branch of a condition that is the same in every
// iteration, to skip the work of what is not chosen, and a loop around a branch never becomes vectors.
QATFAST_INLINE float SelectBits(bool condition, float chosen, float other) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return BitCast<float>((BitCast<uint32_t>(chosen) & mask) | (BitCast<uint32_t>(other) & ~mask));
}
QATFAST_INLINE double SelectBits(bool condition, double chosen, double other) {
  const uint64_t mask = uint64_t{0} - static_cast<uint64_t>(condition);
  return BitCast<double>((BitCast<uint64_t>(chosen) & mask) | (BitCast<uint64_t>(other) & ~mask));
}

}  // namespace qatfast

#endif  // QATFAST_CORE_INLINE_H_
