// Contracts of fully connected codebook layers for batches: the weights that are not zero in lists,
// samples in lanes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

inline constexpr std::size_t kSparseSamples = 32;  // of a call, at most
inline constexpr std::size_t kSparseChunk = 256;   // inputs that are in the cache together
inline constexpr std::size_t kSparseTile = 4;      // outputs
inline constexpr std::size_t kSparseGroup = 4;     // entries

// The weights of 4 outputs, a tile, and 256 inputs, a chunk, are a piece of a list. It is made of
// groups of 4 entries for each output of the tile; an entry is an input and a code:
//   places [n_groups][4 outputs][4]  (k - first input of the chunk) * kSparseStep
//   codes  [n_groups][4 outputs][2]  codes of entries 0 and 1 << 4, and of 2 and 3 << 4
// An output's entries have k ascending. Entries behind its last one have place kSparseFill, where
// the kernels keep an input of 0, and code 0, up to the end of the piece.
//   begins [n_chunks][n_tiles]       first group of a piece; pieces lie in this order
//   counts [n_chunks][n_tiles][4]    groups in which an output has entries; a piece has the largest
struct CodebookSparseParams {
  std::size_t in_features, out_features;
  const std::uint16_t* places;
  const std::uint8_t* codes;
  const std::uint32_t* begins;
  const std::uint8_t* counts;
  const float* bias;
};
inline constexpr std::size_t kSparseStep = 32;
inline constexpr std::size_t kSparseFill = kSparseChunk * kSparseStep;

// What a call over n_tiles tiles needs to work with, 64-byte aligned.
constexpr std::size_t sparse_scratch_bytes(std::size_t n_tiles) {
  return (kSparseChunk + 1) * kSparseSamples * sizeof(float) +
         n_tiles * kSparseTile * kSparseSamples * 2 * sizeof(std::int32_t);
}

// For the outputs of tiles [tile_begin, tile_end), and batch <= kSparseSamples,
//   y[n * y_stride + o] = bias[o] + sum over the entries of o of table[code] * x[n * x_stride + k]
// in float32, from 0 on, in the order of the entries, the bias last: for finite x and table (16
// values) the very bits of codebook_linear_f32 of the same backend. bias is never -0.
using codebook_sparse_f32_fn = void (*)(const CodebookSparseParams& params, const float* table,
                                        const float* x, std::size_t batch, std::size_t x_stride,
                                        std::size_t tile_begin, std::size_t tile_end,
                                        std::byte* scratch, float* y, std::size_t y_stride);

// The same in integers, as codebook_i16.h has it: the bits of codebook_linear_i16 on any backend.
//   pairs [256]  level of the low nibble of the index | level of the high nibble << 16
//   max_level    largest |level|
using codebook_sparse_i16_fn = void (*)(const CodebookSparseParams& params,
                                        const std::uint32_t* pairs, std::int32_t max_level,
                                        const std::int16_t* q, std::size_t batch,
                                        std::size_t q_stride, const double* units,
                                        std::size_t tile_begin, std::size_t tile_end,
                                        std::byte* scratch, float* y, std::size_t y_stride);

}  // namespace tac::kernels
