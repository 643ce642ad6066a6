#include "core/channel_kernels.h"
#include "core/lsq.h"

namespace qatfast {
namespace {

// Calls body(kernel) with the kernel of these parameters.
template <template <typename> typename Params, typename T, typename Body>
auto WithKernel(const Params<T>& params, Isa isa, Body body) {
  return WithFormula(params, [&](const auto& formula) {
    using Formula = std::decay_t<decltype(formula)>;
    return body(ChannelKernel<T, Formula>(params.layout, formula, params.inputs(), isa));
  });
}

template <template <typename> typename Params, typename T>
int64_t FindInvalid(const Params<T>& params) {
  return WithKernel(params, BestIsa(), [](const auto& kernel) { return kernel.FindInvalidChannel(); });
}

template <template <typename> typename Params, typename T>
void Quantize(const Params<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution) {
  WithKernel(params, execution.isa, [&](const auto& kernel) { kernel.Quantize(x, y, mask, execution); });
}

template <template <typename> typename Params, typename T>
int64_t WorkspaceSize(const Params<T>& params) {
  return WithFormula(params, [&](const auto& formula) {
    return ChannelWorkspaceSize(params.layout, std::decay_t<decltype(formula)>::kTerms);
  });
}

}  // namespace

template <typename T>
int64_t FindInvalidChannel(const LsqSymmetricParams<T>& params) {
  return FindInvalid(params);
}

template <typename T>
int64_t FindInvalidChannel(const LsqUniformParams<T>& params) {
  return FindInvalid(params);
}

template <typename T>
void Lsq(const LsqSymmetricParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution) {
  Quantize(params, x, y, mask, execution);
}

template <typename T>
void Lsq(const LsqUniformParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution) {
  Quantize(params, x, y, mask, execution);
}

template <typename T>
int64_t GradWorkspaceSize(const LsqSymmetricParams<T>& params, const CpuExecution&) {
  return WorkspaceSize(params);
}
template <typename T>
int64_t GradWorkspaceSize(const LsqUniformParams<T>& params, const CpuExecution&) {
  return WorkspaceSize(params);
}

template <typename T>
void LsqGrad(const LsqSymmetricParams<T>& params, const T* grad_y, const T* x,
             const LsqSymmetricGradients<T>& gradients, const CpuExecution& execution) {
  WithKernel(params, execution.isa, [&](const auto& kernel) {
    kernel.Backward(grad_y, x, {gradients.grad_x, {gradients.grad_threshold}, gradients.workspace}, execution);
  });
}

template <typename T>
void LsqGrad(const LsqUniformParams<T>& params, const T* grad_y, const T* x, const LsqUniformGradients<T>& gradients,
             const CpuExecution& execution) {
  WithKernel(params, execution.isa, [&](const auto& kernel) {
    kernel.Backward(grad_y, x, {gradients.grad_x, {gradients.grad_min, gradients.grad_max}, gradients.workspace},
                    execution);
  });
}

#define QATFAST_INSTANTIATE(T)                                                                             \
  template int64_t FindInvalidChannel(const LsqSymmetricParams<T>&);                                       \
  template int64_t FindInvalidChannel(const LsqUniformParams<T>&);                                         \
  template void Lsq(const LsqSymmetricParams<T>&, const T*, T*, uint8_t*, const CpuExecution&);            \
  template void Lsq(const LsqUniformParams<T>&, const T*, T*, uint8_t*, const CpuExecution&);              \
  template int64_t GradWorkspaceSize(const LsqSymmetricParams<T>&, const CpuExecution&);                   \
  template int64_t GradWorkspaceSize(const LsqUniformParams<T>&, const CpuExecution&);                     \
  template void LsqGrad(const LsqSymmetricParams<T>&, const T*, const T*, const LsqSymmetricGradients<T>&, \
                        const CpuExecution&);                                                              \
  template void LsqGrad(const LsqUniformParams<T>&, const T*, const T*, const LsqUniformGradients<T>&,     \
                        const CpuExecution&);
QATFAST_FOR_TYPES(QATFAST_INSTANTIATE)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
