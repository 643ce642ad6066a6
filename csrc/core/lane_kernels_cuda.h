// The kernels of tensors whose neighbours differ in channel (channel_tiles_cuda.h).
#ifndef QATFAST_CORE_LANE_KERNELS_CUDA_H_
#define QATFAST_CORE_LANE_KERNELS_CUDA_H_

#include <type_traits>

#include "core/sums_cuda.h"

namespace qatfast {
namespace cuda {

// The channels of a tile's columns, in shared memory: 16 bytes of one beside those of the column that the next thread
// reads at the same time.
template <typename Formula, int kWidth>
class TileChannels {
 public:
  explicit __device__ TileChannels(const Lanes& lanes) : columns_(lanes.TileWidth(kWidth)) {}

  // Where a column of the tile has its place: that of all threads' first columns, then of their second ones.
  __device__ static int PlaceOf(const Lanes& lanes, int column) {
    return (column % kWidth << lanes.threads_across_log2()) + column / kWidth;
  }

  // By all threads of a block, before __syncthreads().
  __device__ void Prepare(const Op<Formula>& op, const Lanes& lanes, int64_t first_column) const {
    const int64_t offset = lanes.Offset(first_column);
    for (int i = threadIdx.x; i < columns_; i += kThreads) {  // those beyond the row too, which idle threads read
      const Channel<Formula> channel = Channel<Formula>::Load(op, lanes.ChannelAt(offset + i));
      const Parts parts = BitCast<Parts>(channel);
      for (int part = 0; part < kParts; ++part) shared()[part * columns_ + PlaceOf(lanes, i)] = parts.of[part];
    }
  }
  __device__ Channel<Formula> At(int place) const {
    Parts parts;
#pragma unroll
    for (int part = 0; part < kParts; ++part) parts.of[part] = shared()[part * columns_ + place];
    return BitCast<Channel<Formula>>(parts);
  }

  static size_t Bytes(const Lanes& lanes) { return sizeof(Channel<Formula>) * lanes.TileWidth(kWidth); }

 private:
  static constexpr int kParts = sizeof(Channel<Formula>) / sizeof(uint4);
  struct Parts {
    uint4 of[kParts];
  };
  __device__ static uint4* shared() { return reinterpret_cast<uint4*>(shared_memory); }

  int columns_;
};

// What a thread of a tile has to do: the pack at a column, in every so manyth row.
template <int kWidth>
struct TileThread {
  int across;  // among the threads that share a row
  int row;     // the first, in the block
  int row_step;
  int64_t first_column;  // of the tile
  int64_t position;      // of the pack in the block's first row
  int64_t step;          // from a row to the next
  Span whole;
  Lanes::RowSpan whole_rows;

  __device__ TileThread(const Lanes& lanes, int granule)
      : across(threadIdx.x & (lanes.threads_across() - 1)),
        row(threadIdx.x >> lanes.threads_across_log2()),
        row_step(lanes.row_warps()),
        first_column(lanes.FirstColumn(blockIdx.x, kWidth)),
        whole(lanes.grid.WholePacks(granule)) {
    const int64_t column = first_column + across * kWidth;
    position = lanes.FirstRow(blockIdx.x) * lanes.row_length + column;
    step = row_step * lanes.row_length;
    whole_rows = lanes.WholeRows(blockIdx.x, whole, position, kWidth);
    if (column >= lanes.row_length) whole_rows.end = 0;
  }
};

// Shared memory: TileChannels.
template <typename T, typename Formula, typename Map>
__global__ void __launch_bounds__(kThreads, (kPackWidth<T> > 4 ? 2 : 3))
    MapLanes(Op<Formula> op, Map map, Lanes lanes) {
  constexpr int kWidth = kPackWidth<T>;
  const TileThread<kWidth> thread(lanes, Map::kGranule);
  const int rows = lanes.RowsOf(blockIdx.x);
  int row = thread.row;
  int64_t element = thread.position + row * lanes.row_length - lanes.grid.shift;
  typename Map::Loaded loaded[kRowsAtOnce];
  const auto load = [&] {
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      const int64_t here = element + k * thread.step;
      if (thread.whole_rows.Holds(row + k * thread.row_step)) map.Load(here, loaded[k]);
    }
  };
  load();  // under way while the channels are prepared
  const TileChannels<Formula, kWidth> channels(lanes);
  channels.Prepare(op, lanes, thread.first_column);
  __syncthreads();
  // Rows from `row` on, all of which exist: a channel is read once for them.
  const auto finish = [&](int row, int64_t element, auto count, typename Map::Loaded* packs) {
    constexpr int kRows = decltype(count)::value;
    unsigned bits[kRows] = {};
#pragma unroll
    for (int j = 0; j < kWidth; j += Map::Pack::kPerWord) {
      Channel<Formula> here[Map::Pack::kPerWord];
#pragma unroll
      for (int part = 0; part < Map::Pack::kPerWord; ++part) {
        here[part] = channels.At((j + part) * lanes.threads_across() + thread.across);
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        Map::Compute(op.formula, packs[k], bits[k], j, [&](int part) -> const Channel<Formula>& { return here[part]; });
      }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      map.Store(packs[k], bits[k], element + k * thread.step, thread.whole_rows.Holds(row + k * thread.row_step));
    }
  };
  while (row < rows) {
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) Map::Arrive(loaded[k]);
    if (row + (kRowsAtOnce - 1) * thread.row_step < rows) {
      finish(row, element, std::integral_constant<int, kRowsAtOnce>(), loaded);
    } else {
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        const int last = row + k * thread.row_step;
        if (last < rows) finish(last, element + k * thread.step, std::integral_constant<int, 1>(), &loaded[k]);
      }
    }
    row += kRowsAtOnce * thread.row_step;
    element += kRowsAtOnce * thread.step;
    if (row < rows) load();
  }

  const Lanes::CutRows cut = lanes.RowsToPatch(blockIdx.x, thread.whole);
  for (int cut_row = cut.begin; cut_row < cut.end; cut_row += cut.step) {
    const int64_t first = (lanes.FirstRow(blockIdx.x) + cut_row) * lanes.row_length + thread.first_column;
    for (int i = threadIdx.x; i < lanes.TileWidth(kWidth); i += kThreads) {
      const int64_t position = first + i;
      const bool is_inside = thread.first_column + i < lanes.row_length && lanes.grid.span().Holds(position);
      map.Element(op.formula, channels.At(channels.PlaceOf(lanes, i)), position - lanes.grid.shift,
                  is_inside && !thread.whole.Holds(position));
    }
  }
}

// Shared memory: TileChannels, then the sums of the threads' columns.
template <typename T, typename Formula>
__global__ void __launch_bounds__(kThreads, (kPackWidth<T> > 4 ? 2 : 3))
    ReduceLanes(Op<Formula> op, BackwardArrays<T> arrays, ChannelSums<Formula, Lanes> results) {
  constexpr int kWidth = kPackWidth<T>;
  constexpr int kTerms = Formula::kTerms;
  const Lanes& lanes = results.slots;
  const TileThread<kWidth> thread(lanes, kWidth);
  const int rows = lanes.RowsOf(blockIdx.x);
  int row = thread.row;
  int64_t element = thread.position + row * lanes.row_length - lanes.grid.shift;
  BackwardPacks<T> packs[kSummedRowsAtOnce];
  const auto load = [&] {
#pragma unroll
    for (int k = 0; k < kSummedRowsAtOnce; ++k) {
      const int64_t here = element + k * thread.step;
      packs[k].Clear();
      if (thread.whole_rows.Holds(row + k * thread.row_step)) packs[k].Load(arrays, here);
    }
  };
  load();  // under way while the channels are prepared
  const TileChannels<Formula, kWidth> channels(lanes);
  channels.Prepare(op, lanes, thread.first_column);
  __syncthreads();
  double sums[kWidth][kTerms] = {};
  while (row < rows) {
#pragma unroll
    for (int k = 0; k < kSummedRowsAtOnce; ++k) packs[k].Arrive();
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const Channel<Formula> channel = channels.At(j * lanes.threads_across() + thread.across);
#pragma unroll
      for (int k = 0; k < kSummedRowsAtOnce; ++k) packs[k].Compute(op.formula, channel, j, sums[j]);
    }
#pragma unroll
    for (int k = 0; k < kSummedRowsAtOnce; ++k) {
      if (thread.whole_rows.Holds(row + k * thread.row_step)) {
        StorePack(arrays.grad_x + (element + k * thread.step), packs[k].grad_y);
      }
    }
    row += kSummedRowsAtOnce * thread.row_step;
    element += kSummedRowsAtOnce * thread.step;
    if (row < rows) load();
  }

  // Each column's sums, from the threads of the block that had it.
  const int columns = lanes.TileWidth(kWidth);
  __syncthreads();  // nobody reads channels any more
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const int place = j * lanes.threads_across() + thread.across;
      shared_memory[(term * lanes.row_warps() + thread.row) * columns + place] = sums[j][term];
    }
  }
  __syncthreads();
  const Lanes::CutRows cut = lanes.RowsToPatch(blockIdx.x, thread.whole);
  for (int i = threadIdx.x; i < columns; i += kThreads) {
    const int64_t column = thread.first_column + i;
    if (column >= lanes.row_length) break;
    const int place = TileChannels<Formula, kWidth>::PlaceOf(lanes, i);
    double of_column[kTerms] = {};
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      for (int warp = 0; warp < lanes.row_warps(); ++warp) {
        of_column[term] += shared_memory[(term * lanes.row_warps() + warp) * columns + place];
      }
    }
    const int64_t channel = lanes.ChannelAt(lanes.Offset(column));
    if (cut.begin < cut.end) {
      const Channel<Formula> prepared = Channel<Formula>::Load(op, channel);
      for (int cut_row = cut.begin; cut_row < cut.end; cut_row += cut.step) {
        const int64_t position = (lanes.FirstRow(blockIdx.x) + cut_row) * lanes.row_length + column;
        if (!lanes.grid.span().Holds(position) || thread.whole.Holds(position)) continue;
        BackwardOne(op.formula, prepared, arrays, position - lanes.grid.shift, of_column);
      }
    }
    results.Put(op, lanes.FirstSlot(blockIdx.x) + column, channel, of_column);
  }
  results.EndOfBlock(op);
}

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_LANE_KERNELS_CUDA_H_
