// Fully connected layers whose weights are codes into a small table.
#include "kernels/codebook_linear/codebook_linear.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "runtime/codebook_layout.h"
#include "runtime/codebook_rounding.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kTableSize = 16;
// Cut of the work, the same for any number of threads.
constexpr std::size_t kBlocksPerItem = 2;
constexpr std::size_t kRowsPerItem = 32;
constexpr std::size_t kMaxUnusualBytes = std::size_t{256} << 20;

// What a call over lists costs, in samples of the layer's other form: for up to 16 samples and for
// 32 (AVX2 has a form for 8 in integers, which takes little less than 16); less than 32, or there
// are no lists. From the figures of
// docs/performance.md, where a quarter of the weights is not zero.
constexpr std::size_t kNarrow = 16;
struct ListCosts {
  double narrow, wide;
};
constexpr ListCosts kCostsOfFloats{6.5, 13}, kCostsOfFloatsAvx512{12, 16};
constexpr ListCosts kCostsOfIntegers{5.5, 11};
// The sliced form takes as little for zeros as lists do, the others do not.
constexpr ListCosts kCostsBesideSliced{18, 25};
ListCosts scaled(const ListCosts& costs, std::size_t n_entries, std::size_t n_weights) noexcept {
  const double share = static_cast<double>(n_entries) / static_cast<double>(n_weights);
  const double scale = (share + 0.02) / 0.27;
  return {costs.narrow * scale, costs.wide * scale};
}
// Of the lists, about what a tile of a batch reads: the engine makes them as large as kNarrow for
// it, so nothing where lists want more.
std::size_t bytes_of_tile(const ListCosts& costs, std::size_t n_entries) noexcept {
  return costs.narrow < kNarrow ? n_entries * 5 / 2 : 0;
}

// Of an item that goes over lists, at most and at least: turning the inputs around is worth it for
// many outputs, and every thread wants an item. The least is a block of the dense form.
constexpr std::size_t kMaxSparseTiles = 128;
constexpr std::size_t kMinSparseTiles = kernels::kCodebookBlock / kernels::kSparseTile;

// The layer as lists, for batches; made from its other form when the first batch comes.
class SparseLists {
 public:
  // Weights whose code is set in `zeros` are left out, and so are those of no value, whose code is
  // n_values or more.
  SparseLists(const ListCosts& costs, std::size_t in_features, std::size_t out_features,
              const std::bitset<kTableSize>& zeros, std::size_t n_values, const float* bias,
              std::string kernel)
      : costs_(costs),
        zeros_(zeros | std::bitset<kTableSize>().set() << n_values),
        kernel_(std::move(kernel)) {
    params_.in_features = in_features;
    params_.out_features = out_features;
    params_.bias = bias;
  }

  // Makes the lists if n_rows samples would go over them, once.
  void make_for(std::size_t n_rows, const ReadCodes& read) const {
    if (rows_over_lists(n_rows) == 0) return;
    std::call_once(made_, [&] {
      std::optional<SparseCodebook> lists =
          sparse_codebook(read, params_.out_features, params_.in_features, zeros_);
      if (!lists) return;
      lists_ = std::move(*lists);
      params_.places = lists_.places.data();
      params_.codes = lists_.codes.data();
      params_.begins = lists_.begins.data();
      params_.counts = lists_.counts.data();
    });
  }

  // Of n_rows samples for which the lists are made, if they pay, those that go over them.
  std::size_t rows_taken(std::size_t n_rows) const noexcept {
    const std::size_t n_sparse = rows_over_lists(n_rows);
    return n_sparse != 0 && params_.begins != nullptr ? n_sparse : 0;
  }
  // The kernels that are called, `dense` where samples are left.
  std::string kernels_for(std::size_t n_rows, const std::string& dense) const {
    const std::size_t n_sparse = rows_taken(n_rows);
    if (n_sparse == 0) return dense;
    return n_sparse == n_rows ? kernel_ : kernel_ + ", " + dense;
  }
  std::size_t bytes_for(std::size_t n_rows) const noexcept {
    return rows_taken(n_rows) == 0 ? 0 : lists_.bytes();
  }

  const kernels::CodebookSparseParams& params() const noexcept { return params_; }
  std::size_t thread_scratch_bytes() const noexcept {
    return kernels::sparse_scratch_bytes(std::min(kMaxSparseTiles, n_tiles()));
  }

  // Calls use(first row, rows, first tile, tile end, thread) for each part of the work.
  template <class Use>
  void for_each_item(ThreadPool& pool, std::size_t n_rows, const Use& use) const {
    const std::size_t groups = ceil_div(n_rows, kernels::kSparseSamples);
    // An output does not depend on the cut.
    const std::size_t tiles =
        std::clamp(round_up(n_tiles() * groups / pool.size(), kMinSparseTiles), kMinSparseTiles,
                   kMaxSparseTiles);
    const std::size_t parts = ceil_div(n_tiles(), tiles);
    pool.parallel_for(groups * parts, [&](std::size_t begin, std::size_t end, std::size_t thread) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t row = i / parts * kernels::kSparseSamples, tile = i % parts * tiles;
        use(row, std::min(kernels::kSparseSamples, n_rows - row), tile,
            std::min(tile + tiles, n_tiles()), thread);
      }
    });
  }

 private:
  std::size_t n_tiles() const noexcept {
    return ceil_div(params_.out_features, kernels::kSparseTile);
  }
  // The samples at the front that go over lists; none only where fewer do not either.
  std::size_t rows_over_lists(std::size_t n_rows) const noexcept {
    const std::size_t left = n_rows % kernels::kSparseSamples, narrow = std::min(left, kNarrow);
    const double without = static_cast<double>(left);
    const double with_narrow = costs_.narrow + static_cast<double>(left - narrow);
    if (costs_.wide < std::min(without, with_narrow)) return n_rows;
    return n_rows - left + (with_narrow < without ? narrow : 0);
  }

  ListCosts costs_;
  std::bitset<kTableSize> zeros_;
  std::string kernel_;
  mutable std::once_flag made_;
  mutable SparseCodebook lists_;
  mutable kernels::CodebookSparseParams params_{};  // without lists until they are made
};

bool is_finite(const float* x, std::size_t count) noexcept {
  bool finite = true;
  for (std::size_t k = 0; k < count; ++k) finite &= std::fabs(x[k]) <= FLT_MAX;
  return finite;
}

bool serves(std::string_view backend, KernelId kernel, const PrepareContext& ctx) noexcept {
  return ctx.selection.kernel_backend[static_cast<std::size_t>(kernel)] == backend;
}

// How many nibbles of a dword one input takes in a block of n_outputs.
std::size_t nibbles_of(std::size_t n_outputs) noexcept {
  return n_outputs <= 16 ? 1 : n_outputs <= 32 ? 2 : n_outputs <= 64 ? 4 : 8;
}

// What both ways of adding share: rows of inputs, and lists for batches of them.
class CodebookStep : public Step {
 public:
  void make_ready(std::size_t n_samples) const final {
    if (!sparse_) return;
    sparse_->make_for(n_samples * rows_,
                      [this](std::size_t first, std::size_t n, std::uint8_t* codes) {
                        read_codes(first, n, codes);
                      });
  }
  std::string kernel_for(std::size_t n_samples) const final {
    return sparse_ ? sparse_->kernels_for(n_samples * rows_, kernel) : kernel;
  }
  std::size_t param_bytes_for(std::size_t n_samples) const final {
    return param_bytes + (sparse_ ? sparse_->bytes_for(n_samples * rows_) : 0);
  }

 protected:
  // As ReadCodes, from the packed weights.
  virtual void read_codes(std::size_t first, std::size_t n, std::uint8_t* codes) const noexcept = 0;

  std::size_t rows_ = 0;  // of a sample
  std::optional<SparseLists> sparse_;
};

class CodebookLinearStep final : public CodebookStep {
 public:
  CodebookLinearStep(const CodebookLinear& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        kernel_(ctx.kernels().codebook_linear_f32),
        sparse_kernel_(ctx.kernels().codebook_sparse_f32) {
    const auto [rows, in_features] = rows_of(ctx.tensor(op.input));
    const std::size_t out_features = rows_of(ctx.tensor(op.output)).channels;
    rows_ = rows;
    n_blocks_ = ceil_div(out_features, kernels::kCodebookBlock);
    table_ = AlignedBuffer<float>(kTableSize);
    const std::span<const float> values = op.codebook.view();
    std::copy(values.begin(), values.end(), table_.data());
    // The table is zero-filled, so a free entry stands for zero; without one a mask says where the
    // zeros are.
    const bool masked = op.bitmap.size() != 0 && values.size() == kTableSize;
    const auto zero_code = static_cast<std::uint8_t>(masked ? 0 : values.size() % kTableSize);
    const std::size_t code_bytes = code_bytes_of(op, in_features, out_features, masked);
    CodebookRows weights(op, out_features, in_features);
    pack(weights, code_bytes, in_features, out_features, masked, zero_code);
    bias_ = expand(op.bias, out_features);
    for (std::size_t o = 0; o < out_features; ++o) bias_[o] += 0.0F;  // no -0
    const bool finite = is_finite(values.data(), values.size());
    params_ = {in_features,   out_features, codes_.data(), masked ? mask_.data() : nullptr,
               table_.data(), bias_.data(), finite};
    std::bitset<kTableSize> zeros;
    for (std::size_t i = 0; i < values.size(); ++i) zeros[i] = values[i] == 0.0F;
    kernel = ctx.kernel_label(KernelId::codebook_linear_f32);
    macs = rows * in_features * out_features;
    param_bytes = codes_.bytes() + mask_.bytes() + table_.bytes() + bias_.bytes();
    const std::size_t n_entries =
        finite ? sparse_entries(weights, out_features, in_features, zeros) : 0;
    const bool avx512 = serves("avx512", KernelId::codebook_sparse_f32, ctx);
    const ListCosts costs = scaled(avx512 ? kCostsOfFloatsAvx512 : kCostsOfFloats, n_entries,
                                   in_features * out_features);
    if (n_entries != 0 && costs.wide < kernels::kSparseSamples) {
      sparse_.emplace(costs, in_features, out_features, zeros, values.size(), bias_.data(),
                      ctx.kernel_label(KernelId::codebook_sparse_f32));
      batch_bytes = bytes_of_tile(costs, n_entries);
      sample_scratch_bytes = rows;
      thread_scratch_bytes = sparse_->thread_scratch_bytes();
    }
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t n_rows = ctx.n_samples * rows_, chunks = ceil_div(n_blocks_, kBlocksPerItem);
    const std::size_t n_sparse = sparse_ ? sparse_->rows_taken(n_rows) : 0;
    if (sparse_ && n_sparse != 0) run_sparse(ctx, *sparse_, x, n_sparse, y);
    ctx.pool->parallel_for(ceil_div(n_rows - n_sparse, kRowsPerItem) * chunks,
                           [&](std::size_t begin, std::size_t end, std::size_t) {
                             for (std::size_t i = begin; i < end; ++i) {
                               const std::size_t row = n_sparse + i / chunks * kRowsPerItem;
                               const std::size_t block = i % chunks * kBlocksPerItem;
                               kernel_(params_, x + row * params_.in_features,
                                       std::min(kRowsPerItem, n_rows - row), params_.in_features,
                                       block, std::min(block + kBlocksPerItem, n_blocks_),
                                       y + row * params_.out_features, params_.out_features);
                             }
                           });
  }

 private:
  // Zero weights times infinity or NaN are NaN, and lists leave them out: groups with such a sample
  // take the dense form.
  void run_sparse(const RunContext& ctx, const SparseLists& lists, const float* x,
                  std::size_t n_rows, float* y) const noexcept {
    auto* finite = reinterpret_cast<std::uint8_t*>(ctx.sample_scratch);
    ctx.pool->parallel_for(n_rows, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t r = begin; r < end; ++r)
        finite[r] = is_finite(x + r * params_.in_features, params_.in_features);
    });
    lists.for_each_item(
        *ctx.pool, n_rows,
        [&](std::size_t row, std::size_t batch, std::size_t tile, std::size_t tile_end,
            std::size_t thread) {
          const float* from = x + row * params_.in_features;
          float* to = y + row * params_.out_features;
          if (std::all_of(finite + row, finite + row + batch, [](auto f) { return f != 0; })) {
            sparse_kernel_(lists.params(), table_.data(), from, batch, params_.in_features, tile,
                           tile_end, ctx.scratch_of_thread<std::byte>(thread), to,
                           params_.out_features);
          } else {
            kernel_(params_, from, batch, params_.in_features, tile / kMinSparseTiles,
                    ceil_div(tile_end, kMinSparseTiles), to, params_.out_features);
          }
        });
  }

  // Throws before anything is unpacked.
  std::size_t code_bytes_of(const CodebookLinear& op, std::size_t in_features,
                            std::size_t out_features, bool masked) const {
    const std::size_t full_blocks = n_blocks_ - 1;
    const std::size_t last_outputs = out_features - full_blocks * kernels::kCodebookBlock;
    const std::size_t last_bytes = ceil_div(in_features, 8 / nibbles_of(last_outputs)) * 64;
    const std::size_t code_bytes =
        full_blocks * in_features * 64 + last_bytes + kernels::kCodebookOverRead;
    // A layer of one output and a hundred million inputs unpacks to gigabytes from a small file.
    const std::size_t bytes = code_bytes + (masked ? n_blocks_ * in_features * 16 : 0);
    if (bytes > kMaxUnusualBytes && bytes / 32 > op.codes.bytes.size() + op.bitmap.bytes.size()) {
      throw Error(ErrorCode::kLimit, std::to_string(in_features) + " inputs and " +
                                         std::to_string(out_features) + " outputs unpack to " +
                                         std::to_string(bytes) + " bytes");
    }
    return code_bytes;
  }

  // The kernel's layout, kernels/codebook_linear/codebook_linear.h.
  void pack(CodebookRows& weights, std::size_t code_bytes, std::size_t in_features,
            std::size_t out_features, bool masked, std::uint8_t zero_code) {
    codes_ = AlignedBuffer<std::uint8_t>(code_bytes);
    const auto zeros = static_cast<std::uint8_t>(zero_code | zero_code << 4U);
    std::fill_n(codes_.data(), codes_.size(), zeros);
    if (masked) mask_ = AlignedBuffer<std::uint8_t>(n_blocks_ * in_features * 16);
    for (std::size_t o = 0; o < out_features; ++o) {
      const CodebookRows::Row row = weights.row(o);
      const std::size_t block = o / kernels::kCodebookBlock, in_block = o % kernels::kCodebookBlock;
      const std::size_t nibbles =
          nibbles_of(std::min(out_features - (o - in_block), kernels::kCodebookBlock));
      const std::size_t per_dword = 8 / nibbles, dword = in_block % 16 * 4, j = in_block / 16;
      std::uint8_t* codes = codes_.data() + block * in_features * 64 + dword;
      for (std::size_t i = 0; i < row.codes.size(); ++i) {
        const std::size_t k = row.positions[i], nibble = k % per_dword * nibbles + j;
        // The nibble holds zero_code.
        codes[k / per_dword * 64 + nibble / 2] ^=
            static_cast<std::uint8_t>((row.codes[i] ^ zero_code) << (nibble % 2 * 4));
        if (masked) {
          mask_[(block * in_features + k) * 16 + in_block / 8] |=
              static_cast<std::uint8_t>(1U << (in_block % 8));
        }
      }
    }
  }

  // pack() put the codes of a tile into neighbouring dwords.
  void read_codes(std::size_t first, std::size_t n, std::uint8_t* out) const noexcept override {
    static_assert(16 % kernels::kSparseTile == 0);
    const std::size_t block = first / kernels::kCodebookBlock,
                      in_block = first % kernels::kCodebookBlock;
    const std::size_t nibbles =
        nibbles_of(std::min(params_.out_features - (first - in_block), kernels::kCodebookBlock));
    const std::size_t per_dword = 8 / nibbles, j = in_block / 16;
    const std::size_t stride = round_up(params_.in_features, kReadAlign);
    const std::uint8_t* codes =
        codes_.data() + block * params_.in_features * 64 + in_block % 16 * 4;
    for (std::size_t first_k = 0; first_k < params_.in_features;
         first_k += per_dword, codes += 64) {
      for (std::size_t i = 0; i < std::min(per_dword, params_.in_features - first_k); ++i) {
        const std::size_t nibble = i * nibbles + j;
        for (std::size_t r = 0; r < n; ++r) {
          out[r * stride + first_k + i] = codes[4 * r + nibble / 2] >> (nibble % 2 * 4) & 0xFU;
        }
      }
    }
    if (mask_.size() == 0) return;
    for (std::size_t k = 0; k < params_.in_features; ++k) {
      const std::uint8_t* mask = mask_.data() + (block * params_.in_features + k) * 16;
      for (std::size_t r = 0; r < n; ++r) {
        const std::size_t o = in_block + r;
        if ((mask[o / 8] >> (o % 8) & 1U) == 0) out[r * stride + k] = kNoCode;
      }
    }
  }

  TensorId input_, output_;
  std::size_t n_blocks_ = 0;
  AlignedBuffer<std::uint8_t> codes_, mask_;
  AlignedBuffer<float> table_, bias_;
  kernels::CodebookLinearParams params_{};
  kernels::codebook_linear_f32_fn kernel_;
  kernels::codebook_sparse_f32_fn sparse_kernel_;
};

// The arithmetic in integers: samples are rounded (codebook_rounding.h) and multiplied, and so is
// what rounding left of a coarse one. What the rounding of weights does is much alike for all
// inputs of an output, so its sum times the mean input is taken back:
//   drift[o] = level_scale * 2^-16 * sum over k of rint((weight / level_scale - level) * 2^16)
//   y = bias + float(sum * unit) [+ float(rest sum * rest unit)] + float(mean of x * drift[o])
class CodebookIntegerStep final : public CodebookStep {
 public:
  CodebookIntegerStep(const CodebookLinear& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        level_scale_(op.level_scale),
        max_magnitude_(ctx.kernels().max_magnitude_f32),
        round_(ctx.kernels().round_f32_i16),
        dense_kernel_(ctx.kernels().codebook_linear_i16),
        sliced_kernel_(ctx.kernels().codebook_linear_i16_sliced),
        sparse_kernel_(ctx.kernels().codebook_sparse_i16) {
    const auto [rows, in_features] = rows_of(ctx.tensor(op.input));
    rows_ = rows;
    in_features_ = in_features;
    out_features_ = rows_of(ctx.tensor(op.output)).channels;
    CodebookRows weights(op, out_features_, in_features);
    const std::span<const std::int32_t> levels = op.levels.view();
    levels_ = AlignedBuffer<std::int16_t>(2 * kTableSize);
    for (std::size_t i = 0; i < levels.size(); ++i)
      levels_[i] = levels_[kTableSize + i] = static_cast<std::int16_t>(levels[i]);
    bias_ = expand(op.bias, out_features_);
    // The sliced form is for the backend whose registers look inputs up; scalar's is an oracle.
    std::optional<SlicedCodebook> sliced;
    if (!serves("scalar", KernelId::codebook_linear_i16_sliced, ctx))
      sliced = slice_codebook(weights, out_features_, in_features, levels);
    if (sliced) {
      sliced_ = std::move(*sliced);
      sliced_params_ = {out_features_,        sliced_.group_steps,   sliced_.words.data(),
                        sliced_.codes.data(), sliced_.starts.data(), sliced_.tiles.data(),
                        sliced_.rows.data(),  levels_.data(),        bias_.data()};
      n_items_ = sliced_.rows.size() / kernels::kCodebookTile;
      make_lists(weights, levels, ctx);
      kernel = ctx.kernel_label(KernelId::codebook_linear_i16_sliced);
    } else {
      // A free code stands for zero, whose level the table is filled with.
      dense_ = dense_codebook(weights, out_features_, in_features, levels);
      dense_params_ = {in_features,         round_up(in_features, kernels::kCodebookDenseAlign),
                       dense_.codes.data(), levels_.data(),
                       dense_.runs.data(),  bias_.data()};
      n_items_ = ceil_div(out_features_, kRowsOfDenseItem);
      make_lists(weights, levels, ctx);
      kernel = ctx.kernel_label(KernelId::codebook_linear_i16);
    }
    macs = rows * in_features * out_features_;
    param_bytes =
        dense_.bytes() + sliced_.bytes() + levels_.bytes() + bias_.bytes() + drift_.bytes();
    if (sparse_) {
      param_bytes += pairs_.bytes();
      thread_scratch_bytes = sparse_->thread_scratch_bytes();
    }
    q_stride_ = round_up(in_features + kernels::kCodebookWindow, 32);
    zeros_ = AlignedBuffer<float>(out_features_);
    measure_drift(op, weights);
    sample_scratch_bytes = rows * (2 * q_stride_ * sizeof(std::int16_t) + 3 * sizeof(double)) +
                           out_features_ * sizeof(float);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t n_rows = ctx.n_samples * rows_;
    auto* q = reinterpret_cast<std::int16_t*>(ctx.sample_scratch);
    std::int16_t* rest = q + n_rows * q_stride_;
    auto* units = reinterpret_cast<double*>(rest + n_rows * q_stride_);
    double* rest_units = units + n_rows;
    double* means = rest_units + n_rows;
    auto* rest_y = reinterpret_cast<float*>(means + n_rows);
    ctx.pool->parallel_for(n_rows, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t r = begin; r < end; ++r) {
        const RoundedSample sample =
            round_sample(max_magnitude_, round_, x + r * in_features_, in_features_,
                         q + r * q_stride_, rest + r * q_stride_);
        units[r] = level_scale_ * sample.unit;
        rest_units[r] = level_scale_ * sample.rest_unit;
        means[r] = sample.mean;
      }
    });
    const std::size_t n_sparse = sparse_ ? sparse_->rows_taken(n_rows) : 0;
    if (sparse_ && n_sparse != 0) {
      const SparseLists& lists = *sparse_;
      lists.for_each_item(*ctx.pool, n_sparse,
                          [&](std::size_t row, std::size_t batch, std::size_t tile,
                              std::size_t tile_end, std::size_t thread) {
                            sparse_kernel_(lists.params(), pairs_.data(), max_level_,
                                           q + row * q_stride_, batch, q_stride_, units + row, tile,
                                           tile_end, ctx.scratch_of_thread<std::byte>(thread),
                                           y + row * out_features_, out_features_);
                          });
    }
    ctx.pool->parallel_for(ceil_div(n_rows - n_sparse, kRowsPerItem) * n_items_,
                           [&](std::size_t begin, std::size_t end, std::size_t) {
                             for (std::size_t i = begin; i < end; ++i) {
                               const std::size_t row = n_sparse + i / n_items_ * kRowsPerItem;
                               multiply(i % n_items_, q + row * q_stride_,
                                        std::min(kRowsPerItem, n_rows - row), units + row,
                                        bias_.data(), y + row * out_features_);
                             }
                           });
    for (std::size_t r = 0; r < n_rows; ++r) {
      if (rest_units[r] == 0.0) continue;
      ctx.pool->parallel_for(n_items_, [&](std::size_t begin, std::size_t end, std::size_t) {
        for (std::size_t item = begin; item < end; ++item)
          multiply(item, rest + r * q_stride_, 1, rest_units + r, zeros_.data(), rest_y);
      });
      for (std::size_t o = 0; o < out_features_; ++o) y[r * out_features_ + o] += rest_y[o];
    }
    if (drift_.size() == 0) return;
    ctx.pool->parallel_for(n_rows, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t r = begin; r < end; ++r) {
        for (std::size_t o = 0; o < out_features_; ++o)
          y[r * out_features_ + o] += static_cast<float>(means[r] * drift_[o]);
      }
    });
  }

 private:
  static constexpr std::size_t kRowsOfDenseItem = 16;

  void read_codes(std::size_t first, std::size_t n, std::uint8_t* codes) const noexcept override {
    const std::size_t stride = round_up(in_features_, kReadAlign);
    for (std::size_t r = 0; r < n; ++r) {
      if (dense_params_.codes != nullptr) {
        read_dense_row(dense_.codes.data() + (first + r) * stride / 2, stride, codes + r * stride);
      } else {
        std::fill_n(codes + r * stride, stride, kNoCode);
        read_sliced_row(sliced_, first + r, {levels_.data(), kTableSize}, codes + r * stride);
      }
    }
  }

  void make_lists(CodebookRows& weights, std::span<const std::int32_t> levels,
                  const PrepareContext& ctx) {
    std::bitset<kTableSize> zeros;
    for (std::size_t i = 0; i < levels.size(); ++i) zeros[i] = levels[i] == 0;
    const std::size_t n_entries = sparse_entries(weights, out_features_, in_features_, zeros);
    if (n_entries == 0) return;
    const ListCosts costs = dense_params_.codes == nullptr
                                ? kCostsBesideSliced
                                : scaled(kCostsOfIntegers, n_entries, out_features_ * in_features_);
    batch_bytes = bytes_of_tile(costs, n_entries);
    sparse_.emplace(costs, in_features_, out_features_, zeros, levels.size(), bias_.data(),
                    ctx.kernel_label(KernelId::codebook_sparse_i16));
    pairs_ = AlignedBuffer<std::uint32_t>(kTableSize * kTableSize);
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      const auto low = static_cast<std::uint16_t>(levels_[i % kTableSize]);
      const auto high = static_cast<std::uint16_t>(levels_[i / kTableSize]);
      pairs_[i] = low | std::uint32_t{high} << 16U;
    }
    for (const std::int32_t level : levels) max_level_ = std::max(max_level_, std::abs(level));
  }

  void measure_drift(const CodebookLinear& op, const CodebookRows& weights) {
    std::array<std::int32_t, kTableSize> parts{};
    bool any = false;
    for (std::size_t i = 0; i < op.levels.size(); ++i) {
      const double exact = op.codebook.data()[i] / level_scale_;
      parts[i] = static_cast<std::int32_t>(std::rint((exact - op.levels.data()[i]) * 65536.0));
      any = any || parts[i] != 0;
    }
    if (!any) return;
    drift_ = AlignedBuffer<double>(out_features_);
    for (std::size_t o = 0; o < out_features_; ++o) {
      std::int64_t sum = 0;
      for (const std::uint8_t code : weights.codes(o)) sum += parts[code];
      drift_[o] = level_scale_ / 65536.0 * static_cast<double>(sum);
    }
  }

  // Outputs of one item for a batch of samples.
  void multiply(std::size_t item, const std::int16_t* q, std::size_t batch, const double* units,
                const float* bias, float* y) const noexcept {
    if (dense_params_.codes != nullptr) {
      kernels::CodebookDenseParams params = dense_params_;
      params.bias = bias;
      const std::size_t first = item * kRowsOfDenseItem;
      dense_kernel_(params, q, batch, q_stride_, units, first,
                    std::min(first + kRowsOfDenseItem, out_features_), y, out_features_);
    } else {
      kernels::CodebookSlicedParams params = sliced_params_;
      params.bias = bias;
      sliced_kernel_(params, q, batch, q_stride_, units, item, item + 1, y, out_features_);
    }
  }

  TensorId input_, output_;
  double level_scale_;
  std::size_t in_features_ = 0, out_features_ = 0, n_items_ = 0, q_stride_ = 0;
  AlignedBuffer<std::int16_t> levels_;
  AlignedBuffer<float> bias_, zeros_;
  AlignedBuffer<double> drift_;  // empty where the levels are exact
  DenseCodebook dense_;
  SlicedCodebook sliced_;
  AlignedBuffer<std::uint32_t> pairs_;
  std::int32_t max_level_ = 0;
  kernels::CodebookDenseParams dense_params_{};
  kernels::CodebookSlicedParams sliced_params_{};
  kernels::max_magnitude_f32_fn max_magnitude_;
  kernels::round_f32_i16_fn round_;
  kernels::codebook_linear_i16_fn dense_kernel_;
  kernels::codebook_linear_i16_sliced_fn sliced_kernel_;
  kernels::codebook_sparse_i16_fn sparse_kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const CodebookLinear& op, const PrepareContext& ctx) {
  if (op.levels.size() != 0) return std::make_unique<CodebookIntegerStep>(op, ctx);
  return std::make_unique<CodebookLinearStep>(op, ctx);
}

}  // namespace tac
