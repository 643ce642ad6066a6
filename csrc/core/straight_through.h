// The straight-through gradient from the mask that a forward pass saved.
#ifndef QATFAST_CORE_STRAIGHT_THROUGH_H_
#define QATFAST_CORE_STRAIGHT_THROUGH_H_

#include <cstdint>

#include "core/cpu_execution.h"
#include "core/cuda_execution.h"

namespace qatfast {

// grad_x = grad_y where the mask's bit is set (bit_mask.h), else 0. `grad_x` may be `grad_y`. The bits of numbers are
// passed as they are.
template <typename T>
void StraightThroughGrad(const T* grad_y, const uint8_t* mask, T* grad_x, int64_t size, const CpuExecution& execution);

// The same on a GPU.
template <typename T>
void StraightThroughGrad(const T* grad_y, const uint8_t* mask, T* grad_x, int64_t size, const CudaExecution& execution);

}  // namespace qatfast

#endif  // QATFAST_CORE_STRAIGHT_THROUGH_H_
