#include "core/channel_kernels.h"
#include "core/lsq.h"

namespace qatfast {
namespace {

template <typename T>
ChannelKernel<T, LsqSymmetricFormula<Arithmetic<T>>> MakeKernel(const LsqSymmetricParams<T>& params, Isa isa) {
  return {params.layout, MakeFormula(params), {params.threshold}, isa};
}

template <typename T>
ChannelKernel<T, LsqUniformFormula<Arithmetic<T>>> MakeKernel(const LsqUniformParams<T>& params, Isa isa) {
  return {params.layout, MakeFormula(params), {params.min, params.max}, isa};
}

}  // namespace

template <typename T>
int64_t FindInvalidChannel(const LsqSymmetricParams<T>& params) {
  return MakeKernel(params, BestIsa()).FindInvalidChannel();
}

template <typename T>
int64_t FindInvalidChannel(const LsqUniformParams<T>& params) {
  return MakeKernel(params, BestIsa()).FindInvalidChannel();
}

template <typename T>
void Lsq(const LsqSymmetricParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution) {
  MakeKernel(params, execution.isa).Quantize(x, y, mask, execution);
}

template <typename T>
void Lsq(const LsqUniformParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution) {
  MakeKernel(params, execution.isa).Quantize(x, y, mask, execution);
}

template <typename T>
int64_t GradWorkspaceSize(const LsqSymmetricParams<T>& params, const CpuExecution&) {
  return ChannelWorkspaceSize(params.layout, 1);
}
template <typename T>
int64_t GradWorkspaceSize(const LsqUniformParams<T>& params, const CpuExecution&) {
  return ChannelWorkspaceSize(params.layout, 2);
}

template <typename T>
void LsqGrad(const LsqSymmetricParams<T>& params, const T* grad_y, const T* x,
             const LsqSymmetricGradients<T>& gradients, const CpuExecution& execution) {
  MakeKernel(params, execution.isa)
      .Backward(grad_y, x, {gradients.grad_x, {gradients.grad_threshold}, gradients.workspace}, execution);
}

template <typename T>
void LsqGrad(const LsqUniformParams<T>& params, const T* grad_y, const T* x, const LsqUniformGradients<T>& gradients,
             const CpuExecution& execution) {
  MakeKernel(params, execution.isa)
      .Backward(grad_y, x, {gradients.grad_x, {gradients.grad_min, gradients.grad_max}, gradients.workspace},
                execution);
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
