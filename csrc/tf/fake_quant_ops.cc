// TensorFlow ops of fake quantization: schemas with their documentation, shape functions, kernels.

#include "core/fake_quant.h"
#include "tensorflow/core/framework/op.h"
#include "tf/channel_op.h"

namespace qatfast {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::shape_inference::InferenceContext;

#define QATFAST_ATTRIBUTES \
  QATFAST_CHANNEL_ATTRIBUTES.Attr("narrow_range: bool = false").Attr("include_zero: bool = false")

REGISTER_OP("QatfastFakeQuant")
    .Input("x: T")
    .Input("min: P")
    .Input("max: P")
    .Output("y: T")
    .Output("mask: uint8")
    .QATFAST_ATTRIBUTES.Attr("save_mask: bool = false")
    .SetShapeFn([](InferenceContext* c) { return ForwardShape("QatfastFakeQuant", c, {{"min", 1}, {"max", 2}}); })
    .Doc(R"doc(
Quantizes x to a grid of 2^num_bits values between min and max, and dequantizes it.

With n = quant_max - quant_min, quant_max = 2^num_bits - 1, quant_min = 0 (1 if narrow_range):

    scale      = (max - min) / n
    zero_point = clip(round(quant_min - min / scale), quant_min, quant_max)
    nudged_min = (quant_min - zero_point) * scale
    nudged_max = (quant_max - zero_point) * scale
    y          = floor((clip(x, nudged_min, nudged_max) - nudged_min) / scale
                       - (zero_point - quant_min) + 0.5) * scale

Bit for bit what FakeQuantWithMinMaxVars (per tensor) and FakeQuantWithMinMaxVarsPerChannel (channels on the last
axis) compute on a CPU; like the latter, the op multiplies by n / (max - min) instead of dividing by scale if
per_channel. The same bits on CPU and GPU. Halves round up. NaN stays NaN, infinities go to the ends, an empty x gives an empty y. A range of
min == max == 0 gives zeros. Denormal numbers count as zero. The arithmetic is that of P: float32, but float64 for a
float64 x; x of 16 bits is widened before, y rounded after.

A range that cannot be quantized to is an error on a CPU. On a GPU, where looking at it would stop the stream, its
channel gives NaN, and no gradient passes.

The gradient to x is the straight-through estimator; see QatfastFakeQuantGrad and QatfastStraightThroughGrad.

x: The tensor to quantize, of any shape.
min: The lower end of the range: a scalar, or [x.shape[axis]] if per_channel. Finite and less than max, or both 0.
max: The upper end of the range, of the shape of min.
y: x on the grid.
mask: If save_mask, one bit per element of x, in order and from the lowest bit of each byte on: whether the gradient
  passes to it. Else empty.
num_bits: From 2 to 16.
narrow_range: Whether to leave out the lowest integer, so that the grid is symmetric about its middle.
per_channel: Whether each index of `axis` has a range of its own.
axis: The channel axis of x, from -rank to rank - 1. Not used unless per_channel.
include_zero: Whether to first move the range by less than a step so that zero is on the grid, or stretch it to
  zero, as adjust_range_to_include_zero does in Sony's Model Compression Toolkit.
save_mask: Whether to make the mask.
)doc");

REGISTER_OP("QatfastFakeQuantGrad")
    .Input("grad_y: T")
    .Input("x: T")
    .Input("min: P")
    .Input("max: P")
    .Output("grad_x: T")
    .QATFAST_ATTRIBUTES
    .SetShapeFn([](InferenceContext* c) {
      return BackwardShape("QatfastFakeQuantGrad", c, {{"min", 2}, {"max", 3}}, false);
    })
    .Doc(R"doc(
The gradient of QatfastFakeQuant to x: straight-through where x was in the range.

    grad_x = grad_y where nudged_min <= x <= nudged_max, else 0

x is NaN: 0. min == max == 0: grad_y everywhere. Linear in grad_y. The stock op multiplies grad_y by
1 or 0 where this one selects. For a finite, normal grad_y the results are equal; a blocked infinity or NaN gives 0 here
and NaN there.

grad_y: The gradient to the op's output, of the shape of x.
x: The op's input.
min: The op's min.
max: The op's max.
grad_x: The gradient to x.
)doc");

REGISTER_OP("QatfastFakeQuantGradWithRange")
    .Input("grad_y: T")
    .Input("x: T")
    .Input("min: P")
    .Input("max: P")
    .Output("grad_x: T")
    .Output("grad_min: P")
    .Output("grad_max: P")
    .QATFAST_ATTRIBUTES
    .SetShapeFn([](InferenceContext* c) {
      return BackwardShape("QatfastFakeQuantGradWithRange", c, {{"min", 2}, {"max", 3}}, true);
    })
    .Doc(R"doc(
The gradients of QatfastFakeQuant to x, min and max, in one pass over grad_y and x.

    grad_x   = grad_y where nudged_min <= x <= nudged_max, else 0
    grad_min = sum of grad_y where x < nudged_min
    grad_max = sum of grad_y where x > nudged_max

The sums run over all axes but the channel axis, in double, in an order fixed by the shape: the same bits on any
number of threads and with any instruction set. With include_zero, they are taken through the range adjustment,
rounding held constant, to the min and max that went in. x is NaN: adds to no sum. min == max == 0: grad_x is
grad_y, the sums are 0. An empty x gives sums of 0. Linear in grad_y.

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
class FakeQuantFamily
    : public RangeInputs<FakeQuantParams<typename KernelType<T>::type>, Arithmetic<typename KernelType<T>::type>> {
 public:
  using X = typename KernelType<T>::type;
  using P = Arithmetic<X>;
  using Params = FakeQuantParams<X>;
  static constexpr char kRequirement[] =
      "min and max must be finite and min less than max (or both 0), with a step that is a normal number";

  absl::Status Init(OpKernelConstruction* context, int num_bits, bool per_channel) {
    bool narrow_range;
    TF_RETURN_IF_ERROR(context->GetAttr("narrow_range", &narrow_range));
    TF_RETURN_IF_ERROR(context->GetAttr("include_zero", &attributes_.include_zero));
    attributes_.quant_range = MakeQuantRange(num_bits, narrow_range);
    attributes_.per_channel = per_channel;
    return absl::OkStatus();
  }
  const Params& attributes() const { return attributes_; }

  template <typename Execution>
  static void Forward(const Params& params, const X* x, X* y, uint8_t* mask, const Execution& execution) {
    FakeQuant(params, x, y, mask, execution);
  }
  template <typename Execution>
  static void Backward(const Params& params, const X* grad_y, const X* x, X* grad_x, P* const* gradients,
                       double* workspace, const Execution& execution) {
    FakeQuantGrad(params, grad_y, x, {grad_x, gradients[0], gradients[1], workspace}, execution);
  }

 private:
  Params attributes_;
};

#define QATFAST_REGISTER(T, P, DEVICE, On)                                                                           \
  REGISTER_KERNEL_BUILDER(Name("QatfastFakeQuant").Device(DEVICE).TypeConstraint<T>("T").TypeConstraint<P>("P"),     \
                          ForwardOp<FakeQuantFamily, T, On>);                                                        \
  REGISTER_KERNEL_BUILDER(Name("QatfastFakeQuantGrad").Device(DEVICE).TypeConstraint<T>("T").TypeConstraint<P>("P"), \
                          BackwardOp<FakeQuantFamily, T, On, false>);                                                \
  REGISTER_KERNEL_BUILDER(                                                                                           \
      Name("QatfastFakeQuantGradWithRange").Device(DEVICE).TypeConstraint<T>("T").TypeConstraint<P>("P"),            \
      BackwardOp<FakeQuantFamily, T, On, true>);
QATFAST_REGISTER_TYPES(QATFAST_REGISTER)
#undef QATFAST_REGISTER
#undef QATFAST_ATTRIBUTES

}  // namespace
}  // namespace qatfast
