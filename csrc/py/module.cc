// The kernels on NumPy arrays, without TensorFlow between: for tests and benchmarks.

#include <pybind11/stl.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>

#include "core/bit_mask.h"
#include "core/straight_through.h"
#include "py/calls.h"
#include "py/numpy_arrays.h"
#if QATFAST_CUDA
#include "py/cuda_functions.h"
#endif

namespace qatfast {
namespace {

// Threads of its own for each call: simple, and the same for the kernels and for the memcpy they are held against.
ParallelFor PlainParallelFor(int num_threads) {
  return [num_threads](int64_t count, int64_t, const RangeBody& body) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t i = next++; i < count; i = next++) body(i, i + 1);
    };
    std::vector<std::thread> threads;
    try {
      for (int64_t i = 1; i < std::min<int64_t>(num_threads, count); ++i) threads.emplace_back(work);
    } catch (const std::system_error&) {
      // The system gives no more threads: those there are take all the work.
    }
    work();
    for (std::thread& thread : threads) thread.join();
  };
}

int CheckedThreads(const std::string& op, int num_threads) {
  if (num_threads < 1) Fail(op, "num_threads", "at least 1", std::to_string(num_threads));
  return num_threads;
}

// How a call is to run.
struct Run {
  int num_threads;
  std::optional<std::string> isa;
  std::optional<bool> stream;
  std::optional<py::array> out;
};

CpuExecution MakeExecution(const std::string& op, const Run& run) {
  CpuExecution execution;
  if (run.stream) execution.streaming_bytes = *run.stream ? -1 : std::numeric_limits<int64_t>::max();
  execution.parallel_for = PlainParallelFor(CheckedThreads(op, run.num_threads));
  if (run.isa && (!ParseIsa(*run.isa, &execution.isa) || !IsSupported(execution.isa))) {
    Fail(op, "isa", "an instruction set of cpu_features()", *run.isa);
  }
  return execution;
}

// Parameters as arrays, which the views refer to.
struct Parameters {
  std::vector<py::array> arrays;
  std::vector<ArrayView> views;
};

template <typename A>
Parameters ConvertParameters(const std::string& op, const std::vector<NamedArray>& parameters) {
  Parameters converted;
  for (const NamedArray& parameter : parameters) {
    converted.arrays.push_back(Parameter<A>(op, parameter.name, parameter.array));
    converted.views.push_back(ViewOf(converted.arrays.back()));
  }
  return converted;
}

// y, or (y, mask).
template <template <typename> typename Call, typename Attributes>
py::object Forward(const std::string& op, const py::array& x, const std::vector<NamedArray>& parameters,
                   const Attributes& attributes, bool save_mask, const Run& run) {
  const ArrayView view = ViewOf(x);
  return WithType(op, "x", view, [&](auto type) -> py::object {
    using T = decltype(type);
    const T* from = Elements<T>(op, "x", view);
    const auto inputs = ConvertParameters<Arithmetic<T>>(op, parameters);
    const Call<T> call(op, attributes, view.shape, inputs.views);
    call.CheckValues(op);
    const CpuExecution execution = MakeExecution(op, run);
    py::array y = OutputLike(op, run.out, x);
    T* to = WritableElements<T>(op, "out", ViewOf(y));
    CheckApartFrom(op, ViewOf(y), parameters, inputs.views);
    py::array_t<uint8_t> mask(save_mask ? BitMaskBytes(x.size()) : 0);
    uint8_t* bits = save_mask ? mask.mutable_data() : nullptr;
    {
      py::gil_scoped_release release;
      call.Forward(from, to, bits, execution);
    }
    if (!save_mask) return std::move(y);
    return py::make_tuple(y, mask);
  });
}

// (grad_x, and the gradient to each parameter: None unless `with_parameters`).
template <template <typename> typename Call, typename Attributes>
py::tuple Backward(const std::string& op, const py::array& grad_y, const py::array& x,
                   const std::vector<NamedArray>& parameters, const Attributes& attributes, bool with_parameters,
                   const Run& run) {
  const ArrayView view = ViewOf(x);
  return WithType(op, "x", view, [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    constexpr size_t kParameters = Call<T>::kParameters.size();
    const T* from_grad_y = Elements<T>(op, "grad_y", ViewOf(grad_y));
    const T* from_x = Elements<T>(op, "x", view);
    CheckShape(op, "grad_y", ViewOf(grad_y), view.shape);
    const auto inputs = ConvertParameters<A>(op, parameters);
    const Call<T> call(op, attributes, view.shape, inputs.views);
    call.CheckValues(op);
    const CpuExecution execution = MakeExecution(op, run);
    py::array grad_x = OutputLike(op, run.out, x);
    CheckOverlap(op, "grad_y", ViewOf(grad_x), ViewOf(grad_y));
    T* to = WritableElements<T>(op, "out", ViewOf(grad_x));
    CheckApartFrom(op, ViewOf(grad_x), parameters, inputs.views);
    py::tuple results(1 + kParameters);
    results[0] = grad_x;
    A* grads[kParameters] = {};
    std::vector<double> workspace;
    for (size_t i = 0; i < kParameters; ++i) {
      results[1 + i] = py::none();
      if (!with_parameters) continue;
      py::array_t<A> grad(inputs.views[i].shape);
      grads[i] = grad.mutable_data();
      results[1 + i] = std::move(grad);
    }
    if (with_parameters) workspace.resize(GradWorkspaceSize(call.params, execution));
    {
      py::gil_scoped_release release;
      call.Backward(from_grad_y, from_x, to, grads, workspace.data(), execution);
    }
    return results;
  });
}

py::array PyStraightThroughGrad(const py::array& grad_y, const py::array& mask, const Run& run) {
  const std::string op = "straight_through_grad";
  const ArrayView view = ViewOf(grad_y);
  return WithType(op, "grad_y", view, [&](auto type) {
    using T = decltype(type);
    const T* from = Elements<T>(op, "grad_y", view);
    const uint8_t* bits = Elements<uint8_t>(op, "mask", ViewOf(mask));
    CheckShape(op, "mask", ViewOf(mask), {BitMaskBytes(view.size())});
    const CpuExecution execution = MakeExecution(op, run);
    py::array grad_x = OutputLike(op, run.out, grad_y);
    T* to = WritableElements<T>(op, "out", ViewOf(grad_x));
    CheckApart(op, "out", ViewOf(grad_x), "mask", ViewOf(mask));
    const int64_t size = grad_y.size();
    py::gil_scoped_release release;
    StraightThroughGrad(from, bits, to, size, execution);
    py::gil_scoped_acquire acquire;
    return grad_x;
  });
}

void PyMemcpy(const py::array& destination, const py::array& source, int num_threads) {
  const std::string op = "memcpy";
  CheckedThreads(op, num_threads);
  for (const py::array* array : {&destination, &source}) {
    if (array->dtype().attr("hasobject").cast<bool>()) {
      Fail(op, "destination and source", "arrays of numbers", py::str(array->dtype()));
    }
  }
  if (destination.nbytes() != source.nbytes()) {
    Fail(op, "destination", std::to_string(source.nbytes()) + " bytes long", std::to_string(destination.nbytes()));
  }
  if (!(destination.flags() & source.flags() & py::array::c_style)) {
    Fail(op, "destination and source", "C-contiguous", "other strides");
  }
  if (!destination.writeable()) Fail(op, "destination", "writeable", "a read-only array");
  char* to = static_cast<char*>(const_cast<void*>(destination.data()));
  const char* from = static_cast<const char*>(source.data());
  const int64_t bytes = source.nbytes();
  const int64_t part = (bytes / num_threads / 64 + 1) * 64;
  py::gil_scoped_release release;
  PlainParallelFor(num_threads)(num_threads, 0, [&](int64_t i, int64_t) {
    const int64_t begin = std::min(bytes, i * part);
    std::memcpy(to + begin, from + begin, std::min(bytes, begin + part) - begin);
  });
}

py::list CpuFeatures() {
  py::list names;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (IsSupported(isa)) names.append(IsaName(isa));
  }
  return names;
}

py::dict BuildFacts() {
  py::dict facts;
  facts["instruction_set"] = IsaName(BestIsa());
  facts["version"] = QATFAST_VERSION;
  facts["tensorflow"] = QATFAST_TENSORFLOW_VERSION;
  facts["compiler"] = __VERSION__;
  facts["cuda_architectures"] = py::list();
#if QATFAST_CUDA
  facts["cuda_architectures"] = py::str(QATFAST_CUDA_ARCHITECTURES).attr("split")(";");
#endif
  return facts;
}

// Defines a function with the keyword arguments that every call takes.
template <typename Function, typename... Args>
void Define(py::module_& m, const char* name, const char* doc, Function function, const Args&... arguments) {
  m.def(name, function, arguments..., py::arg("out") = py::none(), py::arg("num_threads") = 1,
        py::arg("isa") = py::none(), py::arg("stream") = py::none(), doc);
}

using Axis = std::optional<int>;
using Out = std::optional<py::array>;
using IsaArgument = std::optional<std::string>;
using Stream = std::optional<bool>;

}  // namespace
}  // namespace qatfast

PYBIND11_MODULE(_core, m) {
  using namespace qatfast;
  using py::arg;
  m.doc() =
      "qatfast's kernels on NumPy arrays of float32, float16, float64 or ml_dtypes' bfloat16. Arrays are used in "
      "place: "
      "C-contiguous, of the exact dtype. Every function takes `out`, which may be an input, `num_threads`, `isa` (one "
      "of cpu_features()) and `stream` (whether to write around the caches); None leaves the choice to the library.";
  Define(
      m, "fake_quant", "y of qatfast.ops.fake_quant; with `save_mask` also the mask that straight_through_grad takes.",
      [](const py::array& x, const py::object& min, const py::object& max, int num_bits, bool narrow_range, Axis axis,
         bool include_zero, bool save_mask, Out out, int num_threads, IsaArgument isa, Stream stream) {
        return Forward<FakeQuantCall>("fake_quant", x, {{"min", min}, {"max", max}},
                                      FakeQuantAttributes{num_bits, narrow_range, axis, include_zero}, save_mask,
                                      {num_threads, isa, stream, out});
      },
      arg("x"), arg("min"), arg("max"), py::kw_only(), arg("num_bits") = 8, arg("narrow_range") = false,
      arg("axis") = py::none(), arg("include_zero") = false, arg("save_mask") = false);
  Define(
      m, "fake_quant_grad",
      "(grad_x, grad_min, grad_max) of qatfast.ops.fake_quant; the last two are None unless `with_range`.",
      [](const py::array& grad_y, const py::array& x, const py::object& min, const py::object& max, int num_bits,
         bool narrow_range, Axis axis, bool include_zero, bool with_range, Out out, int num_threads, IsaArgument isa,
         Stream stream) {
        return Backward<FakeQuantCall>("fake_quant_grad", grad_y, x, {{"min", min}, {"max", max}},
                                       FakeQuantAttributes{num_bits, narrow_range, axis, include_zero}, with_range,
                                       {num_threads, isa, stream, out});
      },
      arg("grad_y"), arg("x"), arg("min"), arg("max"), py::kw_only(), arg("num_bits") = 8, arg("narrow_range") = false,
      arg("axis") = py::none(), arg("include_zero") = false, arg("with_range") = true);
  Define(
      m, "lsq_symmetric",
      "y of qatfast.ops.lsq_symmetric; with `save_mask` also the mask that straight_through_grad takes.",
      [](const py::array& x, const py::object& threshold, int num_bits, bool is_signed, float grad_scale, Axis axis,
         bool power_of_two, float min_threshold, bool save_mask, Out out, int num_threads, IsaArgument isa,
         Stream stream) {
        return Forward<LsqSymmetricCall>(
            "lsq_symmetric", x, {{"threshold", threshold}},
            LsqSymmetricAttributes{num_bits, is_signed, grad_scale, axis, power_of_two, min_threshold}, save_mask,
            {num_threads, isa, stream, out});
      },
      arg("x"), arg("threshold"), py::kw_only(), arg("num_bits") = 8, arg("signed") = true, arg("grad_scale") = 1.0f,
      arg("axis") = py::none(), arg("power_of_two") = false, arg("min_threshold") = 0.0f, arg("save_mask") = false);
  Define(
      m, "lsq_symmetric_grad", "(grad_x, grad_threshold) of qatfast.ops.lsq_symmetric.",
      [](const py::array& grad_y, const py::array& x, const py::object& threshold, int num_bits, bool is_signed,
         float grad_scale, Axis axis, bool power_of_two, float min_threshold, Out out, int num_threads, IsaArgument isa,
         Stream stream) {
        return Backward<LsqSymmetricCall>(
            "lsq_symmetric_grad", grad_y, x, {{"threshold", threshold}},
            LsqSymmetricAttributes{num_bits, is_signed, grad_scale, axis, power_of_two, min_threshold}, true,
            {num_threads, isa, stream, out});
      },
      arg("grad_y"), arg("x"), arg("threshold"), py::kw_only(), arg("num_bits") = 8, arg("signed") = true,
      arg("grad_scale") = 1.0f, arg("axis") = py::none(), arg("power_of_two") = false, arg("min_threshold") = 0.0f);
  Define(
      m, "lsq_uniform",
      "y of qatfast.ops.lsq_uniform; with `save_mask` also the mask that straight_through_grad takes.",
      [](const py::array& x, const py::object& min, const py::object& max, int num_bits, float grad_scale, Axis axis,
         float min_width, bool save_mask, Out out, int num_threads, IsaArgument isa, Stream stream) {
        return Forward<LsqUniformCall>("lsq_uniform", x, {{"min", min}, {"max", max}},
                                       LsqUniformAttributes{num_bits, grad_scale, axis, min_width}, save_mask,
                                       {num_threads, isa, stream, out});
      },
      arg("x"), arg("min"), arg("max"), py::kw_only(), arg("num_bits") = 8, arg("grad_scale") = 1.0f,
      arg("axis") = py::none(), arg("min_width") = 0.0f, arg("save_mask") = false);
  Define(
      m, "lsq_uniform_grad", "(grad_x, grad_min, grad_max) of qatfast.ops.lsq_uniform.",
      [](const py::array& grad_y, const py::array& x, const py::object& min, const py::object& max, int num_bits,
         float grad_scale, Axis axis, float min_width, Out out, int num_threads, IsaArgument isa, Stream stream) {
        return Backward<LsqUniformCall>("lsq_uniform_grad", grad_y, x, {{"min", min}, {"max", max}},
                                        LsqUniformAttributes{num_bits, grad_scale, axis, min_width}, true,
                                        {num_threads, isa, stream, out});
      },
      arg("grad_y"), arg("x"), arg("min"), arg("max"), py::kw_only(), arg("num_bits") = 8, arg("grad_scale") = 1.0f,
      arg("axis") = py::none(), arg("min_width") = 0.0f);
  Define(
      m, "straight_through_grad", "grad_x where the bits of `mask` (uint8) are set, else 0.",
      [](const py::array& grad_y, const py::array& mask, Out out, int num_threads, IsaArgument isa, Stream stream) {
        return PyStraightThroughGrad(grad_y, mask, {num_threads, isa, stream, out});
      },
      arg("grad_y"), arg("mask"), py::kw_only());
  m.def("memcpy", &PyMemcpy, arg("destination"), arg("source"), py::kw_only(), arg("num_threads") = 1,
        "Copies the bytes of an array on several threads: the speed limit that kernels are held against.");
  m.def("cpu_features", &CpuFeatures, "Instruction sets that have kernels of their own here, the best last.");
  m.def("build_facts", &BuildFacts, "What this library was built from and for.");
#if QATFAST_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  DefineCuda(cuda);
#endif
}
