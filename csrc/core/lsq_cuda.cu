#include "core/channel_kernels_cuda.h"
#include "core/lsq.h"

namespace qatfast {
namespace {

// Calls body(kernel) with the kernel of these parameters.
template <template <typename> typename Params, typename T, typename Body>
auto WithKernel(const Params<T>& params, Body body) {
  return WithFormula(params, [&](const auto& formula) {
    using Formula = std::decay_t<decltype(formula)>;
    cuda::Op<Formula> op = {formula, {}};
    const auto inputs = params.inputs();
    std::copy(inputs.begin(), inputs.end(), op.inputs);
    return body(cuda::CudaChannelKernel<T, Formula>(params.layout, op));
  });
}

template <template <typename> typename Params, typename T>
void Quantize(const Params<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution) {
  WithKernel(params, [&](const auto& kernel) { kernel.Quantize(x, y, mask, execution); });
}

template <template <typename> typename Params, typename T>
int64_t WorkspaceSize(const Params<T>& params) {
  return WithKernel(params, [](const auto& kernel) { return kernel.WorkspaceSize(); });
}

}  // namespace

template <typename T>
void Lsq(const LsqSymmetricParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution) {
  Quantize(params, x, y, mask, execution);
}

template <typename T>
void Lsq(const LsqUniformParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution) {
  Quantize(params, x, y, mask, execution);
}

template <typename T>
int64_t GradWorkspaceSize(const LsqSymmetricParams<T>& params, const CudaExecution&) {
  return WorkspaceSize(params);
}

template <typename T>
int64_t GradWorkspaceSize(const LsqUniformParams<T>& params, const CudaExecution&) {
  return WorkspaceSize(params);
}

template <typename T>
void LsqGrad(const LsqSymmetricParams<T>& params, const T* grad_y, const T* x,
             const LsqSymmetricGradients<T>& gradients, const CudaExecution& execution) {
  WithKernel(params, [&](const auto& kernel) {
    kernel.Backward(grad_y, x, gradients.grad_x, {gradients.grad_threshold}, gradients.workspace, execution);
  });
}

template <typename T>
void LsqGrad(const LsqUniformParams<T>& params, const T* grad_y, const T* x, const LsqUniformGradients<T>& gradients,
             const CudaExecution& execution) {
  WithKernel(params, [&](const auto& kernel) {
    kernel.Backward(grad_y, x, gradients.grad_x, {gradients.grad_min, gradients.grad_max}, gradients.workspace,
                    execution);
  });
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
