// A call of each op family on NumPy arrays: its attributes as they come from Python, checked and turned into params.
//
// A Call<T> is made of the attributes, x and the parameter arrays, which it refers to, and runs on elements of type T.
#ifndef QATFAST_PY_CALLS_H_
#define QATFAST_PY_CALLS_H_

#include <cmath>
#include <sstream>

#include "core/fake_quant.h"
#include "core/lsq.h"
#include "py/arrays.h"

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

struct FakeQuantAttributes {
  int num_bits;
  bool narrow_range;
  std::optional<int> axis;
  bool include_zero;
};

template <typename T>
struct FakeQuantCall {
  using A = Arithmetic<T>;
  static constexpr int kParameters = 2;
  FakeQuantParams<T> params;

  FakeQuantCall(const std::string& op, const FakeQuantAttributes& attributes, const py::array& x,
                const std::vector<py::array>& inputs) {
    CheckNumBits(op, attributes.num_bits);
    params.layout = LayoutOf(op, x, attributes.axis);
    params.quant_range = MakeQuantRange(attributes.num_bits, attributes.narrow_range);
    params.per_channel = attributes.axis.has_value();
    params.include_zero = attributes.include_zero;
    params.min = ParameterElements<A>(op, "min", inputs[0], params.layout, attributes.axis);
    params.max = ParameterElements<A>(op, "max", inputs[1], params.layout, attributes.axis);
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    const std::string got = RangeString(params.min[invalid], params.max[invalid], invalid);
    Fail(op, "min and max", "finite and min less than max (or both 0)", got);
  }

  void Forward(const T* x, T* y, uint8_t* mask, const CpuExecution& execution) const {
    FakeQuant(params, x, y, mask, execution);
  }
  int64_t WorkspaceSize(const CpuExecution& execution) const { return GradWorkspaceSize(params, execution); }
  void Backward(const T* grad_y, const T* x, T* grad_x, A* const* grads, double* workspace,
                const CpuExecution& execution) const {
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
  static constexpr int kParameters = 1;
  LsqSymmetricParams<T> params;

  LsqSymmetricCall(const std::string& op, const LsqSymmetricAttributes& attributes, const py::array& x,
                   const std::vector<py::array>& inputs) {
    CheckNumBits(op, attributes.num_bits);
    CheckGradScale(op, attributes.grad_scale);
    CheckGuard(op, "min_threshold", attributes.min_threshold);
    params.layout = LayoutOf(op, x, attributes.axis);
    params.num_bits = attributes.num_bits;
    params.is_signed = attributes.is_signed;
    params.grad_scale = attributes.grad_scale;
    params.power_of_two = attributes.power_of_two;
    params.min_threshold = attributes.min_threshold;
    params.threshold = ParameterElements<A>(op, "threshold", inputs[0], params.layout, attributes.axis);
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    std::ostringstream got;
    got << params.threshold[invalid] << " in channel " << invalid;
    Fail(op, "threshold", "positive, finite and such that the step is a normal number", got.str());
  }

  void Forward(const T* x, T* y, uint8_t* mask, const CpuExecution& execution) const {
    Lsq(params, x, y, mask, execution);
  }
  int64_t WorkspaceSize(const CpuExecution& execution) const { return GradWorkspaceSize(params, execution); }
  void Backward(const T* grad_y, const T* x, T* grad_x, A* const* grads, double* workspace,
                const CpuExecution& execution) const {
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
  static constexpr int kParameters = 2;
  LsqUniformParams<T> params;

  LsqUniformCall(const std::string& op, const LsqUniformAttributes& attributes, const py::array& x,
                 const std::vector<py::array>& inputs) {
    CheckNumBits(op, attributes.num_bits);
    CheckGradScale(op, attributes.grad_scale);
    CheckGuard(op, "min_width", attributes.min_width);
    params.layout = LayoutOf(op, x, attributes.axis);
    params.num_bits = attributes.num_bits;
    params.grad_scale = attributes.grad_scale;
    params.min_width = attributes.min_width;
    params.min = ParameterElements<A>(op, "min", inputs[0], params.layout, attributes.axis);
    params.max = ParameterElements<A>(op, "max", inputs[1], params.layout, attributes.axis);
    const int64_t invalid = FindInvalidChannel(params);
    if (invalid < 0) return;
    const std::string got = RangeString(params.min[invalid], params.max[invalid], invalid);
    Fail(op, "min and max", "finite and min less than max", got);
  }

  void Forward(const T* x, T* y, uint8_t* mask, const CpuExecution& execution) const {
    Lsq(params, x, y, mask, execution);
  }
  int64_t WorkspaceSize(const CpuExecution& execution) const { return GradWorkspaceSize(params, execution); }
  void Backward(const T* grad_y, const T* x, T* grad_x, A* const* grads, double* workspace,
                const CpuExecution& execution) const {
    LsqGrad(params, grad_y, x, LsqUniformGradients<T>{grad_x, grads[0], grads[1], workspace}, execution);
  }
};

}  // namespace qatfast

#endif  // QATFAST_PY_CALLS_H_
