#include "core/channel_kernels.h"
#include "core/fake_quant.h"

namespace qatfast {
namespace {

template <typename T, bool kPerChannel>
ChannelKernel<T, FakeQuantFormula<Arithmetic<T>, kPerChannel>> MakeKernel(const FakeQuantParams<T>& params, Isa isa) {
  return {params.layout, {params.quant_range, params.include_zero}, {params.min, params.max}, isa};
}

// Calls body(kernel) with the kernel of these parameters.
template <typename T, typename Body>
auto WithKernel(const FakeQuantParams<T>& params, Isa isa, Body body) {
  return params.per_channel ? body(MakeKernel<T, true>(params, isa)) : body(MakeKernel<T, false>(params, isa));
}

}  // namespace

template <typename T>
int64_t FindInvalidChannel(const FakeQuantParams<T>& params) {
  return WithKernel(params, BestIsa(), [](const auto& kernel) { return kernel.FindInvalidChannel(); });
}

template <typename T>
void FakeQuant(const FakeQuantParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution) {
  WithKernel(params, execution.isa, [&](const auto& kernel) { kernel.Quantize(x, y, mask, execution); });
}

template <typename T>
int64_t GradWorkspaceSize(const FakeQuantParams<T>& params, const CpuExecution&) {
  return ChannelWorkspaceSize(params.layout, 2);
}

template <typename T>
void FakeQuantGrad(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                   const FakeQuantGradients<T>& gradients, const CpuExecution& execution) {
  WithKernel(params, execution.isa, [&](const auto& kernel) {
    kernel.Backward(grad_y, x, {gradients.grad_x, {gradients.grad_min, gradients.grad_max}, gradients.workspace},
                    execution);
  });
}

#define QATFAST_INSTANTIATE(T)                                                                             \
  template int64_t FindInvalidChannel(const FakeQuantParams<T>&);                                          \
  template void FakeQuant(const FakeQuantParams<T>&, const T*, T*, uint8_t*, const CpuExecution&);         \
  template int64_t GradWorkspaceSize(const FakeQuantParams<T>&, const CpuExecution&);                      \
  template void FakeQuantGrad(const FakeQuantParams<T>&, const T*, const T*, const FakeQuantGradients<T>&, \
                              const CpuExecution&);
QATFAST_FOR_TYPES(QATFAST_INSTANTIATE)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
