// What the ops on channels share: their attributes, checks, shapes, and TensorFlow's types as those of core/.
#ifndef QATFAST_TF_CHANNEL_OP_H_
#define QATFAST_TF_CHANNEL_OP_H_

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
  absl::Status CheckParameters(tensorflow::OpKernelContext* context, const ChannelLayout& layout,
                               const tensorflow::TensorShape& x,
                               std::initializer_list<ParameterInput> parameters) const;
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

}  // namespace qatfast

// The attributes that every op on channels has. T is the type of tensors, P that of parameters.
#define QATFAST_CHANNEL_ATTRIBUTES           \
  Attr("T: {float, half, bfloat16, double}") \
      .Attr("P: {float, double} = DT_FLOAT") \
      .Attr("num_bits: int = 8")             \
      .Attr("per_channel: bool = false")     \
      .Attr("axis: int = -1")

// REGISTER(T, P) for every type of tensors and the type of its parameters.
#define QATFAST_REGISTER_TYPES(REGISTER) \
  REGISTER(float, float) REGISTER(Eigen::half, float) REGISTER(Eigen::bfloat16, float) REGISTER(double, double)

#endif  // QATFAST_TF_CHANNEL_OP_H_
