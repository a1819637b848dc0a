// Coded weights as floats.
#pragma once

#include "base/aligned_buffer.h"
#include "ir/ops.h"

namespace tac {

// [outputs][row]; the weights fit (validate() said so).
AlignedBuffer<float> decode(const CodedWeights& weights, std::size_t outputs, std::size_t row);

}  // namespace tac
