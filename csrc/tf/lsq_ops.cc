// TensorFlow ops of learned step size quantization: schemas with their documentation, shape functions, CPU kernels.

#include "core/lsq.h"
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

#define QATFAST_UNIFORM_ATTRIBUTES \
  QATFAST_CHANNEL_ATTRIBUTES.Attr("grad_scale: float = 1.0").Attr("min_width: float = 0.0")

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
computes, range adjustment included, wherever max - min is at least min_width.

NaN stays NaN, infinities go to the ends (there they become NaN), an empty x gives an empty y. Denormal numbers count as
zero. The arithmetic is that of P: float32, but float64 for a float64 x; x of 16 bits is widened before, y rounded
after.

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

and these go through the range adjustment, rounding held constant, to the min and max that came in. The sums run over all
axes but the channel axis, in double, in an order fixed by the shape: the same bits on any number of threads and with any
instruction set. x is NaN: 0, and adds nothing. Linear in grad_y.

grad_y: The gradient to the op's output, of the shape of x.
x: The op's input.
min: The op's min.
max: The op's max.
grad_x: The gradient to x.
grad_min: The gradient to min, of its shape.
grad_max: The gradient to max, of its shape.
)doc");

// The attributes and the parameters of each op; `first` is the input that holds the first parameter.
template <typename T, typename P>
class LsqSymmetricKernel : public ChannelOpKernel {
 public:
  using Params = LsqSymmetricParams<typename KernelType<T>::type>;
  using Gradients = LsqSymmetricGradients<typename KernelType<T>::type>;
  static constexpr int kParameters = 1;

  explicit LsqSymmetricKernel(OpKernelConstruction* context) : ChannelOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("signed", &attributes_.is_signed));
    OP_REQUIRES_OK(context, context->GetAttr("power_of_two", &attributes_.power_of_two));
    OP_REQUIRES_OK(context, context->GetAttr("grad_scale", &attributes_.grad_scale));
    OP_REQUIRES_OK(context, CheckGradScale(type_string(), attributes_.grad_scale));
    OP_REQUIRES_OK(context, context->GetAttr("min_threshold", &attributes_.min_threshold));
    OP_REQUIRES_OK(context, CheckGuard(type_string(), "min_threshold", attributes_.min_threshold));
    attributes_.num_bits = num_bits();
  }

 protected:
  absl::Status MakeParams(OpKernelContext* context, const Tensor& x, int first, Params* params) const {
    *params = attributes_;
    TF_RETURN_IF_ERROR(MakeLayout(x.shape(), &params->layout));
    TF_RETURN_IF_ERROR(CheckParameters(context, params->layout, x.shape(), {{"threshold", first}}));
    params->threshold = context->input(first).flat<P>().data();
    const int64_t invalid = FindInvalidChannel(*params);
    if (invalid < 0) return absl::OkStatus();
    return InvalidArgument(type_string(), ": threshold must be positive, finite and such that the step is a normal ",
                           "number, got ", params->threshold[invalid], InChannel(invalid));
  }
  static int64_t WorkspaceSize(const ChannelLayout& layout) { return LsqSymmetricGradWorkspaceSize(layout); }
  static void SetOutputs(P* const* parameters, Gradients* gradients) { gradients->grad_threshold = parameters[0]; }

 private:
  Params attributes_;
};

template <typename T, typename P>
class LsqUniformKernel : public ChannelOpKernel {
 public:
  using Params = LsqUniformParams<typename KernelType<T>::type>;
  using Gradients = LsqUniformGradients<typename KernelType<T>::type>;
  static constexpr int kParameters = 2;

  explicit LsqUniformKernel(OpKernelConstruction* context) : ChannelOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("grad_scale", &attributes_.grad_scale));
    OP_REQUIRES_OK(context, CheckGradScale(type_string(), attributes_.grad_scale));
    OP_REQUIRES_OK(context, context->GetAttr("min_width", &attributes_.min_width));
    OP_REQUIRES_OK(context, CheckGuard(type_string(), "min_width", attributes_.min_width));
    attributes_.num_bits = num_bits();
  }

 protected:
  absl::Status MakeParams(OpKernelContext* context, const Tensor& x, int first, Params* params) const {
    *params = attributes_;
    TF_RETURN_IF_ERROR(MakeLayout(x.shape(), &params->layout));
    TF_RETURN_IF_ERROR(CheckParameters(context, params->layout, x.shape(), {{"min", first}, {"max", first + 1}}));
    params->min = context->input(first).flat<P>().data();
    params->max = context->input(first + 1).flat<P>().data();
    const int64_t invalid = FindInvalidChannel(*params);
    if (invalid < 0) return absl::OkStatus();
    return InvalidArgument(type_string(), ": min and max must be finite and min less than max, got min ",
                           params->min[invalid], " and max ", params->max[invalid], InChannel(invalid));
  }
  static int64_t WorkspaceSize(const ChannelLayout& layout) { return LsqUniformGradWorkspaceSize(layout); }
  static void SetOutputs(P* const* parameters, Gradients* gradients) {
    gradients->grad_min = parameters[0];
    gradients->grad_max = parameters[1];
  }

 private:
  Params attributes_;
};

template <typename T, typename Kernel>
class LsqOp : public Kernel {
 public:
  explicit LsqOp(OpKernelConstruction* context) : Kernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("save_mask", &save_mask_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    typename Kernel::Params params;
    OP_REQUIRES_OK(context, this->MakeParams(context, x, 1, &params));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    uint8_t* mask = nullptr;
    OP_REQUIRES_OK(context, this->AllocateMask(context, save_mask_, x.NumElements(), &mask));
    Lsq(params, DataOf<T>(x), DataOf<T>(y), mask, CpuExecutionOf(context));
  }

 private:
  bool save_mask_;
};

template <typename T, typename P, typename Kernel>
class LsqGradOp : public Kernel {
 public:
  using Kernel::Kernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& grad_y = context->input(0);
    const Tensor& x = context->input(1);
    OP_REQUIRES_OK(context, this->CheckGradShape(grad_y, x));
    typename Kernel::Params params;
    OP_REQUIRES_OK(context, this->MakeParams(context, x, 2, &params));
    P* outputs[Kernel::kParameters];
    for (int i = 0; i < Kernel::kParameters; ++i) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(1 + i, context->input(2 + i).shape(), &output));
      outputs[i] = output->template flat<P>().data();
    }
    Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_DOUBLE,
                                                   TensorShape({this->WorkspaceSize(params.layout)}), &workspace));
    Tensor* grad_x = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &grad_x));
    typename Kernel::Gradients gradients;
    gradients.grad_x = DataOf<T>(grad_x);
    gradients.workspace = workspace.flat<double>().data();
    this->SetOutputs(outputs, &gradients);
    LsqGrad(params, DataOf<T>(grad_y), DataOf<T>(x), gradients, CpuExecutionOf(context));
  }
};

#define QATFAST_REGISTER_OP(NAME, KERNEL, T, P)                                                               \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(DEVICE_CPU).TypeConstraint<T>("T").TypeConstraint<P>("P"),        \
                          LsqOp<T, KERNEL<T, P>>);                                                            \
  REGISTER_KERNEL_BUILDER(Name(NAME "Grad").Device(DEVICE_CPU).TypeConstraint<T>("T").TypeConstraint<P>("P"), \
                          LsqGradOp<T, P, KERNEL<T, P>>);
#define QATFAST_REGISTER(T, P)                                         \
  QATFAST_REGISTER_OP("QatfastLsqSymmetric", LsqSymmetricKernel, T, P) \
  QATFAST_REGISTER_OP("QatfastLsqUniform", LsqUniformKernel, T, P)
QATFAST_REGISTER_TYPES(QATFAST_REGISTER)
#undef QATFAST_REGISTER
#undef QATFAST_REGISTER_OP
#undef QATFAST_SYMMETRIC_ATTRIBUTES
#undef QATFAST_UNIFORM_ATTRIBUTES

}  // namespace
}  // namespace qatfast
