#include "core/packs_cuda.h"
#include "core/straight_through.h"

namespace qatfast {
namespace {

using namespace cuda;  // NOLINT: kernels

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    PassMasked(const T* grad_y, const uint8_t* mask, T* grad_x, PackGrid grid) {
  constexpr int kWidth = kPackWidth<T>;
  constexpr int kStep = kThreads * kWidth;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kPacksAtOnce * kStep;
  const int64_t left = grid.size + grid.shift - base;
  const int end = left < kPacksAtOnce * kStep ? static_cast<int>(left) : kPacksAtOnce * kStep;
  const Cut cut = grid.CutAt(blockIdx.x == 0 ? grid.shift : 0, end, kWidth);
  const int64_t first = base - grid.shift;  // the element at position 0
  const int mine = threadIdx.x * kWidth;
  Pack<T> packs[kPacksAtOnce];
  unsigned bits[kPacksAtOnce] = {};
#pragma unroll
  for (int k = 0; k < kPacksAtOnce; ++k) {
    if (cut.IsWhole(mine + k * kStep)) packs[k] = LoadPack(grad_y + (first + mine + k * kStep));
  }
#pragma unroll
  for (int k = 0; k < kPacksAtOnce; ++k) {
    if (cut.IsWhole(mine + k * kStep)) bits[k] = mask[(first + mine + k * kStep) / 8];
  }
  if (grid.shift != 0) {  // a pack's bits may begin in one byte and end in the next
#pragma unroll
    for (int k = 0; k < kPacksAtOnce; ++k) {
      const int64_t last = first + mine + k * kStep + kWidth - 1;
      if (cut.IsWhole(mine + k * kStep)) bits[k] |= static_cast<unsigned>(mask[last / 8]) << 8;
    }
  }
#pragma unroll
  for (int k = 0; k < kPacksAtOnce; ++k) {
    if (!cut.IsWhole(mine + k * kStep)) continue;
    const int64_t element = first + mine + k * kStep;
    const unsigned passes = bits[k] >> element % 8;
    Arrive(packs[k]);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (!(passes >> j & 1)) packs[k].Clear(j);
    }
    StorePack(grad_x + element, packs[k]);
  }
  for (int i = threadIdx.x; i < cut.rest(); i += kThreads) {
    const int64_t element = first + cut.PositionOfRest(i);
    grad_x[element] = mask[element / 8] >> element % 8 & 1 ? grad_y[element] : T();
  }
}

template <typename Bits>
void PassBits(const Bits* grad_y, const uint8_t* mask, Bits* grad_x, int64_t size, const CudaExecution& execution) {
  const PackGrid grid = MakePackGrid<Bits>(size, {grad_y, grad_x}, true);
  const int64_t width = int64_t{kThreads} * kPacksAtOnce * kPackWidth<Bits>;
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
