// Arrays in the memory of a CUDA device, whatever library they come from: by DLPack (CuPy, PyTorch, JAX), or else by
// the CUDA array interface.
#ifndef QATFAST_PY_DEVICE_ARRAYS_H_
#define QATFAST_PY_DEVICE_ARRAYS_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cuda_devices.h"
#include "py/array_view.h"

namespace qatfast {

// DLPack's C interface (https://dmlc.github.io/dlpack/latest/c_api.html), before its versioned form.
namespace dlpack {

constexpr int kCuda = 2, kCudaManaged = 13;
constexpr int kUInt = 1, kFloat = 2, kBFloat = 4;

struct Tensor {
  void* data;
  struct {
    int32_t type;
    int32_t id;
  } device;
  int32_t rank;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: contiguous
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

}  // namespace dlpack

inline void CheckCuda(const std::string& op, const char* error) {
  if (error != nullptr) throw std::runtime_error(op + ": CUDA could not run it: " + error);
}

// A view of a device array, and what keeps its memory alive.
class DeviceArray {
 public:
  DeviceArray(const std::string& op, const std::string& argument, const py::object& array) : array_(array) {
    try {
      const bool has_dlpack = py::hasattr(array, "__dlpack__") && py::hasattr(array, "__dlpack_device__");
      if (has_dlpack && IsOnCuda(array)) {
        ReadDlpack(op, argument);
        if (view_.size() > 0) device_ = DlpackDevice(array)[1].cast<int>();
        return;
      }
      if (!has_dlpack && py::hasattr(array, "__cuda_array_interface__")) {
        ReadCudaArrayInterface(op, argument);
        return;
      }
      // What has one of the interfaces by name alone, as a class has, fails in one of these ways.
    } catch (const py::cast_error&) {
    } catch (const py::type_error&) {
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) throw;  // an interrupt
      const bool is_no_array = error.matches(PyExc_TypeError) || error.matches(PyExc_LookupError);
      if (!is_no_array) FailAsExported(op, argument, error);
    }
    Fail(op, argument, "an array on a CUDA device", py::type::of(array).attr("__name__").cast<std::string>());
  }

  const ArrayView& view() const { return view_; }

  // The device that it is on, or -1 if it is empty.
  int device() const { return device_; }

 private:
  // The array's own words, such as those of PyTorch for one that requires a gradient.
  [[noreturn]] static void FailAsExported(const std::string& op, const std::string& argument,
                                          py::error_already_set& error) {
    const auto type = error.type().attr("__name__").cast<std::string>();
    const auto message = py::str(error.value()).cast<std::string>();
    const std::string refusal = Refusal(op, argument, "exported by its library", type + ": " + message);
    py::raise_from(error, PyExc_ValueError, refusal.c_str());
    throw py::error_already_set();
  }

  // In an array of no element too, nothing that is computed of its other lengths may overflow.
  void CheckLengths(const std::string& op, const std::string& argument) const {
    int64_t bytes = std::max<int64_t>(1, view_.itemsize);
    for (const int64_t length : view_.shape) {
      if (length < 0 || __builtin_mul_overflow(bytes, std::max<int64_t>(1, length), &bytes)) {
        Fail(op, argument, "of lengths that memory has", TupleString(view_.shape));
      }
    }
  }

  static py::tuple DlpackDevice(const py::object& array) {
    const auto device = array.attr("__dlpack_device__")().cast<py::tuple>();
    if (device.size() != 2) throw py::cast_error();
    return device;
  }
  static bool IsOnCuda(const py::object& array) {
    const int device = DlpackDevice(array)[0].cast<int>();
    return device == dlpack::kCuda || device == dlpack::kCudaManaged;
  }

  void ReadDlpack(const std::string& op, const std::string& argument) {
    using namespace py::literals;
    // -1: the caller orders the streams, as he does for the kernels.
    py::capsule capsule = array_.attr("__dlpack__")("stream"_a = -1);
    // Under another name it holds another struct, or one that somebody has taken.
    const std::string name = capsule.name() == nullptr ? "" : capsule.name();
    if (name != "dltensor") Fail(op, argument, "a \"dltensor\" of DLPack", '"' + name + '"');
    auto* managed = capsule.get_pointer<dlpack::ManagedTensor>();
    capsule.set_name("used_dltensor");
    managed_.reset(managed, [](dlpack::ManagedTensor* tensor) {
      if (tensor->deleter != nullptr) tensor->deleter(tensor);
    });
    const dlpack::Tensor& tensor = managed->tensor;
    view_.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view_.itemsize = tensor.dtype.bits / 8 * tensor.dtype.lanes;
    view_.dtype = DlpackDtype(tensor.dtype.code, tensor.dtype.bits);
    if (tensor.dtype.lanes != 1) Fail(op, argument, "of one number per element", std::to_string(tensor.dtype.lanes));
    view_.shape.assign(tensor.shape, tensor.shape + tensor.rank);
    CheckLengths(op, argument);
    view_.strides = ContiguousStrides();
    for (int i = 0; tensor.strides != nullptr && i < tensor.rank; ++i) {
      view_.strides[i] = tensor.strides[i] * view_.itemsize;
    }
  }

  void ReadCudaArrayInterface(const std::string& op, const std::string& argument) {
    const auto interface = array_.attr("__cuda_array_interface__").cast<py::dict>();
    const auto data = interface["data"].cast<py::tuple>();
    view_.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
    view_.is_writable = !data[1].cast<bool>();
    // Some describe bfloat16 as raw bytes, so the array itself is asked for its type where it tells.
    const auto typestr = interface["typestr"].cast<std::string>();
    const py::object dtype = py::module_::import("numpy").attr("dtype")(typestr);
    view_.itemsize = dtype.attr("itemsize").cast<int64_t>();
    const bool is_raw = dtype.attr("kind").cast<std::string>() == "V" && py::hasattr(array_, "dtype");
    const std::string name = py::str(is_raw ? py::object(array_.attr("dtype")) : dtype);
    view_.dtype = name.substr(name.rfind('.') + 1);  // "torch.bfloat16"
    view_.shape = interface["shape"].cast<std::vector<int64_t>>();
    CheckLengths(op, argument);
    view_.strides = ContiguousStrides();
    if (Has(interface, "strides")) view_.strides = interface["strides"].cast<std::vector<int64_t>>();
    if (view_.strides.size() != view_.shape.size()) {
      const std::string got = "strides " + TupleString(view_.strides) + " of shape " + TupleString(view_.shape);
      Fail(op, argument, "with as many strides as axes", got);
    }
    if (Has(interface, "mask")) Fail(op, argument, "without a mask", "one");
    if (view_.size() == 0) return;
    // The interface does not tell the device; CUDA knows whose memory it is.
    const cuda::PointerDevice owner = cuda::DeviceOf(view_.data);
    CheckCuda(op, owner.error);
    device_ = owner.device;
    if (device_ < 0) Fail(op, argument, "an array on a CUDA device", "memory that is no device's");
  }

  static bool Has(const py::dict& interface, const char* key) {
    return interface.contains(key) && !interface[key].is_none();
  }

  static std::string DlpackDtype(int code, int bits) {
    const std::string width = std::to_string(bits);
    if (code == dlpack::kFloat) return "float" + width;
    if (code == dlpack::kBFloat) return "bfloat" + width;
    if (code == dlpack::kUInt) return "uint" + width;
    return "DLPack type " + std::to_string(code) + " of " + width + " bits";
  }

  std::vector<int64_t> ContiguousStrides() const {
    std::vector<int64_t> strides(view_.shape.size());
    int64_t stride = view_.itemsize;
    for (size_t i = strides.size(); i-- > 0; stride *= view_.shape[i]) strides[i] = stride;
    return strides;
  }

  py::object array_;
  std::shared_ptr<dlpack::ManagedTensor> managed_;
  ArrayView view_;
  int device_ = -1;
};

// The arrays of a call, by the names of its arguments. While they live, the device that they are on is the current one.
class DeviceArrays {
 public:
  DeviceArrays(const Arguments& arguments, const std::vector<std::string>& names) {
    const std::string& op = arguments.op();
    const NamedArray* first = nullptr;
    arrays_.reserve(names.size());
    for (const std::string& name : names) {
      arrays_.push_back({name, DeviceArray(op, name, arguments[name])});
      const int device = arrays_.back().array.device();
      if (device < 0) continue;
      if (first == nullptr) first = &arrays_.back();
      if (device != first->array.device()) {
        Fail(op, name, "on CUDA device " + std::to_string(first->array.device()) + ", as " + first->name + " is",
             "an array on device " + std::to_string(device));
      }
    }
    if (first == nullptr) return;
    current_.emplace(first->array.device());
    CheckCuda(op, current_->error());
  }

  // Precondition: `name` is one of the names.
  const ArrayView& operator[](const std::string& name) const {
    size_t i = 0;
    while (arrays_[i].name != name) ++i;
    return arrays_[i].array.view();
  }

 private:
  struct NamedArray {
    std::string name;
    DeviceArray array;
  };

  std::vector<NamedArray> arrays_;
  std::optional<cuda::ScopedDevice> current_;
};

}  // namespace qatfast

#endif  // QATFAST_PY_DEVICE_ARRAYS_H_
