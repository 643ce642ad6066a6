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
static_assert(kPaddedTileWidth % kLanes == 0, "a packet must not leave its row");

template <typename Formula>
using ColumnIndices = std::make_index_sequence<Formula::kColumns>;
template <typename Formula>
using InputIndices = std::make_index_sequence<Formula::kInputs>;

// One array of layout.channels numbers per input.
template <typename Formula>
using InputPointers = std::array<const typename Formula::Arithmetic*, Formula::kInputs>;

// Prepared parameters, one channel per lane of a tile.
template <typename Formula>
struct Columns {
  alignas(64) typename Formula::Arithmetic values[Formula::kColumns][kPaddedTileWidth];
};

template <typename Formula>
struct RunSums {
  double values[Formula::kTerms][kLanes] = {};
};

template <typename Formula>
struct LaneSums {
  alignas(64) double values[Formula::kTerms][kPaddedTileWidth] = {};
};

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
  QuantizeRows quantize_row;
  QuantizeRows quantize_row_with_mask;
  QuantizeRows quantize_rows;  // kRowsAtOnce of them
  QuantizeRows quantize_rows_with_mask;
  bool (*prepare_lanes)(const Formula&, Columns<Formula>&, int64_t size);
  bool (*all_valid)(const Formula&, const InputPointers<Formula>&, int64_t size);
  void (*pass_run)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t size, const Prepared&);
  void (*pass_lanes)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t size, const Columns<Formula>&,
                     int64_t first_lane);
  void (*backward_run)(const Formula&, const T* grad_y, const T* x, T* grad_x, int64_t size, const Prepared&,
                       RunSums<Formula>&);
  using BackwardRows = void (*)(const Formula&, const T* grad_y, const T* x, int64_t stride, T* grad_x,
                                int64_t grad_x_stride, int64_t size, const Columns<Formula>&, LaneSums<Formula>&,
                                int64_t first_lane);
  BackwardRows backward_row;
  BackwardRows backward_rows;  // kRowsAtOnce of them
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
