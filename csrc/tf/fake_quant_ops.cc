// TensorFlow ops of fake quantization: schemas with their documentation, shape functions, CPU kernels.

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/fake_quant.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf/cpu_execution_of.h"

namespace qatfast {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

template <typename... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status CheckNumBits(const std::string& op, int num_bits) {
  if (num_bits >= 2 && num_bits <= 16) return absl::OkStatus();
  return InvalidArgument(op, ": num_bits must be from 2 to 16, got ", num_bits);
}

// Checks the inputs min and max, which start at `min_index`, against what x and the attributes ask of them.
absl::Status CheckRangeShapes(const std::string& op, InferenceContext* c, ShapeHandle x, int min_index) {
  int num_bits, axis;
  bool per_channel;
  TF_RETURN_IF_ERROR(c->GetAttr("num_bits", &num_bits));
  TF_RETURN_IF_ERROR(CheckNumBits(op, num_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("per_channel", &per_channel));
  TF_RETURN_IF_ERROR(c->GetAttr("axis", &axis));
  ShapeHandle wanted = c->Scalar();
  if (per_channel) {
    DimensionHandle channels = c->UnknownDim();
    if (c->RankKnown(x)) {
      const int rank = c->Rank(x);
      if (axis < -rank || axis >= rank) {
        return InvalidArgument(op, ": axis must be in [", -rank, ", ", rank, ") for x of shape ", c->DebugString(x),
                               ", got ", axis);
      }
      channels = c->Dim(x, axis);
    }
    wanted = c->Vector(channels);
  }
  for (int i = 0; i < 2; ++i) {
    ShapeHandle merged;
    if (!c->Merge(c->input(min_index + i), wanted, &merged).ok()) {
      return InvalidArgument(op, i == 0 ? ": min" : ": max", " must be of shape ", c->DebugString(wanted),
                             " for x of shape ", c->DebugString(x), ", got ", c->DebugString(c->input(min_index + i)));
    }
  }
  return absl::OkStatus();
}

absl::Status FakeQuantShape(InferenceContext* c) {
  c->set_output(0, c->input(0));
  return CheckRangeShapes("QatfastFakeQuant", c, c->input(0), 1);
}

absl::Status GradShape(const std::string& op, InferenceContext* c) {
  ShapeHandle x;
  if (!c->Merge(c->input(0), c->input(1), &x).ok()) {
    return InvalidArgument(op, ": grad_y must be of the shape of x, ", c->DebugString(c->input(1)), ", got ",
                           c->DebugString(c->input(0)));
  }
  c->set_output(0, x);
  return CheckRangeShapes(op, c, x, 2);
}

absl::Status FakeQuantGradShape(InferenceContext* c) { return GradShape("QatfastFakeQuantGrad", c); }

absl::Status FakeQuantGradWithRangeShape(InferenceContext* c) {
  c->set_output(1, c->input(2));
  c->set_output(2, c->input(3));
  return GradShape("QatfastFakeQuantGradWithRange", c);
}

#define QATFAST_ATTRIBUTES                \
  Attr("T: {float}")                      \
      .Attr("num_bits: int = 8")          \
      .Attr("narrow_range: bool = false") \
      .Attr("per_channel: bool = false")  \
      .Attr("axis: int = -1")             \
      .Attr("include_zero: bool = false")

REGISTER_OP("QatfastFakeQuant")
    .Input("x: T")
    .Input("min: float")
    .Input("max: float")
    .Output("y: T")
    .QATFAST_ATTRIBUTES.SetShapeFn(FakeQuantShape)
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
min == max == 0 gives zeros. Denormal numbers count as zero. The arithmetic is float32.

The gradient to x is the straight-through estimator; see QatfastFakeQuantGrad.

x: The tensor to quantize, of any shape.
min: The lower end of the range: a scalar, or [x.shape[axis]] if per_channel. Finite and less than max, or both 0.
max: The upper end of the range, of the shape of min.
y: x on the grid.
num_bits: From 2 to 16.
narrow_range: Whether to leave out the lowest integer, so that the grid is symmetric about its middle.
per_channel: Whether each index of `axis` has a range of its own.
axis: The channel axis of x, from -rank to rank - 1. Not used unless per_channel.
include_zero: Whether to first move the range by less than a step so that zero is on the grid, or stretch it to
  zero, as adjust_range_to_include_zero does in Sony's Model Compression Toolkit.
)doc");

REGISTER_OP("QatfastFakeQuantGrad")
    .Input("grad_y: T")
    .Input("x: T")
    .Input("min: float")
    .Input("max: float")
    .Output("grad_x: T")
    .QATFAST_ATTRIBUTES.SetShapeFn(FakeQuantGradShape)
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
    .Input("min: float")
    .Input("max: float")
    .Output("grad_x: T")
    .Output("grad_min: float")
    .Output("grad_max: float")
    .QATFAST_ATTRIBUTES.SetShapeFn(FakeQuantGradWithRangeShape)
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
template <typename T>
class FakeQuantKernel : public OpKernel {
 public:
  explicit FakeQuantKernel(OpKernelConstruction* context) : OpKernel(context) {
    int num_bits;
    bool narrow_range;
    OP_REQUIRES_OK(context, context->GetAttr("num_bits", &num_bits));
    OP_REQUIRES_OK(context, CheckNumBits(type_string(), num_bits));
    OP_REQUIRES_OK(context, context->GetAttr("narrow_range", &narrow_range));
    OP_REQUIRES_OK(context, context->GetAttr("per_channel", &per_channel_));
    OP_REQUIRES_OK(context, context->GetAttr("axis", &axis_));
    OP_REQUIRES_OK(context, context->GetAttr("include_zero", &include_zero_));
    quant_range_ = MakeQuantRange(num_bits, narrow_range);
  }

 protected:
  absl::Status MakeParams(const Tensor& x, const Tensor& min, const Tensor& max, FakeQuantParams<T>* params) const {
    TF_RETURN_IF_ERROR(MakeLayout(x.shape(), &params->layout));
    const TensorShape wanted = per_channel_ ? TensorShape({params->layout.channels}) : TensorShape({});
    for (const Tensor* end : {&min, &max}) {
      if (end->shape() != wanted) {
        return InvalidArgument(type_string(), ": ", end == &min ? "min" : "max", " must be of shape ",
                               wanted.DebugString(), " for x of shape ", x.shape().DebugString(), ", got ",
                               end->shape().DebugString());
      }
    }
    params->quant_range = quant_range_;
    params->per_channel = per_channel_;
    params->include_zero = include_zero_;
    params->min = min.flat<Arithmetic<T>>().data();
    params->max = max.flat<Arithmetic<T>>().data();
    const int64_t invalid = FindInvalidRange(*params);
    if (invalid >= 0) {
      return InvalidArgument(type_string(), ": min and max must be finite and min less than max (or both 0), got min ",
                             params->min[invalid], " and max ", params->max[invalid],
                             per_channel_ ? " in channel " + std::to_string(invalid) : "");
    }
    return absl::OkStatus();
  }

 private:
  absl::Status MakeLayout(const TensorShape& shape, ChannelLayout* layout) const {
    if (!per_channel_) {
      *layout = {1, 1, shape.num_elements()};
      return absl::OkStatus();
    }
    const int rank = shape.dims();
    if (axis_ < -rank || axis_ >= rank) {
      return InvalidArgument(type_string(), ": axis must be in [", -rank, ", ", rank, ") for x of shape ",
                             shape.DebugString(), ", got ", axis_);
    }
    *layout = MakeChannelLayout(shape.dim_sizes().data(), rank, axis_ < 0 ? axis_ + rank : axis_);
    return absl::OkStatus();
  }

  QuantRange quant_range_;
  bool per_channel_;
  int axis_;
  bool include_zero_;
};

template <typename T>
class FakeQuantOp : public FakeQuantKernel<T> {
 public:
  using FakeQuantKernel<T>::FakeQuantKernel;

  void Compute(OpKernelContext* context) override {
    FakeQuantParams<T> params;
    const Tensor& x = context->input(0);
    OP_REQUIRES_OK(context, this->MakeParams(x, context->input(1), context->input(2), &params));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    FakeQuant(params, x.flat<T>().data(), y->flat<T>().data(), CpuExecutionOf(context));
  }
};

template <typename T, bool kWithRange>
class FakeQuantGradOp : public FakeQuantKernel<T> {
 public:
  using FakeQuantKernel<T>::FakeQuantKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& grad_y = context->input(0);
    const Tensor& x = context->input(1);
    const Tensor& min = context->input(2);
    OP_REQUIRES(context, grad_y.shape() == x.shape(),
                InvalidArgument(this->type_string(), ": grad_y must be of the shape of x, ", x.shape().DebugString(),
                                ", got ", grad_y.shape().DebugString()));
    FakeQuantParams<T> params;
    OP_REQUIRES_OK(context, this->MakeParams(x, min, context->input(3), &params));
    FakeQuantGradients<T> gradients;
    Tensor workspace;
    if (kWithRange) {
      Tensor* grad_min = nullptr;
      Tensor* grad_max = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(1, min.shape(), &grad_min));
      OP_REQUIRES_OK(context, context->allocate_output(2, min.shape(), &grad_max));
      OP_REQUIRES_OK(context,
                     context->allocate_temp(tensorflow::DT_DOUBLE,
                                            TensorShape({FakeQuantGradWorkspaceSize(params.layout)}), &workspace));
      gradients.grad_min = grad_min->flat<Arithmetic<T>>().data();
      gradients.grad_max = grad_max->flat<Arithmetic<T>>().data();
      gradients.workspace = workspace.flat<double>().data();
    }
    Tensor* grad_x = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &grad_x));
    gradients.grad_x = grad_x->flat<T>().data();
    FakeQuantGrad(params, grad_y.flat<T>().data(), x.flat<T>().data(), gradients, CpuExecutionOf(context));
  }
};

#define QATFAST_REGISTER(T)                                                                                    \
  REGISTER_KERNEL_BUILDER(Name("QatfastFakeQuant").Device(DEVICE_CPU).TypeConstraint<T>("T"), FakeQuantOp<T>); \
  REGISTER_KERNEL_BUILDER(Name("QatfastFakeQuantGrad").Device(DEVICE_CPU).TypeConstraint<T>("T"),              \
                          FakeQuantGradOp<T, false>);                                                          \
  REGISTER_KERNEL_BUILDER(Name("QatfastFakeQuantGradWithRange").Device(DEVICE_CPU).TypeConstraint<T>("T"),     \
                          FakeQuantGradOp<T, true>);
QATFAST_REGISTER(float)
#undef QATFAST_REGISTER
#undef QATFAST_ATTRIBUTES

}  // namespace
}  // namespace qatfast
