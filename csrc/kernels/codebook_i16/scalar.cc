// Codebook layer in integers, scalar: sums of 64 bits, one weight at a time. The oracle of the
// other backends.
#include "kernels/backend_local.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

static inline std::size_t code_of(const std::uint8_t* row_codes, std::size_t k) {
  const std::size_t i = k % 32;
  const std::uint8_t pair = row_codes[k / 64 * 32 + i % 16 / 8 * 16 + i / 16 * 8 + i % 8];
  return k % 64 < 32 ? pair & 0xFU : pair >> 4U;
}

}  // namespace

void codebook_linear_i16(const CodebookDenseParams& params, const std::int16_t* q,
                         std::size_t batch, std::size_t q_stride, const double* units,
                         std::size_t row_begin, std::size_t row_end, float* y,
                         std::size_t y_stride) {
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t row = row_begin; row < row_end; ++row) {
      const std::uint8_t* codes = params.codes + row * (params.k_padded / 2);
      std::int64_t sum = 0;
      for (std::size_t k = 0; k < params.in_features; ++k) {
        sum += static_cast<std::int64_t>(params.levels[code_of(codes, k)]) * q[n * q_stride + k];
      }
      y[n * y_stride + row] =
          params.bias[row] + static_cast<float>(static_cast<double>(sum) * units[n]);
    }
  }
}

void codebook_linear_i16_sliced(const CodebookSlicedParams& params, const std::int16_t* q,
                                std::size_t batch, std::size_t q_stride, const double* units,
                                std::size_t tile_begin, std::size_t tile_end, float* y,
                                std::size_t y_stride) {
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t lane = tile_begin * kCodebookTile; lane < tile_end * kCodebookTile; ++lane) {
      const std::uint32_t row = params.rows[lane];
      if (row >= params.out_features) continue;
      const std::size_t tile = lane / kCodebookTile;
      std::int64_t sum = 0;
      for (std::size_t group = params.tiles[tile]; group < params.tiles[tile + 1]; ++group) {
        const std::int16_t* window = q + n * q_stride + params.starts[group];
        const std::size_t half = params.group_steps / 2;
        const std::uint16_t* words = params.words + group * half * 32;
        const std::uint8_t* codes = params.codes + group * 32;
        for (std::size_t step = 0; step < params.group_steps; ++step) {
          for (std::size_t e = lane % kCodebookTile * 2, end = e + 2; e < end; ++e) {
            const unsigned position = words[step / 2 * 32 + e] >> (step % 2 * 6) & 63U;
            const unsigned code =
                step < half ? words[step * 32 + e] >> 12U : codes[e] >> ((step - half) * 4) & 15U;
            sum += static_cast<std::int64_t>(params.levels[code]) * window[position];
          }
        }
      }
      y[n * y_stride + row] =
          params.bias[row] + static_cast<float>(static_cast<double>(sum) * units[n]);
    }
  }
}

void codebook_linear_i16_bytes(const CodebookBytesParams& params, const std::uint8_t* bytes,
                               std::size_t batch, std::size_t stride, const double* units,
                               std::size_t tile_begin, std::size_t tile_end, float* y,
                               std::size_t y_stride) {
  for (std::size_t n = 0; n < batch; ++n) {
    const std::uint8_t* lower = bytes + n * 2 * stride;
    for (std::size_t lane = tile_begin * kCodebookTile; lane < tile_end * kCodebookTile; ++lane) {
      const std::uint32_t row = params.rows[lane];
      if (row >= params.out_features) continue;
      const std::size_t tile = lane / kCodebookTile;
      std::int64_t sum = 0;
      for (std::size_t step = params.tiles[tile]; step < params.tiles[tile + 1]; ++step) {
        const std::uint8_t* entries = params.entries + step * 32 + lane % kCodebookTile * 2;
        for (std::size_t e = 0; e < 2; ++e) {
          const std::uint8_t* at = lower + params.starts[step] + (entries[e] >> 4U);
          const std::int32_t q = at[0] + 256 * static_cast<std::int8_t>(at[stride]);
          sum += static_cast<std::int64_t>(params.levels[entries[e] & 15U]) * q;
        }
      }
      y[n * y_stride + row] =
          params.bias[row] + static_cast<float>(static_cast<double>(sum) * units[n]);
    }
  }
}

void split_i16_u8(const std::int16_t* q, std::size_t count, std::uint8_t* lower,
                  std::uint8_t* upper) {
  for (std::size_t k = 0; k < count; ++k) {
    const auto bits = static_cast<std::uint16_t>(q[k]);
    lower[k] = static_cast<std::uint8_t>(bits);
    upper[k] = static_cast<std::uint8_t>(bits >> 8U);
  }
}

}  // namespace tac::kernels::scalar
