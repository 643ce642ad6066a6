// Every formula of fake quantization, written once for CPU and GPU.
//
// Bit-exactness rests on these expressions as they stand: compile without contraction into fused multiply-add
// and without reassociation.
#ifndef QATFAST_CORE_QUANT_MATH_H_
#define QATFAST_CORE_QUANT_MATH_H_

#include <cmath>
#include <limits>

#include "core/exact_division.h"
#include "core/inline.h"
#include "core/params.h"

namespace qatfast {

// Constants, since device code cannot call std::numeric_limits.
template <typename A>
constexpr A kSmallestNormal = std::numeric_limits<A>::min();
template <typename A>
constexpr A kLargest = std::numeric_limits<A>::max();
template <typename A>
constexpr A kNan = std::numeric_limits<A>::quiet_NaN();

template <typename A>
QATFAST_INLINE bool IsFinite(A value) {
  return value - value == A(0);
}

// Whether a quantization step can be divided by: positive, normal, finite.
template <typename A>
QATFAST_INLINE bool IsNormalStep(A step) {
  return (step >= kSmallestNormal<A>)&(step <= kLargest<A>);
}

template <typename A>
struct Range {
  A min;
  A max;
};

// A range moved so that zero is on its grid, and what maps a value to that grid.
template <typename A>
struct NudgedRange {
  A min;
  A max;
  A scale;
  A inv_scale;
  A quant_zero;
};

// min == max == 0 stands for "nothing to quantize": zeros forward, the whole gradient backward.
template <typename A>
QATFAST_INLINE bool IsZero(Range<A> range) {
  return (range.min == A(0)) & (range.max == A(0));
}

// Whether the quantization step is a positive normal number. It is not if an end is infinite or NaN, if
// min >= max, if max - min overflows, or if the step is so small that dividing by it would.
template <typename A>
QATFAST_INLINE bool IsValid(Range<A> range, QuantRange grid) {
  const A scale = (range.max - range.min) / static_cast<A>(grid.steps());
  return IsZero(range) | IsNormalStep(scale);
}

// The range that [min, max] becomes when zero must be on the grid: moved by less than a step where it crosses
// zero, stretched to zero where it does not. The arithmetic is that of MCT's adjust_range_to_include_zero.
template <typename A>
QATFAST_INLINE Range<A> IncludeZero(Range<A> range, QuantRange grid) {
  const A scale = (range.max - range.min) / static_cast<A>(grid.steps());
  const A min_on_grid = scale * std::nearbyint(range.min / scale);
  const A max_on_grid = range.max - range.min + min_on_grid;
  const bool is_zero = IsZero(range), is_above = range.min > A(0), is_below = range.max < A(0);
  return {is_zero | is_above ? A(0) : (is_below ? range.min : min_on_grid),
          is_zero | is_below ? A(0) : (is_above ? range.max : max_on_grid)};
}

// A range narrower than min_width, or upside down, becomes one of that width about its middle; 0 leaves all as they
// are. The gradient passes straight through: were it stopped, no step could widen the range again.
template <typename A>
QATFAST_INLINE Range<A> AtLeastAsWide(Range<A> range, A min_width) {
  const A middle = A(0.5) * range.min + A(0.5) * range.max;
  const A half_width = A(0.5) * min_width;
  const bool is_narrow = (min_width > A(0)) & (range.max - range.min < min_width);
  return {is_narrow ? middle - half_width : range.min, is_narrow ? middle + half_width : range.max};
}

// The chain rule through IncludeZero, rounding taken as constant. A range across zero becomes
// [k, k + steps] * (max - min) / steps with k = round(min / scale): both ends follow max - min alone.
template <typename A>
QATFAST_INLINE Range<double> IncludeZeroGradient(Range<double> grad, Range<A> range, QuantRange grid) {
  if (IsZero(range)) return grad;
  if (range.min > A(0)) return {0.0, grad.max};
  if (range.max < A(0)) return {grad.min, 0.0};
  const A scale = (range.max - range.min) / static_cast<A>(grid.steps());
  const double lower = static_cast<double>(std::nearbyint(range.min / scale)) / grid.steps();
  const double grad_width = lower * grad.min + (1.0 + lower) * grad.max;
  return {-grad_width, grad_width};
}

// `Nudge` of tensorflow/core/kernels/fake_quant_ops_functor.h, free of branches. Meaningless if IsZero(range).
template <typename A>
QATFAST_INLINE NudgedRange<A> Nudge(Range<A> range, QuantRange grid) {
  const A quant_min = static_cast<A>(grid.quant_min);
  const A quant_max = static_cast<A>(grid.quant_max);
  NudgedRange<A> nudged;
  const A steps = static_cast<A>(grid.steps());
  nudged.scale = (range.max - range.min) / steps;
  nudged.inv_scale = steps / (range.max - range.min);
  const A from_min = quant_min - range.min / nudged.scale;
  // std::round of a number that is not negative: halves go up, but 0.49999997 does not.
  const A whole = std::floor(from_min);
  const A rounded = from_min - whole >= A(0.5) ? whole + A(1) : whole;
  const A zero_point = from_min < quant_min ? quant_min : (from_min > quant_max ? quant_max : rounded);
  nudged.min = (quant_min - zero_point) * nudged.scale;
  nudged.max = (quant_max - zero_point) * nudged.scale;
  nudged.quant_zero = std::floor(-nudged.min * nudged.inv_scale + A(0.5));
  return nudged;
}

// `value` where it is not above `bound`; NaN stays NaN.
template <typename A>
QATFAST_INLINE A AtMost(A value, A bound) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(A) == sizeof(float)) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(bound));
    return result;
  }
#endif
  return value > bound ? bound : value;
}

// `value` where it is not below `bound`; NaN stays NaN.
template <typename A>
QATFAST_INLINE A AtLeast(A value, A bound) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(A) == sizeof(float)) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(bound));
    return result;
  }
#endif
  return value < bound ? bound : value;
}

// x rounded to the grid, halves up. NaN stays NaN; infinities go to the ends.
template <bool kPerChannel, typename A, typename Division>
QATFAST_INLINE A FakeQuantize(A x, const NudgedRange<A>& range, const Division& divide) {
  const A shifted = AtLeast(AtMost(x, range.max), range.min) - range.min;
  const A steps = kPerChannel ? shifted * range.inv_scale : divide(shifted, range.scale);
  return std::floor(steps - range.quant_zero + A(0.5)) * range.scale;
}

// Where the straight-through estimator lets the gradient pass: in the range, ends included. NaN is not.
template <typename A>
QATFAST_INLINE bool IsInRange(A x, A min, A max) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return AtLeast(AtMost(x, max), min) == x;  // which forward kernels compute anyway
#endif
  return x >= min && x <= max;
}

// The smallest power of two that is not less than `value`, a positive normal number; infinity if there is none.
QATFAST_INLINE float CeilToPowerOfTwo(float value) {
  constexpr uint32_t kMantissa = (uint32_t{1} << 23) - 1;
  return BitCast<float>((BitCast<uint32_t>(value) + kMantissa) & ~kMantissa);
}
QATFAST_INLINE double CeilToPowerOfTwo(double value) {
  constexpr uint64_t kMantissa = (uint64_t{1} << 52) - 1;
  return BitCast<double>((BitCast<uint64_t>(value) + kMantissa) & ~kMantissa);
}

// `step` as MCT's grad_scale() returns it: step, but for the rounding of the sum. It keeps the value and multiplies
// the gradient by `grad_scale`; with a grad_scale from 0.5 to 2 it is exact.
template <typename A>
QATFAST_INLINE A ScaleGradient(A step, A grad_scale) {
  const A scaled = grad_scale * step;
  return (step - scaled) + scaled;
}

// The integer nearest to `value`, halves to the even one, and zero without a sign. On a GPU, where additions are faster
// than rounding, some integer as large from 2^22 on (2^51 in double precision), which is beyond the ends of any grid.
template <typename A>
QATFAST_INLINE A RoundHalfEven(A value) {
  if constexpr (kOnGpu) {
    // So large that its last place counts ones.
    constexpr A kOnes = A(3) * A(int64_t{1} << (std::numeric_limits<A>::digits - 2));
    return (value + kOnes) - kOnes;
  }
  return std::nearbyint(value) + A(0);
}

// Learned step size quantization to lowest .. highest steps, of which `value` is given in steps. NaN stays NaN.
template <typename A>
QATFAST_INLINE A LsqQuantize(A value, A lowest, A highest) {
  return AtMost(AtLeast(RoundHalfEven(value), lowest), highest);
}

// Whether a value, given in steps, rounds to one of lowest .. highest. NaN does not.
template <typename A>
QATFAST_INLINE bool LsqPasses(A value, A lowest, A highest) {
  const A rounded = RoundHalfEven(value);
  return rounded >= lowest && rounded <= highest;
}

// The gradient to x at a value, given in steps: grad_y where r == c, with r = round(value) and c = clip(r). `to_step`
// becomes grad_y * (c - [r == c] value), since that is what the output, in steps, moves by when the step grows by one,
// and `clipped` becomes grad_y where r != c. NaN gives 0 in all three.
template <typename A>
QATFAST_INLINE A LsqBackward(A grad_y, A value, A lowest, A highest, A& to_step, A& clipped) {
  const A counted = value == value ? grad_y : A(0);
  const A rounded = RoundHalfEven(value);
  const A above = rounded > lowest ? rounded : lowest;  // lowest for NaN
  const A on_grid = above < highest ? above : highest;
  const bool passes = rounded == on_grid;
  to_step = counted * (on_grid - (passes ? value : A(0)));
  clipped = passes ? A(0) : counted;
  return passes ? counted : A(0);
}

}  // namespace qatfast

#endif  // QATFAST_CORE_QUANT_MATH_H_
