#include <cstring>

#include "core/channel_tiles.h"
#include "core/fake_quant.h"
#include "core/quant_math.h"
#include "core/stream_store.h"

namespace qatfast {
namespace {

// Nudged ranges, one per lane of a tile.
template <typename A>
struct NudgedLanes {
  alignas(64) A min[kPaddedTileWidth];
  alignas(64) A max[kPaddedTileWidth];
  alignas(64) A scale[kPaddedTileWidth];
  alignas(64) A inv_scale[kPaddedTileWidth];
  alignas(64) A quant_zero[kPaddedTileWidth];
};

// Enough independent sums to fill the vectors of every instruction set, so that all of them add in one order.
constexpr int kSumLanes = 16;

struct RunSums {
  double below[kSumLanes] = {};
  double above[kSumLanes] = {};
};

struct LaneSums {
  alignas(64) double below[kPaddedTileWidth] = {};
  alignas(64) double above[kPaddedTileWidth] = {};
};

template <typename T>
struct FakeQuantLoops {
  using A = Arithmetic<T>;
  void (*quantize_run_per_tensor)(const T* x, T* y, int64_t size, NudgedRange<A> range);
  void (*quantize_run_per_channel)(const T* x, T* y, int64_t size, NudgedRange<A> range);
  using QuantizeRows = void (*)(const T* x, int64_t stride, T* y, int64_t y_stride, int64_t size,
                                const NudgedLanes<A>& lanes);
  QuantizeRows quantize_lanes;  // of one row
  QuantizeRows quantize_rows;   // of kRowsAtOnce rows
  void (*nudge_lanes)(NudgedLanes<A>& lanes, int64_t size, QuantRange grid);
  void (*pass_run)(const T* grad_y, const T* x, T* grad_x, int64_t size, Range<A> range);
  void (*pass_lanes)(const T* grad_y, const T* x, T* grad_x, int64_t size, const NudgedLanes<A>& lanes);
  void (*pass_and_sum_run)(const T* grad_y, const T* x, T* grad_x, int64_t size, Range<A> range, RunSums& sums);
  using PassAndSumRows = void (*)(const T* grad_y, const T* x, int64_t stride, T* grad_x, int64_t grad_x_stride,
                                  int64_t size, const NudgedLanes<A>& lanes, LaneSums& sums);
  PassAndSumRows pass_and_sum_lanes;  // of one row
  PassAndSumRows pass_and_sum_rows;   // of kRowsAtOnce rows
};

}  // namespace
}  // namespace qatfast

#define QATFAST_ISA_BODY "core/fake_quant_loops.h"
#include "core/foreach_isa.h"

namespace qatfast {
namespace {

// What a kernel costs a core per element when data comes from memory: 8 to 12 bytes at about 4 bytes a cycle.
constexpr int64_t kCyclesPerElement = 3;

template <typename T>
FakeQuantLoops<T> SelectLoops(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::MakeFakeQuantLoops<T>();
  if (isa == Isa::kAvx2) return avx2::MakeFakeQuantLoops<T>();
#endif
  return portable::MakeFakeQuantLoops<T>();
}

template <typename T>
Range<Arithmetic<T>> RangeOf(const FakeQuantParams<T>& params, int64_t channel) {
  const Range<Arithmetic<T>> range = {params.min[channel], params.max[channel]};
  return params.include_zero ? IncludeZero(range, params.quant_range) : range;
}

// The nudged ranges of a tile, and which of its lanes have a zero range and need mending after the loops.
template <typename T>
class TileLanes {
 public:
  TileLanes(const FakeQuantParams<T>& params, const LaneTiles& tiles, const LaneTiles::Tile& tile,
            const FakeQuantLoops<T>& loops) {
    tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
      const Range<Arithmetic<T>> range = RangeOf(params, channel);
      if (IsZero(range)) {
        for (int64_t lane = first; lane < last; ++lane) zero_lanes_[num_zero_lanes_++] = static_cast<int>(lane);
      }
      for (int64_t lane = first; lane < last; ++lane) {
        lanes_.min[lane] = range.min;
        lanes_.max[lane] = range.max;
      }
    });
    loops.nudge_lanes(lanes_, tile.width, params.quant_range);
    // Nothing is below or above a zero range: its nudged ends are NaN already (0 / 0).
  }

  const NudgedLanes<Arithmetic<T>>& lanes() const { return lanes_; }

  // Calls body(lane) for the lanes below `length` whose range is zero.
  template <typename Body>
  void ForEachZeroLane(int64_t length, Body body) const {
    for (int i = 0; i < num_zero_lanes_ && zero_lanes_[i] < length; ++i) body(zero_lanes_[i]);
  }

 private:
  NudgedLanes<Arithmetic<T>> lanes_;
  int zero_lanes_[kTileWidth];
  int num_zero_lanes_ = 0;
};

// The gradients at the lanes of a zero range, which pass whole. They are kept aside from before the loops, which
// may write grad_x over grad_y.
template <typename T>
class KeptLanes {
 public:
  KeptLanes(const TileLanes<T>& tile_lanes, const T* grad_y, int64_t length, int64_t rows, int64_t stride)
      : tile_lanes_(tile_lanes), length_(length), rows_(rows) {
    T* kept = kept_;
    for (int64_t row = 0; row < rows; ++row) {
      tile_lanes.ForEachZeroLane(length, [&](int lane) { *kept++ = grad_y[row * stride + lane]; });
    }
  }

  void PutBack(T* grad_x, int64_t stride) const {
    const T* kept = kept_;
    for (int64_t row = 0; row < rows_; ++row) {
      tile_lanes_.ForEachZeroLane(length_, [&](int lane) { grad_x[row * stride + lane] = *kept++; });
    }
  }

 private:
  const TileLanes<T>& tile_lanes_;
  int64_t length_;
  int64_t rows_;
  T kept_[kRowsAtOnce * kTileWidth];
};

// Cuts a piece into parts that fit the first-level cache.
template <typename Body>
void ForEachPart(const RunTiles::Piece& piece, Body body) {
  const int64_t end = piece.begin + piece.length;
  for (int64_t part = piece.begin; part < end; part += kTileWidth) body(part, std::min(kTileWidth, end - part));
}

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

}  // namespace

template <typename T>
int64_t FindInvalidRange(const FakeQuantParams<T>& params) {
  ScopedFlushDenormals flush;
  for (int64_t channel = 0; channel < params.layout.channels; ++channel) {
    // IncludeZero may turn NaN into 0, so the ends are looked at before it too.
    if (!std::isfinite(params.min[channel]) || !std::isfinite(params.max[channel]) ||
        params.min[channel] > params.max[channel] || !IsValid(RangeOf(params, channel), params.quant_range)) {
      return channel;
    }
  }
  return -1;
}

template <typename T>
void FakeQuant(const FakeQuantParams<T>& params, const T* x, T* y, const CpuExecution& execution) {
  const FakeQuantLoops<T> loops = SelectLoops<T>(execution.isa);
  const int64_t size = params.layout.size();
  const bool stream = x != y && size * static_cast<int64_t>(sizeof(T)) > execution.streaming_bytes;
  if (HasLongRuns(params.layout)) {
    const RunTiles tiles(params.layout);
    const auto quantize = params.per_channel ? loops.quantize_run_per_channel : loops.quantize_run_per_tensor;
    ForEachBlock(execution, tiles.num_blocks(), size, [&](int64_t block) {
      StreamingWriter<T> writer(stream);
      tiles.ForEachPiece(block, [&](const RunTiles::Piece& piece) {
        const Range<Arithmetic<T>> range = RangeOf(params, piece.channel);
        if (IsZero(range)) {
          std::fill_n(y + piece.begin, piece.length, T(0));
          return;
        }
        const NudgedRange<Arithmetic<T>> nudged = Nudge(range, params.quant_range);
        ForEachPart(piece, [&](int64_t begin, int64_t length) {
          writer.Write(y + begin, length, [&](T* part) { quantize(x + begin, part, length, nudged); });
        });
      });
    });
    return;
  }
  const LaneTiles tiles(params.layout);
  ForEachBlock(execution, tiles.num_blocks(), size, [&](int64_t block) {
    const LaneTiles::Tile tile = tiles.tile(block);
    const TileLanes<T> tile_lanes(params, tiles, tile, loops);
    StreamingWriter<T> writer(stream);
    tiles.ForEachRows(tile, kRowsAtOnce, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
      const auto quantize = rows == kRowsAtOnce ? loops.quantize_rows : loops.quantize_lanes;
      writer.WriteRows(y + begin, length, rows, stride, [&](T* row_y, int64_t y_stride) {
        quantize(x + begin, stride, row_y, y_stride, length, tile_lanes.lanes());
        for (int64_t row = 0; row < rows; ++row) {
          tile_lanes.ForEachZeroLane(length, [&](int lane) { row_y[row * y_stride + lane] = T(0); });
        }
      });
    });
  });
}

namespace {

// Adds up the partial sums of each channel and takes them through the range adjustment to min and max.
template <typename T, typename Tiles>
void FinishRangeGradients(const FakeQuantParams<T>& params, const Tiles& tiles, const FakeQuantGradients<T>& gradients,
                          const CpuExecution& execution) {
  const int64_t channels = params.layout.channels;
  ForEachBlock(execution, channels, tiles.num_slots(), [&](int64_t channel) {
    Range<double> grad = {0.0, 0.0};
    tiles.ForEachSlot(channel, [&](int64_t slot) {
      grad.min += gradients.workspace[2 * slot];
      grad.max += gradients.workspace[2 * slot + 1];
    });
    if (params.include_zero) {
      const Range<Arithmetic<T>> range = {params.min[channel], params.max[channel]};
      grad = IncludeZeroGradient(grad, range, params.quant_range);
    }
    gradients.grad_min[channel] = static_cast<Arithmetic<T>>(grad.min);
    gradients.grad_max[channel] = static_cast<Arithmetic<T>>(grad.max);
  });
}

double SumPairwise(const double* lanes) {
  double sums[kSumLanes];
  std::copy_n(lanes, kSumLanes, sums);
  for (int width = kSumLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

template <typename T>
void FakeQuantGradRuns(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                       const FakeQuantGradients<T>& gradients, const CpuExecution& execution, bool stream) {
  const FakeQuantLoops<T> loops = SelectLoops<T>(execution.isa);
  const RunTiles tiles(params.layout);
  const bool wants_sums = gradients.grad_min != nullptr;
  ForEachBlock(execution, tiles.num_blocks(), params.layout.size(), [&](int64_t block) {
    StreamingWriter<T> writer(stream);
    tiles.ForEachPiece(block, [&](const RunTiles::Piece& piece) {
      RunSums sums;
      const Range<Arithmetic<T>> range = RangeOf(params, piece.channel);
      if (IsZero(range)) {
        std::memmove(gradients.grad_x + piece.begin, grad_y + piece.begin, piece.length * sizeof(T));
      } else {
        const NudgedRange<Arithmetic<T>> nudged = Nudge(range, params.quant_range);
        const Range<Arithmetic<T>> ends = {nudged.min, nudged.max};
        ForEachPart(piece, [&](int64_t begin, int64_t length) {
          writer.Write(gradients.grad_x + begin, length, [&](T* part) {
            if (wants_sums) {
              loops.pass_and_sum_run(grad_y + begin, x + begin, part, length, ends, sums);
            } else {
              loops.pass_run(grad_y + begin, x + begin, part, length, ends);
            }
          });
        });
      }
      if (wants_sums) {
        gradients.workspace[2 * piece.slot] = SumPairwise(sums.below);
        gradients.workspace[2 * piece.slot + 1] = SumPairwise(sums.above);
      }
    });
  });
  if (wants_sums) FinishRangeGradients(params, tiles, gradients, execution);
}

template <typename T>
void FakeQuantGradLanes(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                        const FakeQuantGradients<T>& gradients, const CpuExecution& execution, bool stream) {
  const FakeQuantLoops<T> loops = SelectLoops<T>(execution.isa);
  const LaneTiles tiles(params.layout);
  const bool wants_sums = gradients.grad_min != nullptr;
  ForEachBlock(execution, tiles.num_blocks(), params.layout.size(), [&](int64_t block) {
    const LaneTiles::Tile tile = tiles.tile(block);
    const TileLanes<T> tile_lanes(params, tiles, tile, loops);
    LaneSums sums;
    StreamingWriter<T> writer(stream);
    tiles.ForEachRows(tile, kRowsAtOnce, [&](int64_t begin, int64_t length, int64_t rows, int64_t stride) {
      const T* row_grad_y = grad_y + begin;
      const T* row_x = x + begin;
      writer.WriteRows(gradients.grad_x + begin, length, rows, stride, [&](T* row_grad_x, int64_t grad_x_stride) {
        const KeptLanes<T> kept(tile_lanes, row_grad_y, length, rows, stride);
        if (!wants_sums) {
          for (int64_t row = 0; row < rows; ++row) {
            loops.pass_lanes(row_grad_y + row * stride, row_x + row * stride, row_grad_x + row * grad_x_stride, length,
                             tile_lanes.lanes());
          }
        } else {
          const auto pass = rows == kRowsAtOnce ? loops.pass_and_sum_rows : loops.pass_and_sum_lanes;
          pass(row_grad_y, row_x, stride, row_grad_x, grad_x_stride, length, tile_lanes.lanes(), sums);
        }
        kept.PutBack(row_grad_x, grad_x_stride);
      });
    });
    if (!wants_sums) return;
    double* slots = gradients.workspace + 2 * tiles.slot(tile.row_block, 0);
    tiles.ForEachChannel(tile,
                         [&](int64_t channel, int64_t, int64_t) { slots[2 * channel] = slots[2 * channel + 1] = 0.0; });
    tiles.ForEachChannel(tile, [&](int64_t channel, int64_t first, int64_t last) {
      for (int64_t lane = first; lane < last; ++lane) {
        slots[2 * channel] += sums.below[lane];
        slots[2 * channel + 1] += sums.above[lane];
      }
    });
  });
  if (wants_sums) FinishRangeGradients(params, tiles, gradients, execution);
}

}  // namespace

int64_t FakeQuantGradWorkspaceSize(const ChannelLayout& layout) {
  return 2 * (HasLongRuns(layout) ? RunTiles(layout).num_slots() : LaneTiles(layout).num_slots());
}

template <typename T>
void FakeQuantGrad(const FakeQuantParams<T>& params, const T* grad_y, const T* x,
                   const FakeQuantGradients<T>& gradients, const CpuExecution& execution) {
  const bool stream =
      gradients.grad_x != grad_y && params.layout.size() * static_cast<int64_t>(sizeof(T)) > execution.streaming_bytes;
  const auto grad = HasLongRuns(params.layout) ? FakeQuantGradRuns<T> : FakeQuantGradLanes<T>;
  grad(params, grad_y, x, gradients, execution, stream);
}

#define QATFAST_INSTANTIATE(T)                                                                             \
  template int64_t FindInvalidRange(const FakeQuantParams<T>&);                                            \
  template void FakeQuant(const FakeQuantParams<T>&, const T*, T*, const CpuExecution&);                   \
  template void FakeQuantGrad(const FakeQuantParams<T>&, const T*, const T*, const FakeQuantGradients<T>&, \
                              const CpuExecution&);
QATFAST_INSTANTIATE(float)
#undef QATFAST_INSTANTIATE

}  // namespace qatfast
