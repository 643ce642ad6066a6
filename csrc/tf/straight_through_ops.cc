// The straight-through gradient from a saved mask, as a TensorFlow op.

#include "core/straight_through.h"
#include "tensorflow/core/framework/op.h"
#include "tf/channel_op.h"

namespace qatfast {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("QatfastStraightThroughGrad")
    .Input("grad_y: T")
    .Input("mask: uint8")
    .Output("grad_x: T")
    .Attr("T: {float, half, bfloat16, double}")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      const ShapeHandle wanted = c->Vector(MaskBytes(c, c->input(0)));
      ShapeHandle mask;
      if (c->Merge(c->input(1), wanted, &mask).ok()) return absl::OkStatus();
      return InvalidArgument("QatfastStraightThroughGrad: mask must be of shape ", c->DebugString(wanted),
                             " for grad_y of shape ", c->DebugString(c->input(0)), ", got ",
                             c->DebugString(c->input(1)));
    })
    .Doc(R"doc(
The straight-through gradient from the mask that a forward op saved.

    grad_x = grad_y where the mask's bit is 1, else 0

Element i of grad_y, in order, has bit i % 8 of byte i / 8. Linear in grad_y; nothing is multiplied, so a blocked
infinity or NaN gives 0. Reads 1/8 byte per element besides grad_y: the forward op's input needs not be kept.

grad_y: The gradient to the forward op's output, of any shape.
mask: The forward op's mask: one bit per element of grad_y, in whole bytes.
grad_x: The gradient to the forward op's input, of the shape of grad_y.
)doc");

template <typename T, typename Device>
class StraightThroughGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& grad_y = context->input(0);
    const Tensor& mask = context->input(1);
    const int64_t bytes = BitMaskBytes(grad_y.NumElements());
    OP_REQUIRES(context, mask.dims() == 1 && mask.NumElements() == bytes,
                InvalidArgument(type_string(), ": mask must be of shape [", bytes, "] for grad_y of shape ",
                                grad_y.shape().DebugString(), ", got ", mask.shape().DebugString()));
    Tensor* grad_x = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, grad_y.shape(), &grad_x));
    const auto execution = Device::ExecutionOf(context);
    StraightThroughGrad(DataOf<T>(grad_y), mask.flat<uint8_t>().data(), DataOf<T>(grad_x), grad_y.NumElements(),
                        execution);
    OP_REQUIRES_OK(context, Device::StatusOf(execution));
  }
};

#define QATFAST_REGISTER(T, P, DEVICE, On)                                                          \
  REGISTER_KERNEL_BUILDER(Name("QatfastStraightThroughGrad").Device(DEVICE).TypeConstraint<T>("T"), \
                          StraightThroughGradOp<T, On>);
QATFAST_REGISTER_TYPES(QATFAST_REGISTER)
#undef QATFAST_REGISTER

}  // namespace
}  // namespace qatfast
