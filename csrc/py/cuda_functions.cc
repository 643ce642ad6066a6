#include "py/cuda_functions.h"

#include "core/bit_mask.h"
#include "core/straight_through.h"
#include "py/calls.h"
#include "py/device_arrays.h"

namespace qatfast {
namespace {

CudaExecution ExecutionOf(const Arguments& arguments) {
  CudaExecution execution;
  execution.stream = reinterpret_cast<CudaStream>(arguments.Address("stream"));
  return execution;
}

void CheckMask(const std::string& op, const ArrayView& mask, const ArrayView& x) {
  CheckShape(op, "mask", mask, {BitMaskBytes(x.size())});
}

template <size_t kParameters>
std::vector<ArrayView> ViewsOf(const DeviceArrays& arrays, const std::array<const char*, kParameters>& names) {
  std::vector<ArrayView> views;
  for (const char* name : names) views.push_back(arrays[name]);
  return views;
}

template <template <typename> typename Call>
void Forward(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const bool with_mask = !arguments["mask"].is_none();
  std::vector<std::string> names = Positional<Call>({"x"});
  names.push_back("out");
  if (with_mask) names.push_back("mask");
  const DeviceArrays arrays(arguments, names);
  const ArrayView &x = arrays["x"], &out = arrays["out"];
  WithType(op, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* from = Elements<T>(op, "x", x);
    const std::vector<ArrayView> parameters = ViewsOf(arrays, Call<T>::kParameters);
    const Call<T> call(arguments, x.shape, parameters);
    CheckShape(op, "out", out, x.shape);
    T* to = WritableElements<T>(op, "out", out);
    CheckOverlap(op, "x", out, x);
    CheckApartFrom(op, "out", out, Call<T>::kParameters, parameters);
    uint8_t* bits = nullptr;
    if (with_mask) {
      const ArrayView& mask = arrays["mask"];
      CheckMask(op, mask, x);
      bits = WritableElements<uint8_t>(op, "mask", mask);
      CheckApart(op, "mask", mask, "x", x);
      CheckApart(op, "mask", mask, "out", out);
      CheckApartFrom(op, "mask", mask, Call<T>::kParameters, parameters);
    }
    const CudaExecution execution = ExecutionOf(arguments);
    call.Forward(from, to, bits, execution);
    CheckCuda(op, execution.error);
  });
}

// "grad_min" for "min".
template <template <typename> typename Call>
std::vector<std::string> GradientNames() {
  std::vector<std::string> names;
  for (const char* parameter : Call<float>::kParameters) names.push_back(std::string("grad_") + parameter);
  return names;
}

// Whether gradients to parameters are asked for: all of them or none.
template <template <typename> typename Call>
bool WantsParameterGradients(const Arguments& arguments) {
  if (!Call<float>::kMayLeaveOutRange) return true;
  const std::vector<std::string> names = GradientNames<Call>();
  size_t given = 0;
  for (const std::string& name : names) given += !arguments[name].is_none();
  if (given > 0 && given < names.size()) {
    Fail(arguments.op(), "grad_min and grad_max", "given both or neither", "one of them");
  }
  return given > 0;
}

template <template <typename> typename Call>
void Backward(const Arguments& arguments) {
  const std::string& op = arguments.op();
  std::vector<std::string> outputs;  // besides `out`
  if (WantsParameterGradients<Call>(arguments)) {
    outputs = GradientNames<Call>();
    outputs.push_back("workspace");
  }
  std::vector<std::string> names = Positional<Call>({"grad_y", "x"});
  names.push_back("out");
  names.insert(names.end(), outputs.begin(), outputs.end());
  const DeviceArrays arrays(arguments, names);
  const ArrayView &grad_y = arrays["grad_y"], &x = arrays["x"], &out = arrays["out"];
  WithType(op, "x", x, [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    constexpr size_t kParameters = Call<T>::kParameters.size();
    const T* from_x = Elements<T>(op, "x", x);
    CheckShape(op, "grad_y", grad_y, x.shape);
    const T* from_grad_y = Elements<T>(op, "grad_y", grad_y);
    const std::vector<ArrayView> parameters = ViewsOf(arrays, Call<T>::kParameters);
    const Call<T> call(arguments, x.shape, parameters);
    CheckShape(op, "out", out, x.shape);
    T* to = WritableElements<T>(op, "out", out);
    CheckOverlap(op, "x", out, x);
    CheckOverlap(op, "grad_y", out, grad_y);
    CheckApartFrom(op, "out", out, Call<T>::kParameters, parameters);
    const CudaExecution execution = ExecutionOf(arguments);
    A* grads[kParameters] = {};
    double* workspace = nullptr;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const ArrayView& view = arrays[outputs[i]];
      if (i < kParameters) {
        CheckShape(op, outputs[i], view, parameters[i].shape);
        grads[i] = WritableElements<A>(op, outputs[i], view);
      } else {
        workspace = WritableElements<double>(op, outputs[i], view);
        const int64_t needed = GradWorkspaceSize(call.params, execution);
        if (view.size() < needed) {
          Fail(op, outputs[i], "of at least " + std::to_string(needed) + " elements", std::to_string(view.size()));
        }
      }
      for (const char* other : {"x", "grad_y", "out"}) CheckApart(op, outputs[i], view, other, arrays[other]);
      CheckApartFrom(op, outputs[i], view, Call<T>::kParameters, parameters);
      for (size_t j = 0; j < i; ++j) CheckApart(op, outputs[i], view, outputs[j], arrays[outputs[j]]);
    }
    call.Backward(from_grad_y, from_x, to, grads, workspace, execution);
    CheckCuda(op, execution.error);
  });
}

void CudaStraightThroughGrad(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const DeviceArrays arrays(arguments, {"grad_y", "mask", "out"});
  const ArrayView &grad_y = arrays["grad_y"], &mask = arrays["mask"], &out = arrays["out"];
  WithType(op, "grad_y", grad_y, [&](auto type) {
    using T = decltype(type);
    const T* from = Elements<T>(op, "grad_y", grad_y);
    CheckMask(op, mask, grad_y);
    const uint8_t* bits = Elements<uint8_t>(op, "mask", mask);
    CheckShape(op, "out", out, grad_y.shape);
    T* to = WritableElements<T>(op, "out", out);
    CheckOverlap(op, "grad_y", out, grad_y);
    CheckApart(op, "out", out, "mask", mask);
    const CudaExecution execution = ExecutionOf(arguments);
    StraightThroughGrad(from, bits, to, grad_y.size(), execution);
    CheckCuda(op, execution.error);
  });
}

int64_t WorkspaceSize(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const std::optional<std::string> name = arguments.Text("op");
  const DeviceArrays arrays(arguments, {"x"});
  const ArrayView& x = arrays["x"];
  return WithType(op, "x", x, [&](auto type) {
    using T = decltype(type);
    const ChannelLayout layout = LayoutOf(op, x.shape, arguments.OptionalInteger("axis"));
    const auto size_for = [&](auto params) {
      params.layout = layout;
      return GradWorkspaceSize(params, CudaExecution());
    };
    if (name == "fake_quant") return size_for(FakeQuantParams<T>());
    if (name == "lsq_symmetric") return size_for(LsqSymmetricParams<T>());
    if (name == "lsq_uniform") return size_for(LsqUniformParams<T>());
    const std::string requirement = "fake_quant, lsq_symmetric or lsq_uniform";
    if (!name) arguments.FailAt("op", requirement);
    Fail(op, "op", requirement, *name);
  });
}

// Defines the two functions of a family.
template <template <typename> typename Call>
void DefineFamily(py::module_& m) {
  const std::string name = Call<float>::kName;
  const Keyword stream = {"stream", py::int_(0)};
  const std::vector<Keyword> attributes = Call<float>::Attributes();
  Define(m, {name, Positional<Call>({"x"}), Joined({{{"out"}, {"mask", py::none()}}, attributes, {stream}})}, "",
         Forward<Call>);
  std::vector<Keyword> outputs = {{"out"}};
  std::vector<std::string> sums = GradientNames<Call>();
  sums.push_back("workspace");
  for (const std::string& sum : sums) {
    outputs.push_back({sum, Call<float>::kMayLeaveOutRange ? py::object(py::none()) : py::object()});
  }
  Define(m, {name + "_grad", Positional<Call>({"grad_y", "x"}), Joined({outputs, attributes, {stream}})},
         Call<float>::kMayLeaveOutRange ? "Without grad_min, grad_max and workspace: the gradient to x alone." : "",
         Backward<Call>);
}

}  // namespace

void DefineCuda(py::module_& m) {
  m.doc() =
      "The kernels on arrays of a CUDA device (by DLPack or __cuda_array_interface__), C-contiguous and of the exact\n"
      "dtype, all on one device, which is made the current one for the call. Functions write into `out` (which may be\n"
      "x, or grad_y in a gradient), `mask` and the gradients that are given, queue their kernels on `stream` (a\n"
      "cudaStream_t of that device as an integer; 0: the default stream) and return None without waiting. A channel\n"
      "that cannot be quantized with gives NaN, with gradients of 0. `workspace` is an array of at least\n"
      "workspace_size() float64.";
  DefineFamily<FakeQuantCall>(m);
  DefineFamily<LsqSymmetricCall>(m);
  DefineFamily<LsqUniformCall>(m);
  Define(m, {"straight_through_grad", {"grad_y", "mask"}, {{"out"}, {"stream", py::int_(0)}}}, "",
         CudaStraightThroughGrad);
  Define(
      m, {"workspace_size", {"op", "x"}, {{"axis", py::none()}}},
      "How many float64 the gradient with sums of an op (\"fake_quant\", \"lsq_symmetric\" or \"lsq_uniform\") needs "
      "at most.",
      WorkspaceSize);
}

}  // namespace qatfast
