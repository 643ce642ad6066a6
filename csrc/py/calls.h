// A call of each op family on arrays: its attributes as they come from Python, checked and turned into params.
//
// A Call<T> is made of the arguments, x's shape and the parameters, which it refers to, and runs on elements of type
// T, on a CPU or a GPU. Values are checked by CheckValues, where the CPU can read them.
//   kName               what the family is called; its gradient is <kName>_grad
//   kParameters         the arguments that are one number per channel
//   kMayLeaveOutRange   whether the gradient to x alone is less work, and so can be asked for
//   Attributes()        the other arguments that say what is computed
#ifndef QATFAST_PY_CALLS_H_
#define QATFAST_PY_CALLS_H_

#include <array>
#include <cmath>
#include <sstream>

#include "core/fake_quant.h"
#include "core/lsq.h"
#include "py/array_view.h"

namespace qatfast {

inline int NumBits(const Arguments& arguments) {
  const int num_bits = arguments.Integer("num_bits");
  if (num_bits < 2 || num_bits > 16) Fail(arguments.op(), "num_bits", "from 2 to 16", std::to_string(num_bits));
  return num_bits;
}

// What an LSQ op asks of its attributes, which count as float32.
inline float GradScale(const Arguments& arguments) {
  const auto grad_scale = static_cast<float>(arguments.Number("grad_scale"));
  if (!(grad_scale > 0) || std::isinf(grad_scale)) arguments.FailAt("grad_scale", "positive and finite");
  return grad_scale;
}
inline float Guard(const Arguments& arguments, const char* name) {
  const double guard = arguments.Number(name);
  const auto rounded = static_cast<float>(guard);
  if (!(guard >= 0) || std::isinf(rounded)) arguments.FailAt(name, "finite and not negative");
  if (guard > 0 && rounded == 0) arguments.FailAt(name, "0 or a number of float32");
  return rounded;
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

template <typename T>
struct FakeQuantCall {
  using A = Arithmetic<T>;
  static constexpr char kName[] = "fake_quant";
  static constexpr std::array kParameters = {"min", "max"};
  static constexpr bool kMayLeaveOutRange = true;
  FakeQuantParams<T> params;

  static std::vector<Keyword> Attributes() {
    return {{"num_bits", py::int_(8)},
            {"narrow_range", py::bool_(false)},
            {"axis", py::none()},
            {"include_zero", py::bool_(false)}};
  }

  FakeQuantCall(const Arguments& arguments, const std::vector<int64_t>& shape,
                const std::vector<ArrayView>& parameters) {
    const auto axis = arguments.OptionalInteger("axis");
    params.quant_range = MakeQuantRange(NumBits(arguments), arguments.Flag("narrow_range"));
    params.include_zero = arguments.Flag("include_zero");
    params.layout = LayoutOf(arguments.op(), shape, axis);
    params.per_channel = axis.has_value();
    const auto elements = ParameterElements<A>(arguments.op(), kParameters, parameters, params.layout, axis);
    params.min = elements[0];
    params.max = elements[1];
  }

  void CheckValues(const std::string& op) const {
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    const std::string got = RangeString(params.min[invalid], params.max[invalid], invalid);
    Fail(op, "min and max", "finite and min less than max (or both 0), with a step that is a normal number", got);
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

template <typename T>
struct LsqSymmetricCall {
  using A = Arithmetic<T>;
  static constexpr char kName[] = "lsq_symmetric";
  static constexpr std::array kParameters = {"threshold"};
  static constexpr bool kMayLeaveOutRange = false;
  LsqSymmetricParams<T> params;

  static std::vector<Keyword> Attributes() {
    return {{"num_bits", py::int_(8)}, {"signed", py::bool_(true)},        {"grad_scale", py::float_(1.0)},
            {"axis", py::none()},      {"power_of_two", py::bool_(false)}, {"min_threshold", py::float_(0.0)}};
  }

  LsqSymmetricCall(const Arguments& arguments, const std::vector<int64_t>& shape,
                   const std::vector<ArrayView>& parameters) {
    const auto axis = arguments.OptionalInteger("axis");
    params.num_bits = NumBits(arguments);
    params.is_signed = arguments.Flag("signed");
    params.grad_scale = GradScale(arguments);
    params.power_of_two = arguments.Flag("power_of_two");
    params.min_threshold = Guard(arguments, "min_threshold");
    params.layout = LayoutOf(arguments.op(), shape, axis);
    params.threshold = ParameterElements<A>(arguments.op(), kParameters, parameters, params.layout, axis)[0];
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

template <typename T>
struct LsqUniformCall {
  using A = Arithmetic<T>;
  static constexpr char kName[] = "lsq_uniform";
  static constexpr std::array kParameters = {"min", "max"};
  static constexpr bool kMayLeaveOutRange = false;
  LsqUniformParams<T> params;

  static std::vector<Keyword> Attributes() {
    return {{"num_bits", py::int_(8)},
            {"grad_scale", py::float_(1.0)},
            {"axis", py::none()},
            {"min_width", py::float_(0.0)},
            {"exact_zero", py::bool_(false)}};
  }

  LsqUniformCall(const Arguments& arguments, const std::vector<int64_t>& shape,
                 const std::vector<ArrayView>& parameters) {
    const auto axis = arguments.OptionalInteger("axis");
    params.num_bits = NumBits(arguments);
    params.grad_scale = GradScale(arguments);
    params.min_width = Guard(arguments, "min_width");
    params.exact_zero = arguments.Flag("exact_zero");
    params.layout = LayoutOf(arguments.op(), shape, axis);
    const auto elements = ParameterElements<A>(arguments.op(), kParameters, parameters, params.layout, axis);
    params.min = elements[0];
    params.max = elements[1];
  }

  void CheckValues(const std::string& op) const {
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    const std::string got = RangeString(params.min[invalid], params.max[invalid], invalid);
    Fail(op, "min and max", "finite and min less than max, with a step that is a normal number", got);
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

// The arguments that both directions of a family start with: `first`, then the parameters.
template <template <typename> typename Call>
std::vector<std::string> Positional(std::vector<std::string> first) {
  for (const char* parameter : Call<float>::kParameters) first.push_back(parameter);
  return first;
}

}  // namespace qatfast

#endif  // QATFAST_PY_CALLS_H_
