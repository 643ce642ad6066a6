// The kernels on NumPy arrays, without TensorFlow between: for tests and benchmarks.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/fake_quant.h"

namespace py = pybind11;

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

std::string ShapeString(const py::array& array) { return py::str(array.attr("shape")); }

[[noreturn]] void Fail(const std::string& op, const std::string& argument, const std::string& requirement,
                       const std::string& got) {
  throw py::value_error(op + ": " + argument + " must be " + requirement + ", got " + got);
}

int CheckedThreads(const std::string& op, int num_threads) {
  if (num_threads < 1) Fail(op, "num_threads", "at least 1", std::to_string(num_threads));
  return num_threads;
}

CpuExecution MakeExecution(const std::string& op, int num_threads, const std::optional<std::string>& isa,
                           std::optional<bool> stream) {
  CpuExecution execution;
  if (stream) execution.streaming_bytes = *stream ? -1 : std::numeric_limits<int64_t>::max();
  execution.parallel_for = PlainParallelFor(CheckedThreads(op, num_threads));
  if (isa && (!ParseIsa(*isa, &execution.isa) || !IsSupported(execution.isa))) {
    Fail(op, "isa", "an instruction set of cpu_features()", *isa);
  }
  return execution;
}

// A view of a C-contiguous array of T, never a copy of it.
template <typename T>
py::array_t<T> Contiguous(const std::string& op, const std::string& argument, const py::array& array) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    Fail(op, argument, "of dtype " + std::string(py::str(py::dtype::of<T>())), py::str(array.dtype()));
  }
  const bool aligned = reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0;
  if (!(array.flags() & py::array::c_style) || !aligned) {
    Fail(op, argument, "C-contiguous and aligned to its elements",
         "strides " + std::string(py::str(array.attr("strides"))));
  }
  return py::reinterpret_borrow<py::array_t<T>>(array);
}

// A range end: an array, used in place, or a number.
template <typename A>
py::array_t<A> RangeEnd(const std::string& op, const std::string& argument, const py::object& end) {
  if (py::isinstance<py::array>(end)) return Contiguous<A>(op, argument, py::reinterpret_borrow<py::array>(end));
  const auto converted = py::array_t<A>::ensure(end);
  if (!converted) Fail(op, argument, "a number or an array", py::repr(end));
  return converted;
}

void CheckShape(const std::string& op, const std::string& argument, const py::array& array, const py::array& like) {
  if (!array.attr("shape").equal(like.attr("shape"))) {
    Fail(op, argument, "of shape " + ShapeString(like), ShapeString(array));
  }
}

// Kernels may write over an input, not over one that lies elsewhere in the same memory.
void CheckOverlap(const std::string& op, const std::string& argument, const py::array& out, const py::array& input) {
  const char* a = static_cast<const char*>(out.data());
  const char* b = static_cast<const char*>(input.data());
  if (a != b && a < b + input.nbytes() && b < a + out.nbytes()) {
    Fail(op, "out", argument + " itself or apart from it", "an array that overlaps it");
  }
}

template <typename T>
py::array_t<T> OutputLike(const std::string& op, const std::optional<py::array>& out, const py::array& x) {
  if (!out) return py::array_t<T>(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  CheckShape(op, "out", *out, x);
  CheckOverlap(op, "x", *out, x);
  if (!out->writeable()) Fail(op, "out", "writeable", "a read-only array");
  return Contiguous<T>(op, "out", *out);
}

struct Attributes {
  int num_bits;
  bool narrow_range;
  std::optional<int> axis;
  bool include_zero;
};

template <typename T>
FakeQuantParams<T> MakeParams(const std::string& op, const Attributes& attributes, const py::array& x,
                              const py::array_t<Arithmetic<T>>& min, const py::array_t<Arithmetic<T>>& max) {
  if (attributes.num_bits < 2 || attributes.num_bits > 16) {
    Fail(op, "num_bits", "from 2 to 16", std::to_string(attributes.num_bits));
  }
  FakeQuantParams<T> params;
  params.quant_range = MakeQuantRange(attributes.num_bits, attributes.narrow_range);
  params.per_channel = attributes.axis.has_value();
  params.include_zero = attributes.include_zero;
  params.min = min.data();
  params.max = max.data();
  std::vector<py::ssize_t> wanted;
  if (params.per_channel) {
    const int rank = static_cast<int>(x.ndim());
    const int axis = *attributes.axis < 0 ? *attributes.axis + rank : *attributes.axis;
    if (axis < 0 || axis >= rank) {
      Fail(op, "axis", "an axis of x, of shape " + ShapeString(x), std::to_string(*attributes.axis));
    }
    const std::vector<int64_t> dims(x.shape(), x.shape() + rank);
    params.layout = MakeChannelLayout(dims.data(), rank, axis);
    wanted = {static_cast<py::ssize_t>(params.layout.channels)};
  } else {
    params.layout = {1, 1, x.size()};
  }
  for (const auto* end : {&min, &max}) {
    const std::vector<py::ssize_t> shape(end->shape(), end->shape() + end->ndim());
    if (shape != wanted) {
      Fail(op, end == &min ? "min" : "max", "of shape " + std::string(py::str(py::tuple(py::cast(wanted)))),
           ShapeString(*end));
    }
  }
  const int64_t invalid = FindInvalidRange(params);
  if (invalid >= 0) {
    std::ostringstream got;
    got << "min " << params.min[invalid] << " and max " << params.max[invalid] << " in channel " << invalid;
    Fail(op, "min and max", "finite and min less than max (or both 0)", got.str());
  }
  return params;
}

template <typename T>
py::array_t<T> PyFakeQuant(const py::array& x, const py::object& min, const py::object& max, int num_bits,
                           bool narrow_range, std::optional<int> axis, bool include_zero,
                           const std::optional<py::array>& out, int num_threads, const std::optional<std::string>& isa,
                           std::optional<bool> stream) {
  const std::string op = "fake_quant";
  const auto x_view = Contiguous<T>(op, "x", x);
  const auto min_view = RangeEnd<Arithmetic<T>>(op, "min", min);
  const auto max_view = RangeEnd<Arithmetic<T>>(op, "max", max);
  const auto params = MakeParams<T>(op, {num_bits, narrow_range, axis, include_zero}, x, min_view, max_view);
  const CpuExecution execution = MakeExecution(op, num_threads, isa, stream);
  auto y = OutputLike<T>(op, out, x);
  const T* from = x_view.data();
  T* to = y.mutable_data();
  py::gil_scoped_release release;
  FakeQuant(params, from, to, execution);
  py::gil_scoped_acquire acquire;
  return y;
}

template <typename T>
py::tuple PyFakeQuantGrad(const py::array& grad_y, const py::array& x, const py::object& min, const py::object& max,
                          int num_bits, bool narrow_range, std::optional<int> axis, bool include_zero, bool with_range,
                          const std::optional<py::array>& out, int num_threads, const std::optional<std::string>& isa,
                          std::optional<bool> stream) {
  const std::string op = "fake_quant_grad";
  const auto grad_y_view = Contiguous<T>(op, "grad_y", grad_y);
  const auto x_view = Contiguous<T>(op, "x", x);
  const auto min_view = RangeEnd<Arithmetic<T>>(op, "min", min);
  const auto max_view = RangeEnd<Arithmetic<T>>(op, "max", max);
  CheckShape(op, "grad_y", grad_y, x);
  const auto params = MakeParams<T>(op, {num_bits, narrow_range, axis, include_zero}, x, min_view, max_view);
  const CpuExecution execution = MakeExecution(op, num_threads, isa, stream);
  auto grad_x = OutputLike<T>(op, out, x);
  CheckOverlap(op, "grad_y", grad_x, grad_y);
  FakeQuantGradients<T> gradients;
  gradients.grad_x = grad_x.mutable_data();
  py::object grad_min = py::none(), grad_max = py::none();
  std::vector<double> workspace;
  if (with_range) {
    const std::vector<py::ssize_t> shape(min_view.shape(), min_view.shape() + min_view.ndim());
    py::array_t<Arithmetic<T>> min_sums(shape), max_sums(shape);
    gradients.grad_min = min_sums.mutable_data();
    gradients.grad_max = max_sums.mutable_data();
    workspace.resize(FakeQuantGradWorkspaceSize(params.layout));
    gradients.workspace = workspace.data();
    grad_min = std::move(min_sums);
    grad_max = std::move(max_sums);
  }
  const T* from_grad_y = grad_y_view.data();
  const T* from_x = x_view.data();
  {
    py::gil_scoped_release release;
    FakeQuantGrad(params, from_grad_y, from_x, gradients, execution);
  }
  return py::make_tuple(grad_x, grad_min, grad_max);
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
  return facts;
}

}  // namespace
}  // namespace qatfast

PYBIND11_MODULE(_core, m) {
  using namespace qatfast;
  m.doc() = "qatfast's kernels on NumPy arrays. Arrays are used in place: C-contiguous, of the exact dtype.";
  m.def("fake_quant", &PyFakeQuant<float>, py::arg("x"), py::arg("min"), py::arg("max"), py::kw_only(),
        py::arg("num_bits") = 8, py::arg("narrow_range") = false, py::arg("axis") = py::none(),
        py::arg("include_zero") = false, py::arg("out") = py::none(), py::arg("num_threads") = 1,
        py::arg("isa") = py::none(), py::arg("stream") = py::none(),
        "y of qatfast.ops.fake_quant. `out` may be x. `isa` is one of cpu_features(), `stream` whether "
        "to write around the caches; None leaves the choice to the library.");
  m.def("fake_quant_grad", &PyFakeQuantGrad<float>, py::arg("grad_y"), py::arg("x"), py::arg("min"), py::arg("max"),
        py::kw_only(), py::arg("num_bits") = 8, py::arg("narrow_range") = false, py::arg("axis") = py::none(),
        py::arg("include_zero") = false, py::arg("with_range") = true, py::arg("out") = py::none(),
        py::arg("num_threads") = 1, py::arg("isa") = py::none(), py::arg("stream") = py::none(),
        "(grad_x, grad_min, grad_max) of qatfast.ops.fake_quant; the last two are None unless `with_range`.");
  m.def("memcpy", &PyMemcpy, py::arg("destination"), py::arg("source"), py::kw_only(), py::arg("num_threads") = 1,
        "Copies the bytes of an array on several threads: the speed limit that kernels are held against.");
  m.def("cpu_features", &CpuFeatures, "Instruction sets that have kernels of their own here, the best last.");
  m.def("build_facts", &BuildFacts, "What this library was built from and for.");
}
