// What a tile of lanes (channel_tiles.h) needs beside its elements: the parameters of each lane, and the gradients that
// loops must not lose.
#ifndef QATFAST_CORE_CHANNEL_LANES_H_
#define QATFAST_CORE_CHANNEL_LANES_H_

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "core/channel_dispatch.h"
#include "core/channel_tiles.h"

namespace qatfast {

// kArrays arrays of numbers, one for each lane of a tile, with room for the packets that begin at its last lanes.
// Their numbers are undefined at first.
template <typename A, int kArrays>
class LaneArrays {
 public:
  explicit LaneArrays(int64_t width)
      : stride_(CeilDiv(width, kLanes) * kLanes + kTilePadding),
        memory_(static_cast<A*>(::operator new(kArrays * stride_ * sizeof(A), kAlignment))) {}

  A* operator[](int array) const { return memory_.get() + array * stride_; }

 private:
  static constexpr std::align_val_t kAlignment{kLineBytes};
  struct Delete {
    void operator()(A* memory) const { ::operator delete(memory, kAlignment); }
  };

  int64_t stride_;
  std::unique_ptr<A, Delete> memory_;
};

// The parameters of a tile's lanes, and which of them have a zero range and need mending after the loops.
template <typename T, typename Formula>
class TileLanes {
 public:
  TileLanes(const Formula& formula, const InputPointers<Formula>& inputs, const ChannelLoops<T, Formula>& loops,
            const LaneTiles& tiles, const LaneTiles::Tile& tile)
      : arrays_(tile.width) {
    for (int column = 0; column < Formula::kColumns; ++column) columns_.values[column] = arrays_[column];
    for (int input = 0; input < Formula::kInputs; ++input) {
      const A* from = inputs[input];
      A* to = columns_.values[input];
      if (tiles.inner() == 1) {
        tiles.ForEachStretch(
            tile, [&](int64_t channel, int64_t lane, int64_t count) { std::copy_n(from + channel, count, to + lane); });
      } else {
        tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
          std::fill(to + first, to + last, from[channel]);
        });
      }
    }
    // Nothing is below or above a zero range: its nudged ends are NaN then (0 / 0).
    const bool any_zero = loops.prepare_lanes(formula, columns_, tile.width);
    if constexpr (Formula::kMayBeZero) {
      if (!any_zero) return;
      tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
        if (!Formula::IsZero({inputs[0][channel], inputs[1][channel]})) return;
        for (int64_t lane = first; lane < last; ++lane) zero_lanes_.push_back(lane);
      });
    }
  }

  const Columns<Formula>& columns() const { return columns_; }

  // Calls body(lane - first) for the lanes from `first` on, `count` of them, whose range is zero.
  template <typename Body>
  void ForEachZeroLane(int64_t first, int64_t count, Body body) const {
    if (zero_lanes_.empty()) return;
    auto lane = std::lower_bound(zero_lanes_.begin(), zero_lanes_.end(), first);
    for (; lane != zero_lanes_.end() && *lane < first + count; ++lane) body(*lane - first);
  }

 private:
  using A = typename Formula::Arithmetic;

  LaneArrays<A, Formula::kColumns> arrays_;
  Columns<Formula> columns_;
  std::vector<int64_t> zero_lanes_;
};

// The gradients at the lanes of a zero range, which pass whole. They are kept aside from before a loop, which may write
// grad_x over grad_y, until after it.
template <typename T, typename Formula>
class KeptLanes {
 public:
  explicit KeptLanes(const TileLanes<T, Formula>& lanes) : lanes_(lanes) {}

  // Of `rows` rows of `length` lanes, that lie `stride` elements apart.
  void Keep(const T* grad_y, int64_t length, int64_t rows, int64_t stride) {
    kept_.clear();
    for (int64_t row = 0; row < rows; ++row) {
      lanes_.ForEachZeroLane(0, length, [&](int64_t lane) { kept_.push_back(grad_y[row * stride + lane]); });
    }
  }

  void PutBack(T* grad_x, int64_t length, int64_t rows, int64_t stride) const {
    auto kept = kept_.begin();
    for (int64_t row = 0; row < rows; ++row) {
      lanes_.ForEachZeroLane(0, length, [&](int64_t lane) { grad_x[row * stride + lane] = *kept++; });
    }
  }

 private:
  const TileLanes<T, Formula>& lanes_;
  std::vector<T> kept_;
};

}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_LANES_H_
