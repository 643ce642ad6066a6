#include "core/channel_kernels_cuda.h"
#include "core/lsq.h"

namespace qatfast {
namespace {

template <typename T>
cuda::CudaChannelKernel<T, LsqSymmetricFormula<Arithmetic<T>>> MakeKernel(const LsqSymmetricParams<T>& params) {
  return {params.layout, {MakeFormula(params), {params.threshold}}};
}

template <typename T>
cuda::CudaChannelKernel<T, LsqUniformFormula<Arithmetic<T>>> MakeKernel(const LsqUniformParams<T>& params) {
  return {params.layout, {MakeFormula(params), {params.min, params.max}}};
}

}  // namespace

template <typename T>
void Lsq(const LsqSymmetricParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution) {
  MakeKernel(params).Quantize(x, y, mask, execution);
}

template <typename T>
void Lsq(const LsqUniformParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution) {
  MakeKernel(params).Quantize(x, y, mask, execution);
}

template <typename T>
int64_t GradWorkspaceSize(const LsqSymmetricParams<T>& params, const CudaExecution&) {
  return MakeKernel(params).WorkspaceSize();
}

template <typename T>
int64_t GradWorkspaceSize(const LsqUniformParams<T>& params, const CudaExecution&) {
  return MakeKernel(params).WorkspaceSize();
}

template <typename T>
void LsqGrad(const LsqSymmetricParams<T>& params, const T* grad_y, const T* x,
             const LsqSymmetricGradients<T>& gradients, const CudaExecution& execution) {
  MakeKernel(params).Backward(grad_y, x, gradients.grad_x, {gradients.grad_threshold}, gradients.workspace, execution);
}

template <typename T>
void LsqGrad(const LsqUniformParams<T>& params, const T* grad_y, const T* x, const LsqUniformGradients<T>& gradients,
             const CudaExecution& execution) {
  MakeKernel(params).Backward(grad_y, x, gradients.grad_x, {gradients.grad_min, gradients.grad_max},
                              gradients.workspace, execution);
}

#define QATFAST_INSTANTIATE(T)                                                                             \
  template void Lsq(const LsqSymmetricParams<T>&, const T*, T*, uint8_t*, const CudaExecution&);           \
  template void Lsq(const LsqUniformParams<T>&, const T*, T*, uint8_t*, const CudaExecution&);             \
  template int64_t GradWorkspaceSize(const LsqSymmetricParams<T>&, const CudaExecution&);                  \
  template int64_t GradWorkspaceSize(const LsqUniformParams<T>&, const CudaExecution&);                    \
  template void LsqGrad(const LsqSymmetricParams<T>&, const T*, const T*, const LsqSymmetricGradients<T>&, \
                        const CudaExecution&);                                                             \
  template void LsqGrad(const LsqUniformParams<T>&, const T*, const T*, const LsqUniformGradients<T>&,     \
                        const CudaExecution&);
QATFAST_FOR_TYPES(QATFAST_INSTANTIATE)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
