// Loads a file from memory. A file that is accepted must be written back byte for byte, as the
// format leaves no choice, and a small model must run on every backend without a crash: the
// sanitizers watch. Outputs are not compared here, as changed weights overflow in an order that is
// each backend's own; the tests of whole graphs do that.
//
// With -DTAC_FUZZ=ON and clang this is a libFuzzer binary; driver.cc runs it on its own mutations.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/error.h"
#include "format/reader.h"
#include "format/tacbin.h"
#include "format/writer.h"
#include "ir/op_names.h"
#include "kernels/dispatch.h"
#include "runtime/engine.h"

namespace {

constexpr std::size_t kMaxWork = 1 << 20;  // elements and taps of a model that is run

// The product of all values of the list, or `limit` if it is larger.
std::size_t product(const std::vector<std::int64_t>& values, std::size_t limit) {
  std::size_t result = 1;
  for (const std::int64_t v : values) {
    if (static_cast<std::size_t>(v) > limit / result) return limit;
    result *= static_cast<std::size_t>(v);
  }
  return result;
}

// Finds the largest window of an op.
struct WindowTaps {
  std::size_t taps = 1;
  template <class T>
  void operator()(const char* name, T& field) {
    if constexpr (std::same_as<T, std::vector<std::int64_t>>) {
      if (std::strcmp(name, "kernel") == 0) taps = product(field, kMaxWork);
    }
  }
};

bool is_small(const tac::Graph& graph) {
  std::size_t elements = 0, taps = 1;
  for (const tac::Tensor& t : graph.tensors) elements += product(t.dims, kMaxWork);
  for (const tac::Op& op : graph.ops) {
    tac::OpVariant copy = op.op;
    WindowTaps window;
    tac::visit_op(copy, [&](auto& held) { held.fields(window); });
    taps = std::max(taps, window.taps);
  }
  return elements < kMaxWork && elements * taps < kMaxWork * 16;
}

void run_on_every_backend(const tac::Graph& graph) {
  for (const tac::kernels::BackendInfo& backend : tac::kernels::backends()) {
    if (backend.table == nullptr || (backend.required & ~tac::detect_cpu_features()) != 0) continue;
    tac::EngineOptions options;
    options.backend = std::string(backend.name);
    const tac::Engine engine(graph, options);
    constexpr std::size_t kSamples = 2;
    std::vector<tac::AlignedBuffer<float>> values;
    std::vector<tac::InputArray> inputs;
    for (const tac::TensorSpec& spec : engine.inputs()) {
      auto& buffer = values.emplace_back(kSamples * spec.sample_bytes() / sizeof(float));
      for (std::size_t i = 0; i < buffer.size(); ++i) {
        buffer[i] = static_cast<float>(static_cast<int>(i % 7) - 3);
      }
      inputs.push_back({buffer.data(), nullptr});
    }
    std::vector<tac::AlignedBuffer<std::byte>> results;
    std::vector<void*> outputs;
    for (const tac::TensorSpec& spec : engine.outputs()) {
      outputs.push_back(results.emplace_back(kSamples * spec.sample_bytes()).data());
    }
    engine.run(inputs, outputs, kSamples);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < tac::kHeaderBytes) return 0;
  std::vector<std::byte> bytes(size);
  std::memcpy(bytes.data(), data, size);
  // Nearly every mutation would end at these two checks, which the tests of the format cover.
  const std::uint64_t file_bytes = size;
  std::memcpy(bytes.data() + tac::kFileBytesOffset, &file_bytes, sizeof(file_bytes));
  const std::uint64_t sum = tac::checksum(std::span(bytes).subspan(tac::kChecksummedFrom));
  std::memcpy(bytes.data() + tac::kChecksumOffset, &sum, sizeof(sum));

  tac::LoadedModel model;
  try {
    model = tac::load_model_from_memory(bytes);
  } catch (const tac::Error&) {
    return 0;  // a refusal is an answer
  }
  if (tac::serialize(model.graph) != bytes) std::abort();
  if (is_small(model.graph)) run_on_every_backend(model.graph);
  return 0;
}
