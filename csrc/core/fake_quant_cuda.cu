#include "core/channel_kernels_cuda.h"
#include "core/fake_quant.h"

namespace qatfast {
namespace {

template <typename T, bool kPerChannel>
cuda::CudaChannelKernel<T, FakeQuantFormula<Arithmetic<T>, kPerChannel>> MakeKernel(const FakeQuantParams<T>& params) {
  return {params.layout, {{params.quant_range, params.include_zero}, {params.min, params.max}}};
}

}  // namespace

template <typename T>
void FakeQuant(const FakeQuantParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution) {
  if (params.per_channel) {
    MakeKernel<T, true>(params).Quantize(x, y, mask, execution);
  } else {
    MakeKernel<T, false>(params).Quantize(x, y, mask, execution);
  }
}

// Gradients are the same whether steps are counted by dividing or by multiplying.

template <typename T>
int64_t GradWorkspaceSize(const FakeQuantParams<T>& params, const CudaExecution&) {
  return MakeKernel<T, true>(params).WorkspaceSize();
}

template <typename T>
void FakeQuantGrad(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                   const FakeQuantGradients<T>& gradients, const CudaExecution& execution) {
  const auto kernel = MakeKernel<T, true>(params);
  if (gradients.grad_min == nullptr) {
    kernel.Pass(grad_y, x, gradients.grad_x, execution);
  } else {
    kernel.Backward(grad_y, x, gradients.grad_x, {gradients.grad_min, gradients.grad_max}, gradients.workspace,
                    execution);
  }
}

#define QATFAST_INSTANTIATE(T)                                                                             \
  template void FakeQuant(const FakeQuantParams<T>&, const T*, T*, uint8_t*, const CudaExecution&);        \
  template int64_t GradWorkspaceSize(const FakeQuantParams<T>&, const CudaExecution&);                     \
  template void FakeQuantGrad(const FakeQuantParams<T>&, const T*, const T*, const FakeQuantGradients<T>&, \
                              const CudaExecution&);
QATFAST_FOR_TYPES(QATFAST_INSTANTIATE)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
