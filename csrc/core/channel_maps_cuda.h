// What the CUDA kernels do to an element: with the numbers of which channel, and what is read and written for it.
#ifndef QATFAST_CORE_CHANNEL_MAPS_CUDA_H_
#define QATFAST_CORE_CHANNEL_MAPS_CUDA_H_

#include "core/formulas.h"
#include "core/packs_cuda.h"

namespace qatfast {
namespace cuda {

// What a kernel takes of an op: its formula, and for each input of the formula one number per channel.
template <typename Formula>
struct Op {
  using A = typename Formula::Arithmetic;
  using Inputs = typename Formula::Inputs;

  Formula formula;
  const A* inputs[Formula::kInputs];

  __device__ Inputs InputsOf(int64_t channel) const {
    struct Values {
      A values[Formula::kInputs];
    } loaded;
    for (int i = 0; i < Formula::kInputs; ++i) loaded.values[i] = FlushDenormal(inputs[i][channel]);
    return BitCast<Inputs>(loaded);
  }
};

// The parts of a channel that not every formula has. All are as large as A, so that there are no gaps between them.
template <typename Formula>
using DivisionOf = std::conditional_t<Formula::kDivides, PreparedDivision<typename Formula::Arithmetic>, IeeeDivision>;
template <typename A>
struct MayBeZero {
  BitsOf<A> is_zero;  // 1: y = 0, and the whole gradient passes
};
struct IsNeverZero {
  static constexpr bool is_zero = false;
};
template <typename A, int kCount>
struct Padding {
  A zeros[kCount];
};
template <typename A>
struct Padding<A, 0> {};

// What the elements of a channel are quantized with, but for the padding. A multiple of 16 bytes, so that shared memory
// gives it in few accesses.
template <typename Formula>
struct UnpaddedChannel : DivisionOf<Formula>,
                         std::conditional_t<Formula::kMayBeZero, MayBeZero<typename Formula::Arithmetic>, IsNeverZero> {
  typename Formula::Prepared prepared;
};
template <typename Formula>
constexpr int kChannelPadding =
    static_cast<int>((16 - sizeof(UnpaddedChannel<Formula>) % 16) % 16 / sizeof(typename Formula::Arithmetic));

template <typename Formula>
struct alignas(16) Channel : UnpaddedChannel<Formula>, Padding<typename Formula::Arithmetic, kChannelPadding<Formula>> {
  using A = typename Formula::Arithmetic;

  // A channel that cannot be quantized with is NaN throughout: so is all that comes of it, and no gradient passes.
  __device__ static Channel Load(const Op<Formula>& op, int64_t index) {
    const typename Formula::Inputs inputs = op.InputsOf(index);
    Channel channel;
    if constexpr (kChannelPadding<Formula> > 0) {
      for (A& zero : channel.zeros) zero = 0;
    }
    if constexpr (Formula::kMayBeZero) channel.is_zero = Formula::IsZero(inputs);
    if (!op.formula.PrepareIfValid(inputs, channel.prepared)) {
      struct Values {
        A values[Formula::kColumns];
      } nothing;
      for (int i = 0; i < Formula::kColumns; ++i) nothing.values[i] = kNan<A>;
      channel.prepared = BitCast<typename Formula::Prepared>(nothing);
    }
    if constexpr (Formula::kDivides) channel.division() = DivisionOf<Formula>::By(Formula::Divisor(channel.prepared));
    return channel;
  }

  __device__ DivisionOf<Formula>& division() { return *this; }
  __device__ const DivisionOf<Formula>& division() const { return *this; }
};

// What is done to elements by kernels that add nothing up. Load() reads a pack, Compute() and Store() do the rest,
// for the channels channel_of(part) of the elements of a word; Element() does all of it to one element. `may_write` is
// false for what lies outside. All threads of a warp call Store and Element, which exchange the bits of masks.
//
// kGranule is what whole packs start and end at multiples of: packs that share a byte of a mask go together.
template <typename T, typename Formula, bool kWithMask>
struct ForwardMap {
  using Pack = cuda::Pack<T>;
  static constexpr int kWidth = kPackWidth<T>;
  static constexpr int kGranule = kWithMask ? 8 : kWidth;
  static constexpr int kLoads = 1;
  struct Loaded {
    Pack x;
  };

  const T* x;
  T* y;
  uint8_t* mask;  // null without kWithMask

  __device__ void Load(int64_t element, Loaded& loaded) const { loaded.x = LoadPack(x + element); }
  __device__ static void Arrive(Loaded& loaded) { cuda::Arrive(loaded.x); }

  // Computes kPerWord elements of a pack from element j on, in the place of what was loaded, and adds their bits.
  template <typename ChannelOf>
  __device__ static void Compute(const Formula& formula, Loaded& loaded, unsigned& bits, int j,
                                 const ChannelOf& channel_of) {
    Arithmetic<T> results[Pack::kPerWord];
#pragma unroll
    for (int part = 0; part < Pack::kPerWord; ++part) {
      const Channel<Formula>& channel = channel_of(part);
      const Arithmetic<T> value = ToArithmetic(loaded.x.Get(j + part));
      const Arithmetic<T> result = formula.Quantize(value, channel.prepared, channel.division());
      results[part] = channel.is_zero ? Arithmetic<T>(0) : result;
      if constexpr (kWithMask) {
        if (Passes(formula, value, channel)) bits |= 1u << (j + part);
      }
    }
    loaded.x.Set(j, results);
  }
  __device__ void Store(const Loaded& loaded, unsigned bits, int64_t element, bool may_write) const {
    if (may_write) StorePack(y + element, loaded.x);
    if constexpr (kWithMask) StoreMaskBits<kWidth>(mask, element, bits, may_write);
  }
  __device__ void Element(const Formula& formula, const Channel<Formula>& channel, int64_t element,
                          bool may_write) const {
    unsigned bits = 0;
    if (may_write) {
      const Arithmetic<T> value = ToArithmetic(x[element]);
      const Arithmetic<T> result = formula.Quantize(value, channel.prepared, channel.division());
      if constexpr (kWithMask) bits = Passes(formula, value, channel);
      y[element] = FromArithmetic<T>(channel.is_zero ? Arithmetic<T>(0) : result);
    }
    if constexpr (kWithMask) StoreMaskBits<1>(mask, element, bits, may_write);
  }

 private:
  __device__ static bool Passes(const Formula& formula, Arithmetic<T> value, const Channel<Formula>& channel) {
    return channel.is_zero | formula.Passes(value, channel.prepared, channel.division());
  }
};

template <typename T, typename Formula>
struct PassMap {
  using Pack = cuda::Pack<T>;
  static constexpr int kWidth = kPackWidth<T>;
  static constexpr int kGranule = kWidth;
  static constexpr int kLoads = 2;
  struct Loaded {
    Pack grad_y;
    Pack x;
  };

  const T* grad_y;
  const T* x;
  T* grad_x;

  __device__ void Load(int64_t element, Loaded& loaded) const {
    loaded.grad_y = LoadPack(grad_y + element);
    loaded.x = LoadPack(x + element);
  }
  __device__ static void Arrive(Loaded& loaded) {
    cuda::Arrive(loaded.grad_y);
    cuda::Arrive(loaded.x);
  }
  template <typename ChannelOf>
  __device__ static void Compute(const Formula& formula, Loaded& loaded, unsigned& /*bits*/, int j,
                                 const ChannelOf& channel_of) {
#pragma unroll
    for (int part = 0; part < Pack::kPerWord; ++part) {
      if (!Passes(formula, loaded.x.Get(j + part), channel_of(part))) loaded.grad_y.Clear(j + part);
    }
  }
  __device__ void Store(const Loaded& loaded, unsigned /*bits*/, int64_t element, bool may_write) const {
    if (may_write) StorePack(grad_x + element, loaded.grad_y);
  }
  __device__ void Element(const Formula& formula, const Channel<Formula>& channel, int64_t element,
                          bool may_write) const {
    if (may_write) grad_x[element] = Passes(formula, x[element], channel) ? grad_y[element] : T();
  }

 private:
  __device__ static bool Passes(const Formula& formula, T x, const Channel<Formula>& channel) {
    return channel.is_zero | formula.Passes(ToArithmetic(x), channel.prepared, channel.division());
  }
};

// What a gradient reads and writes.
template <typename T>
struct BackwardArrays {
  const T* grad_y;
  const T* x;
  T* grad_x;
};

// Whether the gradient passes; what the element adds to the sums is added to `sums`. What passes keeps its bits, of
// which ToArithmetic takes some from a denormal number and from -0.
template <typename T, typename Formula>
__device__ bool BackwardElement(const Formula& formula, const Channel<Formula>& channel, T grad_y, T x,
                                double (&sums)[Formula::kTerms]) {
  const Arithmetic<T> value = ToArithmetic(x);
  Arithmetic<T> terms[Formula::kTerms];
  formula.Backward(ToArithmetic(grad_y), value, channel.prepared, terms, channel.division());
#pragma unroll
  for (int term = 0; term < Formula::kTerms; ++term) sums[term] += channel.is_zero ? Arithmetic<T>(0) : terms[term];
  return channel.is_zero | formula.Passes(value, channel.prepared, channel.division());
}

// Two packs, and the gradient in the place of the first.
template <typename T>
struct BackwardPacks {
  Pack<T> grad_y;
  Pack<T> x;

  __device__ void Load(const BackwardArrays<T>& arrays, int64_t element) {
    grad_y = LoadPack(arrays.grad_y + element);
    x = LoadPack(arrays.x + element);
  }
  // Zeros, which add nothing to a sum.
  __device__ void Clear() {
    grad_y = {};
    x = {};
  }
  __device__ void Arrive() {
    cuda::Arrive(grad_y);
    cuda::Arrive(x);
  }
  template <typename Formula>
  __device__ void Compute(const Formula& formula, const Channel<Formula>& channel, int j,
                          double (&sums)[Formula::kTerms]) {
    if (!BackwardElement(formula, channel, grad_y.Get(j), x.Get(j), sums)) grad_y.Clear(j);
  }
};

template <typename T, typename Formula>
__device__ void BackwardOne(const Formula& formula, const Channel<Formula>& channel, const BackwardArrays<T>& arrays,
                            int64_t element, double (&sums)[Formula::kTerms]) {
  const T grad_y = arrays.grad_y[element];
  const bool passes = BackwardElement(formula, channel, grad_y, arrays.x[element], sums);
  arrays.grad_x[element] = passes ? grad_y : T();
}

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_MAPS_CUDA_H_
