// Arrays of any library as the kernels take them: what is checked of them, and the errors.
#ifndef QATFAST_PY_ARRAY_VIEW_H_
#define QATFAST_PY_ARRAY_VIEW_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/half.h"
#include "core/params.h"
#include "py/arguments.h"

namespace qatfast {

// An array in the memory that kernels run on; nothing keeps it alive.
struct ArrayView {
  void* data = nullptr;
  std::string dtype;
  int64_t itemsize = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in bytes
  bool is_writable = true;

  int64_t size() const {
    int64_t product = 1;
    for (int64_t length : shape) product *= length;
    return product;
  }
  int64_t nbytes() const { return size() * itemsize; }
  bool is_contiguous() const {
    if (size() == 0) return true;
    int64_t expected = itemsize;
    for (size_t i = shape.size(); i-- > 0; expected *= shape[i]) {
      if (shape[i] != 1 && strides[i] != expected) return false;
    }
    return true;
  }
};

// As Python writes a tuple.
inline std::string TupleString(const std::vector<int64_t>& values) { return py::str(py::tuple(py::cast(values))); }

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
auto WithType(const std::string& op, const std::string& argument, const ArrayView& x, Body body) {
  if (x.dtype == NameOf<Float16>()) return body(Float16());
  if (x.dtype == NameOf<BFloat16>()) return body(BFloat16());
  if (x.dtype == NameOf<double>()) return body(double());
  if (x.dtype != NameOf<float>()) Fail(op, argument, "of dtype float32, float16, bfloat16 or float64", x.dtype);
  return body(float());
}

// The elements of a C-contiguous array of T.
template <typename T>
const T* Elements(const std::string& op, const std::string& argument, const ArrayView& array) {
  if (array.dtype != NameOf<T>()) Fail(op, argument, std::string("of dtype ") + NameOf<T>(), array.dtype);
  const bool is_aligned = reinterpret_cast<uintptr_t>(array.data) % alignof(T) == 0;
  if (!array.is_contiguous() || !is_aligned) {
    Fail(op, argument, "C-contiguous and aligned to its elements", "strides " + TupleString(array.strides));
  }
  return static_cast<const T*>(array.data);
}

template <typename T>
T* WritableElements(const std::string& op, const std::string& argument, const ArrayView& array) {
  if (!array.is_writable) Fail(op, argument, "writeable", "a read-only array");
  return const_cast<T*>(Elements<T>(op, argument, array));
}

inline void CheckShape(const std::string& op, const std::string& argument, const ArrayView& array,
                       const std::vector<int64_t>& shape) {
  if (array.shape != shape) Fail(op, argument, "of shape " + TupleString(shape), TupleString(array.shape));
}

inline bool Overlap(const ArrayView& a, const ArrayView& b) {
  if (a.nbytes() == 0 || b.nbytes() == 0) return false;
  const char* a_begin = static_cast<const char*>(a.data);
  const char* b_begin = static_cast<const char*>(b.data);
  return a_begin < b_begin + b.nbytes() && b_begin < a_begin + a.nbytes();
}

// Kernels may write over an input of x's shape, not over one that lies elsewhere in the same memory.
inline void CheckOverlap(const std::string& op, const std::string& argument, const ArrayView& out,
                         const ArrayView& input) {
  if (out.data != input.data && Overlap(out, input)) {
    Fail(op, "out", argument + " itself or apart from it", "an array that overlaps it");
  }
}

inline void CheckApart(const std::string& op, const std::string& argument, const ArrayView& output,
                       const std::string& other, const ArrayView& array) {
  if (Overlap(output, array)) Fail(op, argument, "apart from " + other, "an array that overlaps it");
}

// Outputs lie apart from parameters, which kernels go on reading while they write.
template <size_t kParameters>
void CheckApartFrom(const std::string& op, const std::string& argument, const ArrayView& output,
                    const std::array<const char*, kParameters>& names, const std::vector<ArrayView>& parameters) {
  for (size_t i = 0; i < kParameters; ++i) CheckApart(op, argument, output, names[i], parameters[i]);
}

inline ChannelLayout LayoutOf(const std::string& op, const std::vector<int64_t>& shape, std::optional<int> axis) {
  const int rank = static_cast<int>(shape.size());
  if (!axis) {
    ChannelLayout layout{1, 1, 1};
    for (int64_t length : shape) layout.inner *= length;
    return layout;
  }
  const int from_start = *axis < 0 ? *axis + rank : *axis;
  if (from_start < 0 || from_start >= rank) {
    Fail(op, "axis", "an axis of x, of shape " + TupleString(shape), std::to_string(*axis));
  }
  return MakeChannelLayout(shape.data(), rank, from_start);
}

}  // namespace qatfast

#endif  // QATFAST_PY_ARRAY_VIEW_H_
