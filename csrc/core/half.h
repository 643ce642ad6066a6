// The two 16-bit floating-point types: their bits, and conversion to and from float.
//
// Whatever the processor's way of converting, results are those of these functions: exact to float, rounded half to
// even from it, NaN kept. Subnormal float16 numbers are exact too, even where subnormal floats count as zero.
#ifndef QATFAST_CORE_HALF_H_
#define QATFAST_CORE_HALF_H_

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/inline.h"
#if defined(__CUDA_ARCH__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace qatfast {

// IEEE 754 binary16.
struct Float16 {
  uint16_t bits;
};

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

QATFAST_INLINE float Widen(BFloat16 value) { return BitCast<float>(static_cast<uint32_t>(value.bits) << 16); }

QATFAST_INLINE float Widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  const uint32_t subnormal = BitCast<uint32_t>(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + kRebias;
  const uint32_t infinite = normal + kRebias;
  const uint32_t special = magnitude > 0x7c00 ? infinite | 0x400000 : infinite;  // a NaN becomes a quiet one
  return BitCast<float>(sign | (magnitude < 0x400 ? subnormal : (magnitude < 0x7c00 ? normal : special)));
#endif
}

template <typename T>
QATFAST_INLINE T Narrow(float value);

// Precondition on a CPU: the lower half of a NaN is 0. It is for all that was widened or that arithmetic made. A GPU's
// arithmetic makes a NaN of 31 ones, which rounding would carry over into the sign.
template <>
QATFAST_INLINE BFloat16 Narrow<BFloat16>(float value) {
  const uint32_t bits = BitCast<uint32_t>(value);
#if defined(__CUDA_ARCH__)
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
#endif
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
QATFAST_INLINE Float16 Narrow<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t bits = BitCast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Below 2^-14 the result counts units of 2^-24, and counting them rounds half to even.
  const uint32_t subnormal = static_cast<uint32_t>(
      static_cast<int>(std::nearbyint(BitCast<float>(magnitude < 0x38800000 ? magnitude : 0) * 0x1p24f)));
  const uint32_t normal = (magnitude - kRebias + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
  const uint32_t special = magnitude > 0x7f800000 ? nan : 0x7c00;
  const uint32_t rounded = magnitude < 0x38800000 ? subnormal : (magnitude < 0x477ff000 ? normal : special);
  return {static_cast<uint16_t>(sign | rounded)};
#endif
}

// Two numbers in a word, the first in its lower half.
template <typename T>
QATFAST_INLINE T LowerHalf(uint32_t word) {
  return {static_cast<uint16_t>(word)};
}
template <typename T>
QATFAST_INLINE T UpperHalf(uint32_t word) {
  return {static_cast<uint16_t>(word >> 16)};
}

// Both at once, since newer GPUs convert in pairs.
template <typename T>
QATFAST_INLINE uint32_t NarrowPair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, BFloat16>) return BitCast<uint32_t>(__floats2bfloat162_rn(first, second));
  return BitCast<uint32_t>(__floats2half2_rn(first, second));
#else
  return Narrow<T>(first).bits | static_cast<uint32_t>(Narrow<T>(second).bits) << 16;
#endif
}

}  // namespace qatfast

// X(T) for every type that tensors may have.
#define QATFAST_FOR_TYPES(X) X(float) X(::qatfast::Float16) X(::qatfast::BFloat16) X(double)

#endif  // QATFAST_CORE_HALF_H_
