#include "bindings/register_engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <string>
#include <utility>
#include <vector>

#include "base/cpu_features.h"
#include "base/error.h"
#include "format/reader.h"
#include "runtime/engine.h"
#include "runtime/intermediates.h"

namespace py = pybind11;

namespace tac {

namespace {

[[noreturn]] void bad_array(const TensorSpec& spec, const std::string& detail) {
  throw Error(ErrorCode::kInvalidInput, {}, spec.name, detail);
}

// The data of a C-contiguous array of T with exactly `bytes` bytes.
template <class T>
const T* data_of(const py::array& array, std::size_t bytes, const TensorSpec& spec) {
  if (!py::array_t<T, py::array::c_style>::check_(array))
    bad_array(spec, "expected another dtype or a C-contiguous array");
  if (static_cast<std::size_t>(array.nbytes()) != bytes) {
    bad_array(spec, "expected " + std::to_string(bytes) + " bytes, found " +
                        std::to_string(array.nbytes()));
  }
  return static_cast<const T*>(array.data());
}

// bytes of n samples; a count that no array can have is refused.
std::size_t batch_bytes(std::size_t n_samples, std::size_t sample_bytes, const TensorSpec& spec) {
  if (sample_bytes != 0 && n_samples > (std::size_t{1} << 62) / sample_bytes)
    bad_array(spec, "the batch is too large");
  return n_samples * sample_bytes;
}

std::vector<InputArray> input_arrays(const Engine& engine, const std::vector<py::array>& arrays,
                                     std::size_t n_samples) {
  std::vector<InputArray> inputs;
  for (std::size_t i = 0; i < arrays.size() && i < engine.inputs().size(); ++i) {
    const TensorSpec& spec = engine.inputs()[i];
    if (spec.takes_images && py::isinstance<py::array_t<std::uint8_t>>(arrays[i])) {
      const std::size_t bytes = batch_bytes(n_samples, spec.image_bytes(), spec);
      inputs.push_back({nullptr, data_of<std::uint8_t>(arrays[i], bytes, spec)});
    } else {
      inputs.push_back(
          {data_of<float>(arrays[i], batch_bytes(n_samples, spec.sample_bytes(), spec), spec),
           nullptr});
    }
  }
  return inputs;
}

void run(const Engine& engine, const std::vector<py::array>& inputs,
         const std::vector<py::array>& outputs, std::size_t n_samples) {
  if (inputs.size() != engine.inputs().size() || outputs.size() != engine.outputs().size()) {
    throw Error(ErrorCode::kInvalidInput, "expected " + std::to_string(engine.inputs().size()) +
                                              " inputs and " +
                                              std::to_string(engine.outputs().size()) + " outputs");
  }
  const std::vector<InputArray> in = input_arrays(engine, inputs, n_samples);
  std::vector<void*> out;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const TensorSpec& spec = engine.outputs()[i];
    if (!outputs[i].writeable()) bad_array(spec, "the output array is read-only");
    const std::size_t bytes = batch_bytes(n_samples, spec.sample_bytes(), spec);
    const void* data =
        spec.dtype == DType::kI64
            ? static_cast<const void*>(data_of<std::int64_t>(outputs[i], bytes, spec))
            : data_of<float>(outputs[i], bytes, spec);
    out.push_back(const_cast<void*>(data));
  }
  const py::gil_scoped_release release;
  engine.run(in, out, n_samples);
}

// Every tensor that an op of the model at `path` writes, by name: [n][dims...], packed ones as
// their levels.
py::dict run_intermediates(const std::filesystem::path& path, const std::vector<py::array>& inputs,
                           std::size_t n_samples, std::int64_t threads, std::string backend) {
  const LoadedModel model = load_model(path);
  const ExposedGraph exposed(model.graph);
  if (threads < 1)
    throw Error(ErrorCode::kInvalidArgument, "threads is " + std::to_string(threads));
  const Engine engine(exposed.graph,
                      EngineOptions{static_cast<std::size_t>(threads), std::move(backend)});
  py::dict result;
  std::vector<py::array> outputs;
  for (std::size_t i = 0; i < exposed.tensors.size(); ++i) {
    const TensorSpec& spec = engine.outputs()[i];
    std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(n_samples)};
    shape.insert(shape.end(), spec.dims.begin(), spec.dims.end());
    const py::dtype dtype =
        spec.dtype == DType::kI64 ? py::dtype::of<std::int64_t>() : py::dtype::of<float>();
    outputs.emplace_back(dtype, shape);
    result[py::str(model.graph.tensors[exposed.tensors[i]].name)] = outputs.back();
  }
  run(engine, inputs, outputs, n_samples);
  return result;
}

py::list profile(const Engine& engine, const std::vector<py::array>& inputs, std::size_t n_samples,
                 std::size_t n_runs) {
  const std::vector<InputArray> in = input_arrays(engine, inputs, n_samples);
  std::vector<StepProfile> rows;
  {
    const py::gil_scoped_release release;
    rows = engine.profile(in, n_samples, n_runs);
  }
  py::list result;
  for (const StepProfile& row : rows) {
    result.append(py::make_tuple(row.name, row.kind, row.kernel, row.seconds, row.macs, row.bytes));
  }
  return result;
}

// (name, dtype, dims without the batch axis, [H, W, C] of images or None)
py::list specs(std::span<const TensorSpec> tensors) {
  py::list result;
  for (const TensorSpec& spec : tensors) {
    const py::object image =
        spec.takes_images ? py::object(py::tuple(py::cast(spec.image_dims))) : py::none();
    result.append(py::make_tuple(spec.name, spec.dtype == DType::kI64 ? "int64" : "float32",
                                 py::tuple(py::cast(spec.dims)), image));
  }
  return result;
}

std::unique_ptr<Engine> make_engine(const std::filesystem::path& path, std::int64_t threads,
                                    std::string backend) {
  if (threads < 1) {
    throw Error(ErrorCode::kInvalidArgument, "threads is " + std::to_string(threads) +
                                                 ", expected 1.." + std::to_string(kMaxThreads));
  }
  return std::make_unique<Engine>(
      path, EngineOptions{static_cast<std::size_t>(threads), std::move(backend)});
}

py::dict backends() {
  py::list compiled, runnable;
  const CpuFeatures features = detect_cpu_features();
  for (const kernels::BackendInfo& backend : kernels::backends()) {
    if (backend.table == nullptr) continue;
    compiled.append(std::string(backend.name));
    if ((backend.required & ~features) == 0) runnable.append(std::string(backend.name));
  }
  py::dict result;
  result["compiled"] = compiled;
  result["runnable"] = runnable;
  result["active"] = std::string(choose_kernels({}).backend);
  return result;
}

}  // namespace

void register_engine(py::module_& m) {
  py::class_<Engine>(m, "Engine", "A loaded model. tac_engine.Engine wraps it.")
      .def(py::init(&make_engine), py::arg("path"), py::arg("threads") = 1, py::arg("backend") = "",
           py::call_guard<py::gil_scoped_release>())
      .def("run", &run, py::arg("inputs"), py::arg("outputs"), py::arg("n_samples"),
           "Runs n_samples samples; arrays in the order of inputs() and outputs().")
      .def("profile", &profile, py::arg("inputs"), py::arg("n_samples"), py::arg("n_runs"),
           "Per part of a run: name, kind, kernel, median seconds, multiplications, bytes.")
      .def("peak_bytes", &Engine::peak_bytes, py::arg("n_samples"),
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("inputs", [](const Engine& engine) { return specs(engine.inputs()); })
      .def_property_readonly("outputs",
                             [](const Engine& engine) { return specs(engine.outputs()); })
      .def_property_readonly("file_bytes", &Engine::file_bytes)
      .def_property_readonly("threads", &Engine::threads)
      .def_property_readonly("backend",
                             [](const Engine& engine) { return std::string(engine.backend()); })
      .def_property_readonly("metadata", &Engine::metadata);
  m.def("run_intermediates", &run_intermediates, py::arg("path"), py::arg("inputs"),
        py::arg("n_samples"), py::arg("threads"), py::arg("backend"),
        "Every tensor that the model computes, by name; packed ones as levels.");
  m.def("backends", &backends, "Names of the kernel sets: compiled, runnable, active.");
}

}  // namespace tac
