// What the ops on channels share: their attributes, checks, shapes, and TensorFlow's types as those of core/.
#ifndef QATFAST_TF_CHANNEL_OP_H_
#define QATFAST_TF_CHANNEL_OP_H_

#include <array>
#include <initializer_list>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/bit_mask.h"
#include "core/half.h"
#include "core/params.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"
#include "tf/devices.h"

namespace qatfast {

template <typename... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// The type that the kernels take for a tensor of TensorFlow's type T.
template <typename T>
struct KernelType {
  using type = T;
};
template <>
struct KernelType<Eigen::half> {
  using type = Float16;
};
template <>
struct KernelType<Eigen::bfloat16> {
  using type = BFloat16;
};

template <typename T>
const typename KernelType<T>::type* DataOf(const tensorflow::Tensor& tensor) {
  return reinterpret_cast<const typename KernelType<T>::type*>(tensor.flat<T>().data());
}
template <typename T>
typename KernelType<T>::type* DataOf(tensorflow::Tensor* tensor) {
  return reinterpret_cast<typename KernelType<T>::type*>(tensor->flat<T>().data());
}

// A parameter of an op: the name of the input, and its index.
struct ParameterInput {
  const char* name;
  int index;
};

absl::Status CheckNumBits(const std::string& op, int num_bits);

// The length of the mask for a tensor of shape `x`.
tensorflow::shape_inference::DimensionHandle MaskBytes(tensorflow::shape_inference::InferenceContext* c,
                                                       tensorflow::shape_inference::ShapeHandle x);

// Shape functions. `parameters` are scalars, or [x.shape[axis]] if the op's attribute per_channel is set.
absl::Status CheckParameterShapes(const std::string& op, tensorflow::shape_inference::InferenceContext* c,
                                  tensorflow::shape_inference::ShapeHandle x,
                                  std::initializer_list<ParameterInput> parameters);
// Outputs 0 (of the shape of input 0) and 1: the mask.
absl::Status ForwardShape(const std::string& op, tensorflow::shape_inference::InferenceContext* c,
                          std::initializer_list<ParameterInput> parameters);
// Outputs 0 (of the shape of inputs 0 and 1) and, if `with_parameters`, one of the shape of each parameter.
absl::Status BackwardShape(const std::string& op, tensorflow::shape_inference::InferenceContext* c,
                           std::initializer_list<ParameterInput> parameters, bool with_parameters);

// The base of the kernels: the attributes that say where channels are.
class ChannelOpKernel : public tensorflow::OpKernel {
 public:
  explicit ChannelOpKernel(tensorflow::OpKernelConstruction* context);

 protected:
  absl::Status MakeLayout(const tensorflow::TensorShape& x, ChannelLayout* layout) const;
  absl::Status CheckParameter(const ChannelLayout& layout, const tensorflow::TensorShape& x, const char* name,
                              const tensorflow::TensorShape& parameter) const;
  absl::Status CheckGradShape(const tensorflow::Tensor& grad_y, const tensorflow::Tensor& x) const;
  // " in channel 3", or nothing per tensor.
  std::string InChannel(int64_t channel) const;
  // Output 1 of a forward op: a mask for `size` elements if `save_mask`, else of no element. Null then.
  static absl::Status AllocateMask(tensorflow::OpKernelContext* context, bool save_mask, int64_t size, uint8_t** mask);

  int num_bits() const { return num_bits_; }
  bool per_channel() const { return per_channel_; }

 private:
  int num_bits_;
  bool per_channel_;
  int axis_;
};

// The inputs of the families whose parameters are the ends of a range.
template <typename Params, typename P>
struct RangeInputs {
  static constexpr std::array kParameters = {"min", "max"};

  static void SetInputs(const P* const* inputs, Params* params) {
    params->min = inputs[0];
    params->max = inputs[1];
  }
  static std::string Got(const Params& params, int64_t channel) {
    return absl::StrCat("min ", params.min[channel], " and max ", params.max[channel]);
  }
};

// What the kernels of an op family share: a Family<T> is made from an op's attributes and has
//   Params, attributes()        core's params of the family, and those that the attributes give; no layout, no inputs
//   kParameters                 the names of the inputs that are one number per channel
//   SetInputs(inputs, &params)  where those are
//   Got(params, channel)        what their values are in a channel, and kRequirement what they must be
//   Forward, Backward           its entry points
// P is the type of parameters, T that of tensors; kernels take KernelType<T>.
template <template <typename> typename Family, typename T, typename Device>
class FamilyKernel : public ChannelOpKernel {
 public:
  using Params = typename Family<T>::Params;
  using P = Arithmetic<typename KernelType<T>::type>;
  static constexpr int kParameters = Family<T>::kParameters.size();

  explicit FamilyKernel(tensorflow::OpKernelConstruction* context) : ChannelOpKernel(context) {
    OP_REQUIRES_OK(context, family_.Init(context, num_bits(), per_channel()));
  }

 protected:
  // `first` is the input that holds the first parameter; the others follow it.
  absl::Status MakeParams(tensorflow::OpKernelContext* context, const tensorflow::Tensor& x, int first,
                          Params* params) const {
    *params = family_.attributes();
    TF_RETURN_IF_ERROR(MakeLayout(x.shape(), &params->layout));
    const P* inputs[kParameters];
    for (int i = 0; i < kParameters; ++i) {
      const tensorflow::Tensor& input = context->input(first + i);
      TF_RETURN_IF_ERROR(CheckParameter(params->layout, x.shape(), Family<T>::kParameters[i], input.shape()));
      inputs[i] = input.flat<P>().data();
    }
    Family<T>::SetInputs(inputs, params);
    if constexpr (Device::kReadsParameters) {
      const int64_t invalid = FindInvalidChannel(*params);
      if (invalid >= 0) {
        return InvalidArgument(type_string(), ": ", Family<T>::kRequirement, ", got ", Family<T>::Got(*params, invalid),
                               InChannel(invalid));
      }
    }
    return absl::OkStatus();
  }

 private:
  Family<T> family_;
};

template <template <typename> typename Family, typename T, typename Device>
class ForwardOp : public FamilyKernel<Family, T, Device> {
 public:
  explicit ForwardOp(tensorflow::OpKernelConstruction* context) : FamilyKernel<Family, T, Device>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("save_mask", &save_mask_));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    const tensorflow::Tensor& x = context->input(0);
    typename Family<T>::Params params;
    OP_REQUIRES_OK(context, this->MakeParams(context, x, 1, &params));
    tensorflow::Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    uint8_t* mask = nullptr;
    OP_REQUIRES_OK(context, this->AllocateMask(context, save_mask_, x.NumElements(), &mask));
    const auto execution = Device::ExecutionOf(context);
    Family<T>::Forward(params, DataOf<T>(x), DataOf<T>(y), mask, execution);
    OP_REQUIRES_OK(context, Device::StatusOf(execution));
  }

 private:
  bool save_mask_;
};

// The gradients to x and, if kWithParameters, to every parameter.
template <template <typename> typename Family, typename T, typename Device, bool kWithParameters>
class BackwardOp : public FamilyKernel<Family, T, Device> {
 public:
  using FamilyKernel<Family, T, Device>::FamilyKernel;
  using P = typename FamilyKernel<Family, T, Device>::P;

  void Compute(tensorflow::OpKernelContext* context) override {
    const tensorflow::Tensor& grad_y = context->input(0);
    const tensorflow::Tensor& x = context->input(1);
    OP_REQUIRES_OK(context, this->CheckGradShape(grad_y, x));
    typename Family<T>::Params params;
    OP_REQUIRES_OK(context, this->MakeParams(context, x, 2, &params));
    const auto execution = Device::ExecutionOf(context);
    P* gradients[this->kParameters] = {};
    double* workspace = nullptr;
    tensorflow::Tensor workspace_tensor;
    if (kWithParameters) {
      for (int i = 0; i < this->kParameters; ++i) {
        tensorflow::Tensor* gradient = nullptr;
        OP_REQUIRES_OK(context, context->allocate_output(1 + i, context->input(2 + i).shape(), &gradient));
        gradients[i] = gradient->template flat<P>().data();
      }
      const tensorflow::TensorShape shape({GradWorkspaceSize(params, execution)});
      OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_DOUBLE, shape, &workspace_tensor));
      workspace = workspace_tensor.flat<double>().data();
    }
    tensorflow::Tensor* grad_x = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &grad_x));
    Family<T>::Backward(params, DataOf<T>(grad_y), DataOf<T>(x), DataOf<T>(grad_x), gradients, workspace, execution);
    OP_REQUIRES_OK(context, Device::StatusOf(execution));
  }
};

}  // namespace qatfast

// The attributes that every op on channels has. T is the type of tensors, P that of parameters.
#define QATFAST_CHANNEL_ATTRIBUTES           \
  Attr("T: {float, half, bfloat16, double}") \
      .Attr("P: {float, double} = DT_FLOAT") \
      .Attr("num_bits: int = 8")             \
      .Attr("per_channel: bool = false")     \
      .Attr("axis: int = -1")

// REGISTER(T, P, DEVICE, On) for every type of tensors, the type of its parameters, and every device.
#define QATFAST_REGISTER_ON(REGISTER, DEVICE, On) \
  REGISTER(float, float, DEVICE, On)              \
  REGISTER(Eigen::half, float, DEVICE, On)        \
  REGISTER(Eigen::bfloat16, float, DEVICE, On)    \
  REGISTER(double, double, DEVICE, On)
#if QATFAST_CUDA
#define QATFAST_REGISTER_TYPES(REGISTER)                         \
  QATFAST_REGISTER_ON(REGISTER, ::tensorflow::DEVICE_CPU, OnCpu) \
  QATFAST_REGISTER_ON(REGISTER, ::tensorflow::DEVICE_GPU, OnGpu)
#else
#define QATFAST_REGISTER_TYPES(REGISTER) QATFAST_REGISTER_ON(REGISTER, ::tensorflow::DEVICE_CPU, OnCpu)
#endif

#endif  // QATFAST_TF_CHANNEL_OP_H_
