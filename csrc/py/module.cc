// The kernels on NumPy arrays, without TensorFlow between: for tests and benchmarks.

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

int NumThreads(const Arguments& arguments) {
  const int num_threads = arguments.Integer("num_threads");
  if (num_threads < 1) Fail(arguments.op(), "num_threads", "at least 1", std::to_string(num_threads));
  return num_threads;
}

// The arguments of every call that say how it is to run.
std::vector<Keyword> RunKeywords() {
  return {{"out", py::none()}, {"num_threads", py::int_(1)}, {"isa", py::none()}, {"stream", py::none()}};
}

CpuExecution MakeExecution(const Arguments& arguments) {
  CpuExecution execution;
  const std::optional<bool> stream = arguments.OptionalFlag("stream");
  if (stream) execution.streaming_bytes = *stream ? 0 : std::numeric_limits<int64_t>::max();
  execution.parallel_for = PlainParallelFor(NumThreads(arguments));
  if (arguments["isa"].is_none()) return execution;
  const std::optional<std::string> isa = arguments.Text("isa");
  if (!isa) arguments.FailAt("isa", "None or an instruction set of cpu_features()");
  if (!ParseIsa(*isa, &execution.isa) || !IsSupported(execution.isa)) {
    Fail(arguments.op(), "isa", "an instruction set of cpu_features()", *isa);
  }
  return execution;
}

// Parameters as arrays, which the views refer to.
struct Parameters {
  std::vector<py::array> arrays;
  std::vector<ArrayView> views;
};

template <typename A, size_t kParameters>
Parameters ConvertParameters(const Arguments& arguments, const std::array<const char*, kParameters>& names) {
  Parameters converted;
  for (const char* name : names) {
    converted.arrays.push_back(Parameter<A>(arguments, name));
    converted.views.push_back(ViewOf(converted.arrays.back()));
  }
  return converted;
}

// y, or (y, mask).
template <template <typename> typename Call>
py::object Forward(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const py::array x = NumpyArray(arguments, "x");
  const ArrayView view = ViewOf(x);
  return WithType(op, "x", view, [&](auto type) -> py::object {
    using T = decltype(type);
    const T* from = Elements<T>(op, "x", view);
    const auto inputs = ConvertParameters<Arithmetic<T>>(arguments, Call<T>::kParameters);
    const Call<T> call(arguments, view.shape, inputs.views);
    call.CheckValues(op);
    const CpuExecution execution = MakeExecution(arguments);
    py::array y = OutputLike(arguments, "x", x);
    T* to = WritableElements<T>(op, "out", ViewOf(y));
    CheckApartFrom(op, "out", ViewOf(y), Call<T>::kParameters, inputs.views);
    const bool save_mask = arguments.Flag("save_mask");
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

// (grad_x, and the gradient to each parameter: None without `with_range`).
template <template <typename> typename Call>
py::tuple Backward(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const py::array grad_y = NumpyArray(arguments, "grad_y"), x = NumpyArray(arguments, "x");
  const ArrayView view = ViewOf(x);
  return WithType(op, "x", view, [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    constexpr size_t kParameters = Call<T>::kParameters.size();
    const T* from_grad_y = Elements<T>(op, "grad_y", ViewOf(grad_y));
    const T* from_x = Elements<T>(op, "x", view);
    CheckShape(op, "grad_y", ViewOf(grad_y), view.shape);
    const auto inputs = ConvertParameters<A>(arguments, Call<T>::kParameters);
    const Call<T> call(arguments, view.shape, inputs.views);
    call.CheckValues(op);
    const CpuExecution execution = MakeExecution(arguments);
    py::array grad_x = OutputLike(arguments, "x", x);
    CheckOverlap(op, "grad_y", ViewOf(grad_x), ViewOf(grad_y));
    T* to = WritableElements<T>(op, "out", ViewOf(grad_x));
    CheckApartFrom(op, "out", ViewOf(grad_x), Call<T>::kParameters, inputs.views);
    bool with_parameters = true;
    if constexpr (Call<T>::kMayLeaveOutRange) with_parameters = arguments.Flag("with_range");
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

py::array PyStraightThroughGrad(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const py::array grad_y = NumpyArray(arguments, "grad_y"), mask = NumpyArray(arguments, "mask");
  const ArrayView view = ViewOf(grad_y);
  return WithType(op, "grad_y", view, [&](auto type) {
    using T = decltype(type);
    const T* from = Elements<T>(op, "grad_y", view);
    const uint8_t* bits = Elements<uint8_t>(op, "mask", ViewOf(mask));
    CheckShape(op, "mask", ViewOf(mask), {BitMaskBytes(view.size())});
    const CpuExecution execution = MakeExecution(arguments);
    py::array grad_x = OutputLike(arguments, "grad_y", grad_y);
    T* to = WritableElements<T>(op, "out", ViewOf(grad_x));
    CheckApart(op, "out", ViewOf(grad_x), "mask", ViewOf(mask));
    const int64_t size = grad_y.size();
    py::gil_scoped_release release;
    StraightThroughGrad(from, bits, to, size, execution);
    py::gil_scoped_acquire acquire;
    return grad_x;
  });
}

void PyMemcpy(const Arguments& arguments) {
  const std::string& op = arguments.op();
  const int num_threads = NumThreads(arguments);
  const py::array destination = NumpyArray(arguments, "destination"), source = NumpyArray(arguments, "source");
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
  CheckApart(op, "destination", ViewOf(destination), "source", ViewOf(source));
  char* to = static_cast<char*>(const_cast<void*>(destination.data()));
  const char* from = static_cast<const char*>(source.data());
  const int64_t bytes = source.nbytes();
  const int64_t part = (bytes / num_threads / 64 + 1) * 64;
  const int64_t num_parts = (bytes + part - 1) / part;
  py::gil_scoped_release release;
  PlainParallelFor(num_threads)(num_parts, 0, [&](int64_t i, int64_t) {
    const int64_t begin = i * part;
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

// Defines the two functions of a family.
template <template <typename> typename Call>
void DefineFamily(py::module_& m) {
  const std::string name = Call<float>::kName;
  Define(m,
         {name, Positional<Call>({"x"}),
          Joined({Call<float>::Attributes(), {{"save_mask", py::bool_(false)}}, RunKeywords()})},
         "y of qatfast.ops." + name + "; with `save_mask` also the mask that straight_through_grad takes.",
         Forward<Call>);
  std::vector<Keyword> choice;
  std::string results = "grad_x";
  for (const char* parameter : Call<float>::kParameters) results += std::string(", grad_") + parameter;
  std::string doc = "(" + results + ") of qatfast.ops." + name;
  if (Call<float>::kMayLeaveOutRange) {
    choice = {{"with_range", py::bool_(true)}};
    doc += "; all but the first are None unless `with_range`";
  }
  Define(
      m,
      {name + "_grad", Positional<Call>({"grad_y", "x"}), Joined({Call<float>::Attributes(), choice, RunKeywords()})},
      doc + ".", Backward<Call>);
}

}  // namespace
}  // namespace qatfast

PYBIND11_MODULE(_core, m) {
  using namespace qatfast;
  m.doc() =
      "qatfast's kernels on NumPy arrays of float32, float16, float64 or ml_dtypes' bfloat16. Arrays are used in "
      "place: "
      "C-contiguous, of the exact dtype. Every function takes `out`, which may be an input, `num_threads`, `isa` (one "
      "of cpu_features()) and `stream` (whether to write around the caches); None leaves the choice to the library.";
  DefineFamily<FakeQuantCall>(m);
  DefineFamily<LsqSymmetricCall>(m);
  DefineFamily<LsqUniformCall>(m);
  Define(m, {"straight_through_grad", {"grad_y", "mask"}, RunKeywords()},
         "grad_x where the bits of `mask` (uint8) are set, else 0.", PyStraightThroughGrad);
  Define(m, {"memcpy", {"destination", "source"}, {{"num_threads", py::int_(1)}}},
         "Copies the bytes of an array on several threads: the speed limit that kernels are held against.", PyMemcpy);
  Define(m, {"cpu_features", {}, {}}, "Instruction sets that have kernels of their own here, the best last.",
         [](const Arguments&) { return CpuFeatures(); });
  Define(m, {"build_facts", {}, {}}, "What this library was built from and for.",
         [](const Arguments&) { return BuildFacts(); });
#if QATFAST_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  DefineCuda(cuda);
#endif
}
