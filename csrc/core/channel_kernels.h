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
#include "core/channel_chunks.h"
#include "core/channel_dispatch.h"
#include "core/channel_lanes.h"
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
    if (HasShortRunsOnce(layout_)) {
      QuantizeChunks(x, y, mask, execution, stream);
    } else if (HasLongRuns(layout_)) {
      QuantizeRuns(x, y, mask, execution, stream);
    } else if (mask != nullptr) {
      QuantizeLanesWithMask(x, y, mask, execution, stream);
    } else {
      QuantizeLanes(x, y, execution, stream);
    }
  }

  void Backward(const T* grad_y, const T* x, const ChannelGradients<T, Formula>& gradients,
                const CpuExecution& execution) const {
    const bool stream = ShouldStream(execution, grad_y == gradients.grad_x);
    if (HasShortRunsOnce(layout_)) {
      BackwardChunks(grad_y, x, gradients, execution, stream);
    } else if (HasLongRuns(layout_)) {
      BackwardRuns(grad_y, x, gradients, execution, stream);
    } else if (gradients.wants_inputs()) {
      BackwardLanes(grad_y, x, gradients, execution, stream);
    } else {
      PassLanes(grad_y, x, gradients.grad_x, execution, stream);
    }
  }

 private:
  using Prepared = typename Formula::Prepared;

  static constexpr int64_t kLine = kLineBytes / sizeof(T);
  static constexpr int64_t kChannelsAtOnce = 256;

  bool ShouldStream(const CpuExecution& execution, bool in_place) const {
    return execution.ShouldStream(layout_.size() * static_cast<int64_t>(sizeof(T)), in_place);
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

  void QuantizeChunks(const T* x, T* y, uint8_t* mask, const CpuExecution& execution, bool stream) const {
    ForEachChunk(execution, stream, [&](auto& kernel, const ChannelChunk& chunk, StreamingWriter<T>& writer) {
      if (mask == nullptr) {
        kernel.Quantize(chunk, x, y, stream);
      } else {
        kernel.QuantizeWithMask(chunk, x, y, mask, writer);
      }
    });
  }

  void BackwardChunks(const T* grad_y, const T* x, const ChannelGradients<T, Formula>& gradients,
                      const CpuExecution& execution, bool stream) const {
    ForEachChunk(execution, stream, [&](auto& kernel, const ChannelChunk& chunk, StreamingWriter<T>&) {
      kernel.Backward(chunk, grad_y, x, gradients.grad_x, gradients.inputs, stream);
    });
  }

  // Calls body(kernel, chunk, writer) for all chunks.
  template <typename Body>
  void ForEachChunk(const CpuExecution& execution, bool stream, Body body) const {
    const ChunkTiles tiles(layout_);
    const int64_t inner = layout_.inner;
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      ChunkKernel<T, Formula> kernel(layout_, formula_, inputs_, loops_);
      StreamingWriter<T> writer(stream, execution.isa);  // which makes streamed numbers visible in the end
      tiles.ForEachChunk(block, [&](int64_t first, int64_t count) {
        body(kernel, ChannelChunk{first, count, first * inner, count * inner}, writer);
      });
    });
  }

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

  void QuantizeLanes(const T* x, T* y, const CpuExecution& execution, bool stream) const {
    const LaneTiles tiles(layout_);
    const int64_t line = stream ? kLine : 1;
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      const LaneTiles::Tile tile = tiles.tile(block);
      const TileLanes<T, Formula> lanes(formula_, inputs_, loops_, tiles, tile);
      tiles.ForEachRows(tile, kRowsAtOnce, line, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
        const auto quantize = (rows == 1 ? loops_.quantize_row : loops_.quantize_rows)[stream];
        quantize(formula_, x + begin, stride, y + begin, stride, nullptr, length, lanes.columns(), 0);
        for (int64_t row = 0; row < rows; ++row) {
          lanes.ForEachZeroLane(0, length, [&](int64_t lane) { y[begin + row * stride + lane] = T(); });
        }
      });
      if (stream) StreamFence();
    });
  }

  // In parts, through a buffer: words of the mask begin where parts do, not where lines of y do.
  void QuantizeLanesWithMask(const T* x, T* y, uint8_t* mask, const CpuExecution& execution, bool stream) const {
    const LaneTiles tiles(layout_, 8);
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      const LaneTiles::Tile tile = tiles.tile(block);
      const TileLanes<T, Formula> lanes(formula_, inputs_, loops_, tiles, tile);
      StreamingWriter<T> writer(stream, execution.isa);
      uint16_t bits[kRowsAtOnce * kMaskStride];
      tiles.ForEachRows(tile, kRowsAtOnce, 1, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
        const auto quantize = rows == 1 ? loops_.quantize_row_with_mask : loops_.quantize_rows_with_mask;
        ForEachPart(0, length, [&](int64_t first, int64_t count) {
          writer.WriteRows(y + begin + first, count, rows, stride, [&](T* part, int64_t part_stride) {
            quantize(formula_, x + begin + first, stride, part, part_stride, bits, count, lanes.columns(), first);
            for (int64_t row = 0; row < rows; ++row) {
              lanes.ForEachZeroLane(first, count, [&](int64_t lane) { part[row * part_stride + lane] = T(); });
            }
          });
          for (int64_t row = 0; row < rows; ++row) {
            uint16_t* row_bits = bits + row * kMaskStride;
            lanes.ForEachZeroLane(first, count, [&](int64_t lane) {
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
    if (gradients.wants_inputs()) FinishRuns(tiles, gradients, execution);
  }

  // The gradient to x alone.
  void PassLanes(const T* grad_y, const T* x, T* grad_x, const CpuExecution& execution, bool stream) const {
    const LaneTiles tiles(layout_);
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      const LaneTiles::Tile tile = tiles.tile(block);
      const TileLanes<T, Formula> lanes(formula_, inputs_, loops_, tiles, tile);
      KeptLanes<T, Formula> kept(lanes);
      tiles.ForEachRows(tile, 1, 1, [&](int64_t begin, int64_t length, int64_t, int64_t) {
        kept.Keep(grad_y + begin, length, 1, 0);
        loops_.pass_row[stream](formula_, grad_y + begin, x + begin, grad_x + begin, length, lanes.columns());
        kept.PutBack(grad_x + begin, length, 1, 0);
      });
      if (stream) StreamFence();
    });
  }

  // Which rows are taken at once, and with that the order of the sums, depends on the layout and the type alone.
  void BackwardLanes(const T* grad_y, const T* x, const ChannelGradients<T, Formula>& gradients,
                     const CpuExecution& execution, bool stream) const {
    const LaneTiles tiles = LaneTiles::WithSums(layout_);
    ForEachBlock(execution, tiles.num_blocks(), layout_.size(), [&](int64_t block) {
      const LaneTiles::Tile tile = tiles.tile(block);
      const TileLanes<T, Formula> lanes(formula_, inputs_, loops_, tiles, tile);
      KeptLanes<T, Formula> kept(lanes);
      const LaneArrays<double, Formula::kTerms> sums(tile.width);
      LaneSums<Formula> lane_sums;
      for (int term = 0; term < Formula::kTerms; ++term) {
        lane_sums.values[term] = sums[term];
        std::fill_n(sums[term], tile.width, 0.0);
      }
      T* grad_x = gradients.grad_x;
      tiles.ForEachRows(
          tile, kSumRowsAtOnce<T>, kLine, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
            const auto backward = (rows == 1 ? loops_.backward_row : loops_.backward_rows)[stream];
            kept.Keep(grad_y + begin, length, rows, stride);
            backward(formula_, grad_y + begin, x + begin, grad_x + begin, stride, length, lanes.columns(), lane_sums);
            kept.PutBack(grad_x + begin, length, rows, stride);
          });
      if (stream) StreamFence();
      for (int term = 0; term < Formula::kTerms; ++term) {
        AddUpLanes(tiles, tile, lane_sums.values[term],
                   gradients.workspace + tiles.first_slot(tile.row_block, term, Formula::kTerms));
      }
    });
    FinishLanes(tiles, gradients, execution);
  }

  // From the sums of a tile's lanes to those of its channels.
  static void AddUpLanes(const LaneTiles& tiles, const LaneTiles::Tile& tile, const double* lanes, double* channels) {
    if (tiles.inner() == 1) {
      tiles.ForEachStretch(tile, [&](int64_t channel, int64_t lane, int64_t count) {
        if (lane < tiles.channels()) std::fill_n(channels + channel, count, 0.0);
        for (int64_t i = 0; i < count; ++i) channels[channel + i] += lanes[lane + i];
      });
      return;
    }
    tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
      if (first < tiles.channels() * tiles.inner()) channels[channel] = 0.0;
      for (int64_t lane = first; lane < last; ++lane) channels[channel] += lanes[lane];
    });
  }

  // FinishRuns for sums that lie next to those of other channels: memory is read in stretches.
  void FinishLanes(const LaneTiles& tiles, const ChannelGradients<T, Formula>& gradients,
                   const CpuExecution& execution) const {
    ForEachChannels(tiles.num_slots(), execution, [&](int64_t first, int64_t count) {
      double sums[kChannelsAtOnce][Formula::kTerms] = {};
      for (int64_t row_block = 0; row_block < tiles.num_row_blocks(); ++row_block) {
        for (int term = 0; term < Formula::kTerms; ++term) {
          const double* slots = gradients.workspace + tiles.first_slot(row_block, term, Formula::kTerms) + first;
          for (int64_t i = 0; i < count; ++i) sums[i][term] += slots[i];
        }
      }
      for (int64_t i = 0; i < count; ++i) FinishChannel(first + i, sums[i], gradients);
    });
  }

  // Calls body(first, count) for channels, at most kChannelsAtOnce of them; num_slots partial sums belong to all.
  template <typename Body>
  void ForEachChannels(int64_t num_slots, const CpuExecution& execution, Body body) const {
    const int64_t channels = layout_.channels;
    ForEachBlock(execution, CeilDiv(channels, kChannelsAtOnce), num_slots + channels, [&](int64_t block) {
      const int64_t first = block * kChannelsAtOnce;
      body(first, std::min(channels - first, kChannelsAtOnce));
    });
  }

  void FinishChannel(int64_t channel, const double* sums, const ChannelGradients<T, Formula>& gradients) const {
    A of_channel[Formula::kInputs];
    formula_.InputGradients(sums, InputsOf(channel), of_channel);
    for (int input = 0; input < Formula::kInputs; ++input) gradients.inputs[input][channel] = of_channel[input];
  }

  // Adds up the partial sums of each channel, in index order, and takes them to its inputs.
  void FinishRuns(const RunTiles& tiles, const ChannelGradients<T, Formula>& gradients,
                  const CpuExecution& execution) const {
    ForEachChannels(tiles.num_slots(), execution, [&](int64_t first, int64_t count) {
      for (int64_t channel = first; channel < first + count; ++channel) {
        double sums[Formula::kTerms] = {};
        tiles.ForEachSlot(channel, [&](int64_t slot) {
          for (int term = 0; term < Formula::kTerms; ++term) {
            sums[term] += gradients.workspace[Formula::kTerms * slot + term];
          }
        });
        FinishChannel(channel, sums, gradients);
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
  if (HasShortRunsOnce(layout)) return 0;
  return num_terms * (HasLongRuns(layout) ? RunTiles(layout).num_slots() : LaneTiles::WithSums(layout).num_slots());
}

}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_KERNELS_H_
