// Fake quantization: quantize and dequantize, with a straight-through gradient.
#ifndef QATFAST_CORE_FAKE_QUANT_H_
#define QATFAST_CORE_FAKE_QUANT_H_

#include <cstdint>

#include "core/cpu_execution.h"
#include "core/cuda_execution.h"
#include "core/params.h"

namespace qatfast {

// The first channel whose range cannot be quantized to (see IsValid in quant_math.h), or -1.
template <typename T>
int64_t FindInvalidChannel(const FakeQuantParams<T>& params);

// y = fake_quant(x), and the mask of what its gradient passes to (bit_mask.h) unless `mask` is null. `y` may be `x`.
// Precondition: FindInvalidChannel(params) == -1.
template <typename T>
void FakeQuant(const FakeQuantParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution);

// What to compute of the gradient: `grad_x` always, the sums for the range only if `grad_min` is not null.
// The sums accumulate in double in an order that depends on the layout alone.
template <typename T>
struct FakeQuantGradients {
  T* grad_x = nullptr;
  Arithmetic<T>* grad_min = nullptr;
  Arithmetic<T>* grad_max = nullptr;
  double* workspace = nullptr;  // GradWorkspaceSize doubles, if grad_min is not null
};

// How many doubles the sums need on the way.
template <typename T>
int64_t GradWorkspaceSize(const FakeQuantParams<T>& params, const CpuExecution& execution);

// The gradients of FakeQuant at x. `grad_x` may be `grad_y`. Precondition as for FakeQuant.
template <typename T>
void FakeQuantGrad(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                   const FakeQuantGradients<T>& gradients, const CpuExecution& execution);

// The same on a GPU, with the same bits but for the sums, whose order is another one. As no error can be raised there,
// there is no precondition: a channel whose range cannot be quantized to gives NaN forward, and gradients of 0.
template <typename T>
void FakeQuant(const FakeQuantParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution);
template <typename T>
int64_t GradWorkspaceSize(const FakeQuantParams<T>& params, const CudaExecution& execution);
template <typename T>
void FakeQuantGrad(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                   const FakeQuantGradients<T>& gradients, const CudaExecution& execution);

}  // namespace qatfast

#endif  // QATFAST_CORE_FAKE_QUANT_H_
