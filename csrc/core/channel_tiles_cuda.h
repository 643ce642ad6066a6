// How a GPU cuts a [outer, channels, inner] tensor into packs, blocks and pieces of work: index arithmetic alone, for
// host and device, so that a CPU can check it.
//
// The cut depends on the layout, the type and where the arrays start modulo 16 bytes, never on the device, so that sums
// over pieces, added in index order, have the same bits on every GPU.
//
// A pack is what one access of 16 bytes moves. Element e of a tensor has the position e + shift, so that packs start at
// multiples of the pack's width, and the first and the last one may lie partly outside the tensor.
//
// Whole packs are moved at once, what is left at the ends of a piece of work element by element. All is element by
// element where the arrays of a kernel do not start alike.
//
// Two regimes. Runs: a run of `inner` neighbours shares one channel; threads take packs of it. Lanes: inner is short
// (1, for Keras' last axis), neighbours differ in channel; a block prepares the parameters of some adjacent columns
// once, in shared memory, and its threads, each with a pack's width of them, walk down the rows.
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

// Packs of an array that a thread has under way at once: enough bytes to keep the memory busy. In kernels that add up,
// which read two arrays, fewer, as far as registers ask for it.
constexpr int kPacksAtOnce = 4;
constexpr int kRowsAtOnce = 4;
QATFAST_INLINE constexpr int SummedPacksAtOnce(int pack_width) { return pack_width > 4 ? 2 : 4; }
constexpr int kSummedRowsAtOnce = 2;

// With fewer threads than this a GPU is not busy, and work is better shared among more of them.
constexpr int64_t kThreadsToBusy = int64_t{1} << 17;

QATFAST_INLINE constexpr int Log2(int power_of_two) {
  int log2 = 0;
  while (1 << log2 < power_of_two) ++log2;
  return log2;
}

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
};

// A piece of work, in positions from where its first pack starts: what is moved in whole packs, and what is left.
struct Cut {
  int begin;
  int whole_begin;
  int whole_end;
  int end;

  QATFAST_INLINE bool IsWhole(int position) const { return position >= whole_begin && position < whole_end; }
  // The elements outside of the whole packs.
  QATFAST_INLINE int rest() const { return (whole_begin - begin) + (end - whole_end); }
  QATFAST_INLINE int PositionOfRest(int i) const {
    const int head = whole_begin - begin;
    return i < head ? begin + i : whole_end + (i - head);
  }
};

// Where the elements of a kernel's arrays lie.
struct PackGrid {
  int64_t size = 0;
  int shift = 0;         // from element to position
  bool aligned = false;  // whether packs may be moved at once

  QATFAST_INLINE Span span() const { return {shift, size + shift}; }

  // Cuts positions [begin, end) at multiples of `granule`, a power of two that the pack's width divides.
  QATFAST_INLINE Cut CutAt(int begin, int end, int granule) const {
    const int whole_begin = (begin + granule - 1) & -granule, whole_end = end & -granule;
    return aligned && whole_begin < whole_end ? Cut{begin, whole_begin, whole_end, end} : Cut{begin, begin, begin, end};
  }
  // The same for all positions.
  QATFAST_INLINE Span WholePacks(int granule) const {
    const Span all = span();
    const Span whole = {(all.begin + granule - 1) & -granule, all.end & -int64_t{granule}};
    return aligned && whole.begin < whole.end ? whole : Span{all.begin, all.begin};
  }
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

// The same for sums: a run has to be added up as well, so with rows enough to share a lane's parameters longer runs are
// lanes too.
constexpr int64_t kMinSummedRunLength = 512;
constexpr int64_t kManyRows = 16;

inline bool HasSummedRuns(const ChannelLayout& layout) {
  return HasRuns(layout) && (layout.channels == 1 || layout.inner >= kMinSummedRunLength || layout.outer < kManyRows);
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
  int packs_per_thread;  // fewer where else threads would be idle
  int width;             // positions of a chunk

  RunChunks(const ChannelLayout& layout, const PackGrid& pack_grid, int pack_width) : grid(pack_grid), runs(layout) {
    packs_per_thread = static_cast<int>(
        std::clamp<int64_t>(CeilDiv(grid.size, pack_width) / kThreadsToBusy, 1, int64_t{kPacksAtOnce}));
    width = kThreads * packs_per_thread * pack_width;
  }

  int64_t num_chunks() const { return grid.size == 0 ? 0 : CeilDiv(grid.size + grid.shift, width); }
  // The most runs that one chunk touches.
  int64_t max_runs() const { return std::min<int64_t>(runs.count, (width - 2) / runs.length.divisor() + 2); }

  // The position that a chunk's positions count from, a multiple of 8.
  QATFAST_INLINE int64_t Base(int64_t chunk) const { return chunk * width; }
  QATFAST_INLINE Cut CutOf(int64_t chunk, int granule) const {
    const int64_t left = grid.size + grid.shift - Base(chunk);
    return grid.CutAt(chunk == 0 ? grid.shift : 0, left < width ? static_cast<int>(left) : width, granule);
  }
};

// Runs cut for sums: pieces of one run each, which a team of threads adds up.
struct RunPieces {
  static constexpr int kPacksPerThread = 8;

  PackGrid grid;
  Runs runs;
  int team_log2;          // threads: up to kWarp, or kThreads
  int64_t length = 1;     // elements of a piece, fewer at the end of a run
  Divider per_run;        // pieces of a run
  int64_t num_slots = 0;  // each piece has one for its partial sums
  int64_t slots_per_channel = 0;

  RunPieces(const ChannelLayout& layout, const PackGrid& pack_grid, int pack_width) : grid(pack_grid), runs(layout) {
    const int64_t run = runs.length.divisor();
    const int64_t of_warp = int64_t{kWarp} * kPacksPerThread * pack_width;
    const bool of_block = layout.channels == 1 || run > of_warp;
    team_log2 = Log2(kThreads);
    if (!of_block) {
      // Enough threads for a batch each, and for adjacent ones to share what the memory moves at once.
      team_log2 = run > pack_width ? 1 : 0;
      while (team() < kWarp && int64_t{team()} * SummedPacksAtOnce(pack_width) * pack_width < run) ++team_log2;
    }
    length = of_block ? int64_t{kThreads} * kPacksPerThread * pack_width : of_warp;
    per_run = Divider(std::max<int64_t>(1, CeilDiv(run, length)));
    if (grid.size > 0) num_slots = runs.count * per_run.divisor();
    slots_per_channel = num_slots / runs.channels.divisor();
  }

  int64_t num_blocks() const { return CeilDiv(num_slots, kThreads >> team_log2); }
  QATFAST_INLINE int team() const { return 1 << team_log2; }
  QATFAST_INLINE int64_t RunOf(int64_t piece) const { return per_run.Divide(piece); }
  // The position that a piece's positions count from, where a pack starts.
  QATFAST_INLINE int64_t Base(int64_t piece, int pack_width) const { return Begin(piece) / pack_width * pack_width; }
  QATFAST_INLINE Cut CutOf(int64_t piece, int pack_width) const {
    const int begin = static_cast<int>(Begin(piece) % pack_width);
    const int64_t left = (RunOf(piece) + 1) * runs.length.divisor() + grid.shift - Begin(piece);
    return grid.CutAt(begin, begin + static_cast<int>(left < length ? left : length), pack_width);
  }

  // The slots of a channel, in the order of its elements.
  QATFAST_INLINE int64_t Slot(int64_t channel, int64_t index) const {
    return (per_run.Divide(index) * runs.channels.divisor() + channel) * per_run.divisor() + per_run.Remainder(index);
  }

 private:
  QATFAST_INLINE int64_t Begin(int64_t piece) const {
    return RunOf(piece) * runs.length.divisor() + per_run.Remainder(piece) * length + grid.shift;
  }
};

// Lanes: the tensor seen as rows of one or more periods of channels * inner columns side by side. A tile is one pack
// per thread of `warps_across` warps wide; as many rows of it as there are other warps are walked down at once. Only
// the number of rows depends on where the arrays start.
struct Lanes {
  static constexpr int kMaxRowsPerWarp = 16;
  static constexpr int kMaxWarpsAcross = 4;

  PackGrid grid;
  int64_t channels;
  int64_t inner;
  int64_t row_length;  // a multiple of the period, and of 8 and the pack's width
  int warps_across_log2 = 0;
  int64_t rows_per_block = 1;
  int64_t num_rows = 0;
  int64_t num_row_blocks = 0;
  int64_t num_slots = 0;  // for partial sums: one per column and block of rows
  int64_t slots_per_channel = 0;
  Divider period;
  Divider tiles_per_row;
  Divider slots_per_row;  // partial sums of one channel in a row
  Divider slots_per_period;

  Lanes(const ChannelLayout& layout, const PackGrid& pack_grid, int width)
      : grid(pack_grid),
        channels(std::max<int64_t>(1, layout.channels)),
        inner(std::max<int64_t>(1, layout.inner)),
        period(channels * inner) {
    const int64_t warp_width = int64_t{kWarp} * width;
    const int64_t side_by_side = PeriodsOfRow(warp_width);
    row_length = side_by_side * period.divisor();
    slots_per_row = Divider(side_by_side * inner);
    slots_per_period = Divider(inner);
    // Few rows: warps side by side, so that each has a batch of rows.
    const int64_t rows = CeilDiv(grid.size, row_length);
    while (warps_across() < kMaxWarpsAcross && rows < int64_t{kRowsAtOnce} * row_warps() &&
           warps_across() * warp_width < row_length) {
      ++warps_across_log2;
    }
    tiles_per_row = Divider(CeilDiv(row_length, warps_across() * warp_width));
    const int64_t packs = CeilDiv(grid.size, width);
    int64_t rows_per_warp = std::clamp<int64_t>(packs / kThreadsToBusy, int64_t{kRowsAtOnce}, int64_t{kMaxRowsPerWarp});
    // Some rows more spare a second block, and then a second launch.
    if (rows <= 2 * rows_per_warp * row_warps()) rows_per_warp = std::max<int64_t>(1, CeilDiv(rows + 1, row_warps()));
    rows_per_block = rows_per_warp * row_warps();
    if (grid.size > 0) num_rows = CeilDiv(grid.size + grid.shift, row_length);
    num_row_blocks = CeilDiv(num_rows, rows_per_block);
    num_slots = num_row_blocks * row_length;
    slots_per_channel = num_row_blocks * slots_per_row.divisor();
  }

  int64_t num_blocks() const { return num_row_blocks * tiles_per_row.divisor(); }

  QATFAST_INLINE int warps_across() const { return 1 << warps_across_log2; }
  QATFAST_INLINE int threads_across_log2() const { return warps_across_log2 + Log2(kWarp); }
  QATFAST_INLINE int threads_across() const { return 1 << threads_across_log2(); }
  QATFAST_INLINE int row_warps() const { return kWarps >> warps_across_log2; }
  QATFAST_INLINE int TileWidth(int pack_width) const { return threads_across() * pack_width; }

  QATFAST_INLINE int64_t FirstRow(int64_t block) const { return tiles_per_row.Divide(block) * rows_per_block; }
  QATFAST_INLINE int RowsOf(int64_t block) const {
    const int64_t left = num_rows - FirstRow(block);
    return static_cast<int>(left < rows_per_block ? left : rows_per_block);
  }
  QATFAST_INLINE int64_t FirstColumn(int64_t block, int pack_width) const {
    return tiles_per_row.Remainder(block) * TileWidth(pack_width);
  }

  // The rows of a block, counted from its first, in which the pack at `position` of the first one is moved whole. A row
  // is cut at its start or end only if it is the tensor's first or last.
  struct RowSpan {
    int begin;
    int end;
    QATFAST_INLINE bool Holds(int row) const { return row >= begin && row < end; }
  };
  QATFAST_INLINE RowSpan WholeRows(int64_t block, Span whole, int64_t position, int pack_width) const {
    const int rows = RowsOf(block);
    if (whole.begin == whole.end) return {0, 0};
    const bool is_cut = position + (rows - 1) * row_length + pack_width > whole.end;
    return {position < whole.begin ? 1 : 0, is_cut ? rows - 1 : rows};
  }

  // The rows of a block that have elements outside of the whole packs: begin, begin + step ... below end.
  struct CutRows {
    int begin;
    int end;
    int step;
  };
  QATFAST_INLINE CutRows RowsToPatch(int64_t block, Span whole) const {
    const int rows = RowsOf(block);
    if (whole.begin == whole.end) return {0, rows, 1};
    const bool head = FirstRow(block) == 0 && whole.begin > grid.shift;
    const bool tail = FirstRow(block) + rows == num_rows && whole.end < grid.span().end;
    const int begin = head ? 0 : rows - 1;
    return {begin, tail ? rows : (head ? 1 : begin), rows > 1 ? rows - 1 : 1};
  }

  // How far from the start of a period a column lies, or of an earlier one: row lengths are multiples of the period, so
  // a column's elements are alike in all rows.
  QATFAST_INLINE int64_t Offset(int64_t column) const {
    return column < grid.shift ? column - grid.shift + row_length : column - grid.shift;
  }
  // The channel at such an offset.
  QATFAST_INLINE int64_t ChannelAt(int64_t offset) const {
    if (offset >= period.divisor()) offset = period.Remainder(offset);
    return inner == 1 ? offset : slots_per_period.Divide(offset);
  }

  // The slot of a row block's first column.
  QATFAST_INLINE int64_t FirstSlot(int64_t block) const { return tiles_per_row.Divide(block) * row_length; }
  // The slots of a channel, block of rows by block of rows.
  QATFAST_INLINE int64_t Slot(int64_t channel, int64_t index) const {
    const int64_t row_block = slots_per_row.Divide(index);
    const int64_t in_row = slots_per_row.Remainder(index);
    const int64_t first = slots_per_period.Divide(in_row) * period.divisor() + channel * inner;
    const int64_t column = first + slots_per_period.Remainder(in_row) + grid.shift;
    return row_block * row_length + (column < row_length ? column : column - row_length);
  }

 private:
  // A warp's width at least; more where the row would end with many idle threads, as long as there are rows.
  int64_t PeriodsOfRow(int64_t warp_width) const {
    constexpr int64_t kMinRows = 256;
    constexpr int kMaxMultiple = 8;
    const int64_t to_align = 8 / std::gcd<int64_t>(period.divisor(), 8);  // 8: a byte of the mask; no pack is wider
    const int64_t least = CeilDiv(warp_width, period.divisor() * to_align) * to_align;
    for (int64_t count = least; count <= kMaxMultiple * least; count += least) {
      const int64_t row = count * period.divisor();
      if (count > least && grid.size < kMinRows * row) break;
      if (CeilDiv(row, warp_width) * warp_width * 7 <= row * 8) return count;
    }
    return least;
  }
};

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_TILES_CUDA_H_
