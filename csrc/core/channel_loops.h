// The inner loops of channel_kernels.h, compiled once per instruction set by foreach_isa.h. The arithmetic is a
// Formula's (formulas.h); packets of kLanes elements are loops that the compiler turns into vectors, so no vector
// width enters a result.
//
// Loops that write tolerate an output equal to an input, not one that overlaps it otherwise. Where fewer than kLanes
// elements are left, a packet is padded with zeros.

#include "core/packets.h"

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

// Calls body(i, count) for the packets of `size` elements; `count` is kLanes, but for the last.
template <typename Body>
QATFAST_INLINE void ForEachPacket(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, std::integral_constant<int, kLanes>());
  if (i < size) body(i, static_cast<int>(size - i));
}

// The same, but if kStream, whole packets begin at a line of `output`, where Store<true> may put them.
template <bool kStream, typename T, typename Body>
QATFAST_INLINE void ForEachPacketOf(const T* output, int64_t size, Body body) {
  int64_t head = 0;
  if constexpr (kStream) {
    const int64_t bytes_to_line = -reinterpret_cast<uintptr_t>(output) & (kLineBytes - 1);
    head = bytes_to_line / static_cast<int64_t>(sizeof(T));
    if (head > size) head = size;
    for (int64_t i = 0; i < head; i += kLanes) body(i, static_cast<int>(head - i < kLanes ? head - i : kLanes));
  }
  ForEachPacket(size - head, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE { body(head + i, count); });
}

template <typename T, typename A>
QATFAST_INLINE void Load(const T* from, std::integral_constant<int, kLanes>, A* to) {
  Prefetch(from);
  LoadPacket(from, to);
}

template <typename T, typename A>
QATFAST_INLINE void Load(const T* from, int count, A* to) {
  T padded[kLanes] = {};
  for (int lane = 0; lane < count; ++lane) padded[lane] = from[lane];
  LoadPacket(padded, to);
}

template <bool kStream = false, typename T, typename A>
QATFAST_INLINE void Store(const A* from, std::integral_constant<int, kLanes>, T* to) {
  if constexpr (kStream) {
    StreamPacket(from, to);
  } else {
    StorePacket(from, to);
  }
}

template <bool kStream = false, typename T, typename A>
QATFAST_INLINE void Store(const A* from, int count, T* to) {
  T padded[kLanes];
  StorePacket(from, padded);
  for (int lane = 0; lane < count; ++lane) to[lane] = padded[lane];
}

// A Formula's struct of numbers, of which get(j) returns the j-th.
template <typename Struct, typename Get, size_t... kIndices>
QATFAST_INLINE Struct Gather(Get get, std::index_sequence<kIndices...>) {
  return {get(kIndices)...};
}

// The other way: calls set(j, number) for each of them.
template <typename Formula, typename Set, size_t... kIndices>
QATFAST_INLINE void Scatter(const typename Formula::Prepared& p, Set set, std::index_sequence<kIndices...>) {
  (set(kIndices, p.*Formula::kFields[kIndices]), ...);
}

// y and, if kMask, the bits of what the gradient passes to, kLanes to a word.
template <bool kMask, typename T, typename Formula>
void QuantizeRun(const Formula& formula, const T* x, T* y, uint16_t* mask, int64_t size,
                 const typename Formula::Prepared& prepared) {
  using A = Arithmetic<T>;
  const Formula local = formula;
  const typename Formula::Prepared p = prepared;
  ForEachPacket(size, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE {
    A values[kLanes], quantized[kLanes];
    Load(x + i, count, values);
    QATFAST_FOR_LANES(lane) quantized[lane] = local.Quantize(values[lane], p);
    if constexpr (kMask) {
      int32_t passes[kLanes];
      QATFAST_FOR_LANES(lane) passes[lane] = local.Passes(values[lane], p) ? 1 : 0;
      mask[i / kLanes] = PackBits(passes) & static_cast<uint16_t>((1 << count) - 1);
    }
    Store(quantized, count, y + i);
  });
}

// QuantizeRun on kRows rows that lie `stride` elements apart in x, `y_stride` in y and kMaskStride in mask. Each lane's
// parameters, from those of `first_lane` on, are read once for all.
template <int kRows, bool kMask, bool kStream, typename T, typename Formula>
void QuantizeRows(const Formula& formula, const T* x, int64_t stride, T* y, int64_t y_stride, uint16_t* mask,
                  int64_t size, const Columns<Formula>& columns, int64_t first_lane) {
  using A = Arithmetic<T>;
  using Prepared = typename Formula::Prepared;
  const Formula local = formula;
  ForEachPacketOf<kStream>(y, size, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE {
    A parameters[Formula::kColumns][kLanes];
    for (int j = 0; j < Formula::kColumns; ++j) LoadPacket(columns.values[j] + first_lane + i, parameters[j]);
    for (int row = 0; row < kRows; ++row) {
      A values[kLanes], quantized[kLanes];
      Load(x + row * stride + i, count, values);
      const auto prepared = [&](int lane) QATFAST_LAMBDA_INLINE {
        return Gather<Prepared>([&](size_t j) QATFAST_LAMBDA_INLINE { return parameters[j][lane]; },
                                ColumnIndices<Formula>());
      };
      QATFAST_FOR_LANES(lane) quantized[lane] = local.Quantize(values[lane], prepared(lane));
      if constexpr (kMask) {
        int32_t passes[kLanes];
        QATFAST_FOR_LANES(lane) passes[lane] = local.Passes(values[lane], prepared(lane)) ? 1 : 0;
        mask[row * kMaskStride + i / kLanes] = PackBits(passes) & static_cast<uint16_t>((1 << count) - 1);
      }
      Store<kStream>(quantized, count, y + row * y_stride + i);
    }
  });
}

// Prepares one channel per lane, in place of the inputs that are still in the first columns. Whether one of them is
// zero; where the formula may be (IsZero), else false.
template <typename Formula>
bool PrepareLanes(const Formula& formula, const Columns<Formula>& columns, int64_t size) {
  using A = typename Formula::Arithmetic;
  const Formula local = formula;
  int zeros = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    A prepared[Formula::kColumns][kLanes];
    int32_t is_zero[kLanes] = {};
    QATFAST_FOR_LANES(lane) {
      const auto inputs = Gather<typename Formula::Inputs>(
          [&](size_t j) QATFAST_LAMBDA_INLINE { return columns.values[j][i + lane]; }, InputIndices<Formula>());
      if constexpr (Formula::kMayBeZero) is_zero[lane] = Formula::IsZero(inputs) ? 1 : 0;
      const typename Formula::Prepared p = local.Prepare(inputs);
      Scatter<Formula>(
          p, [&](size_t j, A value) QATFAST_LAMBDA_INLINE { prepared[j][lane] = value; }, ColumnIndices<Formula>());
    }
    for (int j = 0; j < Formula::kColumns; ++j) StorePacket(prepared[j], columns.values[j] + i);
    zeros |= PackBits(is_zero) & (size - i < kLanes ? (1 << (size - i)) - 1 : 0xffff);
  }
  return zeros != 0;
}

// From one channel per lane to one element per lane: `inner` of each channel. Writes whole packets.
template <typename Formula>
void WidenColumns(const Columns<Formula>& of_channels, int64_t channels, int64_t inner,
                  const Columns<Formula>& of_lanes) {
  int32_t channel_of[kMaxRunLengthOfChunks][kLanes];  // kLanes channels fill `inner` packets
  for (int packet = 0; packet < inner; ++packet) {
    for (int lane = 0; lane < kLanes; ++lane) {
      channel_of[packet][lane] = static_cast<int32_t>((packet * kLanes + lane) / inner);
    }
  }
  for (int64_t i = 0; i < channels; i += kLanes) {
    for (int column = 0; column < Formula::kColumns; ++column) {
      for (int packet = 0; packet < inner; ++packet) {
        PermutePacket(of_channels.values[column] + i, channel_of[packet],
                      of_lanes.values[column] + i * inner + packet * kLanes);
      }
    }
  }
}

// From the sums of the lanes, `inner` to a channel, to the gradients to the channels' inputs.
template <typename Formula>
void FinishChannels(const Formula& formula, const InputPointers<Formula>& inputs, int64_t first_channel,
                    int64_t channels, int64_t inner, const LaneSums<Formula>& lane_sums,
                    const std::array<typename Formula::Arithmetic*, Formula::kInputs>& gradients) {
  using A = typename Formula::Arithmetic;
  const Formula local = formula;
  for (int64_t i = 0; i < channels; ++i) {
    double sums[Formula::kTerms] = {};
    for (int term = 0; term < Formula::kTerms; ++term) {
      for (int64_t lane = i * inner; lane < (i + 1) * inner; ++lane) sums[term] += lane_sums.values[term][lane];
    }
    A of_channel[Formula::kInputs];
    const auto of_inputs = Gather<typename Formula::Inputs>(
        [&](size_t j) QATFAST_LAMBDA_INLINE { return inputs[j][first_channel + i]; }, InputIndices<Formula>());
    local.InputGradients(sums, of_inputs, of_channel);
    for (int input = 0; input < Formula::kInputs; ++input) gradients[input][first_channel + i] = of_channel[input];
  }
}

// Whether all of `size` channels have valid inputs.
template <typename Formula>
bool AllValid(const Formula& formula, const InputPointers<Formula>& inputs, int64_t size) {
  using A = typename Formula::Arithmetic;
  const Formula local = formula;
  int invalid = 0;
  ForEachPacket(size, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE {
    A loaded[Formula::kInputs][kLanes];
    for (int j = 0; j < Formula::kInputs; ++j) Load(inputs[j] + i, count, loaded[j]);
    int32_t is_invalid[kLanes];
    QATFAST_FOR_LANES(lane) {
      const auto channel = Gather<typename Formula::Inputs>(
          [&](size_t j) QATFAST_LAMBDA_INLINE { return loaded[j][lane]; }, InputIndices<Formula>());
      is_invalid[lane] = local.IsValid(channel) ? 0 : 1;
    }
    invalid |= PackBits(is_invalid) & ((1 << count) - 1);
  });
  return invalid == 0;
}

// The gradient to x alone.
template <typename T, typename Formula>
void PassRun(const Formula& formula, const T* grad_y, const T* x, T* grad_x, int64_t size,
             const typename Formula::Prepared& prepared) {
  using A = Arithmetic<T>;
  const Formula local = formula;
  const typename Formula::Prepared p = prepared;
  ForEachPacket(size, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE {
    A values[kLanes], grads[kLanes];
    Load(x + i, count, values);
    Load(grad_y + i, count, grads);
    QATFAST_FOR_LANES(lane) grads[lane] = local.Passes(values[lane], p) ? grads[lane] : A(0);
    Store(grads, count, grad_x + i);
  });
}

template <bool kStream, typename T, typename Formula>
void PassRow(const Formula& formula, const T* grad_y, const T* x, T* grad_x, int64_t size,
             const Columns<Formula>& columns) {
  using A = Arithmetic<T>;
  const Formula local = formula;
  ForEachPacketOf<kStream>(grad_x, size, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE {
    A values[kLanes], grads[kLanes];
    Load(x + i, count, values);
    Load(grad_y + i, count, grads);
    QATFAST_FOR_LANES(lane) {
      const auto p = Gather<typename Formula::Prepared>(
          [&](size_t j) QATFAST_LAMBDA_INLINE { return columns.values[j][i + lane]; }, ColumnIndices<Formula>());
      grads[lane] = local.Passes(values[lane], p) ? grads[lane] : A(0);
    }
    Store<kStream>(grads, count, grad_x + i);
  });
}

// The gradients to x of kRows packets that lie `stride` elements apart, and their terms of the sums: sums[term][lane]
// gets those of each lane, in order. Several packets at once cost the sums one trip to the cache. `prepared` gives the
// parameters of a lane.
template <int kRows, bool kStream, typename T, typename Formula, typename Count, typename PreparedOf>
QATFAST_INLINE void BackwardPackets(const Formula& formula, const T* grad_y, const T* x, T* grad_x, int64_t stride,
                                    Count count, PreparedOf prepared, double* const* sums) {
  using A = Arithmetic<T>;
  A values[kRows][kLanes], grads[kRows][kLanes];
  for (int row = 0; row < kRows; ++row) {
    Load(x + row * stride, count, values[row]);
    Load(grad_y + row * stride, count, grads[row]);
  }
  QATFAST_FOR_LANES(lane) {
    const auto p = prepared(lane);
    double of_lane[Formula::kTerms];
    for (int term = 0; term < Formula::kTerms; ++term) of_lane[term] = sums[term][lane];
    for (int row = 0; row < kRows; ++row) {
      A terms[Formula::kTerms];
      grads[row][lane] = formula.Backward(grads[row][lane], values[row][lane], p, terms);
      for (int term = 0; term < Formula::kTerms; ++term) of_lane[term] += static_cast<double>(terms[term]);
    }
    for (int term = 0; term < Formula::kTerms; ++term) sums[term][lane] = of_lane[term];
  }
  for (int row = 0; row < kRows; ++row) Store<kStream>(grads[row], count, grad_x + row * stride);
}

// The gradient to x, and the terms of the sums: those of element i go to lane i % kLanes. Precondition: what went
// before x in this piece is a multiple of kLanes elements.
template <typename T, typename Formula>
void BackwardRun(const Formula& formula, const T* grad_y, const T* x, T* grad_x, int64_t size,
                 const typename Formula::Prepared& prepared, RunSums<Formula>& run_sums) {
  const Formula local = formula;
  const typename Formula::Prepared p = prepared;
  double* sums[Formula::kTerms];
  for (int term = 0; term < Formula::kTerms; ++term) sums[term] = run_sums.values[term];
  const auto prepared_of = [p](int) QATFAST_LAMBDA_INLINE { return p; };
  constexpr int64_t kTogether = kRowsAtOnce * kLanes;
  int64_t i = 0;
  for (; i + kTogether <= size; i += kTogether) {
    BackwardPackets<kRowsAtOnce, false>(local, grad_y + i, x + i, grad_x + i, kLanes,
                                        std::integral_constant<int, kLanes>(), prepared_of, sums);
  }
  ForEachPacket(size - i, [&](int64_t j, auto count) QATFAST_LAMBDA_INLINE {
    BackwardPackets<1, false>(local, grad_y + i + j, x + i + j, grad_x + i + j, 0, count, prepared_of, sums);
  });
}

// BackwardRun on kRows rows that lie `stride` elements apart, with a channel and sums of its own in each lane.
template <int kRows, bool kStream, typename T, typename Formula>
void BackwardRows(const Formula& formula, const T* grad_y, const T* x, T* grad_x, int64_t stride, int64_t size,
                  const Columns<Formula>& columns, const LaneSums<Formula>& lane_sums) {
  const Formula local = formula;
  ForEachPacketOf<kStream>(grad_x, size, [&](int64_t i, auto count) QATFAST_LAMBDA_INLINE {
    // A packet that is not whole is padded with zeros, whose terms must not reach the sums of the lanes that follow.
    constexpr bool kWhole = std::is_same_v<decltype(count), std::integral_constant<int, kLanes>>;
    double padded[Formula::kTerms][kLanes];
    double* sums[Formula::kTerms];
    for (int term = 0; term < Formula::kTerms; ++term) {
      double* of_term = lane_sums.values[term] + i;
      sums[term] = kWhole ? of_term : padded[term];
      if constexpr (!kWhole) {
        for (int lane = 0; lane < kLanes; ++lane) padded[term][lane] = of_term[lane];
      }
    }
    const auto prepared_of = [&](int lane) QATFAST_LAMBDA_INLINE {
      return Gather<typename Formula::Prepared>(
          [&](size_t j) QATFAST_LAMBDA_INLINE { return columns.values[j][i + lane]; }, ColumnIndices<Formula>());
    };
    BackwardPackets<kRows, kStream>(local, grad_y + i, x + i, grad_x + i, stride, count, prepared_of, sums);
    if constexpr (!kWhole) {
      for (int term = 0; term < Formula::kTerms; ++term) {
        for (int lane = 0; lane < count; ++lane) lane_sums.values[term][i + lane] = padded[term][lane];
      }
    }
  });
}

template <typename T, typename Formula>
constexpr ChannelLoops<T, Formula> MakeChannelLoops() {
  return {QuantizeRun<false, T, Formula>,
          QuantizeRun<true, T, Formula>,
          QuantizeRows<1, true, false, T, Formula>,
          QuantizeRows<kRowsAtOnce, true, false, T, Formula>,
          {QuantizeRows<1, false, false, T, Formula>, QuantizeRows<1, false, true, T, Formula>},
          {QuantizeRows<kRowsAtOnce, false, false, T, Formula>, QuantizeRows<kRowsAtOnce, false, true, T, Formula>},
          PrepareLanes<Formula>,
          WidenColumns<Formula>,
          FinishChannels<Formula>,
          AllValid<Formula>,
          PassRun<T, Formula>,
          {PassRow<false, T, Formula>, PassRow<true, T, Formula>},
          BackwardRun<T, Formula>,
          {BackwardRows<1, false, T, Formula>, BackwardRows<1, true, T, Formula>},
          {BackwardRows<kSumRowsAtOnce<T>, false, T, Formula>, BackwardRows<kSumRowsAtOnce<T>, true, T, Formula>}};
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
