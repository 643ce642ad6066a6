// The sums over a channel: where kernels leave those of their pieces, and how they become gradients to the inputs.
#ifndef QATFAST_CORE_SUMS_CUDA_H_
#define QATFAST_CORE_SUMS_CUDA_H_

#include "core/channel_maps_cuda.h"

namespace qatfast {
namespace cuda {

// Who takes the sums of pieces, each of which has a slot, to the gradients.
enum class Finish {
  kLater,      // FinishSums, a launch of its own
  kEachSlot,   // whoever fills a slot, since it is the only one of its channel
  kLastThing,  // the block that fills the slots, since it is the only one
};

// `Slots` says which slots are a channel's: RunPieces or Lanes.
template <typename Formula, typename Slots>
struct ChannelSums {
  static constexpr int kTerms = Formula::kTerms;
  using A = typename Formula::Arithmetic;

  Slots slots;
  Finish finish;
  int64_t num_channels;
  double* partials;  // [terms, slots]
  A* gradients[Formula::kInputs];

  // Takes in the sums of a piece of `channel`.
  __device__ void Put(const Op<Formula>& op, int64_t slot, int64_t channel, const double (&sums)[kTerms]) const {
    if (finish == Finish::kEachSlot) {
      WriteGradients(op, channel, sums);
    } else {
      for (int term = 0; term < kTerms; ++term) partials[term * slots.num_slots + slot] = sums[term];
    }
  }

  // Adds up the slots of `channel` by the threads of a team, in a fixed order. All threads of the block call this.
  __device__ void FinishChannel(const Op<Formula>& op, int64_t channel, int member, int team_log2) const {
    double sums[kTerms] = {};
    const int64_t count = channel < num_channels ? slots.slots_per_channel : 0;
    for (int64_t i = member; i < count; i += int64_t{1} << team_log2) {
      const int64_t slot = slots.Slot(channel, i);
      for (int term = 0; term < kTerms; ++term) sums[term] += partials[term * slots.num_slots + slot];
    }
    for (int term = 0; term < kTerms; ++term) sums[term] = TeamSum(sums[term], team_log2);
    if (member == 0 && channel < num_channels) WriteGradients(op, channel, sums);
  }

  // What a block does after it has put all of its slots. All of its threads call this.
  __device__ void EndOfBlock(const Op<Formula>& op) const {
    if (finish != Finish::kLastThing) return;
    __syncthreads();
    for (int64_t first = 0; first < num_channels; first += kThreads) FinishChannel(op, first + threadIdx.x, 0, 0);
  }

 private:
  __device__ void WriteGradients(const Op<Formula>& op, int64_t channel, const double (&sums)[kTerms]) const {
    const typename Formula::Inputs inputs = op.InputsOf(channel);
    A results[Formula::kInputs] = {};
    if (op.formula.IsValid(inputs)) op.formula.InputGradients(sums, inputs, results);
    for (int i = 0; i < Formula::kInputs; ++i) gradients[i][channel] = results[i];
  }
};

// A team per channel. Shared memory: that of TeamSum.
template <typename Formula, typename Slots>
__global__ void __launch_bounds__(kThreads)
    FinishSums(Op<Formula> op, ChannelSums<Formula, Slots> sums, int team_log2) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads >> team_log2) + (threadIdx.x >> team_log2);
  sums.FinishChannel(op, channel, threadIdx.x & ((1 << team_log2) - 1), team_log2);
}

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_SUMS_CUDA_H_
