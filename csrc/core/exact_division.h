// Division by a number that divides many others: the bits of IEEE division, without its branches.
//
// A GPU divides by a subroutine of some twenty instructions, with a slow branch for what a reciprocal cannot do, zero
// included. Where the divisor is known in advance four multiplications do (Markstein, "Computation of elementary
// functions on the IBM RISC System/6000 processor", 1990; Brisebarre, Muller and Raina, "Accelerating correctly rounded
// floating-point division when the divisor is known in advance", 2004).
//
// Let b be the divisor, r the number nearest to 1 / b, and q = x * r, rounded: it misses x / b by at most 1.5 units in
// its last place. With the rest x - q b as one fused operation, q + rest * r, fused as well, misses x / b by less than
// 2^-22 units before it is rounded. So it rounds as x / b does unless x / b lies that near to the middle of two
// numbers. Those pairs of x and b are few enough to try all of them (tests/cuda_emulation/division_trials.h).
//
// What would overflow or underflow on the way is kept from it: x and b are multiplied by the power of two that takes b
// to [2, 4). A quotient from 2^125 on may become infinite, where x times that power is. Below 2^-100 the rest is not
// exact, and the last bit may differ. Grids end at 2^16 steps and round what is below half a step, so neither can be
// seen, but for the last bit of a gradient's sum.
#ifndef QATFAST_CORE_EXACT_DIVISION_H_
#define QATFAST_CORE_EXACT_DIVISION_H_

#include <cmath>

#include "core/inline.h"

namespace qatfast {

// What formulas divide with where nothing else is given.
struct IeeeDivision {
  template <typename A>
  QATFAST_INLINE A operator()(A dividend, A divisor) const {
    return dividend / divisor;
  }
};

// a * b + c, rounded once. Denormal numbers count, whatever the compiler's flags say: they are as fast.
QATFAST_INLINE float FusedMultiplyAdd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
  return result;
#else
  return std::fma(a, b, c);
#endif
}

// A divisor, prepared. In double precision there is nothing to prepare: the proof by trying takes 24 bits.
template <typename A>
struct PreparedDivision;

template <>
struct PreparedDivision<float> {
  float to_scaled;   // minus a power of two
  float scaled;      // the divisor times that power, in [2, 4)
  float reciprocal;  // -1 / scaled

  // Precondition: `divisor` is positive, normal and finite, or NaN.
  QATFAST_INLINE static PreparedDivision By(float divisor) {
    constexpr uint32_t kSign = 0x80000000, kExponent = 0x7f800000;
    const uint32_t bits = BitCast<uint32_t>(divisor);
    const float scaled = BitCast<float>((bits & ~kExponent) | 0x40000000);
    const float to_scaled = BitCast<float>((kExponent - (bits & kExponent)) | kSign);
    return divisor == divisor ? PreparedDivision{to_scaled, scaled, -(1.0f / scaled)}
                              : PreparedDivision{divisor, divisor, divisor};
  }

  // What is negative is so that a quotient of -0 keeps its sign (-0 + -0, where the rest as it is would give -0 + 0),
  // and that nothing has to be negated for it.
  QATFAST_INLINE float operator()(float dividend, float /*divisor*/) const {
    constexpr float kLargest = 0x1.fffffep127f;
    const float minus_dividend = dividend * to_scaled;  // scaled
    const float quotient = minus_dividend * reciprocal;
    const float minus_rest = FusedMultiplyAdd(scaled, quotient, minus_dividend);
    const float refined = FusedMultiplyAdd(minus_rest, reciprocal, quotient);
    return std::fabs(quotient) <= kLargest ? refined : quotient;
  }
};

template <>
struct PreparedDivision<double> : IeeeDivision {
  QATFAST_INLINE static PreparedDivision By(double /*divisor*/) { return {}; }
};

}  // namespace qatfast

#endif  // QATFAST_CORE_EXACT_DIVISION_H_
