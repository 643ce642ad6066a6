// The ops as the drivers of channel_kernels.h (and the CUDA kernels) see them.
//
// A Formula is a small struct of an op's attributes with
//   kInputs, Inputs      the numbers that a channel is quantized with, as they come in: A threshold, or min and max
//   kColumns, Prepared   what the loops need of them: a struct of kColumns A's, which kFields lists in order
//   kTerms               how many sums over a channel its backward makes
//   kMayBeZero           whether IsZero(Inputs) can be, for which y = 0 and the whole gradient passes
//   kHasChannels         whether there can be more than one channel
//   IsValid(inputs)      whether these inputs can be quantized with
//   Prepare(inputs)      precondition: IsValid(inputs)
//   PrepareIfValid(inputs, prepared)   both, which have much in common; what it prepares is of use if it is true
//   Quantize(x, p, divide)   the output
//   Passes(x, p, divide)     whether the gradient passes to x
//   Backward(grad_y, x, p, terms, divide)   the gradient to x, and what this element adds to the sums
//   kDivides, Divisor(p) whether the three above divide, and by what
//   InputGradients(sums, inputs, gradients)   from the sums to the gradients to the inputs
// `divide(a, b)` is a / b, by IEEE's division unless the caller has a faster one (exact_division.h).
// All of them free of branches in what Quantize, Passes, Backward and Prepare do, so that loops become vectors.
#ifndef QATFAST_CORE_FORMULAS_H_
#define QATFAST_CORE_FORMULAS_H_

#include "core/quant_math.h"

namespace qatfast {

template <typename A, bool kPerChannel>
struct FakeQuantFormula {
  using Arithmetic = A;
  using Inputs = Range<A>;
  using Prepared = NudgedRange<A>;
  static constexpr int kInputs = 2;
  static constexpr int kColumns = 5;
  using Field = A Prepared::*;
  static constexpr Field kFields[] = {&Prepared::min, &Prepared::max, &Prepared::scale, &Prepared::inv_scale,
                                      &Prepared::quant_zero};
  static constexpr int kTerms = 2;
  static constexpr bool kMayBeZero = true;
  static constexpr bool kDivides = !kPerChannel;
  static constexpr bool kHasChannels = kPerChannel;

  QuantRange grid;
  bool include_zero;

  QATFAST_INLINE bool IsValid(Inputs range) const {
    // IncludeZero may turn NaN into 0, so the ends are looked at before it too.
    return IsFinite(range.min) & IsFinite(range.max) & (range.min <= range.max) &
           qatfast::IsValid(Adjusted(range), grid);
  }
  QATFAST_INLINE static bool IsZero(Inputs range) { return qatfast::IsZero(range); }
  QATFAST_INLINE bool PrepareIfValid(Inputs range, Prepared& prepared) const {
    const Inputs adjusted = Adjusted(range);
    prepared = Nudge(adjusted, grid);
    return IsFinite(range.min) & IsFinite(range.max) & (range.min <= range.max) &
           (qatfast::IsZero(adjusted) | IsNormalStep(prepared.scale));
  }
  QATFAST_INLINE Prepared Prepare(Inputs range) const { return Nudge(Adjusted(range), grid); }
  QATFAST_INLINE static A Divisor(const Prepared& range) { return range.scale; }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Quantize(A x, const Prepared& range, const Division& divide = {}) const {
    return FakeQuantize<kPerChannel>(x, range, divide);
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE bool Passes(A x, const Prepared& range, const Division& = {}) const {
    return IsInRange(x, range.min, range.max);
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Backward(A grad_y, A x, const Prepared& range, A* terms, const Division& = {}) const {
    terms[0] = x < range.min ? grad_y : A(0);
    terms[1] = x > range.max ? grad_y : A(0);
    return IsInRange(x, range.min, range.max) ? grad_y : A(0);
  }
  QATFAST_INLINE void InputGradients(const double* sums, Inputs range, A* gradients) const {
    Range<double> gradient = {sums[0], sums[1]};
    if (include_zero) gradient = IncludeZeroGradient(gradient, range, grid);
    gradients[0] = static_cast<A>(gradient.min);
    gradients[1] = static_cast<A>(gradient.max);
  }

 private:
  QATFAST_INLINE Inputs Adjusted(Inputs range) const {
    if (kOnGpu && !include_zero) return range;  // threads have no vectors to lose
    const Inputs with_zero = IncludeZero(range, grid);
    return {SelectBits(include_zero, with_zero.min, range.min), SelectBits(include_zero, with_zero.max, range.max)};
  }
};

// Learned step size quantization with zero in the middle of the grid, or at its start: integers times the step.
template <typename A>
struct LsqSymmetricFormula {
  struct Inputs {
    A threshold;
  };
  struct Prepared {
    A step;
  };
  using Arithmetic = A;
  static constexpr int kInputs = 1;
  static constexpr int kColumns = 1;
  using Field = A Prepared::*;
  static constexpr Field kFields[] = {&Prepared::step};
  static constexpr int kTerms = 1;
  static constexpr bool kMayBeZero = false;
  static constexpr bool kDivides = true;
  static constexpr bool kHasChannels = true;

  A lowest;   // -steps, or 0 if unsigned
  A highest;  // steps - 1
  A steps;    // of the threshold, a power of two
  A inverse_steps;
  A grad_scale;
  A min_threshold;  // 0: none
  bool power_of_two;

  QATFAST_INLINE bool IsValid(Inputs inputs) const { return IsNormalStep(Prepare(inputs).step); }
  QATFAST_INLINE bool PrepareIfValid(Inputs inputs, Prepared& prepared) const {
    prepared = Prepare(inputs);
    return IsValid(inputs);
  }
  QATFAST_INLINE Prepared Prepare(Inputs inputs) const {
    const A guarded = Guarded(inputs.threshold);
    // A power of two needs no scaling of gradients in its forward pass: it would not stay one.
    // 1 / steps is a power of two, so multiplying with it has the bits of dividing by steps.
    return {power_of_two ? CeilToPowerOfTwo(guarded) * inverse_steps
                         : ScaleGradient(guarded * inverse_steps, grad_scale)};
  }
  QATFAST_INLINE static A Divisor(const Prepared& p) { return p.step; }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Quantize(A x, const Prepared& p, const Division& divide = {}) const {
    return p.step * LsqQuantize(divide(x, p.step), lowest, highest);
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE bool Passes(A x, const Prepared& p, const Division& divide = {}) const {
    return LsqPasses(divide(x, p.step), lowest, highest);
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Backward(A grad_y, A x, const Prepared& p, A* terms, const Division& divide = {}) const {
    A clipped;
    return LsqBackward(grad_y, divide(x, p.step), lowest, highest, terms[0], clipped);
  }
  // Through the guard the gradient passes straight. Through the power of two t' of t it is multiplied by t' / t: the
  // derivative of 2^ceil(log2 t) with ceil taken as the identity (Jain et al., https://arxiv.org/abs/1903.08066).
  QATFAST_INLINE void InputGradients(const double* sums, Inputs inputs, A* gradients) const {
    const A guarded = Guarded(inputs.threshold);
    const double chain = power_of_two ? static_cast<double>(CeilToPowerOfTwo(guarded)) / guarded : 1.0;
    gradients[0] = static_cast<A>(sums[0] * grad_scale / steps * chain);
  }

 private:
  QATFAST_INLINE A Guarded(A threshold) const { return threshold < min_threshold ? min_threshold : threshold; }
};

// Learned step size quantization from min to max, moved so that zero is on the grid: min plus integers times the step.
template <typename A>
struct LsqUniformFormula {
  using Arithmetic = A;
  using Inputs = Range<A>;
  struct Prepared {
    A step;
    A min;
  };
  static constexpr int kInputs = 2;
  static constexpr int kColumns = 2;
  using Field = A Prepared::*;
  static constexpr Field kFields[] = {&Prepared::step, &Prepared::min};
  static constexpr int kTerms = 2;
  static constexpr bool kMayBeZero = false;
  static constexpr bool kDivides = true;
  static constexpr bool kHasChannels = true;

  QuantRange grid;  // from 0
  A grad_scale;
  A min_width;  // 0: none

  QATFAST_INLINE bool IsValid(Inputs range) const {
    const Inputs guarded = AtLeastAsWide(range, min_width);
    return IsFinite(range.min) & IsFinite(range.max) & (guarded.min <= guarded.max) & IsNormalStep(Prepare(range).step);
  }
  QATFAST_INLINE bool PrepareIfValid(Inputs range, Prepared& prepared) const {
    prepared = Prepare(range);
    return IsValid(range);
  }
  QATFAST_INLINE Prepared Prepare(Inputs range) const {
    const Range<A> adjusted = IncludeZero(AtLeastAsWide(range, min_width), grid);
    return {ScaleGradient((adjusted.max - adjusted.min) / static_cast<A>(grid.steps()), grad_scale), adjusted.min};
  }
  QATFAST_INLINE static A Divisor(const Prepared& p) { return p.step; }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Quantize(A x, const Prepared& p, const Division& divide = {}) const {
    return p.step * LsqQuantize(divide(x - p.min, p.step), A(0), Highest()) + p.min;
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE bool Passes(A x, const Prepared& p, const Division& divide = {}) const {
    return LsqPasses(divide(x - p.min, p.step), A(0), Highest());
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Backward(A grad_y, A x, const Prepared& p, A* terms, const Division& divide = {}) const {
    return LsqBackward(grad_y, divide(x - p.min, p.step), A(0), Highest(), terms[0], terms[1]);
  }
  // y = step * c + min, with step = (max - min) / n of the adjusted range. What is clipped follows min as a whole.
  QATFAST_INLINE void InputGradients(const double* sums, Inputs range, A* gradients) const {
    const double to_max = sums[0] * grad_scale / grid.steps();
    const Range<double> of_adjusted = {sums[1] - to_max, to_max};
    const Range<double> gradient = IncludeZeroGradient(of_adjusted, AtLeastAsWide(range, min_width), grid);
    gradients[0] = static_cast<A>(gradient.min);
    gradients[1] = static_cast<A>(gradient.max);
  }

 private:
  QATFAST_INLINE A Highest() const { return static_cast<A>(grid.quant_max); }
};

// Learned step size quantization from min to max with an integer zero point: integers times the step, so that zero is
// exactly on the grid. LsqUniformFormula's grid begins at a multiple of the step that is rounded, from which counting
// up to zero in steps misses it by the rounding.
template <typename A>
struct LsqZeroPointFormula {
  using Arithmetic = A;
  using Inputs = Range<A>;
  struct Prepared {
    A step;
    A lowest;  // in steps: minus the zero point
  };
  static constexpr int kInputs = 2;
  static constexpr int kColumns = 2;
  using Field = A Prepared::*;
  static constexpr Field kFields[] = {&Prepared::step, &Prepared::lowest};
  static constexpr int kTerms = 1;
  static constexpr bool kMayBeZero = false;
  static constexpr bool kDivides = true;
  static constexpr bool kHasChannels = true;

  A steps;  // from the lowest to the highest
  A grad_scale;
  A min_width;  // 0: none

  QATFAST_INLINE bool IsValid(Inputs range) const {
    const Inputs guarded = AtLeastAsWide(range, min_width);
    return IsFinite(range.min) & IsFinite(range.max) & (guarded.min <= guarded.max) & IsNormalStep(Prepare(range).step);
  }
  QATFAST_INLINE bool PrepareIfValid(Inputs range, Prepared& prepared) const {
    prepared = Prepare(range);
    return IsValid(range);
  }
  QATFAST_INLINE Prepared Prepare(Inputs range) const {
    const Inputs guarded = AtLeastAsWide(range, min_width);
    const A min = guarded.min < A(0) ? guarded.min : A(0);
    const A max = guarded.max > A(0) ? guarded.max : A(0);
    const A step = (max - min) / steps;
    // The clipping is for ranges that end in zero, whose quotient is -steps but for its rounding.
    return {ScaleGradient(step, grad_scale), LsqQuantize(min / step, -steps, A(0))};
  }
  QATFAST_INLINE static A Divisor(const Prepared& p) { return p.step; }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Quantize(A x, const Prepared& p, const Division& divide = {}) const {
    return p.step * LsqQuantize(divide(x, p.step), p.lowest, p.lowest + steps);
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE bool Passes(A x, const Prepared& p, const Division& divide = {}) const {
    return LsqPasses(divide(x, p.step), p.lowest, p.lowest + steps);
  }
  template <typename Division = IeeeDivision>
  QATFAST_INLINE A Backward(A grad_y, A x, const Prepared& p, A* terms, const Division& divide = {}) const {
    A clipped;
    return LsqBackward(grad_y, divide(x, p.step), p.lowest, p.lowest + steps, terms[0], clipped);
  }
  // y = step * c, with step = (max - min) / steps of the range that is stretched to zero; c is of rounded numbers
  // alone.
  QATFAST_INLINE void InputGradients(const double* sums, Inputs range, A* gradients) const {
    const Inputs guarded = AtLeastAsWide(range, min_width);
    const double to_width = sums[0] * grad_scale / steps;
    gradients[0] = guarded.min > A(0) ? A(0) : static_cast<A>(-to_width);
    gradients[1] = guarded.max < A(0) ? A(0) : static_cast<A>(to_width);
  }
};

// Calls body(formula) with the formula of these parameters.
template <typename T, typename Body>
auto WithFormula(const LsqSymmetricParams<T>& params, Body body) {
  using A = Arithmetic<T>;
  const auto steps = static_cast<A>(1 << (params.num_bits - (params.is_signed ? 1 : 0)));
  return body(LsqSymmetricFormula<A>{params.is_signed ? -steps : 0, steps - 1, steps, A(1) / steps, params.grad_scale,
                                     params.min_threshold, params.power_of_two});
}

template <typename T, typename Body>
auto WithFormula(const LsqUniformParams<T>& params, Body body) {
  using A = Arithmetic<T>;
  const QuantRange grid = MakeQuantRange(params.num_bits, false);
  if (params.exact_zero) {
    return body(LsqZeroPointFormula<A>{static_cast<A>(grid.steps()), params.grad_scale, params.min_width});
  }
  return body(LsqUniformFormula<A>{grid, params.grad_scale, params.min_width});
}

}  // namespace qatfast

#endif  // QATFAST_CORE_FORMULAS_H_
