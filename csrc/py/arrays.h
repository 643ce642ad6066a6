// NumPy arrays as the kernels take them: checked, used in place, never copied.
#ifndef QATFAST_PY_ARRAYS_H_
#define QATFAST_PY_ARRAYS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/half.h"
#include "core/params.h"

namespace qatfast {

namespace py = pybind11;

[[noreturn]] inline void Fail(const std::string& op, const std::string& argument, const std::string& requirement,
                              const std::string& got) {
  throw py::value_error(op + ": " + argument + " must be " + requirement + ", got " + got);
}

inline std::string ShapeString(const py::array& array) { return py::str(array.attr("shape")); }

inline std::string DtypeName(const py::array& array) { return py::str(array.dtype()); }

template <typename T>
const char* NameOf() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, Float16>) return "float16";
  if constexpr (std::is_same_v<T, BFloat16>) return "bfloat16";  // of the package ml_dtypes
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
}

// Calls body(T()) with the type of the elements of `x`.
template <typename Body>
auto WithType(const std::string& op, const std::string& argument, const py::array& x, Body body) {
  const std::string dtype = DtypeName(x);
  if (dtype == NameOf<Float16>()) return body(Float16());
  if (dtype == NameOf<BFloat16>()) return body(BFloat16());
  if (dtype == NameOf<double>()) return body(double());
  if (dtype != NameOf<float>()) Fail(op, argument, "of dtype float32, float16, bfloat16 or float64", dtype);
  return body(float());
}

// The elements of a C-contiguous array of T.
template <typename T>
const T* Elements(const std::string& op, const std::string& argument, const py::array& array) {
  if (DtypeName(array) != NameOf<T>()) Fail(op, argument, std::string("of dtype ") + NameOf<T>(), DtypeName(array));
  const bool aligned = reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0;
  if (!(array.flags() & py::array::c_style) || !aligned) {
    Fail(op, argument, "C-contiguous and aligned to its elements",
         "strides " + std::string(py::str(array.attr("strides"))));
  }
  return static_cast<const T*>(array.data());
}

template <typename T>
T* WritableElements(const std::string& op, const std::string& argument, const py::array& array) {
  if (!array.writeable()) Fail(op, argument, "writeable", "a read-only array");
  return const_cast<T*>(Elements<T>(op, argument, array));
}

// A parameter: an array, used in place, or a number.
template <typename A>
py::array Parameter(const std::string& op, const std::string& argument, const py::object& value) {
  if (py::isinstance<py::array>(value)) return py::reinterpret_borrow<py::array>(value);
  const auto converted = py::array_t<A>::ensure(value);
  if (!converted) Fail(op, argument, "a number or an array", py::repr(value));
  return converted;
}

inline void CheckShape(const std::string& op, const std::string& argument, const py::array& array,
                       const py::array& like) {
  if (!array.attr("shape").equal(like.attr("shape"))) {
    Fail(op, argument, "of shape " + ShapeString(like), ShapeString(array));
  }
}

inline std::vector<py::ssize_t> ShapeOf(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

inline py::array EmptyLike(const py::array& like) { return py::array(like.dtype(), ShapeOf(like)); }

// Kernels may write over an input, not over one that lies elsewhere in the same memory.
inline void CheckOverlap(const std::string& op, const std::string& argument, const py::array& out,
                         const py::array& input) {
  const char* a = static_cast<const char*>(out.data());
  const char* b = static_cast<const char*>(input.data());
  if (a != b && a < b + input.nbytes() && b < a + out.nbytes()) {
    Fail(op, "out", argument + " itself or apart from it", "an array that overlaps it");
  }
}

// `out`, or a new array like x.
inline py::array OutputLike(const std::string& op, const std::optional<py::array>& out, const py::array& x) {
  if (!out) return EmptyLike(x);
  CheckShape(op, "out", *out, x);
  CheckOverlap(op, "x", *out, x);
  return *out;
}

inline ChannelLayout LayoutOf(const std::string& op, const py::array& x, std::optional<int> axis) {
  if (!axis) return {1, 1, x.size()};
  const int rank = static_cast<int>(x.ndim());
  const int from_start = *axis < 0 ? *axis + rank : *axis;
  if (from_start < 0 || from_start >= rank) {
    Fail(op, "axis", "an axis of x, of shape " + ShapeString(x), std::to_string(*axis));
  }
  const std::vector<int64_t> dims(x.shape(), x.shape() + rank);
  return MakeChannelLayout(dims.data(), rank, from_start);
}

// The elements of a parameter of shape [], or [channels] if there is an axis.
template <typename A>
const A* ParameterElements(const std::string& op, const std::string& argument, const py::array& parameter,
                           const ChannelLayout& layout, std::optional<int> axis) {
  std::vector<py::ssize_t> wanted;
  if (axis) wanted = {static_cast<py::ssize_t>(layout.channels)};
  if (ShapeOf(parameter) != wanted) {
    Fail(op, argument, "of shape " + std::string(py::str(py::tuple(py::cast(wanted)))), ShapeString(parameter));
  }
  return Elements<A>(op, argument, parameter);
}

}  // namespace qatfast

#endif  // QATFAST_PY_ARRAYS_H_
