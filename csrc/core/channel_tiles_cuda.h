// How a GPU cuts a [outer, channels, inner] tensor into packs, blocks and pieces of work: index arithmetic alone, for
// host and device, so that a CPU can check it.
//
// The cut depends on the layout, the type and where the arrays start modulo 16 bytes, never on the device, so that sums
// over pieces, added in index order, have the same bits on every GPU.
//
// A pack is what one access of 16 bytes moves. Element e of a tensor has the position e + shift, so that packs start at
// multiples of the pack's width, and the first and the last one may lie partly outside the tensor.
//
// Two regimes. Runs: a run of `inner` neighbours shares one channel; each thread takes packs of it. Lanes: inner is
// short (1, for Keras' last axis), neighbours differ in channel; each thread owns a pack's width of adjacent columns,
// prepares their parameters once, in registers, and walks down the rows.
#ifndef QATFAST_CORE_CHANNEL_TILES_CUDA_H_
#define QATFAST_CORE_CHANNEL_TILES_CUDA_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <numeric>

#include "core/inline.h"
#include "core/params.h"

namespace qatfast {
namespace cuda {

constexpr int kThreads = 256;  // of every block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPackBytes = 16;

template <typename T>
constexpr int kPackWidth = kPackBytes / sizeof(T);

// Packs that a thread loads before it computes with the first of them: enough bytes under way to keep the memory busy,
// and no more elements than registers hold.
constexpr int PacksAtOnce(int pack_width) { return pack_width > 4 ? 2 : 4; }
template <typename T>
constexpr int kPacksAtOnce = PacksAtOnce(kPackWidth<T>);
// The same for kernels that keep a channel per element of a pack in registers.
constexpr int kRowsAtOnce = 2;

QATFAST_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Divides by a number that is known before the kernel starts: q = (high half of (multiplier * n) + n) >> shift with
// multiplier = floor(2^64 (2^shift - d) / d) + 1 and 2^shift >= d (Granlund and Montgomery, "Division by invariant
// integers using multiplication", 1994). Exact for 0 <= n < 2^63: the sum stays below 2^64.
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) : divisor_(divisor) {
    while ((uint64_t{1} << shift_) < static_cast<uint64_t>(divisor)) ++shift_;
    const auto excess = static_cast<unsigned __int128>((uint64_t{1} << shift_) - static_cast<uint64_t>(divisor));
    multiplier_ = static_cast<uint64_t>((excess << 64) / static_cast<uint64_t>(divisor)) + 1;
  }

  QATFAST_INLINE int64_t Divide(int64_t n) const {
    const uint64_t dividend = static_cast<uint64_t>(n);
#if defined(__CUDA_ARCH__)
    const uint64_t high = __umul64hi(multiplier_, dividend);
#else
    const uint64_t high = static_cast<uint64_t>(static_cast<unsigned __int128>(multiplier_) * dividend >> 64);
#endif
    return static_cast<int64_t>((high + dividend) >> shift_);
  }
  QATFAST_INLINE int64_t Remainder(int64_t n) const { return n - Divide(n) * divisor_; }
  QATFAST_INLINE int64_t divisor() const { return divisor_; }

 private:
  int64_t divisor_ = 1;
  uint64_t multiplier_ = 1;
  int shift_ = 0;
};

// Positions [begin, end).
struct Span {
  int64_t begin;
  int64_t end;

  QATFAST_INLINE bool Holds(int64_t position) const { return position >= begin && position < end; }
  QATFAST_INLINE bool HoldsPack(int64_t position, int width) const {
    return position >= begin && position + width <= end;
  }
};

// Where the elements of a kernel's arrays lie.
struct PackGrid {
  int64_t size = 0;
  int shift = 0;         // from element to position
  bool aligned = false;  // whether whole packs may be moved at once; else they are moved element by element

  QATFAST_INLINE Span span() const { return {shift, size + shift}; }
};

// Arrays that start at the same distance from a multiple of 16 bytes are moved in packs from the next multiple on.
// Others are moved element by element. `may_shift` is false where positions must be elements, as for the mask that is
// written.
template <typename T>
PackGrid MakePackGrid(int64_t size, std::initializer_list<const T*> arrays, bool may_shift) {
  const auto distance = [](const T* array) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(array) % kPackBytes);
  };
  const int first = distance(*arrays.begin());
  const bool alike =
      std::all_of(arrays.begin(), arrays.end(), [&](const T* array) { return distance(array) == first; });
  if (!alike || (first != 0 && !may_shift)) return {size, 0, false};
  return {size, first / static_cast<int>(sizeof(T)), true};
}

// Runs shorter than this are walked as lanes, unless there are fewer rows to share a lane's parameters than a run has
// elements to share a channel's.
constexpr int64_t kMinRunLength = 64;
constexpr int64_t kMinRunLengthOfFewRows = 8;  // at least the widest pack, so that a pack meets two runs at most

inline bool HasRuns(const ChannelLayout& layout) {
  if (layout.channels == 1 || layout.inner >= kMinRunLength) return true;
  return layout.inner >= kMinRunLengthOfFewRows && layout.outer < layout.inner;
}

// The runs of a tensor: one if there is one channel, else outer * channels.
struct Runs {
  Divider length;
  Divider channels;
  int64_t count = 0;

  Runs() = default;
  explicit Runs(const ChannelLayout& layout)
      : length(std::max<int64_t>(1, layout.channels == 1 ? layout.size() : layout.inner)),
        channels(std::max<int64_t>(1, layout.channels)),
        count(layout.channels == 1 ? 1 : layout.outer * layout.channels) {}

  QATFAST_INLINE int64_t RunOf(int64_t element) const { return length.Divide(element); }
  QATFAST_INLINE int64_t ChannelOf(int64_t run) const { return channels.Remainder(run); }
};

// Runs cut for kernels that treat elements one by one: chunks of equal length, whatever runs they touch.
struct RunChunks {
  PackGrid grid;
  Runs runs;
  int width;  // positions of a chunk

  RunChunks(const ChannelLayout& layout, const PackGrid& pack_grid, int pack_width)
      : grid(pack_grid), runs(layout), width(kThreads * PacksAtOnce(pack_width) * pack_width) {}

  int64_t num_chunks() const { return grid.size == 0 ? 0 : CeilDiv(grid.size + grid.shift, width); }
  // The most runs that one chunk touches.
  int64_t max_runs() const { return std::min<int64_t>(runs.count, (width - 2) / runs.length.divisor() + 2); }

  QATFAST_INLINE int64_t FirstRun(int64_t chunk) const {
    const int64_t first = chunk * width - grid.shift;
    return runs.RunOf(first > 0 ? first : 0);
  }
  QATFAST_INLINE int64_t LastRun(int64_t chunk) const {
    const int64_t last = (chunk + 1) * width - grid.shift;
    return runs.RunOf((last < grid.size ? last : grid.size) - 1);
  }
};

// Runs cut for sums: pieces of one run each, which a team of threads adds up.
struct RunPieces {
  static constexpr int kPacksPerThread = 8;

  PackGrid grid;
  Runs runs;
  int64_t length = 1;  // elements of a piece, fewer at the end of a run
  Divider per_run;     // pieces of a run

  RunPieces(const ChannelLayout& layout, const PackGrid& pack_grid, int pack_width) : grid(pack_grid), runs(layout) {
    length = static_cast<int64_t>(team_of_warp(layout, pack_width) ? kWarp : kThreads) * kPacksPerThread * pack_width;
    per_run = Divider(std::max<int64_t>(1, CeilDiv(runs.length.divisor(), length)));
  }

  // Whether runs are short enough for a warp to take one at once.
  static bool team_of_warp(const ChannelLayout& layout, int pack_width) {
    return layout.channels > 1 && layout.inner <= static_cast<int64_t>(kWarp) * kPacksPerThread * pack_width;
  }

  QATFAST_INLINE int64_t num_slots() const { return grid.size == 0 ? 0 : runs.count * per_run.divisor(); }
  QATFAST_INLINE int64_t RunOf(int64_t piece) const { return per_run.Divide(piece); }
  QATFAST_INLINE Span Positions(int64_t piece) const {
    const int64_t run_begin = RunOf(piece) * runs.length.divisor();
    const int64_t begin = run_begin + per_run.Remainder(piece) * length;
    const int64_t run_end = run_begin + runs.length.divisor();
    const int64_t end = begin + length < run_end ? begin + length : run_end;
    return {begin + grid.shift, end + grid.shift};
  }

  // Each piece has a slot for its partial sums. Those of a channel, in the order of its elements:
  int64_t slots_per_channel() const { return num_slots() / runs.channels.divisor(); }
  QATFAST_INLINE int64_t Slot(int64_t channel, int64_t index) const {
    return (per_run.Divide(index) * runs.channels.divisor() + channel) * per_run.divisor() + per_run.Remainder(index);
  }
};

// Lanes: the tensor seen as rows of one or more periods of channels * inner columns side by side. A tile is one pack
// per thread of a warp wide; the warps of a block take its rows in turn.
struct Lanes {
  static constexpr int kMaxRowsPerWarp = 32;
  static constexpr int kMinRowsPerWarp = 4;
  // With fewer threads than this a GPU is not busy, and rows are better shared among more of them.
  static constexpr int64_t kThreadsToBusy = int64_t{1} << 17;

  PackGrid grid;
  int64_t channels;
  int64_t inner;
  int64_t row_length;  // a multiple of the period, and of 8 and the pack's width
  int64_t rows_per_block = 1;
  int64_t num_row_blocks = 0;
  Divider period;
  Divider tiles_per_row;
  Divider slots_per_row;  // partial sums of one channel in a row
  Divider slots_per_period;

  Lanes(const ChannelLayout& layout, const PackGrid& pack_grid, int pack_width)
      : grid(pack_grid),
        channels(std::max<int64_t>(1, layout.channels)),
        inner(std::max<int64_t>(1, layout.inner)),
        period(channels * inner) {
    const int64_t tile_width = static_cast<int64_t>(kWarp) * pack_width;
    const int64_t to_align = 8 / std::gcd<int64_t>(period.divisor(), 8);  // 8: a byte of the mask; no pack is wider
    const int64_t side_by_side = CeilDiv(tile_width, period.divisor() * to_align) * to_align;
    row_length = side_by_side * period.divisor();
    tiles_per_row = Divider(CeilDiv(row_length, tile_width));
    slots_per_row = Divider(side_by_side * inner);
    slots_per_period = Divider(inner);
    if (grid.size == 0) return;
    const int64_t packs = CeilDiv(grid.size, pack_width);
    const int64_t rows_per_warp =
        std::clamp<int64_t>(packs / kThreadsToBusy, int64_t{kMinRowsPerWarp}, int64_t{kMaxRowsPerWarp});
    rows_per_block = rows_per_warp * kWarps;
    num_row_blocks = CeilDiv(CeilDiv(grid.size + grid.shift, row_length), rows_per_block);
  }

  int64_t num_blocks() const { return num_row_blocks * tiles_per_row.divisor(); }

  QATFAST_INLINE int64_t FirstRow(int64_t block) const { return tiles_per_row.Divide(block) * rows_per_block; }
  // The first of the columns that a thread of the block's warps owns. It may lie beyond the row.
  QATFAST_INLINE int64_t FirstColumn(int64_t block, int lane, int pack_width) const {
    return (tiles_per_row.Remainder(block) * kWarp + lane) * pack_width;
  }

  // The channel of a column and, one after another, of those that follow it.
  struct ColumnChannel {
    int64_t channel;
    int64_t offset;  // within the channel's `inner`

    QATFAST_INLINE void Advance(const Lanes& lanes) {
      if (++offset < lanes.inner) return;
      offset = 0;
      if (++channel == lanes.channels) channel = 0;
    }
  };
  QATFAST_INLINE ColumnChannel ChannelAt(int64_t column) const {
    // Row lengths are multiples of the period, so a column's elements are alike in all rows.
    const int64_t in_period = period.Remainder(column - grid.shift + row_length);
    const int64_t channel = slots_per_period.Divide(in_period);
    return {channel, in_period - channel * inner};
  }

  // The position after the rows of a block.
  QATFAST_INLINE int64_t EndOfRows(int64_t block) const {
    const int64_t end = (FirstRow(block) + rows_per_block) * row_length;
    const int64_t last = grid.span().end;
    return end < last ? end : last;
  }
  // What lies in the rows of a block, for the thread that owns the columns from `column` on: all of them lie in the
  // row, whose length is a multiple of the pack's width, or none.
  QATFAST_INLINE Span RowsSpan(int64_t block, int64_t column) const {
    if (column >= row_length) return {0, 0};
    return {grid.shift, EndOfRows(block)};
  }

  // The partial sums of a channel: for each block of rows, one per column of the channel.
  int64_t slots_per_channel() const { return num_row_blocks * slots_per_row.divisor(); }
  QATFAST_INLINE int64_t num_slots() const { return num_row_blocks * row_length; }
  // The slot of a row block's first column.
  QATFAST_INLINE int64_t FirstSlot(int64_t block) const { return tiles_per_row.Divide(block) * row_length; }
  QATFAST_INLINE int64_t Slot(int64_t channel, int64_t index) const {
    const int64_t row_block = slots_per_row.Divide(index);
    const int64_t in_row = slots_per_row.Remainder(index);
    const int64_t first = slots_per_period.Divide(in_row) * period.divisor() + channel * inner;
    const int64_t column = first + slots_per_period.Remainder(in_row) + grid.shift;
    return row_block * row_length + (column < row_length ? column : column - row_length);
  }
};

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_TILES_CUDA_H_
