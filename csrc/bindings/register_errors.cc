#include "bindings/register_errors.h"

#include <exception>
#include <string>

#include "base/error.h"

namespace py = pybind11;

namespace tac {

namespace {

// Owned by the module; set once when it is imported.
struct ErrorTypes {
  py::object base, format, unsupported, input;
};
ErrorTypes* error_types = nullptr;

py::object new_type(py::module_& m, const char* name, const py::object& base, const char* doc,
                    const py::dict& attributes = {}) {
  const std::string qualified = "tac_engine." + std::string(name);
  py::object type = py::reinterpret_steal<py::object>(
      PyErr_NewExceptionWithDoc(qualified.c_str(), doc, base.ptr(), attributes.ptr()));
  if (!type) throw py::error_already_set();
  m.attr(name) = type;
  return type;
}

const py::object& type_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidInput:
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kLimit: return error_types->input;
    default: return error_types->format;
  }
}

// A path may hold any bytes; a message about it must still come through.
py::str text(const std::string& value) {
  PyObject* decoded = PyUnicode_DecodeUTF8(value.data(), static_cast<py::ssize_t>(value.size()),
                                           "backslashreplace");
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

void raise(const Error& e) {
  const py::object& type = type_of(e.code());
  std::string message;
  if (!e.op().empty()) message += "op '" + e.op() + "'";
  if (!e.tensor().empty())
    message += (message.empty() ? "tensor '" : ", tensor '") + e.tensor() + "'";
  if (!message.empty()) message += ": ";
  message += e.detail();
  py::object error = type(text(message));
  error.attr("code") = text(std::string(error_code_name(e.code())));
  error.attr("op") = text(e.op());
  error.attr("tensor") = text(e.tensor());
  error.attr("detail") = text(e.detail());
  PyErr_SetObject(type.ptr(), error.ptr());
}

}  // namespace

void register_errors(py::module_& m) {
  error_types = new ErrorTypes;  // lives as long as the interpreter, as exception types do
  py::dict attributes;           // of errors that Python raises
  for (const char* name : {"code", "op", "tensor", "detail"}) attributes[name] = "";
  error_types->base = new_type(
      m, "TacError", py::reinterpret_borrow<py::object>(PyExc_Exception),
      "Base of all errors of tac_engine. Errors of the core carry code, op, tensor and detail.",
      attributes);
  error_types->format =
      new_type(m, "FormatError", error_types->base, "A .tacbin cannot be read or written.");
  error_types->unsupported =
      new_type(m, "UnsupportedModelError", error_types->base, "An ONNX model cannot be converted.");
  error_types->input = new_type(m, "InvalidInputError", error_types->base,
                                "An array or an argument is not what was expected.");
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& e) {
      raise(e);
    }
  });
}

}  // namespace tac
