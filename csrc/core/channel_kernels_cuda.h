// The CUDA kernels of every op whose parameters belong to channels. What they compute is a Formula's (formulas.h) by
// way of channel_maps_cuda.h, where is channel_tiles_cuda.h's. Included by one <op>_cuda.cu per op family, which gives
// its entry points.
//
// Forward and the gradient to x alone are one launch. A gradient with sums is one where a block, or a piece for each
// channel, has it all, else two: pieces of the tensor, then for each channel its pieces in index order.
#ifndef QATFAST_CORE_CHANNEL_KERNELS_CUDA_H_
#define QATFAST_CORE_CHANNEL_KERNELS_CUDA_H_

#include <array>

#include "core/lane_kernels_cuda.h"
#include "core/run_kernels_cuda.h"

namespace qatfast {
namespace cuda {

// One op on one tensor: which kernels, on which grid. The counterpart of ChannelKernel.
template <typename T, typename Formula>
class CudaChannelKernel {
 public:
  using A = Arithmetic<T>;
  static constexpr int kWidth = kPackWidth<T>;

  CudaChannelKernel(const ChannelLayout& layout, const Op<Formula>& op) : layout_(layout), op_(op) {}

  void Quantize(const T* x, T* y, uint8_t* mask, const CudaExecution& execution) const {
    const PackGrid grid = MakePackGrid<T>(layout_.size(), {x, y}, mask == nullptr);
    if (mask == nullptr) {
      RunMap(ForwardMap<T, Formula, false>{x, y, nullptr}, grid, execution);
    } else {
      RunMap(ForwardMap<T, Formula, true>{x, y, mask}, grid, execution);
    }
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
    const BackwardArrays<T> arrays = {grad_y, x, grad_x};
    if (HasSummedRuns(layout_)) {
      const auto sums = MakeSums(RunPieces(layout_, grid, kWidth), gradients, workspace);
      Launch(execution, ReduceRuns<T, Formula>, sums.slots.num_blocks(), kTeamSumBytes, op_, arrays, sums);
      FinishLater(sums, execution);
    } else {
      const auto sums = MakeSums(Lanes(layout_, grid, kWidth), gradients, workspace);
      const size_t of_sums = sizeof(double) * Formula::kTerms * kThreads * kWidth;
      const size_t shared_bytes = std::max(of_sums, TileChannels<Formula, kWidth>::Bytes(sums.slots));
      Launch(execution, ReduceLanes<T, Formula>, sums.slots.num_blocks(), shared_bytes, op_, arrays, sums);
      FinishLater(sums, execution);
    }
  }

  // The most that any alignment of the arrays needs.
  int64_t WorkspaceSize() const {
    const PackGrid widest = {layout_.size(), kWidth - 1, true};
    const int64_t slots = HasSummedRuns(layout_) ? RunPieces(layout_, widest, kWidth).num_slots
                                                 : Lanes(layout_, widest, kWidth).num_slots;
    return Formula::kTerms * slots;
  }

 private:
  template <typename Map>
  void RunMap(const Map& map, const PackGrid& grid, const CudaExecution& execution) const {
    if (HasRuns(layout_)) {
      const RunChunks chunks(layout_, grid, kWidth);
      const size_t shared_bytes = sizeof(Channel<Formula>) * chunks.max_runs();
      Launch(execution, MapRuns<T, Formula, Map>, chunks.num_chunks(), shared_bytes, op_, map, chunks);
    } else if constexpr (Formula::kHasChannels) {
      const Lanes lanes(layout_, grid, kWidth);
      Launch(execution, MapLanes<T, Formula, Map>, lanes.num_blocks(), TileChannels<Formula, kWidth>::Bytes(lanes), op_,
             map, lanes);
    }
  }

  template <typename Slots>
  ChannelSums<Formula, Slots> MakeSums(const Slots& slots, const std::array<A*, Formula::kInputs>& gradients,
                                       double* workspace) const {
    const Finish in_one = slots.slots_per_channel == 1 ? Finish::kEachSlot : Finish::kLastThing;
    const bool is_one = slots.num_blocks() > 0 && (in_one == Finish::kEachSlot || slots.num_blocks() == 1);
    ChannelSums<Formula, Slots> sums = {slots, is_one ? in_one : Finish::kLater, layout_.channels, workspace, {}};
    std::copy(gradients.begin(), gradients.end(), sums.gradients);
    return sums;
  }

  template <typename Slots>
  void FinishLater(const ChannelSums<Formula, Slots>& sums, const CudaExecution& execution) const {
    if (sums.finish != Finish::kLater) return;
    // Few slots: adjacent threads take adjacent channels, whose slots mostly are adjacent too.
    const int64_t count = sums.slots.slots_per_channel;
    const int team_log2 = Log2(count <= 8 ? 1 : (count <= 16 * kWarp ? kWarp : kThreads));
    Launch(execution, FinishSums<Formula, Slots>, CeilDiv(layout_.channels, kThreads >> team_log2), kTeamSumBytes, op_,
           sums, team_log2);
  }

  ChannelLayout layout_;
  Op<Formula> op_;
};

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_KERNELS_CUDA_H_
