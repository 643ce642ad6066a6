#include "py/cuda_functions.h"

#include <pybind11/stl.h>

#include <stdexcept>

#include "core/bit_mask.h"
#include "core/straight_through.h"
#include "py/calls.h"
#include "py/device_arrays.h"

namespace qatfast {
namespace {

using Axis = std::optional<int>;

// The arrays of a call, which must live until its kernels are queued.
class DeviceArrays {
 public:
  DeviceArrays(const std::string& op, const std::vector<NamedArray>& arrays) {
    for (const NamedArray& array : arrays) {
      arrays_.emplace_back(op, array.name, array.array);
      views_.push_back(arrays_.back().view());
    }
  }
  const std::vector<ArrayView>& views() const { return views_; }

 private:
  std::vector<DeviceArray> arrays_;
  std::vector<ArrayView> views_;
};

CudaExecution OnStream(uintptr_t stream) {
  CudaExecution execution;
  execution.stream = reinterpret_cast<CudaStream>(stream);
  return execution;
}

void CheckLaunched(const std::string& op, const CudaExecution& execution) {
  if (execution.error != nullptr) throw std::runtime_error(op + ": CUDA could not run it: " + execution.error);
}

void CheckMask(const std::string& op, const ArrayView& mask, const ArrayView& x) {
  CheckShape(op, "mask", mask, {BitMaskBytes(x.size())});
}

template <template <typename> typename Call, typename Attributes>
void Forward(const std::string& op, const py::object& x_array, const std::vector<NamedArray>& parameter_arrays,
             const Attributes& attributes, const py::object& out_array, const py::object& mask_array,
             uintptr_t stream) {
  const DeviceArray x(op, "x", x_array), out(op, "out", out_array);
  const DeviceArrays parameters(op, parameter_arrays);
  WithType(op, "x", x.view(), [&](auto type) {
    using T = decltype(type);
    const T* from = Elements<T>(op, "x", x.view());
    const Call<T> call(op, attributes, x.view().shape, parameters.views());
    CheckShape(op, "out", out.view(), x.view().shape);
    T* to = WritableElements<T>(op, "out", out.view());
    CheckOverlap(op, "x", out.view(), x.view());
    CheckApartFrom(op, out.view(), parameter_arrays, parameters.views());
    std::optional<DeviceArray> mask;
    uint8_t* bits = nullptr;
    if (!mask_array.is_none()) {
      mask.emplace(op, "mask", mask_array);
      CheckMask(op, mask->view(), x.view());
      bits = WritableElements<uint8_t>(op, "mask", mask->view());
      CheckApart(op, "mask", mask->view(), "x", x.view());
      CheckApart(op, "mask", mask->view(), "out", out.view());
    }
    const CudaExecution execution = OnStream(stream);
    call.Forward(from, to, bits, execution);
    CheckLaunched(op, execution);
  });
}

template <template <typename> typename Call, typename Attributes>
void Backward(const std::string& op, const py::object& grad_y_array, const py::object& x_array,
              const std::vector<NamedArray>& parameter_arrays, const Attributes& attributes,
              const py::object& out_array, const std::vector<NamedArray>& gradient_arrays,
              const py::object& workspace_array, uintptr_t stream) {
  const DeviceArray grad_y(op, "grad_y", grad_y_array), x(op, "x", x_array), out(op, "out", out_array);
  const DeviceArrays parameters(op, parameter_arrays);
  WithType(op, "x", x.view(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const T* from_x = Elements<T>(op, "x", x.view());
    CheckShape(op, "grad_y", grad_y.view(), x.view().shape);
    const T* from_grad_y = Elements<T>(op, "grad_y", grad_y.view());
    const Call<T> call(op, attributes, x.view().shape, parameters.views());
    CheckShape(op, "out", out.view(), x.view().shape);
    T* to = WritableElements<T>(op, "out", out.view());
    CheckOverlap(op, "x", out.view(), x.view());
    CheckOverlap(op, "grad_y", out.view(), grad_y.view());
    CheckApartFrom(op, out.view(), parameter_arrays, parameters.views());
    const CudaExecution execution = OnStream(stream);
    A* grads[Call<T>::kParameters.size()] = {};
    double* workspace = nullptr;
    std::vector<DeviceArray> alive;
    if (!gradient_arrays.empty()) {
      for (size_t i = 0; i < gradient_arrays.size(); ++i) {
        const ArrayView& view = alive.emplace_back(op, gradient_arrays[i].name, gradient_arrays[i].array).view();
        CheckShape(op, gradient_arrays[i].name, view, parameters.views()[i].shape);
        grads[i] = WritableElements<A>(op, gradient_arrays[i].name, view);
      }
      const ArrayView& view = alive.emplace_back(op, "workspace", workspace_array).view();
      workspace = WritableElements<double>(op, "workspace", view);
      const int64_t needed = GradWorkspaceSize(call.params, execution);
      if (view.size() < needed) {
        Fail(op, "workspace", "of at least " + std::to_string(needed) + " elements", std::to_string(view.size()));
      }
      for (size_t i = 0; i < alive.size(); ++i) {
        const char* name = i < gradient_arrays.size() ? gradient_arrays[i].name : "workspace";
        CheckApart(op, name, alive[i].view(), "x", x.view());
        CheckApart(op, name, alive[i].view(), "grad_y", grad_y.view());
        CheckApart(op, name, alive[i].view(), "out", out.view());
        for (size_t j = 0; j < i; ++j) CheckApart(op, name, alive[i].view(), gradient_arrays[j].name, alive[j].view());
      }
    }
    call.Backward(from_grad_y, from_x, to, grads, workspace, execution);
    CheckLaunched(op, execution);
  });
}

void CudaStraightThroughGrad(const py::object& grad_y_array, const py::object& mask_array, const py::object& out_array,
                             uintptr_t stream) {
  const std::string op = "straight_through_grad";
  const DeviceArray grad_y(op, "grad_y", grad_y_array), mask(op, "mask", mask_array), out(op, "out", out_array);
  WithType(op, "grad_y", grad_y.view(), [&](auto type) {
    using T = decltype(type);
    const T* from = Elements<T>(op, "grad_y", grad_y.view());
    CheckMask(op, mask.view(), grad_y.view());
    const uint8_t* bits = Elements<uint8_t>(op, "mask", mask.view());
    CheckShape(op, "out", out.view(), grad_y.view().shape);
    T* to = WritableElements<T>(op, "out", out.view());
    CheckOverlap(op, "grad_y", out.view(), grad_y.view());
    CheckApart(op, "out", out.view(), "mask", mask.view());
    const CudaExecution execution = OnStream(stream);
    StraightThroughGrad(from, bits, to, grad_y.view().size(), execution);
    CheckLaunched(op, execution);
  });
}

int64_t WorkspaceSize(const std::string& name, const py::object& x_array, Axis axis) {
  const std::string op = "workspace_size";
  const DeviceArray x(op, "x", x_array);
  return WithType(op, "x", x.view(), [&](auto type) {
    using T = decltype(type);
    const ChannelLayout layout = LayoutOf(op, x.view().shape, axis);
    const auto size_for = [&](auto params) {
      params.layout = layout;
      return GradWorkspaceSize(params, CudaExecution());
    };
    if (name == "fake_quant") return size_for(FakeQuantParams<T>());
    if (name == "lsq_symmetric") return size_for(LsqSymmetricParams<T>());
    if (name == "lsq_uniform") return size_for(LsqUniformParams<T>());
    Fail(op, "op", "fake_quant, lsq_symmetric or lsq_uniform", name);
  });
}

// The gradients to parameters that are asked for: all of them or none.
std::vector<NamedArray> Wanted(const std::string& op, const std::vector<NamedArray>& gradients) {
  size_t given = 0;
  for (const NamedArray& gradient : gradients) given += !gradient.array.is_none();
  if (given == 0) return {};
  if (given < gradients.size()) Fail(op, "grad_min and grad_max", "given both or neither", "one of them");
  return gradients;
}

}  // namespace

void DefineCuda(py::module_& m) {
  using py::arg;
  m.doc() =
      "The kernels on arrays of a CUDA device (by DLPack or __cuda_array_interface__), C-contiguous and of the exact\n"
      "dtype. Functions write into `out` (which may be x, or grad_y in a gradient), `mask` and the gradients that are\n"
      "given, queue their kernels on `stream` (a cudaStream_t as an integer; 0: the default stream) and return None\n"
      "without waiting. A channel that cannot be quantized with gives NaN, with gradients of 0. `workspace` is an "
      "array\n"
      "of at least workspace_size() float64.";
  m.def(
      "fake_quant",
      [](const py::object& x, const py::object& min, const py::object& max, const py::object& out,
         const py::object& mask, int num_bits, bool narrow_range, Axis axis, bool include_zero, uintptr_t stream) {
        Forward<FakeQuantCall>("fake_quant", x, {{"min", min}, {"max", max}},
                               FakeQuantAttributes{num_bits, narrow_range, axis, include_zero}, out, mask, stream);
      },
      arg("x"), arg("min"), arg("max"), py::kw_only(), arg("out"), arg("mask") = py::none(), arg("num_bits") = 8,
      arg("narrow_range") = false, arg("axis") = py::none(), arg("include_zero") = false, arg("stream") = 0);
  m.def(
      "fake_quant_grad",
      [](const py::object& grad_y, const py::object& x, const py::object& min, const py::object& max,
         const py::object& out, const py::object& grad_min, const py::object& grad_max, const py::object& workspace,
         int num_bits, bool narrow_range, Axis axis, bool include_zero, uintptr_t stream) {
        const std::string op = "fake_quant_grad";
        Backward<FakeQuantCall>(op, grad_y, x, {{"min", min}, {"max", max}},
                                FakeQuantAttributes{num_bits, narrow_range, axis, include_zero}, out,
                                Wanted(op, {{"grad_min", grad_min}, {"grad_max", grad_max}}), workspace, stream);
      },
      arg("grad_y"), arg("x"), arg("min"), arg("max"), py::kw_only(), arg("out"), arg("grad_min") = py::none(),
      arg("grad_max") = py::none(), arg("workspace") = py::none(), arg("num_bits") = 8, arg("narrow_range") = false,
      arg("axis") = py::none(), arg("include_zero") = false, arg("stream") = 0,
      "Without grad_min, grad_max and workspace: the gradient to x alone.");
  m.def(
      "lsq_symmetric",
      [](const py::object& x, const py::object& threshold, const py::object& out, const py::object& mask, int num_bits,
         bool is_signed, float grad_scale, Axis axis, bool power_of_two, float min_threshold, uintptr_t stream) {
        Forward<LsqSymmetricCall>(
            "lsq_symmetric", x, {{"threshold", threshold}},
            LsqSymmetricAttributes{num_bits, is_signed, grad_scale, axis, power_of_two, min_threshold}, out, mask,
            stream);
      },
      arg("x"), arg("threshold"), py::kw_only(), arg("out"), arg("mask") = py::none(), arg("num_bits") = 8,
      arg("signed") = true, arg("grad_scale") = 1.0f, arg("axis") = py::none(), arg("power_of_two") = false,
      arg("min_threshold") = 0.0f, arg("stream") = 0);
  m.def(
      "lsq_symmetric_grad",
      [](const py::object& grad_y, const py::object& x, const py::object& threshold, const py::object& out,
         const py::object& grad_threshold, const py::object& workspace, int num_bits, bool is_signed, float grad_scale,
         Axis axis, bool power_of_two, float min_threshold, uintptr_t stream) {
        Backward<LsqSymmetricCall>(
            "lsq_symmetric_grad", grad_y, x, {{"threshold", threshold}},
            LsqSymmetricAttributes{num_bits, is_signed, grad_scale, axis, power_of_two, min_threshold}, out,
            {{"grad_threshold", grad_threshold}}, workspace, stream);
      },
      arg("grad_y"), arg("x"), arg("threshold"), py::kw_only(), arg("out"), arg("grad_threshold"), arg("workspace"),
      arg("num_bits") = 8, arg("signed") = true, arg("grad_scale") = 1.0f, arg("axis") = py::none(),
      arg("power_of_two") = false, arg("min_threshold") = 0.0f, arg("stream") = 0);
  m.def(
      "lsq_uniform",
      [](const py::object& x, const py::object& min, const py::object& max, const py::object& out,
         const py::object& mask, int num_bits, float grad_scale, Axis axis, float min_width, uintptr_t stream) {
        Forward<LsqUniformCall>("lsq_uniform", x, {{"min", min}, {"max", max}},
                                LsqUniformAttributes{num_bits, grad_scale, axis, min_width}, out, mask, stream);
      },
      arg("x"), arg("min"), arg("max"), py::kw_only(), arg("out"), arg("mask") = py::none(), arg("num_bits") = 8,
      arg("grad_scale") = 1.0f, arg("axis") = py::none(), arg("min_width") = 0.0f, arg("stream") = 0);
  m.def(
      "lsq_uniform_grad",
      [](const py::object& grad_y, const py::object& x, const py::object& min, const py::object& max,
         const py::object& out, const py::object& grad_min, const py::object& grad_max, const py::object& workspace,
         int num_bits, float grad_scale, Axis axis, float min_width, uintptr_t stream) {
        Backward<LsqUniformCall>("lsq_uniform_grad", grad_y, x, {{"min", min}, {"max", max}},
                                 LsqUniformAttributes{num_bits, grad_scale, axis, min_width}, out,
                                 {{"grad_min", grad_min}, {"grad_max", grad_max}}, workspace, stream);
      },
      arg("grad_y"), arg("x"), arg("min"), arg("max"), py::kw_only(), arg("out"), arg("grad_min"), arg("grad_max"),
      arg("workspace"), arg("num_bits") = 8, arg("grad_scale") = 1.0f, arg("axis") = py::none(),
      arg("min_width") = 0.0f, arg("stream") = 0);
  m.def("straight_through_grad", &CudaStraightThroughGrad, arg("grad_y"), arg("mask"), py::kw_only(), arg("out"),
        arg("stream") = 0);
  m.def(
      "workspace_size", &WorkspaceSize, arg("op"), arg("x"), py::kw_only(), arg("axis") = py::none(),
      "How many float64 the gradient with sums of an op (\"fake_quant\", \"lsq_symmetric\" or \"lsq_uniform\") needs.");
}

}  // namespace qatfast
