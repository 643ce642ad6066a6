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

// A parameter: an array, used in place, or a number.
template <typename A>
py::array Parameter(const std::string& op, const std::string& argument, const py::object& value) {
  if (py::isinstance<py::array>(value)) return py::reinterpret_borrow<py::array>(value);
  const auto converted = py::array_t<A>::ensure(value);
  if (!converted) Fail(op, argument, "a number or an array", py::repr(value));
  return converted;
}

// `out`, or a new array like x.
inline py::array OutputLike(const std::string& op, const std::optional<py::array>& out, const py::array& x) {
  const ArrayView view = ViewOf(x);
  if (!out) return py::array(x.dtype(), view.shape);
  CheckShape(op, "out", ViewOf(*out), view.shape);
  CheckOverlap(op, "x", ViewOf(*out), view);
  return *out;
}

}  // namespace qatfast

#endif  // QATFAST_PY_NUMPY_ARRAYS_H_
