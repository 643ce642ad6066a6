// NumPy arrays as views, and those that calls make.
#ifndef QATFAST_PY_NUMPY_ARRAYS_H_
#define QATFAST_PY_NUMPY_ARRAYS_H_

#include <pybind11/numpy.h>

#include <optional>
#include <string>

#include "py/array_view.h"

namespace qatfast {

inline ArrayView ViewOf(const py::array& array) {
  ArrayView view;
  view.data = const_cast<void*>(array.data());
  view.dtype = py::str(array.dtype());
  view.itemsize = array.itemsize();
  view.shape = {array.shape(), array.shape() + array.ndim()};
  view.strides = {array.strides(), array.strides() + array.ndim()};
  view.is_writable = array.writeable();
  return view;
}

inline py::array NumpyArray(const Arguments& arguments, const std::string& name) {
  if (!py::isinstance<py::array>(arguments[name])) arguments.FailAt(name, "a NumPy array");
  return py::reinterpret_borrow<py::array>(arguments[name]);
}

// A parameter: an array, used in place, or a number.
template <typename A>
py::array Parameter(const Arguments& arguments, const std::string& name) {
  const py::object& value = arguments[name];
  if (py::isinstance<py::array>(value)) return py::reinterpret_borrow<py::array>(value);
  if (!IsNumber(value)) arguments.FailAt(name, "a number or an array");
  py::array_t<A> converted{std::vector<int64_t>()};
  *converted.mutable_data() = static_cast<A>(arguments.Number(name));
  return std::move(converted);
}

// The argument `out`, or a new array like the argument `x`, which is called `name`.
inline py::array OutputLike(const Arguments& arguments, const char* name, const py::array& x) {
  const ArrayView view = ViewOf(x);
  if (arguments["out"].is_none()) return py::array(x.dtype(), view.shape);
  if (!py::isinstance<py::array>(arguments["out"])) arguments.FailAt("out", "None or a NumPy array");
  py::array out = NumpyArray(arguments, "out");
  CheckShape(arguments.op(), "out", ViewOf(out), view.shape);
  CheckOverlap(arguments.op(), name, ViewOf(out), view);
  return out;
}

}  // namespace qatfast

#endif  // QATFAST_PY_NUMPY_ARRAYS_H_
