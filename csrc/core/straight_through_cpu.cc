#include <algorithm>
#include <cstring>

#include "core/bit_mask.h"
#include "core/channel_tiles.h"
#include "core/half.h"
#include "core/straight_through.h"
#include "core/stream_store.h"

#define QATFAST_ISA_BODY "core/straight_through_loops.h"
#include "core/foreach_isa.h"

namespace qatfast {
namespace {

// Elements that a thread takes at a time, and what one costs it: small numbers move more of them per byte.
constexpr int64_t kBlockSize = int64_t{1} << 16;
constexpr int64_t kCyclesPerByte = 1;

template <typename Bits>
void PassBits(const Bits* grad_y, const uint8_t* mask, Bits* grad_x, int64_t size, const CpuExecution& execution) {
  auto pass = portable::PassMasked<Bits>;
#if defined(__x86_64__)
  if (execution.isa == Isa::kAvx512) pass = avx512::PassMasked<Bits>;
  if (execution.isa == Isa::kAvx2) pass = avx2::PassMasked<Bits>;
#endif
  const bool stream = execution.ShouldStream(size * static_cast<int64_t>(sizeof(Bits)), grad_x == grad_y);
  const int64_t cycles = kBlockSize * static_cast<int64_t>(sizeof(Bits)) * kCyclesPerByte;
  execution.parallel_for(CeilDiv(size, kBlockSize), cycles, [&](int64_t first, int64_t last) {
    StreamingWriter<Bits> writer(stream, execution.isa);
    const int64_t end = std::min(size, last * kBlockSize);
    for (int64_t begin = first * kBlockSize; begin < end; begin += kPartWidth) {
      const int64_t length = std::min(kPartWidth, end - begin);
      writer.Write(grad_x + begin, length, [&](Bits* part) { pass(grad_y + begin, mask + begin / 8, part, length); });
    }
  });
}

}  // namespace

template <typename T>
void StraightThroughGrad(const T* grad_y, const uint8_t* mask, T* grad_x, int64_t size, const CpuExecution& execution) {
  using Bits = BitsOf<T>;
  PassBits(reinterpret_cast<const Bits*>(grad_y), mask, reinterpret_cast<Bits*>(grad_x), size, execution);
}

#define QATFAST_INSTANTIATE(T) \
  template void StraightThroughGrad(const T*, const uint8_t*, T*, int64_t, const CpuExecution&);
QATFAST_FOR_TYPES(QATFAST_INSTANTIATE)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
