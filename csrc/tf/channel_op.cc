#include "tf/channel_op.h"

namespace qatfast {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

namespace {

// Read when the library is loaded, right after Python has checked QATFAST_ISA: nothing may throw in a kernel, and what
// build_info() said stays true.
[[maybe_unused]] const Isa chosen_isa = BestIsa();

}  // namespace

absl::Status CheckNumBits(const std::string& op, int num_bits) {
  if (num_bits >= 2 && num_bits <= 16) return absl::OkStatus();
  return InvalidArgument(op, ": num_bits must be from 2 to 16, got ", num_bits);
}

absl::Status CheckParameterShapes(const std::string& op, InferenceContext* c, ShapeHandle x,
                                  std::initializer_list<ParameterInput> parameters) {
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
  for (const ParameterInput& parameter : parameters) {
    ShapeHandle merged;
    if (!c->Merge(c->input(parameter.index), wanted, &merged).ok()) {
      return InvalidArgument(op, ": ", parameter.name, " must be of shape ", c->DebugString(wanted), " for x of shape ",
                             c->DebugString(x), ", got ", c->DebugString(c->input(parameter.index)));
    }
  }
  return absl::OkStatus();
}

DimensionHandle MaskBytes(InferenceContext* c, ShapeHandle x) {
  const DimensionHandle size = c->NumElements(x);
  return c->ValueKnown(size) ? c->MakeDim(BitMaskBytes(c->Value(size))) : c->UnknownDim();
}

absl::Status ForwardShape(const std::string& op, InferenceContext* c,
                          std::initializer_list<ParameterInput> parameters) {
  bool save_mask;
  TF_RETURN_IF_ERROR(c->GetAttr("save_mask", &save_mask));
  const ShapeHandle x = c->input(0);
  c->set_output(0, x);
  c->set_output(1, c->Vector(save_mask ? MaskBytes(c, x) : c->MakeDim(0)));
  return CheckParameterShapes(op, c, x, parameters);
}

absl::Status BackwardShape(const std::string& op, InferenceContext* c, std::initializer_list<ParameterInput> parameters,
                           bool with_parameters) {
  ShapeHandle x;
  if (!c->Merge(c->input(0), c->input(1), &x).ok()) {
    return InvalidArgument(op, ": grad_y must be of the shape of x, ", c->DebugString(c->input(1)), ", got ",
                           c->DebugString(c->input(0)));
  }
  c->set_output(0, x);
  if (with_parameters) {
    int output = 1;
    for (const ParameterInput& parameter : parameters) c->set_output(output++, c->input(parameter.index));
  }
  return CheckParameterShapes(op, c, x, parameters);
}

ChannelOpKernel::ChannelOpKernel(OpKernelConstruction* context) : OpKernel(context) {
  OP_REQUIRES_OK(context, context->GetAttr("num_bits", &num_bits_));
  OP_REQUIRES_OK(context, CheckNumBits(type_string(), num_bits_));
  OP_REQUIRES_OK(context, context->GetAttr("per_channel", &per_channel_));
  OP_REQUIRES_OK(context, context->GetAttr("axis", &axis_));
}

absl::Status ChannelOpKernel::MakeLayout(const TensorShape& x, ChannelLayout* layout) const {
  if (!per_channel_) {
    *layout = {1, 1, x.num_elements()};
    return absl::OkStatus();
  }
  const int rank = x.dims();
  if (axis_ < -rank || axis_ >= rank) {
    return InvalidArgument(type_string(), ": axis must be in [", -rank, ", ", rank, ") for x of shape ",
                           x.DebugString(), ", got ", axis_);
  }
  const int axis = axis_ < 0 ? axis_ + rank : axis_;
  if (x.num_elements() == 0) {
    *layout = {0, x.dim_size(axis), 1};  // the product of the other lengths may overflow
    return absl::OkStatus();
  }
  *layout = MakeChannelLayout(x.dim_sizes().data(), rank, axis);
  return absl::OkStatus();
}

absl::Status ChannelOpKernel::CheckParameter(const ChannelLayout& layout, const TensorShape& x, const char* name,
                                             const TensorShape& parameter) const {
  const bool fits =
      per_channel_ ? parameter.dims() == 1 && parameter.dim_size(0) == layout.channels : parameter.dims() == 0;
  if (fits) return absl::OkStatus();
  const std::string wanted = per_channel_ ? absl::StrCat("[", layout.channels, "]") : "[]";
  return InvalidArgument(type_string(), ": ", name, " must be of shape ", wanted, " for x of shape ", x.DebugString(),
                         ", got ", parameter.DebugString());
}

absl::Status ChannelOpKernel::CheckGradShape(const Tensor& grad_y, const Tensor& x) const {
  if (grad_y.shape() == x.shape()) return absl::OkStatus();
  return InvalidArgument(type_string(), ": grad_y must be of the shape of x, ", x.shape().DebugString(), ", got ",
                         grad_y.shape().DebugString());
}

std::string ChannelOpKernel::InChannel(int64_t channel) const {
  return per_channel_ ? absl::StrCat(" in channel ", channel) : "";
}

absl::Status ChannelOpKernel::AllocateMask(OpKernelContext* context, bool save_mask, int64_t size, uint8_t** mask) {
  Tensor* output = nullptr;
  const TensorShape shape({save_mask ? BitMaskBytes(size) : 0});
  TF_RETURN_IF_ERROR(context->allocate_output(1, shape, &output));
  *mask = save_mask ? output->flat<uint8_t>().data() : nullptr;
  return absl::OkStatus();
}

}  // namespace qatfast
