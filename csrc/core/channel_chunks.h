// The kernels for channels that come once, with few elements each (outer 1, short inner): there, parameters weigh as
// much as elements. A chunk of channels is prepared, used and summed up while it lies in the first-level cache, and its
// gradients are finished at once: no sums go through memory.
#ifndef QATFAST_CORE_CHANNEL_CHUNKS_H_
#define QATFAST_CORE_CHANNEL_CHUNKS_H_

#include <algorithm>

#include "core/bit_mask.h"
#include "core/channel_dispatch.h"
#include "core/channel_lanes.h"
#include "core/channel_tiles.h"
#include "core/stream_store.h"

namespace qatfast {

// The channels [first, first + count), whose elements begin at `begin` and are `length`.
struct ChannelChunk {
  int64_t first;
  int64_t count;
  int64_t begin;
  int64_t length;
};

// Computes chunks, one after another. Precondition: HasShortRunsOnce(layout).
template <typename T, typename Formula>
class ChunkKernel {
 public:
  using A = Arithmetic<T>;

  ChunkKernel(const ChannelLayout& layout, const Formula& formula, const InputPointers<Formula>& inputs,
              const ChannelLoops<T, Formula>& loops)
      : inner_(layout.inner), formula_(formula), inputs_(inputs), loops_(loops) {
    for (int column = 0; column < Formula::kColumns; ++column) {
      of_channels_.values[column] = channel_columns_[column];
      of_lanes_.values[column] = inner_ == 1 ? channel_columns_[column] : lane_columns_[column];
    }
    for (int term = 0; term < Formula::kTerms; ++term) sums_.values[term] = lane_sums_[term];
  }

  void Quantize(const ChannelChunk& chunk, const T* x, T* y, bool stream) {
    Prepare(chunk);
    const T* from = x + chunk.begin;
    T* to = y + chunk.begin;
    loops_.quantize_row[stream](formula_, from, 0, to, 0, nullptr, chunk.length, of_lanes_, 0);
    ForEachZeroChannel(chunk, [&](int64_t lane) { std::fill_n(to + lane, inner_, T()); });
  }

  void QuantizeWithMask(const ChannelChunk& chunk, const T* x, T* y, uint8_t* mask, StreamingWriter<T>& writer) {
    Prepare(chunk);
    uint16_t bits[kMaskStride];
    writer.Write(y + chunk.begin, chunk.length, [&](T* part) {
      loops_.quantize_row_with_mask(formula_, x + chunk.begin, 0, part, 0, bits, chunk.length, of_lanes_, 0);
      ForEachZeroChannel(chunk, [&](int64_t first) {
        std::fill_n(part + first, inner_, T());
        for (int64_t lane = first; lane < first + inner_; ++lane) {
          bits[lane / kLanes] = static_cast<uint16_t>(bits[lane / kLanes] | 1 << lane % kLanes);
        }
      });
    });
    BitWriter(mask, chunk.begin).Append(bits, chunk.length);
  }

  // The gradients to x and, unless they are null, to the channels' inputs.
  void Backward(const ChannelChunk& chunk, const T* grad_y, const T* x, T* grad_x,
                const std::array<A*, Formula::kInputs>& input_gradients, bool stream) {
    Prepare(chunk);
    const T* from = grad_y + chunk.begin;
    T* to = grad_x + chunk.begin;
    if (any_zero_) std::copy_n(from, chunk.length, kept_);  // `to` may be `from`
    if (input_gradients[0] == nullptr) {
      loops_.pass_row[stream](formula_, from, x + chunk.begin, to, chunk.length, of_lanes_);
    } else {
      for (double* of_term : sums_.values) std::fill_n(of_term, chunk.length, 0.0);
      loops_.backward_row[stream](formula_, from, x + chunk.begin, to, 0, chunk.length, of_lanes_, sums_);
      loops_.finish_channels(formula_, inputs_, chunk.first, chunk.count, inner_, sums_, input_gradients);
    }
    ForEachZeroChannel(chunk, [&](int64_t lane) { std::copy_n(kept_ + lane, inner_, to + lane); });
  }

 private:
  void Prepare(const ChannelChunk& chunk) {
    for (int input = 0; input < Formula::kInputs; ++input) {
      std::copy_n(inputs_[input] + chunk.first, chunk.count, of_channels_.values[input]);
    }
    any_zero_ = loops_.prepare_lanes(formula_, of_channels_, chunk.count);
    if (inner_ > 1) loops_.widen_columns(of_channels_, chunk.count, inner_, of_lanes_);
  }

  // Calls body(lane) with the first lane of each channel whose range is zero: y = 0, the whole gradient passes.
  template <typename Body>
  void ForEachZeroChannel(const ChannelChunk& chunk, Body body) const {
    if constexpr (Formula::kMayBeZero) {
      if (!any_zero_) return;
      for (int64_t i = 0; i < chunk.count; ++i) {
        if (Formula::IsZero({inputs_[0][chunk.first + i], inputs_[1][chunk.first + i]})) body(i * inner_);
      }
    }
  }

  int64_t inner_;
  Formula formula_;
  InputPointers<Formula> inputs_;
  const ChannelLoops<T, Formula>& loops_;
  bool any_zero_ = false;
  Columns<Formula> of_channels_;
  Columns<Formula> of_lanes_;
  LaneSums<Formula> sums_;
  LaneArrays<A, Formula::kColumns> channel_columns_{kPartWidth};
  LaneArrays<A, Formula::kColumns> lane_columns_{kPartWidth};
  LaneArrays<double, Formula::kTerms> lane_sums_{kPartWidth};
  T kept_[Formula::kMayBeZero ? kPartWidth : 1];
};

}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_CHUNKS_H_
