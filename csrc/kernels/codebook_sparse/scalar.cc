// Codebook layers from lists, scalar: one output of one sample at a time. The oracle of the other
// backends.
#include "kernels/backend_local.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

// Calls use(k, code) for the entries of output o, in order.
template <class Use>
static inline void each_entry(const CodebookSparseParams& p, std::size_t o, const Use& use) {
  const std::size_t n_tiles = local_ceil_div(p.out_features, kSparseTile);
  const std::size_t row = o % kSparseTile;
  for (std::size_t first = 0; first < p.in_features; first += kSparseChunk) {
    const std::size_t piece = first / kSparseChunk * n_tiles + o / kSparseTile;
    for (std::size_t g = 0; g < p.counts[piece * kSparseTile + row]; ++g) {
      const std::size_t at = (p.begins[piece] + g) * kSparseTile + row;
      for (std::size_t e = 0; e < kSparseGroup; ++e) {
        const std::uint16_t place = p.places[at * kSparseGroup + e];
        if (place == kSparseFill) break;
        const std::uint8_t pair = p.codes[at * 2 + e / 2];
        use(first + place / kSparseStep, e % 2 == 0 ? pair & 0xFU : pair >> 4U);
      }
    }
  }
}

}  // namespace

void codebook_sparse_f32(const CodebookSparseParams& params, const float* table, const float* x,
                         std::size_t batch, std::size_t x_stride, std::size_t tile_begin,
                         std::size_t tile_end, std::byte*, float* y, std::size_t y_stride) {
  const std::size_t end = local_min(tile_end * kSparseTile, params.out_features);
  for (std::size_t o = tile_begin * kSparseTile; o < end; ++o) {
    for (std::size_t n = 0; n < batch; ++n) {
      float sum = 0.0F;
      each_entry(params, o,
                 [&](std::size_t k, unsigned code) { sum += table[code] * x[n * x_stride + k]; });
      y[n * y_stride + o] = params.bias[o] + sum;
    }
  }
}

void codebook_sparse_i16(const CodebookSparseParams& params, const std::uint32_t* pairs,
                         std::int32_t, const std::int16_t* q, std::size_t batch,
                         std::size_t q_stride, const double* units, std::size_t tile_begin,
                         std::size_t tile_end, std::byte*, float* y, std::size_t y_stride) {
  const std::size_t end = local_min(tile_end * kSparseTile, params.out_features);
  for (std::size_t o = tile_begin * kSparseTile; o < end; ++o) {
    for (std::size_t n = 0; n < batch; ++n) {
      std::int64_t sum = 0;
      each_entry(params, o, [&](std::size_t k, unsigned code) {
        sum += static_cast<std::int64_t>(static_cast<std::int16_t>(pairs[code] & 0xFFFFU)) *
               q[n * q_stride + k];
      });
      y[n * y_stride + o] =
          params.bias[o] + static_cast<float>(static_cast<double>(sum) * units[n]);
    }
  }
}

}  // namespace tac::kernels::scalar
