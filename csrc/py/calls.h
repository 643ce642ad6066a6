// A call of each op family on arrays: its attributes as they come from Python, checked and turned into params.
//
// A Call<T> is made of the attributes, x's shape and the parameters, which it refers to, and runs on elements of type
// T, on a CPU or a GPU. Values are checked by CheckValues, where the CPU can read them.
#ifndef QATFAST_PY_CALLS_H_
#define QATFAST_PY_CALLS_H_

#include <array>
#include <cmath>
#include <sstream>

#include "core/fake_quant.h"
#include "core/lsq.h"
#include "py/array_view.h"

namespace qatfast {

inline void CheckNumBits(const std::string& op, int num_bits) {
  if (num_bits < 2 || num_bits > 16) Fail(op, "num_bits", "from 2 to 16", std::to_string(num_bits));
}

// What an LSQ op asks of its attributes.
inline void CheckGradScale(const std::string& op, float grad_scale) {
  if (!(grad_scale > 0) || std::isinf(grad_scale))
    Fail(op, "grad_scale", "positive and finite", std::to_string(grad_scale));
}
inline void CheckGuard(const std::string& op, const char* name, float guard) {
  if (!(guard >= 0) || std::isinf(guard)) Fail(op, name, "finite and not negative", std::to_string(guard));
}

template <typename A>
std::string RangeString(A min, A max, int64_t channel) {
  std::ostringstream text;
  text << "min " << min << " and max " << max << " in channel " << channel;
  return text.str();
}

// Parameters of shape [], or [channels] if there is an axis.
template <typename A, size_t kParameters>
std::array<const A*, kParameters> ParameterElements(const std::string& op,
                                                    const std::array<const char*, kParameters>& names,
                                                    const std::vector<ArrayView>& parameters,
                                                    const ChannelLayout& layout, std::optional<int> axis) {
  std::vector<int64_t> shape;
  if (axis) shape = {layout.channels};
  std::array<const A*, kParameters> elements;
  for (size_t i = 0; i < kParameters; ++i) {
    CheckShape(op, names[i], parameters[i], shape);
    elements[i] = Elements<A>(op, names[i], parameters[i]);
  }
  return elements;
}

struct FakeQuantAttributes {
  int num_bits;
  bool narrow_range;
  std::optional<int> axis;
  bool include_zero;
};

template <typename T>
struct FakeQuantCall {
  using A = Arithmetic<T>;
  static constexpr std::array kParameters = {"min", "max"};
  FakeQuantParams<T> params;

  FakeQuantCall(const std::string& op, const FakeQuantAttributes& attributes, const std::vector<int64_t>& shape,
                const std::vector<ArrayView>& parameters) {
    CheckNumBits(op, attributes.num_bits);
    params.layout = LayoutOf(op, shape, attributes.axis);
    params.quant_range = MakeQuantRange(attributes.num_bits, attributes.narrow_range);
    params.per_channel = attributes.axis.has_value();
    params.include_zero = attributes.include_zero;
    const auto elements = ParameterElements<A>(op, kParameters, parameters, params.layout, attributes.axis);
    params.min = elements[0];
    params.max = elements[1];
  }

  void CheckValues(const std::string& op) const {
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    const std::string got = RangeString(params.min[invalid], params.max[invalid], invalid);
    Fail(op, "min and max", "finite and min less than max (or both 0)", got);
  }
  template <typename Execution>
  void Forward(const T* x, T* y, uint8_t* mask, const Execution& execution) const {
    FakeQuant(params, x, y, mask, execution);
  }
  template <typename Execution>
  void Backward(const T* grad_y, const T* x, T* grad_x, A* const* grads, double* workspace,
                const Execution& execution) const {
    FakeQuantGrad(params, grad_y, x, {grad_x, grads[0], grads[1], workspace}, execution);
  }
};

struct LsqSymmetricAttributes {
  int num_bits;
  bool is_signed;
  float grad_scale;
  std::optional<int> axis;
  bool power_of_two;
  float min_threshold;
};

template <typename T>
struct LsqSymmetricCall {
  using A = Arithmetic<T>;
  static constexpr std::array kParameters = {"threshold"};
  LsqSymmetricParams<T> params;

  LsqSymmetricCall(const std::string& op, const LsqSymmetricAttributes& attributes, const std::vector<int64_t>& shape,
                   const std::vector<ArrayView>& parameters) {
    CheckNumBits(op, attributes.num_bits);
    CheckGradScale(op, attributes.grad_scale);
    CheckGuard(op, "min_threshold", attributes.min_threshold);
    params.layout = LayoutOf(op, shape, attributes.axis);
    params.num_bits = attributes.num_bits;
    params.is_signed = attributes.is_signed;
    params.grad_scale = attributes.grad_scale;
    params.power_of_two = attributes.power_of_two;
    params.min_threshold = attributes.min_threshold;
    params.threshold = ParameterElements<A>(op, kParameters, parameters, params.layout, attributes.axis)[0];
  }

  void CheckValues(const std::string& op) const {
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    std::ostringstream got;
    got << params.threshold[invalid] << " in channel " << invalid;
    Fail(op, "threshold", "positive, finite and such that the step is a normal number", got.str());
  }
  template <typename Execution>
  void Forward(const T* x, T* y, uint8_t* mask, const Execution& execution) const {
    Lsq(params, x, y, mask, execution);
  }
  template <typename Execution>
  void Backward(const T* grad_y, const T* x, T* grad_x, A* const* grads, double* workspace,
                const Execution& execution) const {
    LsqGrad(params, grad_y, x, LsqSymmetricGradients<T>{grad_x, grads[0], workspace}, execution);
  }
};

struct LsqUniformAttributes {
  int num_bits;
  float grad_scale;
  std::optional<int> axis;
  float min_width;
};

template <typename T>
struct LsqUniformCall {
  using A = Arithmetic<T>;
  static constexpr std::array kParameters = {"min", "max"};
  LsqUniformParams<T> params;

  LsqUniformCall(const std::string& op, const LsqUniformAttributes& attributes, const std::vector<int64_t>& shape,
                 const std::vector<ArrayView>& parameters) {
    CheckNumBits(op, attributes.num_bits);
    CheckGradScale(op, attributes.grad_scale);
    CheckGuard(op, "min_width", attributes.min_width);
    params.layout = LayoutOf(op, shape, attributes.axis);
    params.num_bits = attributes.num_bits;
    params.grad_scale = attributes.grad_scale;
    params.min_width = attributes.min_width;
    const auto elements = ParameterElements<A>(op, kParameters, parameters, params.layout, attributes.axis);
    params.min = elements[0];
    params.max = elements[1];
  }

  void CheckValues(const std::string& op) const {
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    const std::string got = RangeString(params.min[invalid], params.max[invalid], invalid);
    Fail(op, "min and max", "finite and min less than max", got);
  }
  template <typename Execution>
  void Forward(const T* x, T* y, uint8_t* mask, const Execution& execution) const {
    Lsq(params, x, y, mask, execution);
  }
  template <typename Execution>
  void Backward(const T* grad_y, const T* x, T* grad_x, A* const* grads, double* workspace,
                const Execution& execution) const {
    LsqGrad(params, grad_y, x, LsqUniformGradients<T>{grad_x, grads[0], grads[1], workspace}, execution);
  }
};

}  // namespace qatfast

#endif  // QATFAST_PY_CALLS_H_
