// A model between the file and the plan: tensors, ops in execution order, inputs, outputs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ir/ops.h"
#include "ir/tensor.h"

namespace tac {

// What turns a uint8 image [H, W, C] into the model's float input: value = lut[c][pixel], written
// in the layout of the model's own input ([C, H, W] or [H, W, C]).
struct Preprocess {
  BlobOf<float> lut;  // [C][256]; empty: the input takes no images
  bool channels_first = true;
};

struct ModelInput {
  TensorId tensor = 0;
  Preprocess preprocess;
};

struct Graph {
  std::vector<Tensor> tensors;
  std::vector<Op> ops;
  std::vector<ModelInput> inputs;  // kF32
  std::vector<TensorId> outputs;   // kF32 or kI64, never a constant
  std::string metadata;            // JSON for people: producer, conversion report summary
};

// Checks that every op's fields, shapes and dtypes fit together, that every tensor is written
// exactly once before it is read, and that sizes and accumulators stay in range. Throws
// Error(kInvalidModel).
void validate(const Graph& graph);

}  // namespace tac
