// The CUDA kernels of every op whose parameters belong to channels. What they compute is a Formula's (formulas.h) by
// way of channel_maps_cuda.h, where is channel_tiles_cuda.h's. Included by one <op>_cuda.cu per op family, which gives
// its entry points.
//
// Forward and the gradient to x alone are one launch. A gradient with sums is two: pieces of the tensor, then for each
// channel its pieces in index order.
#ifndef QATFAST_CORE_CHANNEL_KERNELS_CUDA_H_
#define QATFAST_CORE_CHANNEL_KERNELS_CUDA_H_

#include <array>

#include "core/channel_maps_cuda.h"
#include "core/channel_tiles_cuda.h"

namespace qatfast {
namespace cuda {

// channel_of of a pack that lies in one run.
template <typename Formula>
struct OneChannel {
  const Channel<Formula>& channel;
  __device__ const Channel<Formula>& operator()(int) const { return channel; }
};

// Shared memory: the channels of the chunk's runs.
template <typename T, typename Formula, typename Map>
__global__ void __launch_bounds__(kThreads, 2) MapRuns(Op<Formula> op, Map map, RunChunks chunks) {
  constexpr int kWidth = kPackWidth<T>;
  auto* channels = reinterpret_cast<Channel<Formula>*>(shared_memory);
  const int64_t chunk = blockIdx.x;
  const int64_t begin = chunk * chunks.width + threadIdx.x * kWidth;
  const Span span = chunks.grid.span();
  // What is read is under way while the channels are prepared.
  typename Map::Loaded loaded[kPacksAtOnce<T>];
#pragma unroll
  for (int k = 0; k < kPacksAtOnce<T>; ++k) loaded[k] = map.Load(chunks.grid, span, begin + k * kThreads * kWidth);

  const int64_t first_run = chunks.FirstRun(chunk);
  const int num_runs = static_cast<int>(chunks.LastRun(chunk) - first_run) + 1;
  for (int i = threadIdx.x; i < num_runs; i += kThreads) {
    channels[i] = Channel<Formula>::Load(op, chunks.runs.ChannelOf(first_run + i));
  }
  __syncthreads();

  if (num_runs == 1) {
    const Channel<Formula> channel = channels[0];
#pragma unroll
    for (int k = 0; k < kPacksAtOnce<T>; ++k) {
      map.Finish(op.formula, loaded[k], chunks.grid, span, begin + k * kThreads * kWidth, OneChannel<Formula>{channel});
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kPacksAtOnce<T>; ++k) {
    const int64_t position = begin + k * kThreads * kWidth;
    const int64_t element = position - chunks.grid.shift;
    const bool is_inside = element < chunks.grid.size;
    const int64_t run = is_inside ? chunks.runs.RunOf(element > 0 ? element : 0) : first_run;
    const Channel<Formula>* here = channels + (run - first_run);
    // A pack at the tensor's end may reach beyond its last run, where there is no channel.
    const bool is_last = run - first_run == num_runs - 1;
    const int64_t left = is_last ? kWidth : (run + 1) * chunks.runs.length.divisor() - element;
    map.Finish(op.formula, loaded[k], chunks.grid, span, position,
               [&](int j) -> const Channel<Formula>& { return j < left ? here[0] : here[1]; });
  }
}

// Whether a thread's columns fill so many registers that fewer blocks must share a multiprocessor. The bounds below are
// the tightest for which no kernel spills (tools/cuda_report.py).
template <typename T, typename Formula>
constexpr bool kHasManyColumns = kPackWidth<T> * Formula::kColumns > 32;

// The channels of the columns that a thread owns.
template <typename Formula, int kWidth>
__device__ void LoadLaneChannels(const Op<Formula>& op, const Lanes& lanes, int64_t column,
                                 Channel<Formula> (&channels)[kWidth]) {
  Lanes::ColumnChannel at = lanes.ChannelAt(column);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    channels[j] = Channel<Formula>::Load(op, at.channel);
    at.Advance(lanes);
  }
}

template <typename T, typename Formula, typename Map>
__global__ void __launch_bounds__(kThreads, (kHasManyColumns<T, Formula> ? 2 : 3))
    MapLanes(Op<Formula> op, Map map, Lanes lanes) {
  constexpr int kWidth = kPackWidth<T>;
  const int64_t column = lanes.FirstColumn(blockIdx.x, threadIdx.x % kWarp, kWidth);
  Channel<Formula> channels[kWidth];
  LoadLaneChannels(op, lanes, column, channels);
  const Span span = lanes.RowsSpan(blockIdx.x, column);
  const int64_t step = kWarps * lanes.row_length;
  // The warps take rows in turn. All threads of a warp go on as long as one of them.
  int64_t row_begin = (lanes.FirstRow(blockIdx.x) + threadIdx.x / kWarp) * lanes.row_length;
  const int64_t end = lanes.EndOfRows(blockIdx.x);
  for (; row_begin < end; row_begin += kRowsAtOnce * step) {
    typename Map::Loaded loaded[kRowsAtOnce];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) loaded[k] = map.Load(lanes.grid, span, row_begin + column + k * step);
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      map.Finish(op.formula, loaded[k], lanes.grid, span, row_begin + column + k * step,
                 [&](int j) -> const Channel<Formula>& { return channels[j]; });
    }
  }
}

// What a gradient with sums reads and writes.
template <typename T>
struct BackwardArrays {
  const T* grad_y;
  const T* x;
  T* grad_x;
  double* partials;  // [terms, slots]
};

// A team, a warp or a whole block, per piece. Shared memory: for blocks, that of TeamSum.
template <int kTeam, typename T, typename Formula>
__global__ void __launch_bounds__(kThreads, 2) ReduceRuns(Op<Formula> op, BackwardArrays<T> arrays, RunPieces pieces) {
  constexpr int kWidth = kPackWidth<T>;
  const int member = threadIdx.x % kTeam;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (piece >= pieces.num_slots()) return;
  const Channel<Formula> channel = Channel<Formula>::Load(op, pieces.runs.ChannelOf(pieces.RunOf(piece)));
  const Span span = pieces.Positions(piece);
  double sums[Formula::kTerms] = {};
  for (int64_t base = span.begin / kWidth * kWidth; base < span.end; base += kTeam * kPacksAtOnce<T> * kWidth) {
    Pack<T> grad_y[kPacksAtOnce<T>], x[kPacksAtOnce<T>];
#pragma unroll
    for (int k = 0; k < kPacksAtOnce<T>; ++k) {
      const int64_t position = base + (k * kTeam + member) * kWidth;
      grad_y[k] = LoadPack(arrays.grad_y, pieces.grid, span, position);
      x[k] = LoadPack(arrays.x, pieces.grid, span, position);
    }
#pragma unroll
    for (int k = 0; k < kPacksAtOnce<T>; ++k) {
      Pack<T> grad_x;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        Arithmetic<T> terms[Formula::kTerms];
        grad_x.values[j] = BackwardElement(op.formula, channel, grad_y[k].values[j], x[k].values[j], terms);
        for (int term = 0; term < Formula::kTerms; ++term) sums[term] += terms[term];
      }
      StorePack(arrays.grad_x, pieces.grid, span, base + (k * kTeam + member) * kWidth, grad_x);
    }
  }
  for (int term = 0; term < Formula::kTerms; ++term) {
    const double sum = TeamSum<kTeam>(sums[term]);
    if (member == 0) arrays.partials[term * pieces.num_slots() + piece] = sum;
  }
}

// Shared memory: a double per warp and column of the tile.
template <typename T, typename Formula>
__global__ void __launch_bounds__(kThreads, (kHasManyColumns<T, Formula> ? 1 : 2))
    ReduceLanes(Op<Formula> op, BackwardArrays<T> arrays, Lanes lanes) {
  constexpr int kWidth = kPackWidth<T>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = lanes.FirstColumn(blockIdx.x, lane, kWidth);
  Channel<Formula> channels[kWidth];
  LoadLaneChannels(op, lanes, column, channels);
  double sums[Formula::kTerms][kWidth] = {};
  const Span span = lanes.RowsSpan(blockIdx.x, column);
  const int64_t step = kWarps * lanes.row_length;
  int64_t row_begin = (lanes.FirstRow(blockIdx.x) + warp) * lanes.row_length;
  const int64_t end = lanes.EndOfRows(blockIdx.x);
  for (; row_begin < end; row_begin += kRowsAtOnce * step) {
    Pack<T> grad_y[kRowsAtOnce], x[kRowsAtOnce];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      grad_y[k] = LoadPack(arrays.grad_y, lanes.grid, span, row_begin + column + k * step);
      x[k] = LoadPack(arrays.x, lanes.grid, span, row_begin + column + k * step);
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      Pack<T> grad_x;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        Arithmetic<T> terms[Formula::kTerms];
        grad_x.values[j] = BackwardElement(op.formula, channels[j], grad_y[k].values[j], x[k].values[j], terms);
        for (int term = 0; term < Formula::kTerms; ++term) sums[term][j] += terms[term];
      }
      StorePack(arrays.grad_x, lanes.grid, span, row_begin + column + k * step, grad_x);
    }
  }
  const int64_t slot = lanes.FirstSlot(blockIdx.x) + column + warp;
#pragma unroll
  for (int term = 0; term < Formula::kTerms; ++term) {
    if (term > 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < kWidth; ++j) shared_memory[(warp * kWidth + j) * kWarp + lane] = sums[term][j];
    __syncthreads();
    if (warp >= kWidth) continue;
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared_memory[(w * kWidth + warp) * kWarp + lane];
    if (column + warp < lanes.row_length) arrays.partials[term * lanes.num_slots() + slot] = sum;
  }
}

template <typename A, int kInputs>
struct InputGradientPointers {
  A* values[kInputs];
};

// A team per channel adds up its partial sums and takes them to the inputs. Shared memory: for blocks, that of TeamSum.
template <int kTeam, typename Formula, typename Slots>
__global__ void __launch_bounds__(kThreads)
    FinishSums(Op<Formula> op, Slots slots, int64_t slots_per_channel, int64_t num_channels, const double* partials,
               InputGradientPointers<typename Formula::Arithmetic, Formula::kInputs> gradients) {
  const int member = threadIdx.x % kTeam;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (channel >= num_channels) return;
  double sums[Formula::kTerms] = {};
  for (int64_t i = member; i < slots_per_channel; i += kTeam) {
    const int64_t slot = slots.Slot(channel, i);
    for (int term = 0; term < Formula::kTerms; ++term) sums[term] += partials[term * slots.num_slots() + slot];
  }
  for (int term = 0; term < Formula::kTerms; ++term) sums[term] = TeamSum<kTeam>(sums[term]);
  if (member != 0) return;
  const typename Formula::Inputs inputs = op.InputsOf(channel);
  typename Formula::Arithmetic results[Formula::kInputs] = {};
  if (op.formula.IsValid(inputs)) op.formula.InputGradients(sums, inputs, results);
  for (int i = 0; i < Formula::kInputs; ++i) gradients.values[i][channel] = results[i];
}

// One op on one tensor: which kernels, on which grid. The counterpart of ChannelKernel.
template <typename T, typename Formula>
class CudaChannelKernel {
 public:
  using A = Arithmetic<T>;
  static constexpr int kWidth = kPackWidth<T>;

  CudaChannelKernel(const ChannelLayout& layout, const Op<Formula>& op) : layout_(layout), op_(op) {}

  void Quantize(const T* x, T* y, uint8_t* mask, const CudaExecution& execution) const {
    const PackGrid grid = MakePackGrid<T>(layout_.size(), {x, y}, mask == nullptr);
    RunMap(ForwardMap<T, Formula>{x, y, mask}, grid, execution);
  }

  // The gradient to x alone.
  void Pass(const T* grad_y, const T* x, T* grad_x, const CudaExecution& execution) const {
    const PackGrid grid = MakePackGrid<T>(layout_.size(), {grad_y, x, grad_x}, true);
    RunMap(PassMap<T, Formula>{grad_y, x, grad_x}, grid, execution);
  }

  // All gradients. `workspace` holds WorkspaceSize() doubles.
  void Backward(const T* grad_y, const T* x, T* grad_x, const std::array<A*, Formula::kInputs>& gradients,
                double* workspace, const CudaExecution& execution) const {
    const PackGrid grid = MakePackGrid<T>(layout_.size(), {grad_y, x, grad_x}, true);
    const BackwardArrays<T> arrays = {grad_y, x, grad_x, workspace};
    if (HasRuns(layout_)) {
      const RunPieces pieces(layout_, grid, kWidth);
      if (RunPieces::team_of_warp(layout_, kWidth)) {
        Launch(execution, ReduceRuns<kWarp, T, Formula>, CeilDiv(pieces.num_slots(), kWarps), 0, op_, arrays, pieces);
      } else {
        Launch(execution, ReduceRuns<kThreads, T, Formula>, pieces.num_slots(), kTeamSumBytes, op_, arrays, pieces);
      }
      Finish(pieces, workspace, gradients, execution);
    } else {
      const Lanes lanes(layout_, grid, kWidth);
      const size_t shared_bytes = sizeof(double) * kThreads * kWidth;
      Launch(execution, ReduceLanes<T, Formula>, lanes.num_blocks(), shared_bytes, op_, arrays, lanes);
      Finish(lanes, workspace, gradients, execution);
    }
  }

  // The most that any alignment of the arrays needs.
  int64_t WorkspaceSize() const {
    const PackGrid widest = {layout_.size(), kWidth - 1, true};
    const int64_t slots =
        HasRuns(layout_) ? RunPieces(layout_, widest, kWidth).num_slots() : Lanes(layout_, widest, kWidth).num_slots();
    return Formula::kTerms * slots;
  }

 private:
  template <typename Map>
  void RunMap(const Map& map, const PackGrid& grid, const CudaExecution& execution) const {
    if (HasRuns(layout_)) {
      const RunChunks chunks(layout_, grid, kWidth);
      const size_t shared_bytes = sizeof(Channel<Formula>) * chunks.max_runs();
      Launch(execution, MapRuns<T, Formula, Map>, chunks.num_chunks(), shared_bytes, op_, map, chunks);
    } else {
      const Lanes lanes(layout_, grid, kWidth);
      Launch(execution, MapLanes<T, Formula, Map>, lanes.num_blocks(), 0, op_, map, lanes);
    }
  }

  template <typename Slots>
  void Finish(const Slots& slots, const double* partials, const std::array<A*, Formula::kInputs>& gradients,
              const CudaExecution& execution) const {
    // Few slots: adjacent threads take adjacent channels, whose slots mostly are adjacent too.
    const int64_t count = slots.slots_per_channel();
    if (count <= 8) {
      FinishInTeams<1>(slots, partials, gradients, execution);
    } else if (count <= 16 * kWarp) {
      FinishInTeams<kWarp>(slots, partials, gradients, execution);
    } else {
      FinishInTeams<kThreads>(slots, partials, gradients, execution);
    }
  }

  template <int kTeam, typename Slots>
  void FinishInTeams(const Slots& slots, const double* partials, const std::array<A*, Formula::kInputs>& gradients,
                     const CudaExecution& execution) const {
    InputGradientPointers<A, Formula::kInputs> pointers;
    std::copy(gradients.begin(), gradients.end(), pointers.values);
    Launch(execution, FinishSums<kTeam, Formula, Slots>, CeilDiv(layout_.channels, kThreads / kTeam), kTeamSumBytes,
           op_, slots, slots.slots_per_channel(), layout_.channels, partials, pointers);
  }

  ChannelLayout layout_;
  Op<Formula> op_;
};

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_KERNELS_CUDA_H_
