// The CPU kernels of every op whose parameters belong to channels: how tensors are cut into blocks, parameters laid
// out, masks and sums put together. What is computed is a Formula's (formulas.h).
//
// Included by one <op>_cpu.cc per op family, which gives its entry points.
#ifndef QATFAST_CORE_CHANNEL_KERNELS_H_
#define QATFAST_CORE_CHANNEL_KERNELS_H_

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/bit_mask.h"
#include "core/channel_dispatch.h"
#include "core/channel_tiles.h"
#include "core/cpu_execution.h"
#include "core/formulas.h"
#include "core/half.h"
#include "core/stream_store.h"

namespace qatfast {

// What a kernel costs a core per element when data comes from memory: 8 to 12 bytes at about 4 bytes a cycle.
constexpr int64_t kCyclesPerElement = 3;

// Runs body(block) for all blocks on the threads of `execution`, denormals counting as zero.
template <typename Body>
void ForEachBlock(const CpuExecution& execution, int64_t num_blocks, int64_t size, Body body) {
  if (num_blocks == 0) return;
  const int64_t cycles = CeilDiv(size, num_blocks) * kCyclesPerElement;
  execution.parallel_for(num_blocks, cycles, [&](int64_t begin, int64_t end) {
    ScopedFlushDenormals flush;
    for (int64_t block = begin; block < end; ++block) body(block);
  });
}

// The gradients that a backward computes. `inputs` are null if nobody asks for them; then there is no workspace.
template <typename T, typename Formula>
struct ChannelGradients {
  T* grad_x = nullptr;
  std::array<Arithmetic<T>*, Formula::kInputs> inputs = {};
  double* workspace = nullptr;

  bool wants_inputs() const { return inputs[0] != nullptr; }
};

// One op on one tensor.
template <typename T, typename Formula>
class ChannelKernel {
 public:
  using A = Arithmetic<T>;
  using Inputs = typename Formula::Inputs;

  ChannelKernel(const ChannelLayout& layout, const Formula& formula, const InputPointers<Formula>& inputs, Isa isa)
      : layout_(layout), formula_(formula), inputs_(inputs), loops_(SelectChannelLoops<T, Formula>(isa)) {}

  // The first channel whose inputs cannot be quantized with, or -1.
  int64_t FindInvalidChannel() const {
    ScopedFlushDenormals flush;
    if (loops_.all_valid(formula_, inputs_, layout_.channels)) return -1;
    int64_t channel = 0;
    while (formula_.IsValid(InputsOf(channel))) ++channel;
    return channel;
  }

  // y and, unless it is null, the mask of what the gradient passes to: a bit per element, in order (bit_mask.h).
  void Quantize(const T* x, T* y, uint8_t* mask, const CpuExecution& execution) const {
    const bool stream = ShouldStream(execution, x == y);
    if (HasLongRuns(layout_)) {
      QuantizeRuns(x, y, mask, execution, stream);
    } else {
      QuantizeLanes(x, y, mask, execution, stream);
    }
  }

  void Backward(const T* grad_y, const T* x, const ChannelGradients<T, Formula>& gradients,
                const CpuExecution& execution) const {
    const bool stream = ShouldStream(execution, grad_y == gradients.grad_x);
    if (HasLongRuns(layout_)) {
      BackwardRuns(grad_y, x, gradients, execution, stream);
    } else {
      BackwardLanes(grad_y, x, gradients, execution, stream);
    }
  }

 private:
  using Prepared = typename Formula::Prepared;

  bool ShouldStream(const CpuExecution& execution, bool in_place) const {
    return !in_place && layout_.size() * static_cast<int64_t>(sizeof(T)) > execution.streaming_bytes;
  }

  template <size_t... kIndices>
  Inputs InputsOf(int64_t channel, std::index_sequence<kIndices...>) const {
    return {inputs_[kIndices][channel]...};
  }
  Inputs InputsOf(int64_t channel) const { return InputsOf(channel, InputIndices<Formula>()); }

  static bool IsZero(const Inputs& inputs) {
    if constexpr (Formula::kMayBeZero) return Formula::IsZero(inputs);
    return false;
  }

  // The parameters of a tile's lanes, and which of them have a zero range and need mending after the loops.
  class TileLanes {
   public:
    TileLanes(const ChannelKernel& kernel, const LaneTiles& tiles, const LaneTiles::Tile& tile) {
      for (int input = 0; input < Formula::kInputs; ++input) {
        const A* from = kernel.inputs_[input];
        A* to = columns_.values[input];
        if (tiles.inner() == 1) {
          tiles.ForEachStretch(tile, [&](int64_t channel, int64_t lane, int64_t count) {
            std::copy_n(from + channel, count, to + lane);
          });
        } else {
          tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
            std::fill(to + first, to + last, from[channel]);
          });
        }
      }
      // Nothing is below or above a zero range: its nudged ends are NaN then (0 / 0).
      const bool any_zero = kernel.loops_.prepare_lanes(kernel.formula_, columns_, tile.width);
      if (!any_zero) return;
      tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
        if (!IsZero(kernel.InputsOf(channel))) return;
        for (int64_t lane = first; lane < last; ++lane) zero_lanes_[num_zero_lanes_++] = static_cast<int>(lane);
      });
    }

    const Columns<Formula>& columns() const { return columns_; }

    // Calls body(lane - first) for the lanes from `first` on, `count` of them, whose range is zero.
    template <typename Body>
    void ForEachZeroLane(int64_t first, int64_t count, Body body) const {
      if (num_zero_lanes_ == 0) return;
      const int* end = zero_lanes_ + num_zero_lanes_;
      for (const int* lane = std::lower_bound(zero_lanes_, end, first); lane < end && *lane < first + count; ++lane) {
        body(*lane - first);
      }
    }

   private:
    Columns<Formula> columns_;
    int zero_lanes_[Formula::kMayBeZero ? kTileWidth : 1];
    int num_zero_lanes_ = 0;
  };

  // The gradients at the lanes of a zero range, which pass whole. They are kept aside from before the loops, which
  // may write grad_x over grad_y.
  class KeptLanes {
   public:
    KeptLanes(const TileLanes& tile_lanes, int64_t first, int64_t count, const T* grad_y, int64_t rows, int64_t stride)
        : tile_lanes_(tile_lanes), first_(first), count_(count), rows_(rows) {
      T* kept = kept_;
      for (int64_t row = 0; row < rows; ++row) {
        tile_lanes.ForEachZeroLane(first, count, [&](int64_t lane) { *kept++ = grad_y[row * stride + lane]; });
      }
    }

    void PutBack(T* grad_x, int64_t stride) const {
      const T* kept = kept_;
      for (int64_t row = 0; row < rows_; ++row) {
        tile_lanes_.ForEachZeroLane(first_, count_, [&](int64_t lane) { grad_x[row * stride + lane] = *kept++; });
      }
    }

   private:
    const TileLanes& tile_lanes_;
    int64_t first_;
    int64_t count_;
    int64_t rows_;
    T kept_[Formula::kMayBeZero ? kRowsAtOnce * kPartWidth : 1];
  };

  // Calls body(begin, length) for parts of a run or a row that leave room in the first-level cache.
  template <typename Body>
  static void ForEachPart(int64_t begin, int64_t length, Body body) {
    const int64_t end = begin + length;
    for (int64_t part = begin; part < end; part += kPartWidth) body(part, std::min(kPartWidth, end - part));
  }

  void QuantizeRuns(const T* x, T* y, uint8_t* mask, const CpuExecution& execution, bool stream) const {
    const RunTiles tiles(layout_);
    const auto quantize = mask == nullptr ? loops_.quantize_run : loops_.quantize_run_with_mask;
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      StreamingWriter<T> writer(stream, execution.isa);
      BitWriter mask_writer(mask, block * RunTiles::kBlockSize);
      uint16_t bits[kMaskStride];
      tiles.ForEachPiece(block, [&](const RunTiles::Piece& piece) {
        const Inputs inputs = InputsOf(piece.channel);
        if (IsZero(inputs)) {
          std::fill_n(y + piece.begin, piece.length, T());
          mask_writer.AppendOnes(piece.length);
          return;
        }
        const Prepared prepared = formula_.Prepare(inputs);
        ForEachPart(piece.begin, piece.length, [&](int64_t begin, int64_t length) {
          writer.Write(y + begin, length,
                       [&](T* part) { quantize(formula_, x + begin, part, bits, length, prepared); });
          mask_writer.Append(bits, length);
        });
      });
    });
  }

  void QuantizeLanes(const T* x, T* y, uint8_t* mask, const CpuExecution& execution, bool stream) const {
    const LaneTiles tiles(layout_, mask == nullptr ? 1 : 8);
    const bool with_mask = mask != nullptr;
    const auto quantize_row = with_mask ? loops_.quantize_row_with_mask : loops_.quantize_row;
    const auto quantize_rows = with_mask ? loops_.quantize_rows_with_mask : loops_.quantize_rows;
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      const LaneTiles::Tile tile = tiles.tile(block);
      const TileLanes tile_lanes(*this, tiles, tile);
      StreamingWriter<T> writer(stream, execution.isa);
      uint16_t bits[kRowsAtOnce * kMaskStride];
      tiles.ForEachRows(tile, kRowsAtOnce, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
        const auto quantize = rows == kRowsAtOnce ? quantize_rows : quantize_row;
        ForEachPart(0, length, [&](int64_t first, int64_t count) {
          writer.WriteRows(y + begin + first, count, rows, stride, [&](T* part, int64_t part_stride) {
            quantize(formula_, x + begin + first, stride, part, part_stride, bits, count, tile_lanes.columns(), first);
            for (int64_t row = 0; row < rows; ++row) {
              tile_lanes.ForEachZeroLane(first, count, [&](int64_t lane) { part[row * part_stride + lane] = T(); });
            }
          });
          if (!with_mask) return;
          for (int64_t row = 0; row < rows; ++row) {
            uint16_t* row_bits = bits + row * kMaskStride;
            tile_lanes.ForEachZeroLane(first, count, [&](int64_t lane) {
              row_bits[lane / kLanes] = static_cast<uint16_t>(row_bits[lane / kLanes] | 1 << lane % kLanes);
            });
            BitWriter(mask, begin + row * stride + first).Append(row_bits, count);
          }
        });
      });
    });
  }

  void BackwardRuns(const T* grad_y, const T* x, const ChannelGradients<T, Formula>& gradients,
                    const CpuExecution& execution, bool stream) const {
    const RunTiles tiles(layout_);
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      StreamingWriter<T> writer(stream, execution.isa);
      tiles.ForEachPiece(block, [&](const RunTiles::Piece& piece) {
        RunSums<Formula> sums;
        const Inputs inputs = InputsOf(piece.channel);
        if (IsZero(inputs)) {
          std::memmove(gradients.grad_x + piece.begin, grad_y + piece.begin, piece.length * sizeof(T));
        } else {
          const Prepared prepared = formula_.Prepare(inputs);
          ForEachPart(piece.begin, piece.length, [&](int64_t begin, int64_t length) {
            writer.Write(gradients.grad_x + begin, length, [&](T* part) {
              if (gradients.wants_inputs()) {
                loops_.backward_run(formula_, grad_y + begin, x + begin, part, length, prepared, sums);
              } else {
                loops_.pass_run(formula_, grad_y + begin, x + begin, part, length, prepared);
              }
            });
          });
        }
        if (!gradients.wants_inputs()) return;
        for (int term = 0; term < Formula::kTerms; ++term) {
          gradients.workspace[Formula::kTerms * piece.slot + term] = SumPairwise(sums.values[term]);
        }
      });
    });
    if (gradients.wants_inputs()) FinishInputGradients(tiles, gradients, execution);
  }

  void BackwardLanes(const T* grad_y, const T* x, const ChannelGradients<T, Formula>& gradients,
                     const CpuExecution& execution, bool stream) const {
    const LaneTiles tiles(layout_);
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      const LaneTiles::Tile tile = tiles.tile(block);
      const TileLanes tile_lanes(*this, tiles, tile);
      LaneSums<Formula> sums;
      StreamingWriter<T> writer(stream, execution.isa);
      tiles.ForEachRows(tile, kRowsAtOnce, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
        ForEachPart(0, length, [&](int64_t first, int64_t count) {
          const T* part_grad_y = grad_y + begin + first;
          const T* part_x = x + begin + first;
          writer.WriteRows(gradients.grad_x + begin + first, count, rows, stride, [&](T* part, int64_t part_stride) {
            const KeptLanes kept(tile_lanes, first, count, part_grad_y, rows, stride);
            if (gradients.wants_inputs()) {
              const auto backward = rows == kRowsAtOnce ? loops_.backward_rows : loops_.backward_row;
              backward(formula_, part_grad_y, part_x, stride, part, part_stride, count, tile_lanes.columns(), sums,
                       first);
            } else {
              for (int64_t row = 0; row < rows; ++row) {
                loops_.pass_lanes(formula_, part_grad_y + row * stride, part_x + row * stride, part + row * part_stride,
                                  count, tile_lanes.columns(), first);
              }
            }
            kept.PutBack(part, part_stride);
          });
        });
      });
      if (gradients.wants_inputs()) AddUpTile(tiles, tile, sums, gradients.workspace);
    });
    if (gradients.wants_inputs()) FinishInputGradients(tiles, gradients, execution);
  }

  // From the sums of a tile's lanes to those of its channels.
  static void AddUpTile(const LaneTiles& tiles, const LaneTiles::Tile& tile, const LaneSums<Formula>& sums,
                        double* workspace) {
    double* slots = workspace + Formula::kTerms * tiles.slot(tile.row_block, 0);
    tiles.ForEachChannel(tile, [&](int64_t channel, int64_t, int64_t) {
      std::fill_n(slots + Formula::kTerms * channel, Formula::kTerms, 0.0);
    });
    tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
      for (int term = 0; term < Formula::kTerms; ++term) {
        double& slot = slots[Formula::kTerms * channel + term];
        for (int64_t lane = first; lane < last; ++lane) slot += sums.values[term][lane];
      }
    });
  }

  // Adds up the partial sums of each channel, in index order, and takes them to its inputs.
  template <typename Tiles>
  void FinishInputGradients(const Tiles& tiles, const ChannelGradients<T, Formula>& gradients,
                            const CpuExecution& execution) const {
    constexpr int64_t kChannelsAtOnce = 256;
    const int64_t num_blocks = CeilDiv(layout_.channels, kChannelsAtOnce);
    ForEachBlock(execution, num_blocks, tiles.num_slots() + layout_.channels, [&](int64_t block) {
      const int64_t end = std::min(layout_.channels, (block + 1) * kChannelsAtOnce);
      for (int64_t channel = block * kChannelsAtOnce; channel < end; ++channel) {
        double sums[Formula::kTerms] = {};
        tiles.ForEachSlot(channel, [&](int64_t slot) {
          for (int term = 0; term < Formula::kTerms; ++term) {
            sums[term] += gradients.workspace[Formula::kTerms * slot + term];
          }
        });
        A of_channel[Formula::kInputs];
        formula_.InputGradients(sums, InputsOf(channel), of_channel);
        for (int input = 0; input < Formula::kInputs; ++input) gradients.inputs[input][channel] = of_channel[input];
      }
    });
  }

  static double SumPairwise(const double* lanes) {
    double sums[kLanes];
    std::copy_n(lanes, kLanes, sums);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0];
  }

  ChannelLayout layout_;
  Formula formula_;
  InputPointers<Formula> inputs_;
  ChannelLoops<T, Formula> loops_;
};

// How many doubles a backward of `num_terms` sums needs on the way.
inline int64_t ChannelWorkspaceSize(const ChannelLayout& layout, int num_terms) {
  return num_terms * (HasLongRuns(layout) ? RunTiles(layout).num_slots() : LaneTiles(layout).num_slots());
}

}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_KERNELS_H_
