#include "runtime/intermediates.h"

#include <algorithm>
#include <string>
#include <unordered_set>
#include <utility>

namespace tac {

namespace {

AlignedBuffer<float> ascending_levels(const Encoding& encoding) {
  AlignedBuffer<float> levels(encoding.n_levels);
  for (std::uint32_t code = 0; code < encoding.n_levels; ++code) {
    levels[code] = encoding.kind == Encoding::Kind::kSignZero
                       ? static_cast<float>(code) - 1.0F
                       : static_cast<float>(encoding.lo) +
                             static_cast<float>(encoding.step) * static_cast<float>(code);
  }
  std::sort(levels.data(), levels.data() + levels.size());
  return levels;
}

}  // namespace

ExposedGraph::ExposedGraph(const Graph& original) : graph(original) {
  std::unordered_set<std::string> names;
  std::vector<bool> is_written(original.tensors.size(), true);
  for (const Tensor& tensor : original.tensors) names.insert(tensor.name);
  for (const ModelInput& input : original.inputs) is_written[input.tensor] = false;

  graph.outputs.clear();
  for (TensorId id = 0; id < original.tensors.size(); ++id) {
    const Tensor& tensor = original.tensors[id];
    if (tensor.is_constant || !is_written[id]) continue;
    tensors.push_back(id);
    if (tensor.dtype != DType::kBits) {
      graph.outputs.push_back(id);
      continue;
    }
    Tensor decoded;
    decoded.name = tensor.name + "/levels";
    while (!names.insert(decoded.name).second) decoded.name += '_';
    decoded.dtype = DType::kF32;
    decoded.dims = tensor.dims;
    levels.push_back(ascending_levels(tensor.encoding));
    const auto output = static_cast<TensorId>(graph.tensors.size());
    graph.ops.push_back({decoded.name, "levels of " + tensor.name,
                         Dequantize{id, output, {std::as_bytes(levels.back().view())}}});
    graph.tensors.push_back(std::move(decoded));
    graph.outputs.push_back(output);
  }
}

}  // namespace tac
