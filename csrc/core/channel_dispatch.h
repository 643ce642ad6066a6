// What passes between the kernels (channel_kernels.h) and their inner loops (channel_loops.h), and the choice of the
// loops for an instruction set.
#ifndef QATFAST_CORE_CHANNEL_DISPATCH_H_
#define QATFAST_CORE_CHANNEL_DISPATCH_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/channel_tiles.h"
#include "core/cpu_execution.h"
#include "core/formulas.h"
#include "core/half.h"

namespace qatfast {

// Elements that loops take at once. Enough to fill the vectors of every instruction set, so that all of them add up
// sums in one order.
constexpr int kLanes = 16;
static_assert(kTilePadding % kLanes == 0, "packets of rows that are padded stay aligned");

template <typename Formula>
using ColumnIndices = std::make_index_sequence<Formula::kColumns>;
template <typename Formula>
using InputIndices = std::make_index_sequence<Formula::kInputs>;

// One array of layout.channels numbers per input.
template <typename Formula>
using InputPointers = std::array<const typename Formula::Arithmetic*, Formula::kInputs>;

// Prepared parameters, one channel per lane of a tile. Each array is longer than the tile is wide by kLanes or more.
template <typename Formula>
struct Columns {
  typename Formula::Arithmetic* values[Formula::kColumns];
};

template <typename Formula>
struct RunSums {
  double values[Formula::kTerms][kLanes] = {};
};

// The sums of each lane of a tile, in arrays as long.
template <typename Formula>
struct LaneSums {
  double* values[Formula::kTerms];
};

// Rows whose terms are added to the lanes' sums at once. More of them spare trips to the cache, and keep more numbers
// in registers: it pays where the rows are short in bytes.
template <typename T>
constexpr int64_t kSumRowsAtOnce = sizeof(T) == 2 ? kRowsAtOnce : 2;

// Words of mask bits from one row of a part to the next.
constexpr int64_t kMaskStride = kPartWidth / kLanes;

// The loops of channel_loops.h, for one instruction set.
template <typename T, typename Formula>
struct ChannelLoops {
  using Prepared = typename Formula::Prepared;
  using QuantizeRun = void (*)(const Formula&, const T* x, T* y, uint16_t* mask, int64_t size, const Prepared&);
  QuantizeRun quantize_run;
  QuantizeRun quantize_run_with_mask;
  using QuantizeRows = void (*)(const Formula&, const T* x, int64_t stride, T* y, int64_t y_stride, uint16_t* mask,
                                int64_t size, const Columns<Formula>&, int64_t first_lane);
  QuantizeRows quantize_row_with_mask;
  QuantizeRows quantize_rows_with_mask;  // kRowsAtOnce of them
  QuantizeRows quantize_row[2];          // plain, streaming
  QuantizeRows quantize_rows[2];
  bool (*prepare_lanes)(const Formula&, const Columns<Formula>&, int64_t size);
  void (*widen_columns)(const Columns<Formula>& of_channels, int64_t channels, int64_t inner,
                        const Columns<Formula>& of_lanes);
  void (*finish_channels)(const Formula&, const InputPointers<Formula>&, int64_t first_channel, int64_t channels,
                          int64_t inner, const LaneSums<Formula>&,
                          const std::array<typename Formula::Arithmetic*, Formula::kInputs>& gradients);
  bool (*all_valid)(const Formula&, const InputPointers<Formula>&, int64_t size);
  void (*pass_run)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t size, const Prepared&);
  using PassRow = void (*)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t size,
                           const Columns<Formula>&);
  PassRow pass_row[2];
  void (*backward_run)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t size, const Prepared&,
                       RunSums<Formula>&);
  using BackwardRows = void (*)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t stride, int64_t size,
                                const Columns<Formula>&, const LaneSums<Formula>&);
  BackwardRows backward_row[2];
  BackwardRows backward_rows[2];  // kSumRowsAtOnce of them
};

}  // namespace qatfast

#define QATFAST_ISA_BODY "core/channel_loops.h"
#include "core/foreach_isa.h"

namespace qatfast {

template <typename T, typename Formula>
ChannelLoops<T, Formula> SelectChannelLoops(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::MakeChannelLoops<T, Formula>();
  if (isa == Isa::kAvx2) return avx2::MakeChannelLoops<T, Formula>();
#else
  (void)isa;
#endif
  return portable::MakeChannelLoops<T, Formula>();
}

}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_DISPATCH_H_
