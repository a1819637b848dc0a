#include "bindings/register_format.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>

#include "base/error.h"
#include "format/reader.h"
#include "format/writer.h"
#include "ir/op_names.h"

namespace py = pybind11;

namespace tac {

namespace {

DType dtype_from(const std::string& name) {
  if (name == "f32") return DType::kF32;
  if (name == "bits") return DType::kBits;
  if (name == "i64") return DType::kI64;
  throw py::value_error("dtype '" + name + "', expected 'f32', 'bits' or 'i64'");
}

const char* dtype_text(DType dtype) {
  return dtype == DType::kF32 ? "f32" : dtype == DType::kBits ? "bits" : "i64";
}

Encoding encoding_from(const py::dict& spec) {
  const auto get = [&]<class T>(const char* name, T) {
    if (!spec.contains(name))
      throw py::type_error("encoding: '" + std::string(name) + "' is missing");
    try {
      return spec[name].cast<T>();
    } catch (const py::cast_error&) {
      throw py::type_error("encoding: '" + std::string(name) + "' cannot be " +
                           std::string(py::repr(spec[name])));
    }
  };
  const auto kind = get("kind", std::string());
  if (kind != "linear" && kind != "sign_zero") {
    throw py::value_error("encoding: kind '" + kind + "', expected 'linear' or 'sign_zero'");
  }
  const std::size_t n_keys = kind == "linear" ? 4 : 1;
  if (spec.size() > n_keys) {
    throw py::type_error("encoding: a " + kind + " encoding has " + std::to_string(n_keys) +
                         " keys, found " + std::string(py::repr(spec)));
  }
  if (kind == "sign_zero") return {Encoding::Kind::kSignZero, -1, 1, 3};
  return {Encoding::Kind::kLinear, get("lo", std::int32_t{}), get("step", std::int32_t{}),
          get("n_levels", std::uint32_t{})};
}

py::object encoding_dict(const Encoding& e) {
  if (e.kind == Encoding::Kind::kNone) return py::none();
  py::dict d;
  d["kind"] = e.kind == Encoding::Kind::kSignZero ? "sign_zero" : "linear";
  d["lo"] = e.lo;
  d["step"] = e.step;
  d["n_levels"] = e.n_levels;
  d["planes"] = e.n_planes();
  return d;
}

// A C-contiguous array of exactly dtype T; anything else is a TypeError that names `what`.
template <class T>
py::array_t<T> exact_array(const py::handle& value, const std::string& what) {
  const bool is_array = py::isinstance<py::array>(value);
  if (!is_array || !py::array_t<T, py::array::c_style>::check_(value)) {
    const std::string expected = py::str(py::object(py::dtype::of<T>()));
    const std::string found = is_array
                                  ? std::string(py::str(value.attr("dtype"))) + " array, strides " +
                                        std::string(py::str(value.attr("strides")))
                                  : std::string(py::str(py::type::of(value)));
    throw py::type_error(what + ": expected a C-contiguous array of " + expected + ", found " +
                         found);
  }
  return py::reinterpret_borrow<py::array_t<T>>(value);
}

template <class T>
std::span<const std::byte> bytes_of(const py::array_t<T>& array) {
  return {reinterpret_cast<const std::byte*>(array.data()),
          static_cast<std::size_t>(array.nbytes())};
}

// Fills the fields of an op from a dict; every key must be a field and every field but arrays must
// be there.
class FieldSetter {
 public:
  FieldSetter(ModelWriter& writer, const std::string& op, const py::dict& values)
      : writer_(writer), op_(op), values_(values) {}

  void operator()(const char* name, TensorId& v) { v = get<TensorId>(name); }
  void operator()(const char* name, TensorList& v) { v.ids = get<std::vector<TensorId>>(name); }
  void operator()(const char* name, std::int64_t& v) { v = get<std::int64_t>(name); }
  void operator()(const char* name, float& v) { v = get<float>(name); }
  void operator()(const char* name, bool& v) { v = get<bool>(name); }
  void operator()(const char* name, std::vector<std::int64_t>& v) {
    v = get<std::vector<std::int64_t>>(name);
  }
  template <class T>
  void operator()(const char* name, BlobOf<T>& v) {
    if (!values_.contains(name)) return;
    ++used_;
    v.bytes = writer_.own(bytes_of(exact_array<T>(values_[name], where(name))));
  }
  template <class E>
    requires std::is_enum_v<E>
  void operator()(const char* name, E& v) {
    const auto text = get<std::string>(name);
    const auto& names = EnumNames<E>::kNames;
    const auto found = std::find(names.begin(), names.end(), text);
    if (found == names.end()) throw py::type_error(where(name) + ": no such kind '" + text + "'");
    v = static_cast<E>(found - names.begin());
  }

  void finish(const std::vector<FieldSpec>& fields) const {
    if (used_ == values_.size()) return;
    for (const auto& item : values_) {
      const auto key = item.first.cast<std::string>();
      if (std::none_of(fields.begin(), fields.end(),
                       [&](const FieldSpec& f) { return f.name == key; })) {
        throw py::type_error(where(key.c_str()) + ": no such field");
      }
    }
  }

 private:
  std::string where(const char* name) const { return "op '" + op_ + "', field '" + name + "'"; }
  template <class T>
  T get(const char* name) {
    if (!values_.contains(name)) throw py::type_error(where(name) + ": missing");
    ++used_;
    try {
      return values_[name].cast<T>();
    } catch (const py::cast_error&) {
      throw py::type_error(where(name) + ": cannot take " + std::string(py::repr(values_[name])));
    }
  }

  ModelWriter& writer_;
  const std::string& op_;
  const py::dict& values_;
  std::size_t used_ = 0;
};

// The fields of an op as a dict; arrays as their number of bytes.
class FieldGetter {
 public:
  explicit FieldGetter(py::dict& out) : out_(out) {}
  std::size_t blob_bytes = 0;

  void operator()(const char* name, TensorId& v) { out_[name] = v; }
  void operator()(const char* name, TensorList& v) { out_[name] = v.ids; }
  void operator()(const char* name, std::int64_t& v) { out_[name] = v; }
  void operator()(const char* name, float& v) { out_[name] = v; }
  void operator()(const char* name, bool& v) { out_[name] = v; }
  void operator()(const char* name, std::vector<std::int64_t>& v) { out_[name] = v; }
  template <class T>
  void operator()(const char* name, BlobOf<T>& v) {
    py::dict summary;
    summary["type"] = std::string(field_type_name<BlobOf<T>>());
    summary["size"] = v.size();
    summary["bytes"] = v.bytes.size();
    out_[name] = summary;
    blob_bytes += v.bytes.size();
  }
  template <class E>
    requires std::is_enum_v<E>
  void operator()(const char* name, E& v) {
    out_[name] = std::string(EnumNames<E>::kNames[static_cast<std::size_t>(v)]);
  }

 private:
  py::dict& out_;
};

py::dict inspect(const std::filesystem::path& path) {
  LoadedModel model;
  {
    const py::gil_scoped_release release;
    model = load_model(path);
  }
  py::list tensors;
  for (const Tensor& t : model.graph.tensors) {
    py::dict d;
    d["name"] = t.name;
    d["dtype"] = dtype_text(t.dtype);
    d["dims"] = t.dims;
    d["encoding"] = encoding_dict(t.encoding);
    d["is_constant"] = t.is_constant;
    d["bytes"] = t.data.size();
    tensors.append(d);
  }
  py::list ops;
  for (Op& op : model.graph.ops) {
    py::dict d;
    py::dict fields;
    FieldGetter getter(fields);
    visit_op(op.op, [&](auto& held) { held.fields(getter); });
    d["name"] = op.name;
    d["kind"] = std::string(op_kind(op));
    d["origin"] = op.origin;
    d["fields"] = fields;
    d["bytes"] = getter.blob_bytes;
    ops.append(d);
  }
  py::list inputs;
  for (const ModelInput& input : model.graph.inputs) {
    py::dict d;
    d["tensor"] = input.tensor;
    d["has_preprocess"] = input.preprocess.lut.size() != 0;
    d["channels_first"] = input.preprocess.channels_first;
    inputs.append(d);
  }
  py::dict result;
  result["tensors"] = tensors;
  result["ops"] = ops;
  result["inputs"] = inputs;
  result["outputs"] = model.graph.outputs;
  result["metadata"] = model.graph.metadata;
  result["file_bytes"] = model.file_bytes;
  return result;
}

// [rows, n] of 0 and 1 -> uint32 [rows, ceil(n / 32)], bit n % 32 of word n / 32.
py::array_t<std::uint32_t> pack_bits(const py::array& bits) {
  const bool is_bool = bits.dtype().kind() == 'b';
  const auto values = exact_array<std::uint8_t>(
      is_bool ? py::object(bits.attr("view")("uint8")) : py::object(bits), "pack_bits");
  if (values.ndim() != 2)
    throw py::type_error("pack_bits: expected rank 2, found " + std::to_string(values.ndim()));
  const py::ssize_t rows = values.shape(0), n = values.shape(1), words = (n + 31) / 32;
  py::array_t<std::uint32_t> packed({rows, words});
  std::uint32_t* out = packed.mutable_data();
  const std::uint8_t* in = values.data();
  std::fill(out, out + rows * words, 0U);
  for (py::ssize_t row = 0; row < rows; ++row) {
    for (py::ssize_t i = 0; i < n; ++i) {
      if (in[row * n + i] > 1) throw py::value_error("pack_bits: a value is neither 0 nor 1");
      out[row * words + i / 32] |= std::uint32_t{in[row * n + i]} << (i % 32);
    }
  }
  return packed;
}

TensorId add_tensor(ModelWriter& writer, Tensor tensor) {
  writer.graph.tensors.push_back(std::move(tensor));
  return static_cast<TensorId>(writer.graph.tensors.size() - 1);
}

void add_op(ModelWriter& writer, const std::string& kind, const py::dict& fields,
            const std::string& name, const std::string& origin) {
  auto made = make_op(kind);
  if (!made) throw py::type_error("op '" + name + "': no such kind '" + kind + "'");
  visit_op(*made, [&](auto& held) {
    FieldSetter setter(writer, name, fields);
    held.fields(setter);
    const auto specs = op_specs();
    setter.finish(std::find_if(specs.begin(), specs.end(), [&](const OpSpec& s) {
                    return s.name == kind;
                  })->fields);
  });
  writer.graph.ops.push_back({name, origin, std::move(*made)});
}

}  // namespace

void register_format(py::module_& m) {
  py::class_<ModelWriter>(m, "ModelWriter", "Builds a model and writes it as a .tacbin.")
      .def(py::init<>())
      .def(
          "add_tensor",
          [](ModelWriter& writer, std::string name, std::vector<std::int64_t> dims,
             const std::string& dtype, const std::optional<py::dict>& encoding) {
            Tensor t;
            t.name = std::move(name);
            t.dims = std::move(dims);
            t.dtype = dtype_from(dtype);
            if (encoding) t.encoding = encoding_from(*encoding);
            return add_tensor(writer, std::move(t));
          },
          py::arg("name"), py::arg("dims"), py::arg("dtype") = "f32",
          py::arg("encoding") = py::none(),
          "Adds a tensor with per-sample dims (without the batch axis); returns its id.")
      .def(
          "add_constant",
          [](ModelWriter& writer, std::string name, const py::array& value) {
            const auto array = exact_array<float>(value, "constant '" + name + "'");
            Tensor t;
            t.name = std::move(name);
            t.dims.assign(array.shape(), array.shape() + array.ndim());
            t.is_constant = true;
            t.data = writer.own(bytes_of(array));
            return add_tensor(writer, std::move(t));
          },
          py::arg("name"), py::arg("value"), "Adds a float32 constant; returns its tensor id.")
      .def("add_op", &add_op, py::arg("kind"), py::arg("fields"), py::arg("name"),
           py::arg("origin") = "",
           "Adds an op; op_specs() lists kinds and fields. Arrays that are left out are empty.")
      .def(
          "add_input",
          [](ModelWriter& writer, TensorId tensor, const std::optional<py::array>& lut,
             bool channels_first) {
            ModelInput input;
            input.tensor = tensor;
            input.preprocess.channels_first = channels_first;
            if (lut) {
              const auto table = exact_array<float>(*lut, "lut");
              if (table.ndim() != 2 || table.shape(1) != 256) {
                throw py::type_error("lut: expected shape [C, 256], found " +
                                     std::string(py::str(lut->attr("shape"))));
              }
              input.preprocess.lut.bytes = writer.own(bytes_of(table));
            }
            writer.graph.inputs.push_back(input);
          },
          py::arg("tensor"), py::arg("lut") = py::none(), py::arg("channels_first") = true,
          "Makes a tensor an input; lut [C, 256] float32 lets it take uint8 images.")
      .def(
          "add_output",
          [](ModelWriter& writer, TensorId tensor) { writer.graph.outputs.push_back(tensor); },
          py::arg("tensor"))
      .def(
          "set_metadata",
          [](ModelWriter& writer, std::string text) { writer.graph.metadata = std::move(text); },
          py::arg("text"), "Free text (JSON) kept in the file.")
      .def("save", &ModelWriter::save, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
           "Validates the model and writes it in one step; raises FormatError.")
      .def(
          "to_bytes",
          [](const ModelWriter& writer) {
            const std::vector<std::byte> bytes = serialize(writer.graph);
            return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          },
          "The bytes that save() would write.");
  m.def("inspect", &inspect, py::arg("path"),
        "Contents of a .tacbin as plain Python data; arrays by their size.");
  m.def("pack_bits", &pack_bits, py::arg("bits"),
        "Packs bool or uint8 [rows, n] of 0 and 1 into uint32 [rows, ceil(n / 32)].");
  m.def(
      "op_specs",
      [] {
        py::list specs;
        for (const OpSpec& spec : op_specs()) {
          py::list fields;
          for (const FieldSpec& field : spec.fields) {
            py::dict f;
            f["name"] = std::string(field.name);
            f["type"] = std::string(field.type);
            fields.append(f);
          }
          py::dict d;
          d["code"] = spec.code;
          d["name"] = std::string(spec.name);
          d["fields"] = fields;
          specs.append(d);
        }
        return specs;
      },
      "Every op of the format: code, name and fields.");
}

}  // namespace tac
