// Learned step size quantization (Esser et al., https://arxiv.org/abs/1902.08153): symmetric and uniform.
#ifndef QATFAST_CORE_LSQ_H_
#define QATFAST_CORE_LSQ_H_

#include <cstdint>

#include "core/cpu_execution.h"
#include "core/cuda_execution.h"
#include "core/params.h"

namespace qatfast {

// The first channel that cannot be quantized with: whose step is not a positive normal number. -1 if there is none.
template <typename T>
int64_t FindInvalidChannel(const LsqSymmetricParams<T>& params);
template <typename T>
int64_t FindInvalidChannel(const LsqUniformParams<T>& params);

// y = lsq(x), and the mask of what its gradient passes to (bit_mask.h) unless `mask` is null. `y` may be `x`.
// Precondition: FindInvalidChannel(params) == -1.
template <typename T>
void Lsq(const LsqSymmetricParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution);
template <typename T>
void Lsq(const LsqUniformParams<T>& params, const T* x, T* y, uint8_t* mask, const CpuExecution& execution);

// All gradients, in one pass. The sums accumulate in double in an order that depends on the layout alone.
template <typename T>
struct LsqSymmetricGradients {
  T* grad_x = nullptr;
  Arithmetic<T>* grad_threshold = nullptr;
  double* workspace = nullptr;  // GradWorkspaceSize doubles
};
template <typename T>
struct LsqUniformGradients {
  T* grad_x = nullptr;
  Arithmetic<T>* grad_min = nullptr;
  Arithmetic<T>* grad_max = nullptr;
  double* workspace = nullptr;  // GradWorkspaceSize doubles
};

// How many doubles the sums need on the way.
template <typename T>
int64_t GradWorkspaceSize(const LsqSymmetricParams<T>& params, const CpuExecution& execution);
template <typename T>
int64_t GradWorkspaceSize(const LsqUniformParams<T>& params, const CpuExecution& execution);

// The gradients of Lsq at x. `grad_x` may be `grad_y`. Precondition as for Lsq.
template <typename T>
void LsqGrad(const LsqSymmetricParams<T>& params, const T* grad_y, const T* x,
             const LsqSymmetricGradients<T>& gradients, const CpuExecution& execution);
template <typename T>
void LsqGrad(const LsqUniformParams<T>& params, const T* grad_y, const T* x, const LsqUniformGradients<T>& gradients,
             const CpuExecution& execution);

// The same on a GPU; see fake_quant.h.
template <typename T>
void Lsq(const LsqSymmetricParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution);
template <typename T>
void Lsq(const LsqUniformParams<T>& params, const T* x, T* y, uint8_t* mask, const CudaExecution& execution);
template <typename T>
int64_t GradWorkspaceSize(const LsqSymmetricParams<T>& params, const CudaExecution& execution);
template <typename T>
int64_t GradWorkspaceSize(const LsqUniformParams<T>& params, const CudaExecution& execution);
template <typename T>
void LsqGrad(const LsqSymmetricParams<T>& params, const T* grad_y, const T* x,
             const LsqSymmetricGradients<T>& gradients, const CudaExecution& execution);
template <typename T>
void LsqGrad(const LsqUniformParams<T>& params, const T* grad_y, const T* x, const LsqUniformGradients<T>& gradients,
             const CudaExecution& execution);

}  // namespace qatfast

#endif  // QATFAST_CORE_LSQ_H_
