// Fully connected layers whose weights are codes into a small table.
#include "kernels/codebook_linear/codebook_linear.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <vector>

#include "base/error.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "runtime/codebook_forms.h"
#include "runtime/codebook_layout.h"
#include "runtime/codebook_lists.h"
#include "runtime/codebook_rounding.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

// Cut of the work, the same for any number of threads.
constexpr std::size_t kBlocksPerItem = 2;
constexpr std::size_t kRowsPerItem = 32;
constexpr std::size_t kMaxUnusualBytes = std::size_t{256} << 20;
// Beside the dense form of floats.
constexpr ListCosts kCostsOfFloats{6.5, 13}, kCostsOfFloatsAvx512{12, 16};

bool is_finite(const float* x, std::size_t count) noexcept {
  bool finite = true;
  for (std::size_t k = 0; k < count; ++k) finite &= std::fabs(x[k]) <= FLT_MAX;
  return finite;
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
    sparse_->make_for(n_samples * rows_, [this](const UseRow& use) { read_rows(use); });
  }
  std::string kernel_for(std::size_t n_samples) const final {
    return sparse_ ? sparse_->kernels_for(n_samples * rows_, kernel) : kernel;
  }
  std::size_t param_bytes_for(std::size_t n_samples) const final {
    return param_bytes + (sparse_ ? sparse_->bytes_for(n_samples * rows_) : 0);
  }

 protected:
  // As ReadRows, from the packed weights.
  virtual void read_rows(const UseRow& use) const = 0;

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
    const CodebookRows weights(op, out_features, in_features);
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
    const bool avx512 = ctx.served_by("avx512bw", KernelId::codebook_sparse_f32);
    const ListCosts costs = scaled(avx512 ? kCostsOfFloatsAvx512 : kCostsOfFloats, n_entries,
                                   in_features * out_features);
    if (n_entries != 0 && costs.pay()) {
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
  void pack(const CodebookRows& weights, std::size_t code_bytes, std::size_t in_features,
            std::size_t out_features, bool masked, std::uint8_t zero_code) {
    codes_ = AlignedBuffer<std::uint8_t>(code_bytes);
    const auto zeros = static_cast<std::uint8_t>(zero_code | zero_code << 4U);
    std::fill_n(codes_.data(), codes_.size(), zeros);
    if (masked) mask_ = AlignedBuffer<std::uint8_t>(n_blocks_ * in_features * 16);
    for (std::size_t o = 0; o < out_features; ++o) {
      const std::size_t block = o / kernels::kCodebookBlock, in_block = o % kernels::kCodebookBlock;
      const std::size_t nibbles =
          nibbles_of(std::min(out_features - (o - in_block), kernels::kCodebookBlock));
      const std::size_t per_dword = 8 / nibbles, dword = in_block % 16 * 4, j = in_block / 16;
      std::uint8_t* codes = codes_.data() + block * in_features * 64 + dword;
      weights.for_each(o, [&](std::size_t k, std::uint8_t code) {
        const std::size_t nibble = k % per_dword * nibbles + j;
        // The nibble holds zero_code.
        codes[k / per_dword * 64 + nibble / 2] ^=
            static_cast<std::uint8_t>((code ^ zero_code) << (nibble % 2 * 4));
        if (masked) {
          mask_[(block * in_features + k) * 16 + in_block / 8] |=
              static_cast<std::uint8_t>(1U << (in_block % 8));
        }
      });
    }
  }

  void read_rows(const UseRow& use) const override {
    const std::size_t stride = round_up(params_.in_features, kReadAlign);
    std::vector<std::uint8_t> codes(kRowsReadAtOnce * stride);
    for (std::size_t first = 0; first < params_.out_features; first += kRowsReadAtOnce) {
      const std::size_t n = std::min(kRowsReadAtOnce, params_.out_features - first);
      unpack_rows(first, n, stride, codes.data());
      for (std::size_t r = 0; r < n; ++r) use(first + r, codes.data() + r * stride);
    }
  }

  // pack() put the codes of rows that are read at once into neighbouring dwords.
  static constexpr std::size_t kRowsReadAtOnce = 4;
  static_assert(16 % kRowsReadAtOnce == 0);
  void unpack_rows(std::size_t first, std::size_t n, std::size_t stride,
                   std::uint8_t* out) const noexcept {
    const std::size_t block = first / kernels::kCodebookBlock,
                      in_block = first % kernels::kCodebookBlock;
    const std::size_t nibbles =
        nibbles_of(std::min(params_.out_features - (first - in_block), kernels::kCodebookBlock));
    const std::size_t per_dword = 8 / nibbles, j = in_block / 16;
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
        sparse_kernel_(ctx.kernels().codebook_sparse_i16) {
    const auto [rows, in_features] = rows_of(ctx.tensor(op.input));
    rows_ = rows;
    in_features_ = in_features;
    out_features_ = rows_of(ctx.tensor(op.output)).channels;
    const CodebookRows weights(op, out_features_, in_features);
    const std::span<const std::int32_t> levels = op.levels.view();
    levels_ = AlignedBuffer<std::int16_t>(2 * kTableSize);
    for (std::size_t i = 0; i < levels.size(); ++i)
      levels_[i] = levels_[kTableSize + i] = static_cast<std::int16_t>(levels[i]);
    bias_ = expand(op.bias, out_features_);
    form_ = make_codebook_form(weights, in_features, out_features_, levels, levels_.data(), ctx);
    make_lists(weights, levels, ctx);
    kernel = ctx.kernel_label(form_->kernel_id());
    macs = rows * in_features * out_features_;
    param_bytes = form_->bytes() + levels_.bytes() + bias_.bytes() + drift_.bytes();
    if (sparse_) {
      param_bytes += pairs_.bytes();
      thread_scratch_bytes = sparse_->thread_scratch_bytes();
    }
    q_stride_ = round_up(in_features + kernels::kCodebookWindow, 32);
    zeros_ = AlignedBuffer<float>(out_features_);
    measure_drift(op, weights);
    sample_scratch_bytes =
        rows * (2 * q_stride_ * sizeof(std::int16_t) + form_->row_bytes() + 3 * sizeof(double)) +
        out_features_ * sizeof(float);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t n_rows = ctx.n_samples * rows_;
    auto* q = reinterpret_cast<std::int16_t*>(ctx.sample_scratch);
    std::int16_t* rest = q + n_rows * q_stride_;
    auto* prepared = reinterpret_cast<std::byte*>(rest + n_rows * q_stride_);
    auto* units = reinterpret_cast<double*>(prepared + n_rows * form_->row_bytes());
    double* rest_units = units + n_rows;
    double* means = rest_units + n_rows;
    auto* rest_y = reinterpret_cast<float*>(means + n_rows);
    const std::size_t n_sparse = sparse_ ? sparse_->rows_taken(n_rows) : 0;
    ctx.pool->parallel_for(n_rows, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t r = begin; r < end; ++r) {
        const RoundedSample sample =
            round_sample(max_magnitude_, round_, x + r * in_features_, in_features_,
                         q + r * q_stride_, rest + r * q_stride_);
        units[r] = level_scale_ * sample.unit;
        rest_units[r] = level_scale_ * sample.rest_unit;
        means[r] = sample.mean;
        if (r >= n_sparse) form_->prepare_row(q + r * q_stride_, prepared + r * form_->row_bytes());
      }
    });
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
    const std::size_t n_items = form_->n_items();
    ctx.pool->parallel_for(
        ceil_div(n_rows - n_sparse, kRowsPerItem) * n_items,
        [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row = n_sparse + i / n_items * kRowsPerItem;
            form_->multiply(i % n_items,
                            {q + row * q_stride_, q_stride_, prepared + row * form_->row_bytes(),
                             std::min(kRowsPerItem, n_rows - row), units + row},
                            bias_.data(), y + row * out_features_);
          }
        });
    for (std::size_t r = 0; r < n_rows; ++r) {
      if (rest_units[r] == 0.0) continue;
      const CodebookForm::Inputs row{rest + r * q_stride_, q_stride_,
                                     prepared + r * form_->row_bytes(), 1, rest_units + r};
      form_->prepare_row(row.q, prepared + r * form_->row_bytes());
      ctx.pool->parallel_for(n_items, [&](std::size_t begin, std::size_t end, std::size_t) {
        for (std::size_t item = begin; item < end; ++item)
          form_->multiply(item, row, zeros_.data(), rest_y);
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
  void read_rows(const UseRow& use) const override { form_->read_rows(use); }

  void make_lists(const CodebookRows& weights, std::span<const std::int32_t> levels,
                  const PrepareContext& ctx) {
    std::bitset<kTableSize> zeros;
    for (std::size_t i = 0; i < levels.size(); ++i) zeros[i] = levels[i] == 0;
    const std::size_t n_entries = sparse_entries(weights, out_features_, in_features_, zeros);
    const ListCosts costs = form_->list_costs(n_entries);
    if (n_entries == 0 || !costs.pay()) return;
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

  TensorId input_, output_;
  double level_scale_;
  std::size_t in_features_ = 0, out_features_ = 0, q_stride_ = 0;
  AlignedBuffer<std::int16_t> levels_;
  AlignedBuffer<float> bias_, zeros_;
  AlignedBuffer<double> drift_;  // empty where the levels are exact
  std::unique_ptr<CodebookForm> form_;
  AlignedBuffer<std::uint32_t> pairs_;
  std::int32_t max_level_ = 0;
  kernels::max_magnitude_f32_fn max_magnitude_;
  kernels::round_f32_i16_fn round_;
  kernels::codebook_sparse_i16_fn sparse_kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const CodebookLinear& op, const PrepareContext& ctx) {
  if (op.levels.size() != 0) return std::make_unique<CodebookIntegerStep>(op, ctx);
  return std::make_unique<CodebookLinearStep>(op, ctx);
}

}  // namespace tac
