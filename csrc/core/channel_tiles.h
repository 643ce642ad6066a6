// How the CPU cuts a [outer, channels, inner] tensor into blocks of work.
//
// The cut depends on the layout alone, never on the number of threads: partial sums over blocks, added in index
// order, then have the same bits on any machine.
//
// Three regimes. In RunTiles, inner is long: a run of `inner` neighbours shares one channel, whose parameters sit in
// registers. In LaneTiles, inner is short (1, for Keras' last axis): neighbours differ in channel, so parameters
// are laid out once per tile as wide as the data, one lane per element, and serve every row of the tile. In ChunkTiles,
// inner is short and there is one row: parameters serve nothing but the elements that they are laid out for.
#ifndef QATFAST_CORE_CHANNEL_TILES_H_
#define QATFAST_CORE_CHANNEL_TILES_H_

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "core/params.h"

namespace qatfast {

// Runs shorter than this are laid out as lanes: setting up a run costs as much as moving some 64 elements.
constexpr int64_t kMinRunLength = 64;

// Elements of a tile row, at most. Whole rows of the tensor where they fit, since memory is read fastest in one stretch
// (benchmarks/NOTES.md).
constexpr int64_t kMaxTileWidth = 20480;

// The same where each lane has sums beside its parameters.
constexpr int64_t kMaxSumTileWidth = 4608;

// Elements of a tile row that rows of the tensor are laid side by side for.
constexpr int64_t kSideBySideWidth = 2048;

// Rows of a tile that a loop may take at once.
constexpr int64_t kRowsAtOnce = 4;

// Elements of a run or a row that loops take at once: what they read, write and sum up stays in the first-level cache.
constexpr int64_t kPartWidth = 512;

// Elements by which arrays that are walked side by side are longer than a tile row is wide. Without it they lie a
// multiple of 4 KiB apart, all their current lines fall into one set of the first-level cache, and evict each other.
constexpr int64_t kTilePadding = 48;
constexpr int64_t kPaddedPartWidth = kPartWidth + kTilePadding;

// What streaming stores write whole.
constexpr int64_t kLineBytes = 64;

// Rows of `length` elements after which one begins at the same place of a line of `line` elements again.
inline int64_t RowsToSameLinePlace(int64_t length, int64_t line) { return line / std::gcd(length, line); }

// With few rows to serve, laying out lanes never pays: then even short runs are better taken as runs.
constexpr int64_t kFewRows = 8;
constexpr int64_t kMinRunLengthOfFewRows = 8;

// Rows that are enough to share the laying out of lanes.
constexpr int64_t kRowsToShareLanes = 32;

inline bool HasLongRuns(const ChannelLayout& layout) {
  const int64_t shortest = layout.outer < kFewRows ? kMinRunLengthOfFewRows : kMinRunLength;
  return layout.inner >= shortest || layout.channels == 1;
}

// Channels that come once, with few elements each.
constexpr int64_t kMaxRunLengthOfChunks = 8;

inline bool HasShortRunsOnce(const ChannelLayout& layout) {
  return layout.outer == 1 && layout.channels > 1 && layout.inner >= 1 && layout.inner <= kMaxRunLengthOfChunks;
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cuts the channels of such a layout into chunks of up to kPartWidth elements, which begin where lines of the tensor
// do, and chunks into blocks.
class ChunkTiles {
 public:
  explicit ChunkTiles(const ChannelLayout& layout)
      : channels_(layout.channels), inner_(layout.inner), chunk_(kPartWidth / inner_ / kAlignment * kAlignment) {}

  int64_t num_blocks() const { return CeilDiv(channels_, kChunksPerBlock * chunk_); }

  // Calls body(first_channel, channels) for the chunks of a block.
  template <typename Body>
  void ForEachChunk(int64_t block, Body body) const {
    const int64_t end = std::min(channels_, (block + 1) * kChunksPerBlock * chunk_);
    for (int64_t first = block * kChunksPerBlock * chunk_; first < end; first += chunk_) {
      body(first, std::min(chunk_, end - first));
    }
  }

 private:
  static constexpr int64_t kAlignment = kLineBytes / 2;
  static constexpr int64_t kChunksPerBlock = 64;
  static_assert(kPartWidth / kMaxRunLengthOfChunks >= kAlignment, "a chunk holds a channel");

  int64_t channels_;
  int64_t inner_;
  int64_t chunk_;
};

class RunTiles {
 public:
  static constexpr int64_t kBlockSize = int64_t{1} << 15;

  explicit RunTiles(const ChannelLayout& layout)
      : channels_(layout.channels),
        run_length_(layout.channels == 1 ? layout.outer * layout.inner : layout.inner),
        num_runs_(layout.channels == 1 ? 1 : layout.outer * layout.channels),
        size_(layout.size()) {}

  int64_t num_blocks() const { return CeilDiv(size_, kBlockSize); }

  // A part of one run that lies in one block. Slots number the pieces in memory order: each start of a run and
  // each start of a block counts one up.
  struct Piece {
    int64_t begin;
    int64_t length;
    int64_t channel;
    int64_t slot;
  };

  int64_t num_slots() const { return num_runs_ + num_blocks(); }

  template <typename Body>
  void ForEachPiece(int64_t block, Body body) const {
    int64_t position = block * kBlockSize;
    const int64_t block_end = std::min(size_, position + kBlockSize);
    for (int64_t run = position / run_length_; position < block_end; ++run) {
      const int64_t end = std::min(block_end, (run + 1) * run_length_);
      body(Piece{position, end - position, run % channels_, run + block});
      position = end;
    }
  }

  // Calls body(slot) for the pieces of `channel`, in memory order.
  template <typename Body>
  void ForEachSlot(int64_t channel, Body body) const {
    if (size_ == 0) return;
    for (int64_t run = channel; run < num_runs_; run += channels_) {
      const int64_t first_block = run * run_length_ / kBlockSize;
      const int64_t last_block = ((run + 1) * run_length_ - 1) / kBlockSize;
      for (int64_t block = first_block; block <= last_block; ++block) body(run + block);
    }
  }

 private:
  int64_t channels_;
  int64_t run_length_;
  int64_t num_runs_;
  int64_t size_;
};

class LaneTiles {
 public:
  // Elements of a block, about: large against the setting up of its lanes, small against what threads share.
  static constexpr int64_t kBlockSize = int64_t{1} << 18;

  // Every row part of a tile starts at a multiple of `alignment` elements of the tensor.
  explicit LaneTiles(const ChannelLayout& layout, int64_t alignment = 1, int64_t max_width = kMaxTileWidth)
      : channels_(layout.channels), inner_(std::max<int64_t>(1, layout.inner)), size_(layout.size()) {
    const int64_t period = std::max<int64_t>(1, channels_ * inner_);
    // Several rows of the tensor side by side, where they fit a part, or are needed to end on the alignment; but not so
    // many that few are left below each other to share the laying out of their parameters. The last row of tiles may
    // then be shorter.
    const int64_t to_align = alignment / std::gcd(period, alignment);
    const int64_t widest = std::min(kSideBySideWidth, size_ / kRowsToShareLanes);
    const int64_t side_by_side = std::max<int64_t>(1, widest / (period * to_align)) * to_align;
    row_length_ = side_by_side * period;
    const int64_t unit = std::lcm(inner_, alignment);
    tiles_per_row_ = CeilDiv(row_length_, max_width / unit * unit);
    tile_width_ = CeilDiv(CeilDiv(row_length_, tiles_per_row_), unit) * unit;
    num_rows_ = CeilDiv(size_, row_length_);
    rows_per_block_ = std::max<int64_t>(1, kBlockSize / tile_width_);
    // Whole groups of ForEachRows, whatever the type, unless there would be few blocks.
    const int64_t group = kRowsAtOnce * RowsToSameLinePlace(row_length_, kLineBytes / 2);
    if (num_rows_ >= kFewRows * group) rows_per_block_ = CeilDiv(rows_per_block_, group) * group;
  }

  static LaneTiles WithSums(const ChannelLayout& layout) { return LaneTiles(layout, 1, kMaxSumTileWidth); }

  int64_t num_row_blocks() const { return CeilDiv(num_rows_, rows_per_block_); }
  int64_t num_blocks() const { return num_row_blocks() * tiles_per_row_; }

  // One block: `width` lanes, the first of which is column `first_column` of rows [first_row, last_row).
  struct Tile {
    int64_t first_column;
    int64_t width;
    int64_t first_row;
    int64_t last_row;
    int64_t row_block;
  };

  Tile tile(int64_t block) const {
    const int64_t row_block = block / tiles_per_row_;
    const int64_t first_column = block % tiles_per_row_ * tile_width_;
    const int64_t first_row = row_block * rows_per_block_;
    return {first_column, std::max<int64_t>(0, std::min(tile_width_, row_length_ - first_column)), first_row,
            std::min(num_rows_, first_row + rows_per_block_), row_block};
  }

  // Calls body(begin, length, rows, stride) for the rows of the tile: `rows` at once (`at_once`, or 1 where
  // fewer are left) that lie `stride` apart, `length` elements of each: tile.width, or fewer where the tensor ends.
  // Rows at once begin at the same place of a line of `line` elements: a group is every step-th of step * at_once rows.
  template <typename Body>
  void ForEachRows(const Tile& tile, int64_t at_once, int64_t line, Body body) const {
    const int64_t step = RowsToSameLinePlace(row_length_, line);
    const auto begin_of = [&](int64_t row) { return row * row_length_ + tile.first_column; };
    int64_t row = tile.first_row;
    for (int64_t next = row + step * at_once; next <= tile.last_row; next += step * at_once) {
      if (begin_of(next - 1) + tile.width > size_) break;
      for (; row < next - step * (at_once - 1); ++row) body(begin_of(row), tile.width, at_once, step * row_length_);
      row = next;
    }
    for (; row < tile.last_row; ++row) {
      const int64_t length = std::min(tile.width, size_ - begin_of(row));
      if (length > 0) body(begin_of(row), length, 1, row_length_);
    }
  }

  int64_t inner() const { return inner_; }
  int64_t channels() const { return channels_; }

  // Calls body(channel, first_lane, last_lane) for the lanes of each channel in the tile, in memory order. A
  // channel comes more than once where rows lie side by side.
  template <typename Body>
  void ForEachChannel(const Tile& tile, Body body) const {
    int64_t channel = tile.first_column / inner_ % channels_;
    for (int64_t lane = 0; lane < tile.width; lane += inner_) {
      body(channel, lane, lane + inner_);
      channel = channel + 1 == channels_ ? 0 : channel + 1;
    }
  }

  // Calls body(channel, lane, count) for the longest stretches of lanes whose channels count up by one. Precondition:
  // inner() == 1.
  template <typename Body>
  void ForEachStretch(const Tile& tile, Body body) const {
    int64_t channel = tile.first_column % channels_;
    for (int64_t lane = 0; lane < tile.width;) {
      const int64_t count = std::min(channels_ - channel, tile.width - lane);
      body(channel, lane, count);
      lane += count;
      channel = 0;
    }
  }

  // Partial sums: one per row block and channel, those of a term one after another.
  int64_t num_slots() const { return num_row_blocks() * channels_; }
  int64_t first_slot(int64_t row_block, int term, int num_terms) const {
    return (row_block * num_terms + term) * channels_;
  }

 private:
  int64_t channels_;
  int64_t inner_;
  int64_t size_;
  int64_t row_length_;
  int64_t tile_width_;
  int64_t num_rows_;
  int64_t tiles_per_row_;
  int64_t rows_per_block_;
};

}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_TILES_H_
