// The kernels of tensors whose neighbours share a channel (channel_tiles_cuda.h).
#ifndef QATFAST_CORE_RUN_KERNELS_CUDA_H_
#define QATFAST_CORE_RUN_KERNELS_CUDA_H_

#include "core/sums_cuda.h"

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
__global__ void __launch_bounds__(kThreads, (sizeof(Channel<Formula>) > 32 ? 2 : 3))
    MapRuns(Op<Formula> op, Map map, RunChunks chunks) {
  constexpr int kWidth = kPackWidth<T>;
  constexpr int kStep = kThreads * kWidth;
  auto* channels = reinterpret_cast<Channel<Formula>*>(shared_memory);
  const Cut cut = chunks.CutOf(blockIdx.x, Map::kGranule);
  const int64_t first = chunks.Base(blockIdx.x) - chunks.grid.shift;  // the element at position 0
  const int mine = threadIdx.x * kWidth;
  // What is read is under way while the channels are prepared.
  typename Map::Loaded loaded[kPacksAtOnce];
#pragma unroll
  for (int k = 0; k < kPacksAtOnce; ++k) {
    if (cut.IsWhole(mine + k * kStep)) map.Load(first + mine + k * kStep, loaded[k]);
  }
  int64_t first_run = 0;
  int num_runs = 1;
  if (chunks.runs.count > 1) {
    first_run = chunks.runs.RunOf(first + cut.begin);
    num_runs += static_cast<int>(chunks.runs.RunOf(first + cut.end - 1) - first_run);
  }
  for (int i = threadIdx.x; i < num_runs; i += kThreads) {
    channels[i] = Channel<Formula>::Load(op, chunks.runs.ChannelOf(first_run + i));
  }
  __syncthreads();

#pragma unroll
  for (int k = 0; k < kPacksAtOnce; ++k) {
    if (k * kStep >= cut.whole_end) break;
    const bool may_write = cut.IsWhole(mine + k * kStep);
    const int64_t element = first + mine + k * kStep;
    int run = 0;
    int64_t left = kWidth;  // elements of the pack that are of its first run
    if (num_runs > 1 && may_write) {
      const int64_t run_of_all = chunks.runs.RunOf(element);
      run = static_cast<int>(run_of_all - first_run);
      left = (run_of_all + 1) * chunks.runs.length.divisor() - element;
    }
    unsigned bits = 0;
    Map::Arrive(loaded[k]);
    if (left >= kWidth) {
      const Channel<Formula> channel = channels[run];
#pragma unroll
      for (int j = 0; j < kWidth; j += Map::Pack::kPerWord) {
        Map::Compute(op.formula, loaded[k], bits, j, OneChannel<Formula>{channel});
      }
    } else {
      const Channel<Formula>* here = channels + run;
      const int of_first = static_cast<int>(left);
#pragma unroll
      for (int j = 0; j < kWidth; j += Map::Pack::kPerWord) {
        Map::Compute(op.formula, loaded[k], bits, j, [&](int part) { return here[j + part < of_first ? 0 : 1]; });
      }
    }
    map.Store(loaded[k], bits, element, may_write);
  }

  for (int begin = 0; begin < cut.rest(); begin += kThreads) {
    const int i = begin + threadIdx.x;
    const bool may_write = i < cut.rest();
    const int64_t element = first + cut.PositionOfRest(i);
    const int64_t run = may_write ? chunks.runs.RunOf(element) - first_run : 0;
    map.Element(op.formula, channels[run], element, may_write);
  }
}

// A team of threads per piece. Shared memory: that of TeamSum.
template <typename T, typename Formula>
__global__ void __launch_bounds__(kThreads, 2)
    ReduceRuns(Op<Formula> op, BackwardArrays<T> arrays, ChannelSums<Formula, RunPieces> results) {
  constexpr int kWidth = kPackWidth<T>;
  constexpr int kPacks = SummedPacksAtOnce(kWidth);
  const RunPieces& pieces = results.slots;
  const int team = pieces.team();
  const int member = threadIdx.x & (team - 1);
  const int64_t piece =
      static_cast<int64_t>(blockIdx.x) * (kThreads >> pieces.team_log2) + (threadIdx.x >> pieces.team_log2);
  const bool exists = piece < pieces.num_slots;
  const Cut cut = exists ? pieces.CutOf(piece, kWidth) : Cut{0, 0, 0, 0};
  const int64_t first = exists ? pieces.Base(piece, kWidth) - pieces.grid.shift : 0;  // the element at position 0
  const int step = team * kWidth;
  BackwardPacks<T> packs[kPacks];
  int mine = cut.whole_begin + member * kWidth;
  const auto load = [&] {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      packs[k].Clear();
      if (mine + k * step < cut.whole_end) packs[k].Load(arrays, first + (mine + k * step));
    }
  };
  load();  // under way while the channel is prepared
  const int64_t index = exists ? pieces.runs.ChannelOf(pieces.RunOf(piece)) : 0;
  const Channel<Formula> channel = Channel<Formula>::Load(op, index);
  double sums[Formula::kTerms] = {};
  while (mine < cut.whole_end) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      packs[k].Arrive();
#pragma unroll
      for (int j = 0; j < kWidth; ++j) packs[k].Compute(op.formula, channel, j, sums);
      if (mine + k * step < cut.whole_end) StorePack(arrays.grad_x + (first + (mine + k * step)), packs[k].grad_y);
    }
    mine += kPacks * step;
    if (mine < cut.whole_end) load();
  }
  for (int i = member; i < cut.rest(); i += team) {
    BackwardOne(op.formula, channel, arrays, first + cut.PositionOfRest(i), sums);
  }
#pragma unroll
  for (int term = 0; term < Formula::kTerms; ++term) sums[term] = TeamSum(sums[term], pieces.team_log2);
  if (exists && member == 0) results.Put(op, piece, index, sums);
  results.EndOfBlock(op);
}

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_RUN_KERNELS_CUDA_H_
