#include "core/packs_cuda.h"
#include "core/straight_through.h"

namespace qatfast {
namespace {

using namespace cuda;  // NOLINT: kernels

template <typename T>
__global__ void __launch_bounds__(kThreads) PassMasked(const T* grad_y, const uint8_t* mask, T* grad_x, PackGrid grid) {
  constexpr int kWidth = kPackWidth<T>;
  const Span span = grid.span();
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kPacksAtOnce<T> * kThreads + threadIdx.x) * kWidth;
  Pack<T> packs[kPacksAtOnce<T>];
  unsigned bits[kPacksAtOnce<T>];
#pragma unroll
  for (int k = 0; k < kPacksAtOnce<T>; ++k) {
    const int64_t position = begin + k * kThreads * kWidth;
    packs[k] = LoadPack(grad_y, grid, span, position);
    bits[k] = LoadMaskBits<kWidth>(mask, position - grid.shift, grid.size);
  }
#pragma unroll
  for (int k = 0; k < kPacksAtOnce<T>; ++k) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (!(bits[k] >> j & 1)) packs[k].values[j] = T();
    }
    StorePack(grad_x, grid, span, begin + k * kThreads * kWidth, packs[k]);
  }
}

template <typename Bits>
void PassBits(const Bits* grad_y, const uint8_t* mask, Bits* grad_x, int64_t size, const CudaExecution& execution) {
  const PackGrid grid = MakePackGrid<Bits>(size, {grad_y, grad_x}, true);
  const int64_t width = int64_t{kThreads} * kPacksAtOnce<Bits> * kPackWidth<Bits>;
  Launch(execution, PassMasked<Bits>, size == 0 ? 0 : CeilDiv(size + grid.shift, width), 0, grad_y, mask, grad_x, grid);
}

}  // namespace

template <typename T>
void StraightThroughGrad(const T* grad_y, const uint8_t* mask, T* grad_x, int64_t size,
                         const CudaExecution& execution) {
  using Bits = BitsOf<T>;
  PassBits(reinterpret_cast<const Bits*>(grad_y), mask, reinterpret_cast<Bits*>(grad_x), size, execution);
}

#define QATFAST_INSTANTIATE(T) \
  template void StraightThroughGrad(const T*, const uint8_t*, T*, int64_t, const CudaExecution&);
QATFAST_FOR_TYPES(QATFAST_INSTANTIATE)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
