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

// What the elements of a channel are quantized with.
template <typename Formula>
struct Channel {
  using A = typename Formula::Arithmetic;

  typename Formula::Prepared prepared;
  bool is_zero;  // y = 0, and the whole gradient passes

  // A channel that cannot be quantized with is NaN throughout: so is all that comes of it, and no gradient passes.
  __device__ static Channel Load(const Op<Formula>& op, int64_t index) {
    const typename Formula::Inputs inputs = op.InputsOf(index);
    if (op.formula.IsValid(inputs)) return {op.formula.Prepare(inputs), IsZero(inputs)};
    struct Values {
      A values[Formula::kColumns];
    } nothing;
    for (int i = 0; i < Formula::kColumns; ++i) nothing.values[i] = kNan<A>;
    return {BitCast<typename Formula::Prepared>(nothing), false};
  }

 private:
  __device__ static bool IsZero(const typename Formula::Inputs& inputs) {
    if constexpr (Formula::kMayBeZero) return Formula::IsZero(inputs);
    return false;
  }
};

// What is done to each element, by kernels that add nothing up. Load() reads packs, Finish() computes and writes;
// channel_of(j) is the channel of a pack's element j. All threads of a warp call Finish, whatever their span holds.
template <typename T, typename Formula>
struct ForwardMap {
  using Loaded = Pack<T>;

  const T* x;
  T* y;
  uint8_t* mask;  // null: none is wanted

  __device__ Loaded Load(const PackGrid& grid, Span span, int64_t position) const {
    return LoadPack(x, grid, span, position);
  }
  template <typename ChannelOf>
  __device__ void Finish(const Formula& formula, const Loaded& loaded, const PackGrid& grid, Span span,
                         int64_t position, ChannelOf channel_of) const {
    Pack<T> quantized;
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < kPackWidth<T>; ++j) {
      const Channel<Formula>& channel = channel_of(j);
      const Arithmetic<T> value = ToArithmetic(loaded.values[j]);
      const Arithmetic<T> result = formula.Quantize(value, channel.prepared);
      quantized.values[j] = FromArithmetic<T>(channel.is_zero ? Arithmetic<T>(0) : result);
      bits |= static_cast<unsigned>(channel.is_zero | formula.Passes(value, channel.prepared)) << j;
    }
    StorePack(y, grid, span, position, quantized);
    if (mask != nullptr) StoreMaskBits<kPackWidth<T>>(mask, span, position, bits);
  }
};

template <typename T, typename Formula>
struct PassMap {
  struct Loaded {
    Pack<T> grad_y;
    Pack<T> x;
  };

  const T* grad_y;
  const T* x;
  T* grad_x;

  __device__ Loaded Load(const PackGrid& grid, Span span, int64_t position) const {
    return {LoadPack(grad_y, grid, span, position), LoadPack(x, grid, span, position)};
  }
  template <typename ChannelOf>
  __device__ void Finish(const Formula& formula, const Loaded& loaded, const PackGrid& grid, Span span,
                         int64_t position, ChannelOf channel_of) const {
    Pack<T> passed;
#pragma unroll
    for (int j = 0; j < kPackWidth<T>; ++j) {
      const Channel<Formula>& channel = channel_of(j);
      const bool passes = channel.is_zero | formula.Passes(ToArithmetic(loaded.x.values[j]), channel.prepared);
      passed.values[j] = passes ? loaded.grad_y.values[j] : T();
    }
    StorePack(grad_x, grid, span, position, passed);
  }
};

// The gradient to x; what the element adds to the sums goes to terms[0 .. kTerms).
template <typename T, typename Formula>
__device__ T BackwardElement(const Formula& formula, const Channel<Formula>& channel, T grad_y, T x,
                             Arithmetic<T>* terms) {
  const Arithmetic<T> value = ToArithmetic(x);
  const Arithmetic<T> passed = formula.Backward(ToArithmetic(grad_y), value, channel.prepared, terms);
  if (channel.is_zero) {
    for (int term = 0; term < Formula::kTerms; ++term) terms[term] = 0;
    return grad_y;
  }
  // What passes keeps its bits, of which ToArithmetic takes some from a denormal double and from -0.
  if constexpr (std::is_same_v<T, double>) return formula.Passes(value, channel.prepared) ? grad_y : T();
  return FromArithmetic<T>(passed);
}

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CHANNEL_MAPS_CUDA_H_
