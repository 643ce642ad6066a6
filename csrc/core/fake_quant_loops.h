// The inner loops of fake_quant_cpu.cc, compiled once per instruction set by foreach_isa.h. Plain loops that the
// compiler turns into vectors: the arithmetic stays that of quant_math.h, and no lane count enters a result.
//
// Loops that write tolerate an output equal to an input, not one that overlaps it otherwise.

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

template <bool kPerChannel, typename T>
void QuantizeRun(const T* x, T* y, int64_t size, NudgedRange<Arithmetic<T>> range) {
  QATFAST_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < size; ++i) {
    y[i] = static_cast<T>(FakeQuantize<kPerChannel>(static_cast<Arithmetic<T>>(x[i]), range));
  }
}

// kRows rows that lie `stride` elements apart in x, `y_stride` in y: each lane's range is read once for all.
template <int kRows, typename T>
void QuantizeLanes(const T* x, int64_t stride, T* y, int64_t y_stride, int64_t size,
                   const NudgedLanes<Arithmetic<T>>& lanes) {
  QATFAST_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < size; ++i) {
    const NudgedRange<Arithmetic<T>> range = {lanes.min[i], lanes.max[i], lanes.scale[i], lanes.inv_scale[i],
                                              lanes.quant_zero[i]};
    for (int row = 0; row < kRows; ++row) {
      const auto value = static_cast<Arithmetic<T>>(x[row * stride + i]);
      y[row * y_stride + i] = static_cast<T>(FakeQuantize<true>(value, range));
    }
  }
}

// Nudges one range per lane, in place of a range that is still in lanes.min and lanes.max.
template <typename A>
void NudgeLanes(NudgedLanes<A>& lanes, int64_t size, QuantRange grid) {
  QATFAST_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < size; ++i) {
    const NudgedRange<A> nudged = Nudge(Range<A>{lanes.min[i], lanes.max[i]}, grid);
    lanes.min[i] = nudged.min;
    lanes.max[i] = nudged.max;
    lanes.scale[i] = nudged.scale;
    lanes.inv_scale[i] = nudged.inv_scale;
    lanes.quant_zero[i] = nudged.quant_zero;
  }
}

template <typename T>
void PassRun(const T* grad_y, const T* x, T* grad_x, int64_t size, Range<Arithmetic<T>> range) {
  QATFAST_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < size; ++i) {
    grad_x[i] = static_cast<T>(
        StraightThrough(static_cast<Arithmetic<T>>(grad_y[i]), static_cast<Arithmetic<T>>(x[i]), range.min, range.max));
  }
}

template <typename T>
void PassLanes(const T* grad_y, const T* x, T* grad_x, int64_t size, const NudgedLanes<Arithmetic<T>>& lanes) {
  QATFAST_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < size; ++i) {
    grad_x[i] = static_cast<T>(StraightThrough(static_cast<Arithmetic<T>>(grad_y[i]), static_cast<Arithmetic<T>>(x[i]),
                                               lanes.min[i], lanes.max[i]));
  }
}

// PassRun, and the sums: element i goes to lane i % kSumLanes. Precondition: what went before x in this piece is a
// multiple of kSumLanes elements.
template <typename T>
void PassAndSumRun(const T* grad_y, const T* x, T* grad_x, int64_t size, Range<Arithmetic<T>> range, RunSums& sums) {
  using A = Arithmetic<T>;
  double below[kSumLanes];
  double above[kSumLanes];
  for (int lane = 0; lane < kSumLanes; ++lane) {
    below[lane] = sums.below[lane];
    above[lane] = sums.above[lane];
  }
  const auto add = [&](int64_t i, int lane) __attribute__((always_inline)) {
    const A value = static_cast<A>(x[i]);
    const A grad = static_cast<A>(grad_y[i]);
    below[lane] += static_cast<double>(value < range.min ? grad : A(0));
    above[lane] += static_cast<double>(value > range.max ? grad : A(0));
    grad_x[i] = static_cast<T>(StraightThrough(grad, value, range.min, range.max));
  };
  int64_t i = 0;
  for (; i + kSumLanes <= size; i += kSumLanes) {
    // Kept a loop: GCC turns it into vectors, but not once it is unrolled.
    QATFAST_INDEPENDENT_ITERATIONS
#pragma GCC unroll 1
    for (int lane = 0; lane < kSumLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i < size; ++i, ++lane) add(i, lane);
  for (int lane = 0; lane < kSumLanes; ++lane) {
    sums.below[lane] = below[lane];
    sums.above[lane] = above[lane];
  }
}

// PassLanes on kRows rows that lie `stride` elements apart in grad_y and x, `grad_x_stride` in grad_x, and the
// sums. Several rows at once cost the sums one trip to the cache; each lane still adds its rows in order.
template <int kRows, typename T>
void PassAndSumLanes(const T* grad_y, const T* x, int64_t stride, T* grad_x, int64_t grad_x_stride, int64_t size,
                     const NudgedLanes<Arithmetic<T>>& lanes, LaneSums& sums) {
  using A = Arithmetic<T>;
  QATFAST_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < size; ++i) {
    double below = sums.below[i];
    double above = sums.above[i];
    for (int row = 0; row < kRows; ++row) {
      const A value = static_cast<A>(x[row * stride + i]);
      const A grad = static_cast<A>(grad_y[row * stride + i]);
      below += static_cast<double>(value < lanes.min[i] ? grad : A(0));
      above += static_cast<double>(value > lanes.max[i] ? grad : A(0));
      grad_x[row * grad_x_stride + i] = static_cast<T>(StraightThrough(grad, value, lanes.min[i], lanes.max[i]));
    }
    sums.below[i] = below;
    sums.above[i] = above;
  }
}

template <typename T>
constexpr FakeQuantLoops<T> MakeFakeQuantLoops() {
  return {QuantizeRun<false, T>,
          QuantizeRun<true, T>,
          QuantizeLanes<1, T>,
          QuantizeLanes<kRowsAtOnce, T>,
          NudgeLanes<Arithmetic<T>>,
          PassRun<T>,
          PassLanes<T>,
          PassAndSumRun<T>,
          PassAndSumLanes<1, T>,
          PassAndSumLanes<kRowsAtOnce, T>};
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
