// Parameters of the kernels: plain structs, filled and checked by the caller.
#ifndef QATFAST_CORE_PARAMS_H_
#define QATFAST_CORE_PARAMS_H_

#include <array>
#include <cstdint>

#include "core/inline.h"

namespace qatfast {

// A dense tensor seen from its channel axis: [outer, channels, inner]. Per tensor is {1, 1, size}.
struct ChannelLayout {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;

  int64_t size() const { return outer * channels * inner; }
};

// The layout of a tensor of shape `dims` whose channels lie along `axis`. Precondition: 0 <= axis < rank.
inline ChannelLayout MakeChannelLayout(const int64_t* dims, int rank, int axis) {
  ChannelLayout layout;
  for (int i = 0; i < axis; ++i) layout.outer *= dims[i];
  layout.channels = dims[axis];
  for (int i = axis + 1; i < rank; ++i) layout.inner *= dims[i];
  return layout;
}

// The integers of the grid: quant_min .. quant_max.
struct QuantRange {
  int quant_min = 0;
  int quant_max = 255;

  QATFAST_INLINE constexpr int steps() const { return quant_max - quant_min; }
};

inline QuantRange MakeQuantRange(int num_bits, bool narrow_range) {
  return {narrow_range ? 1 : 0, (1 << num_bits) - 1};
}

// The type of ranges and of all arithmetic for inputs of type T.
template <typename T>
struct ArithmeticType {
  using type = float;
};
template <>
struct ArithmeticType<double> {
  using type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticType<T>::type;

// `min` and `max` hold layout.channels values. TensorFlow's per-tensor op divides by the scale where its
// per-channel op multiplies by the inverse, so `per_channel` is not the same as channels > 1.
template <typename T>
struct FakeQuantParams {
  ChannelLayout layout;
  QuantRange quant_range;
  bool per_channel = false;
  bool include_zero = false;
  const Arithmetic<T>* min = nullptr;
  const Arithmetic<T>* max = nullptr;
};

// Learned step size quantization with a grid that is symmetric about zero, or starts at zero if not `is_signed`.
// `threshold` holds layout.channels values.
template <typename T>
struct LsqSymmetricParams {
  ChannelLayout layout;
  int num_bits = 8;
  bool is_signed = true;
  bool power_of_two = false;
  float grad_scale = 1.0f;
  float min_threshold = 0.0f;  // 0: none
  const Arithmetic<T>* threshold = nullptr;

  std::array<const Arithmetic<T>*, 1> inputs() const { return {threshold}; }
};

// Learned step size quantization with a grid from `min` to `max`, which hold layout.channels values: `min` plus
// integers times the step, or with `exact_zero` integers times the step.
template <typename T>
struct LsqUniformParams {
  ChannelLayout layout;
  int num_bits = 8;
  float grad_scale = 1.0f;
  float min_width = 0.0f;  // 0: none
  bool exact_zero = false;
  const Arithmetic<T>* min = nullptr;
  const Arithmetic<T>* max = nullptr;

  std::array<const Arithmetic<T>*, 2> inputs() const { return {min, max}; }
};

}  // namespace qatfast

#endif  // QATFAST_CORE_PARAMS_H_
