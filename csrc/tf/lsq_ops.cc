// TensorFlow ops of learned step size quantization: schemas with their documentation, shape functions, kernels.

#include "core/lsq.h"
#include "tensorflow/core/framework/op.h"
#include "tf/channel_op.h"

namespace qatfast {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::shape_inference::InferenceContext;

absl::Status CheckGradScale(const std::string& op, float grad_scale) {
  if (grad_scale > 0 && grad_scale <= std::numeric_limits<float>::max()) return absl::OkStatus();
  return InvalidArgument(op, ": grad_scale must be positive and finite, got ", grad_scale);
}

// The smallest threshold or width that an op lets through.
absl::Status CheckGuard(const std::string& op, const char* name, float guard) {
  if (guard >= 0 && guard <= std::numeric_limits<float>::max()) return absl::OkStatus();
  return InvalidArgument(op, ": ", name, " must be finite and not negative, got ", guard);
}

#define QATFAST_SYMMETRIC_ATTRIBUTES                     \
  QATFAST_CHANNEL_ATTRIBUTES.Attr("signed: bool = true") \
      .Attr("power_of_two: bool = false")                \
      .Attr("grad_scale: float = 1.0")                   \
      .Attr("min_threshold: float = 0.0")

#define QATFAST_UNIFORM_ATTRIBUTES                           \
  QATFAST_CHANNEL_ATTRIBUTES.Attr("grad_scale: float = 1.0") \
      .Attr("min_width: float = 0.0")                        \
      .Attr("exact_zero: bool = false")

REGISTER_OP("QatfastLsqSymmetric")
    .Input("x: T")
    .Input("threshold: P")
    .Output("y: T")
    .Output("mask: uint8")
    .QATFAST_SYMMETRIC_ATTRIBUTES.Attr("save_mask: bool = false")
    .SetShapeFn([](InferenceContext* c) { return ForwardShape("QatfastLsqSymmetric", c, {{"threshold", 1}}); })
    .Doc(R"doc(
Quantizes x to integers times a learned step, and dequantizes it (LSQ, https://arxiv.org/abs/1902.08153).

    t      = max(threshold, min_threshold)
    t      = 2^ceil(log2(t))                       if power_of_two
    n      = 2^(num_bits - signed)
    step   = t / n                                 up to one unit in the last place, see below
    c      = clip(round(x / step), signed ? -n : 0, n - 1)
    y      = step * c

round takes halves to the even integer. Bit for bit what symmetric_lsq_quantizer of Sony's Model Compression Toolkit
computes. That function scales the step's gradient in a way that also rounds the step: with d = t / n it uses
(d - grad_scale * d) + grad_scale * d, and so does this op, unless power_of_two.

NaN stays NaN, infinities go to the ends (there they become NaN), an empty x gives an empty y. Denormal numbers count as
zero. The arithmetic is that of P: float32, but float64 for a float64 x; x of 16 bits is widened before, y rounded
after.

What cannot be quantized with is an error on a CPU. On a GPU, where looking at it would stop the stream, its channel
gives NaN, and no gradient passes.

x: The tensor to quantize, of any shape.
threshold: The end of the range: a scalar, or [x.shape[axis]] if per_channel. Its step must be a positive normal
  number; with a min_threshold, any finite threshold gives one.
y: x on the grid.
mask: If save_mask, one bit per element of x, in order and from the lowest bit of each byte on: whether the gradient
  passes to it. Else empty.
num_bits: From 2 to 16.
per_channel: Whether each index of `axis` has a threshold of its own.
axis: The channel axis of x, from -rank to rank - 1. Not used unless per_channel.
signed: Whether the grid is about zero; else it starts there.
power_of_two: Whether the threshold is rounded up to a power of two.
grad_scale: What the gradient to the threshold is multiplied by.
min_threshold: The smallest threshold that is used, or 0. Its gradient still passes to the threshold that came in.
save_mask: Whether to make the mask.
)doc");

REGISTER_OP("QatfastLsqSymmetricGrad")
    .Input("grad_y: T")
    .Input("x: T")
    .Input("threshold: P")
    .Output("grad_x: T")
    .Output("grad_threshold: P")
    .QATFAST_SYMMETRIC_ATTRIBUTES
    .SetShapeFn([](InferenceContext* c) {
      return BackwardShape("QatfastLsqSymmetricGrad", c, {{"threshold", 2}}, true);
    })
    .Doc(R"doc(
The gradients of QatfastLsqSymmetric to x and threshold, in one pass over grad_y and x.

With v = x / step, r = round(v) and c = clip(r):

    grad_x         = grad_y where r == c, else 0
    grad_step      = sum of grad_y * (c - v where r == c, c elsewhere)
    grad_threshold = grad_step * grad_scale / n        * t / max(threshold, min_threshold) if power_of_two

The last factor is the derivative of 2^ceil(log2(threshold)) with ceil taken as the identity
(https://arxiv.org/abs/1903.08066). The sum runs over all axes but the channel axis, in double, in an order fixed by
the shape: the same bits on any number of threads and with any instruction set. x is NaN: 0, and adds nothing. Linear
in grad_y.

grad_y: The gradient to the op's output, of the shape of x.
x: The op's input.
threshold: The op's threshold.
grad_x: The gradient to x.
grad_threshold: The gradient to threshold, of its shape.
)doc");

REGISTER_OP("QatfastLsqUniform")
    .Input("x: T")
    .Input("min: P")
    .Input("max: P")
    .Output("y: T")
    .Output("mask: uint8")
    .QATFAST_UNIFORM_ATTRIBUTES.Attr("save_mask: bool = false")
    .SetShapeFn([](InferenceContext* c) { return ForwardShape("QatfastLsqUniform", c, {{"min", 1}, {"max", 2}}); })
    .Doc(R"doc(
Quantizes x to a learned range, and dequantizes it (LSQ, https://arxiv.org/abs/1902.08153).

    min, max = (min + max) / 2 -+ min_width / 2    where max - min < min_width
    min, max = moved by less than a step so that zero is on the grid, or stretched to zero
    n        = 2^num_bits - 1
    step     = (max - min) / n                     up to one unit in the last place, see QatfastLsqSymmetric
    c        = clip(round((x - min) / step), 0, n)
    y        = step * c + min

round takes halves to the even integer. Bit for bit what uniform_lsq_quantizer of Sony's Model Compression Toolkit
computes, range adjustment included, wherever max - min is at least min_width. As there, min is a rounded multiple of
the step, so that y(0) misses 0 by that rounding for about 1 % of ranges, by up to 0.003 steps at 16 bits.

With exact_zero the grid is the integers k to k + n, minus the zero point and on, times the step, and y(0) is 0:

    min, max = (min + max) / 2 -+ min_width / 2    where max - min < min_width
    min, max = min(min, 0), max(max, 0)
    step     = (max - min) / n                     up to one unit in the last place, as above
    k        = clip(round(min / ((max - min) / n)), -n, 0)
    c        = clip(round(x / step), k, k + n)
    y        = step * c

NaN stays NaN, infinities go to the ends (there they become NaN), an empty x gives an empty y. Denormal numbers count as
zero. The arithmetic is that of P: float32, but float64 for a float64 x; x of 16 bits is widened before, y rounded
after.

What cannot be quantized with is an error on a CPU. On a GPU, where looking at it would stop the stream, its channel
gives NaN, and no gradient passes.

x: The tensor to quantize, of any shape.
min: The lower end of the range: a scalar, or [x.shape[axis]] if per_channel. Finite and less than max; with a
  min_width, any two finite numbers.
max: The upper end of the range, of the shape of min.
y: x on the grid.
mask: If save_mask, one bit per element of x, in order and from the lowest bit of each byte on: whether the gradient
  passes to it. Else empty.
num_bits: From 2 to 16.
per_channel: Whether each index of `axis` has a range of its own.
axis: The channel axis of x, from -rank to rank - 1. Not used unless per_channel.
grad_scale: What the gradient to the step is multiplied by.
min_width: The width of the narrowest range that is used, or 0. Its gradient still passes to the ends that came in.
exact_zero: Whether all of the grid are integers times the step, zero among them.
save_mask: Whether to make the mask.
)doc");

REGISTER_OP("QatfastLsqUniformGrad")
    .Input("grad_y: T")
    .Input("x: T")
    .Input("min: P")
    .Input("max: P")
    .Output("grad_x: T")
    .Output("grad_min: P")
    .Output("grad_max: P")
    .QATFAST_UNIFORM_ATTRIBUTES
    .SetShapeFn([](InferenceContext* c) {
      return BackwardShape("QatfastLsqUniformGrad", c, {{"min", 2}, {"max", 3}}, true);
    })
    .Doc(R"doc(
The gradients of QatfastLsqUniform to x, min and max, in one pass over grad_y and x.

With v = (x - min) / step, r = round(v) and c = clip(r), of the range that is used:

    grad_x    = grad_y where r == c, else 0
    grad_step = grad_scale * sum of grad_y * (c - v where r == c, c elsewhere)
    grad_max  = grad_step / n
    grad_min  = sum of grad_y where r != c, minus grad_step / n

and these go through the range adjustment, rounding held constant, to the min and max that came in. With exact_zero, v is
x / step and the grid follows the width of the range alone; an end that zero took the place of has no gradient:

    grad_max  = grad_step / n, but 0 where max < 0
    grad_min  = -grad_step / n, but 0 where min > 0

The sums run over all axes but the channel axis, in double, in an order fixed by the shape: the same bits on any number
of threads and with any instruction set. x is NaN: 0, and adds nothing. Linear in grad_y.

grad_y: The gradient to the op's output, of the shape of x.
x: The op's input.
min: The op's min.
max: The op's max.
grad_x: The gradient to x.
grad_min: The gradient to min, of its shape.
grad_max: The gradient to max, of its shape.
)doc");

// See FamilyKernel.
template <typename T>
class LsqSymmetricFamily {
 public:
  using X = typename KernelType<T>::type;
  using P = Arithmetic<X>;
  using Params = LsqSymmetricParams<X>;
  static constexpr std::array kParameters = {"threshold"};
  static constexpr char kRequirement[] = "threshold must be positive, finite and such that the step is a normal number";

  absl::Status Init(OpKernelConstruction* context, int num_bits, bool) {
    TF_RETURN_IF_ERROR(context->GetAttr("signed", &attributes_.is_signed));
    TF_RETURN_IF_ERROR(context->GetAttr("power_of_two", &attributes_.power_of_two));
    TF_RETURN_IF_ERROR(context->GetAttr("grad_scale", &attributes_.grad_scale));
    TF_RETURN_IF_ERROR(context->GetAttr("min_threshold", &attributes_.min_threshold));
    attributes_.num_bits = num_bits;
    const std::string& op = context->def().op();
    TF_RETURN_IF_ERROR(CheckGradScale(op, attributes_.grad_scale));
    return CheckGuard(op, "min_threshold", attributes_.min_threshold);
  }
  const Params& attributes() const { return attributes_; }

  static void SetInputs(const P* const* inputs, Params* params) { params->threshold = inputs[0]; }
  static std::string Got(const Params& params, int64_t channel) { return absl::StrCat(params.threshold[channel]); }

  template <typename Execution>
  static void Forward(const Params& params, const X* x, X* y, uint8_t* mask, const Execution& execution) {
    Lsq(params, x, y, mask, execution);
  }
  template <typename Execution>
  static void Backward(const Params& params, const X* grad_y, const X* x, X* grad_x, P* const* gradients,
                       double* workspace, const Execution& execution) {
    LsqGrad(params, grad_y, x, LsqSymmetricGradients<X>{grad_x, gradients[0], workspace}, execution);
  }

 private:
  Params attributes_;
};

template <typename T>
class LsqUniformFamily
    : public RangeInputs<LsqUniformParams<typename KernelType<T>::type>, Arithmetic<typename KernelType<T>::type>> {
 public:
  using X = typename KernelType<T>::type;
  using P = Arithmetic<X>;
  using Params = LsqUniformParams<X>;
  static constexpr char kRequirement[] =
      "min and max must be finite and min less than max, with a step that is a normal number";

  absl::Status Init(OpKernelConstruction* context, int num_bits, bool) {
    TF_RETURN_IF_ERROR(context->GetAttr("grad_scale", &attributes_.grad_scale));
    TF_RETURN_IF_ERROR(context->GetAttr("min_width", &attributes_.min_width));
    TF_RETURN_IF_ERROR(context->GetAttr("exact_zero", &attributes_.exact_zero));
    attributes_.num_bits = num_bits;
    const std::string& op = context->def().op();
    TF_RETURN_IF_ERROR(CheckGradScale(op, attributes_.grad_scale));
    return CheckGuard(op, "min_width", attributes_.min_width);
  }
  const Params& attributes() const { return attributes_; }

  template <typename Execution>
  static void Forward(const Params& params, const X* x, X* y, uint8_t* mask, const Execution& execution) {
    Lsq(params, x, y, mask, execution);
  }
  template <typename Execution>
  static void Backward(const Params& params, const X* grad_y, const X* x, X* grad_x, P* const* gradients,
                       double* workspace, const Execution& execution) {
    LsqGrad(params, grad_y, x, LsqUniformGradients<X>{grad_x, gradients[0], gradients[1], workspace}, execution);
  }

 private:
  Params attributes_;
};

#define QATFAST_REGISTER_OP(NAME, FAMILY, T, P, DEVICE, On)                                               \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(DEVICE).TypeConstraint<T>("T").TypeConstraint<P>("P"),        \
                          ForwardOp<FAMILY, T, On>);                                                      \
  REGISTER_KERNEL_BUILDER(Name(NAME "Grad").Device(DEVICE).TypeConstraint<T>("T").TypeConstraint<P>("P"), \
                          BackwardOp<FAMILY, T, On, true>);
#define QATFAST_REGISTER(T, P, DEVICE, On)                                         \
  QATFAST_REGISTER_OP("QatfastLsqSymmetric", LsqSymmetricFamily, T, P, DEVICE, On) \
  QATFAST_REGISTER_OP("QatfastLsqUniform", LsqUniformFamily, T, P, DEVICE, On)
QATFAST_REGISTER_TYPES(QATFAST_REGISTER)
#undef QATFAST_REGISTER
#undef QATFAST_REGISTER_OP
#undef QATFAST_SYMMETRIC_ATTRIBUTES
#undef QATFAST_UNIFORM_ATTRIBUTES

}  // namespace
}  // namespace qatfast
