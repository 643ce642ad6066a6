// TensorFlow ops of fake quantization: schemas with their documentation, shape functions, CPU kernels.

#include "core/fake_quant.h"
#include "tensorflow/core/framework/op.h"
#include "tf/channel_op.h"
#include "tf/cpu_execution_of.h"

namespace qatfast {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
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

Bit for bit, on CPU, what FakeQuantWithMinMaxVars (per tensor) and FakeQuantWithMinMaxVarsPerChannel (channels on
the last axis) compute; like the latter, the op multiplies by n / (max - min) instead of dividing by scale if
per_channel. Halves round up. NaN stays NaN, infinities go to the ends, an empty x gives an empty y. A range of
min == max == 0 gives zeros. Denormal numbers count as zero. The arithmetic is that of P: float32, but float64 for a
float64 x; x of 16 bits is widened before, y rounded after.

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

// What the three kernels share: the attributes, and the parameters that they and the inputs make.
template <typename T, typename P>
class FakeQuantKernel : public ChannelOpKernel {
 public:
  using Params = FakeQuantParams<typename KernelType<T>::type>;

  explicit FakeQuantKernel(OpKernelConstruction* context) : ChannelOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("narrow_range", &narrow_range_));
    OP_REQUIRES_OK(context, context->GetAttr("include_zero", &include_zero_));
  }

 protected:
  // `min_index` is the input min; max follows it.
  absl::Status MakeParams(OpKernelContext* context, const Tensor& x, int min_index, Params* params) const {
    TF_RETURN_IF_ERROR(MakeLayout(x.shape(), &params->layout));
    TF_RETURN_IF_ERROR(
        CheckParameters(context, params->layout, x.shape(), {{"min", min_index}, {"max", min_index + 1}}));
    params->quant_range = MakeQuantRange(num_bits(), narrow_range_);
    params->per_channel = per_channel();
    params->include_zero = include_zero_;
    params->min = context->input(min_index).flat<P>().data();
    params->max = context->input(min_index + 1).flat<P>().data();
    const int64_t invalid = FindInvalidChannel(*params);
    if (invalid < 0) return absl::OkStatus();
    return InvalidArgument(type_string(), ": min and max must be finite and min less than max (or both 0), got min ",
                           params->min[invalid], " and max ", params->max[invalid], InChannel(invalid));
  }

 private:
  bool narrow_range_;
  bool include_zero_;
};

template <typename T, typename P>
class FakeQuantOp : public FakeQuantKernel<T, P> {
 public:
  explicit FakeQuantOp(OpKernelConstruction* context) : FakeQuantKernel<T, P>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("save_mask", &save_mask_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    typename FakeQuantKernel<T, P>::Params params;
    OP_REQUIRES_OK(context, this->MakeParams(context, x, 1, &params));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    uint8_t* mask = nullptr;
    OP_REQUIRES_OK(context, this->AllocateMask(context, save_mask_, x.NumElements(), &mask));
    FakeQuant(params, DataOf<T>(x), DataOf<T>(y), mask, CpuExecutionOf(context));
  }

 private:
  bool save_mask_;
};

template <typename T, typename P, bool kWithRange>
class FakeQuantGradOp : public FakeQuantKernel<T, P> {
 public:
  using FakeQuantKernel<T, P>::FakeQuantKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& grad_y = context->input(0);
    const Tensor& x = context->input(1);
    OP_REQUIRES_OK(context, this->CheckGradShape(grad_y, x));
    typename FakeQuantKernel<T, P>::Params params;
    OP_REQUIRES_OK(context, this->MakeParams(context, x, 2, &params));
    FakeQuantGradients<typename KernelType<T>::type> gradients;
    Tensor workspace;
    if (kWithRange) {
      Tensor* grad_min = nullptr;
      Tensor* grad_max = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(1, context->input(2).shape(), &grad_min));
      OP_REQUIRES_OK(context, context->allocate_output(2, context->input(3).shape(), &grad_max));
      OP_REQUIRES_OK(context,
                     context->allocate_temp(tensorflow::DT_DOUBLE,
                                            TensorShape({FakeQuantGradWorkspaceSize(params.layout)}), &workspace));
      gradients.grad_min = grad_min->flat<P>().data();
      gradients.grad_max = grad_max->flat<P>().data();
      gradients.workspace = workspace.flat<double>().data();
    }
    Tensor* grad_x = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &grad_x));
    gradients.grad_x = DataOf<T>(grad_x);
    FakeQuantGrad(params, DataOf<T>(grad_y), DataOf<T>(x), gradients, CpuExecutionOf(context));
  }
};

#define QATFAST_REGISTER(T, P)                                                                                       \
  REGISTER_KERNEL_BUILDER(Name("QatfastFakeQuant").Device(DEVICE_CPU).TypeConstraint<T>("T").TypeConstraint<P>("P"), \
                          FakeQuantOp<T, P>);                                                                        \
  REGISTER_KERNEL_BUILDER(                                                                                           \
      Name("QatfastFakeQuantGrad").Device(DEVICE_CPU).TypeConstraint<T>("T").TypeConstraint<P>("P"),                 \
      FakeQuantGradOp<T, P, false>);                                                                                 \
  REGISTER_KERNEL_BUILDER(                                                                                           \
      Name("QatfastFakeQuantGradWithRange").Device(DEVICE_CPU).TypeConstraint<T>("T").TypeConstraint<P>("P"),        \
      FakeQuantGradOp<T, P, true>);
QATFAST_REGISTER_TYPES(QATFAST_REGISTER)
#undef QATFAST_REGISTER
#undef QATFAST_ATTRIBUTES

}  // namespace
}  // namespace qatfast
