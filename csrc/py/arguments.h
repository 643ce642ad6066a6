// The arguments of a call as Python gives them: bound to names here, and converted by name to what the kernels take, so
// that whatever does not fit is one kind of error.
#ifndef QATFAST_PY_ARGUMENTS_H_
#define QATFAST_PY_ARGUMENTS_H_

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace qatfast {

namespace py = pybind11;

inline std::string Refusal(const std::string& op, const std::string& argument, const std::string& requirement,
                           const std::string& got) {
  return op + ": " + argument + " must be " + requirement + ", got " + got;
}
[[noreturn]] inline void Fail(const std::string& op, const std::string& argument, const std::string& requirement,
                              const std::string& got) {
  throw py::value_error(Refusal(op, argument, requirement, got));
}

// A value as an error shows it: its repr, or the beginning of it.
inline std::string Shown(const py::handle& value) {
  constexpr size_t kLongest = 100;
  std::string text;
  try {
    text = py::repr(value);
  } catch (const py::error_already_set&) {
    text = "a " + py::type::of(value).attr("__name__").cast<std::string>();
  }
  if (text.size() <= kLongest) return text;
  size_t end = kLongest;
  while (end > 0 && (text[end] & 0xc0) == 0x80) --end;  // not within a character of UTF-8
  return text.substr(0, end) + "...";
}

// A number of Python or a scalar of NumPy, not a bool and not complex.
inline bool IsNumber(const py::handle& value) {
  if (PyFloat_Check(value.ptr()) || (PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr()))) return true;
  if (!py::isinstance(value, py::module_::import("numpy").attr("generic"))) return false;
  const py::object dtype = value.attr("dtype");
  const auto kind = dtype.attr("kind").cast<std::string>();
  return kind == "f" || kind == "i" || kind == "u" || py::str(dtype).cast<std::string>() == "bfloat16";
}

// The text of a str; nothing for one that UTF-8 cannot hold, which is the name of no argument and of nothing else here.
inline std::optional<std::string> TextOf(const py::handle& value) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8AndSize(value.ptr(), &size) : nullptr;
  if (text != nullptr) return std::string(text, size);
  PyErr_Clear();
  return std::nullopt;
}

// An argument that is given by name, and what it is if it is not given. Null: it must be.
struct Keyword {
  std::string name;
  py::object default_value = {};
};

struct Signature {
  std::string op;
  std::vector<std::string> positional;
  std::vector<Keyword> keywords;

  size_t size() const { return positional.size() + keywords.size(); }
  const std::string& name(size_t i) const {
    return i < positional.size() ? positional[i] : keywords[i - positional.size()].name;
  }
  py::object default_of(size_t i) const {
    return i < positional.size() ? py::object() : keywords[i - positional.size()].default_value;
  }
  std::optional<size_t> Find(const std::optional<std::string>& argument) const {
    for (size_t i = 0; i < size(); ++i) {
      if (name(i) == argument) return i;
    }
    return std::nullopt;
  }

  // As Python writes it: "x, *, num_bits=8".
  std::string text() const {
    std::string text;
    const auto append = [&text](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
    for (const std::string& name : positional) append(name);
    if (!keywords.empty()) append("*");
    for (const Keyword& keyword : keywords) {
      const bool is_required = !keyword.default_value;
      append(is_required ? keyword.name : keyword.name + "=" + py::repr(keyword.default_value).cast<std::string>());
    }
    return text;
  }
};

class Arguments {
 public:
  Arguments(const Signature& signature, const py::args& args, const py::kwargs& kwargs)
      : signature_(signature), values_(signature.size()) {
    if (args.size() > signature.positional.size()) {
      throw py::type_error(op() + ": arguments must be (" + signature.text() + "), got " + std::to_string(args.size()) +
                           " without a name");
    }
    for (size_t i = 0; i < args.size(); ++i) values_[i] = args[i];
    for (const auto& [key, value] : kwargs) {
      const std::optional<size_t> i = signature.Find(TextOf(key));
      if (!i) throw py::type_error(op() + ": arguments must be (" + signature.text() + "), got " + Shown(key));
      if (values_[*i]) throw py::type_error(op() + ": " + signature.name(*i) + " must be given once, got it twice");
      values_[*i] = py::reinterpret_borrow<py::object>(value);
    }
    for (size_t i = 0; i < values_.size(); ++i) {
      if (!values_[i]) values_[i] = signature.default_of(i);
      if (!values_[i]) throw py::type_error(op() + ": " + signature.name(i) + " must be given, got nothing");
    }
  }

  const std::string& op() const { return signature_.op; }

  // Precondition, for all that take a name: the signature has it.
  const py::object& operator[](const std::string& name) const { return values_[*signature_.Find(name)]; }

  [[noreturn]] void FailAt(const std::string& name, const std::string& requirement) const {
    Fail(op(), name, requirement, Shown((*this)[name]));
  }

  bool Flag(const std::string& name) const { return FlagAt(name, "True or False"); }
  std::optional<bool> OptionalFlag(const std::string& name) const {
    if ((*this)[name].is_none()) return std::nullopt;
    return FlagAt(name, "None, True or False");
  }

  int Integer(const std::string& name) const { return IntegerAt<int>(name, "an integer"); }
  std::optional<int> OptionalInteger(const std::string& name) const {
    if ((*this)[name].is_none()) return std::nullopt;
    return IntegerAt<int>(name, "None or an integer");
  }
  uintptr_t Address(const std::string& name) const {
    return IntegerAt<uintptr_t>(name, "an integer that is not negative");
  }

  double Number(const std::string& name) const {
    if (!IsNumber((*this)[name])) FailAt(name, "a number");
    const double value = PyFloat_AsDouble((*this)[name].ptr());
    if (!PyErr_Occurred()) return value;
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
    PyErr_Clear();  // an integer beyond all numbers of float64
    const double infinity = std::numeric_limits<double>::infinity();
    return (*this)[name] < py::int_(0) ? -infinity : infinity;
  }

  std::optional<std::string> Text(const std::string& name) const { return TextOf((*this)[name]); }

 private:
  bool FlagAt(const std::string& name, const char* requirement) const {
    const py::object& value = (*this)[name];
    if (!PyBool_Check(value.ptr()) && !py::isinstance(value, py::module_::import("numpy").attr("bool_"))) {
      FailAt(name, requirement);
    }
    return value.cast<bool>();
  }
  template <typename Number>
  Number IntegerAt(const std::string& name, const char* requirement) const {
    const py::object& value = (*this)[name];
    // PyIndex_Check alone would let arrays of one integer through.
    if (!IsNumber(value) || !PyIndex_Check(value.ptr())) FailAt(name, requirement);
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    try {
      return index.cast<Number>();
    } catch (const py::cast_error&) {
      FailAt(name, std::string(requirement) + " of " + std::to_string(8 * sizeof(Number)) + " bits");
    }
  }

  const Signature& signature_;
  std::vector<py::object> values_;
};

// Defines the function `signature.op` of `m`: body(arguments).
template <typename Body>
void Define(py::module_& m, const Signature& signature, const std::string& doc, Body body) {
  py::options options;
  options.disable_function_signatures();  // instead of which Python finds the signature in the documentation
  const std::string with_signature = signature.op + "(" + signature.text() + ")\n--\n\n" + doc;
  m.def(
      signature.op.c_str(),
      [signature, body](const py::args& args, const py::kwargs& kwargs) {
        return body(Arguments(signature, args, kwargs));
      },
      with_signature.c_str());
}

inline std::vector<Keyword> Joined(std::initializer_list<std::vector<Keyword>> lists) {
  std::vector<Keyword> joined;
  for (const std::vector<Keyword>& list : lists) joined.insert(joined.end(), list.begin(), list.end());
  return joined;
}

}  // namespace qatfast

#endif  // QATFAST_PY_ARGUMENTS_H_
