// Evaluates a graph sample by sample on plain numbers: levels, not bits; loops, not kernels. Shares
// no code with the runtime.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <variant>
#include <vector>

#include "ir/graph.h"
#include "reference/codebook_reference.h"
#include "reference/float_reference.h"

namespace tac::test {

// Row-major over the per-sample dims. Levels of bits are whole numbers; float sums are made in
// double, then rounded.
using Values = std::vector<double>;
using Dims = std::vector<std::int64_t>;

inline std::int64_t count(const Dims& dims) {
  return std::accumulate(dims.begin(), dims.end(), std::int64_t{1}, std::multiplies<>());
}

inline int lowest_level(const Encoding& e) {
  if (e.kind == Encoding::Kind::kSignZero) return -1;
  return std::min(e.lo, e.lo + e.step * (static_cast<int>(e.n_levels) - 1));
}
inline int level_at(const Encoding& e, int index) {
  return lowest_level(e) + std::abs(e.step) * index;
}

class NaiveGraph {
 public:
  explicit NaiveGraph(const Graph& graph) : graph_(graph) {}

  // All tensors of one sample, from its inputs.
  std::vector<Values> run(const std::vector<Values>& inputs) {
    values_.assign(graph_.tensors.size(), {});
    for (std::size_t i = 0; i < inputs.size(); ++i) values_[graph_.inputs[i].tensor] = inputs[i];
    for (std::size_t t = 0; t < graph_.tensors.size(); ++t) {
      if (!graph_.tensors[t].is_constant) continue;
      const auto* data = reinterpret_cast<const float*>(graph_.tensors[t].data.data());
      values_[t].assign(data, data + count(graph_.tensors[t].dims));
    }
    for (const Op& op : graph_.ops) {
      std::visit([&](const auto& held) { eval(held); }, op.op);
    }
    return values_;
  }

 private:
  const Tensor& tensor(TensorId id) const { return graph_.tensors[id]; }
  static float f32(double v) { return static_cast<float>(v); }

  template <class T>
  static double threshold_level(const BlobOf<T>& thresholds, const BlobOf<std::uint8_t>& descending,
                                double x, std::int64_t c, const Encoding& e) {
    const int steps = static_cast<int>(e.n_levels) - 1;
    const std::int64_t row = thresholds.size() == static_cast<std::size_t>(steps) ? 0 : c;
    int n = 0;
    for (int t = 0; t < steps; ++t)
      n += x >= static_cast<double>(thresholds.data()[row * steps + t]) ? 1 : 0;
    const bool down = descending.size() != 0 && descending.data()[row] != 0;
    return level_at(e, down ? steps - n : n);
  }

  void eval(const std::monostate&) {}

  void eval(const BinaryConv& op) {
    const Tensor& out = tensor(op.output);
    const Dims in_dims = map_dims(tensor(op.input).dims), out_dims = map_dims(out.dims);
    const std::int64_t cg = in_dims[2] / op.groups, og = out_dims[2] / op.groups;
    const std::int64_t kh = op.window.kernel[0], kw = op.window.kernel[1];
    const std::int64_t row_words = (kh * kw * cg + 31) / 32;
    Values& y = values_[op.output];
    for (std::int64_t oy = 0; oy < out_dims[0]; ++oy) {
      for (std::int64_t ox = 0; ox < out_dims[1]; ++ox) {
        for (std::int64_t o = 0; o < out_dims[2]; ++o) {
          std::int64_t acc = 0;
          for (std::int64_t ky = 0; ky < kh; ++ky) {
            for (std::int64_t kx = 0; kx < kw; ++kx) {
              for (std::int64_t c = 0; c < cg; ++c) {
                const std::int64_t bit = (ky * kw + kx) * cg + c;
                std::int64_t weight = 0;
                for (std::size_t p = 0; p < op.w_coefs.size(); ++p) {
                  const std::int64_t row = static_cast<std::int64_t>(p) * out_dims[2] + o;
                  const std::uint32_t word = op.weights.data()[row * row_words + bit / 32];
                  weight += (word >> (bit % 32) & 1) != 0 ? -op.w_coefs[p] : op.w_coefs[p];
                }
                weight /= std::int64_t{1} << op.w_shift;
                const double* x = tap(op.input, op.window, in_dims, oy, ox, ky, kx);
                acc += weight * (x == nullptr ? op.pad_level
                                              : static_cast<std::int64_t>(x[o / og * cg + c]));
              }
            }
          }
          if (out.dtype == DType::kBits) {
            y.push_back(threshold_level(op.thresholds, op.descending, static_cast<double>(acc), o,
                                        out.encoding));
          } else {
            const float scaled = op.scale.data()[o] * static_cast<float>(acc);
            y.push_back(scaled + op.bias.data()[o]);
          }
        }
      }
    }
  }

  void eval(const Quantize& op) {
    const std::int64_t channels = tensor(op.input).dims.back();
    const Values& x = values_[op.input];
    for (std::size_t i = 0; i < x.size(); ++i) {
      values_[op.output].push_back(threshold_level(op.thresholds, op.descending, x[i],
                                                   static_cast<std::int64_t>(i) % channels,
                                                   tensor(op.output).encoding));
    }
  }

  void eval(const Dequantize& op) {
    const Encoding& e = tensor(op.input).encoding;
    const std::int64_t channels = tensor(op.input).dims.back();
    const bool shared = op.values.size() == e.n_levels;
    const Values& x = values_[op.input];
    for (std::size_t i = 0; i < x.size(); ++i) {
      const int index = (static_cast<int>(x[i]) - lowest_level(e)) / std::abs(e.step);
      const std::int64_t row = shared ? 0 : static_cast<std::int64_t>(i) % channels;
      values_[op.output].push_back(op.values.data()[row * e.n_levels + index]);
    }
  }

  void eval(const BitPool& op) {
    pool(op.input, op.output, op.window,
         [&](const std::vector<const double*>& taps, std::int64_t c, std::int64_t) {
           const bool smallest = op.take_min.size() != 0 && op.take_min.data()[c] != 0;
           double best = taps[0][c];
           for (const double* t : taps)
             best = smallest ? std::min(best, t[c]) : std::max(best, t[c]);
           return best;
         });
  }

  void eval(const Pool& op) {
    pool(op.input, op.output, op.window,
         [&](const std::vector<const double*>& taps, std::int64_t c, std::int64_t padded) {
           if (op.kind == PoolKind::kMax) {
             double best = taps[0][c];
             for (const double* t : taps) best = std::max(best, t[c]);
             return best;
           }
           double sum = 0;
           for (const double* t : taps) sum += t[c];
           const auto n = op.count_include_pad ? static_cast<double>(padded)
                                               : static_cast<double>(taps.size());
           return static_cast<double>(f32(sum) / f32(n));
         });
  }

  void eval(const CodebookLinear& op) {
    const std::int64_t k_size = tensor(op.input).dims.back(),
                       o_size = tensor(op.output).dims.back();
    std::vector<double> weights(static_cast<std::size_t>(k_size * o_size), 0.0);
    std::vector<std::int32_t> levels(weights.size(), 0);
    std::int64_t n_coded = 0;
    for (std::int64_t o = 0; o < o_size; ++o) {
      for (std::int64_t k = 0; k < k_size; ++k) {
        const std::int64_t words = (k_size + 31) / 32;
        if (op.bitmap.size() != 0 && (op.bitmap.data()[o * words + k / 32] >> (k % 32) & 1) == 0)
          continue;
        unsigned code = 0;
        for (std::int64_t b = 0; b < op.code_bits; ++b) {
          const std::int64_t bit = n_coded * op.code_bits + b;
          code |= (op.codes.data()[bit / 8] >> (bit % 8) & 1U) << b;
        }
        ++n_coded;
        weights[static_cast<std::size_t>(o * k_size + k)] = op.codebook.data()[code];
        if (op.levels.size() != 0)
          levels[static_cast<std::size_t>(o * k_size + k)] = op.levels.data()[code];
      }
    }
    if (op.levels.size() != 0) {
      const Values& in = values_[op.input];
      for (std::size_t first = 0; first < in.size(); first += static_cast<std::size_t>(k_size)) {
        std::vector<float> x(static_cast<std::size_t>(k_size));
        for (std::size_t k = 0; k < x.size(); ++k) x[k] = f32(in[first + k]);
        const reference::Quantized quantized = reference::quantize_i16(x);
        std::vector<float> y = reference::integer_linear(
            quantized.q, op.level_scale * quantized.unit, levels, op.bias.view());
        const reference::Quantized rest = reference::quantize_rest(x, quantized);
        if (rest.unit != 0.0) {
          const std::vector<float> zeros(y.size(), 0.0F);
          const std::vector<float> more =
              reference::integer_linear(rest.q, op.level_scale * rest.unit, levels, zeros);
          for (std::size_t o = 0; o < y.size(); ++o) y[o] += more[o];
        }
        double mean = 0.0;
        for (std::size_t k = 0; k < quantized.q.size(); ++k) {
          if (!rest.coarse) {
            mean += quantized.q[k];
          } else if (std::abs(quantized.q[k]) < 8192) {
            mean += quantized.q[k] + rest.q[k] / 32768.0;
          }
        }
        mean = quantized.unit * mean / static_cast<double>(k_size);
        for (std::size_t o = 0; o < y.size(); ++o) {
          double drift = 0.0;
          for (std::size_t k = 0; k < x.size(); ++k) {
            const std::size_t i = o * x.size() + k;
            drift += std::rint((weights[i] / op.level_scale - levels[i]) * 65536.0);
          }
          drift *= op.level_scale / 65536.0;
          if (drift != 0.0) y[o] += static_cast<float>(mean * drift);
        }
        values_[op.output].insert(values_[op.output].end(), y.begin(), y.end());
      }
      return;
    }
    dense(op.input, op.output, weights, op.bias);
  }

  void eval(const Linear& op) {
    dense(op.input, op.output, Values(op.weights.data(), op.weights.data() + op.weights.size()),
          op.bias);
  }

  // Weights [outputs][row] bit by bit.
  static std::vector<float> decoded(const CodedWeights& w, std::int64_t outputs, std::int64_t row) {
    std::vector<float> weights;
    std::int64_t n_coded = 0;
    const std::int64_t words = (row + 31) / 32;
    const auto books = static_cast<std::int64_t>(w.values.size()) / outputs;
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t k = 0; k < row; ++k) {
        weights.push_back(0.0F);
        if (w.bitmap.size() != 0 && (w.bitmap.data()[o * words + k / 32] >> (k % 32) & 1) == 0)
          continue;
        std::int64_t code = w.code_bits == 0 ? n_coded : 0;
        for (std::int64_t b = 0; b < w.code_bits; ++b) {
          const std::int64_t bit = n_coded * w.code_bits + b;
          code |= std::int64_t{w.codes.data()[bit / 8] >> (bit % 8) & 1} << b;
        }
        ++n_coded;
        weights.back() = w.values.data()[(w.per_output ? o * books : 0) + code];
      }
    }
    return weights;
  }

  void eval(const CodedConv& op) {
    const std::int64_t row =
        op.window.kernel[0] * op.window.kernel[1] * tensor(op.input).dims[2] / op.groups;
    const std::vector<float> weights = decoded(op.weights, tensor(op.output).dims[2], row);
    eval(Conv{
        op.input, op.output, op.window, op.groups, {std::as_bytes(std::span(weights))}, op.bias});
  }

  void eval(const IntegerConv& op) {
    const Dims in_dims = tensor(op.input).dims, out_dims = tensor(op.output).dims;
    const std::int64_t row = op.window.kernel[0] * op.window.kernel[1] * in_dims[2] / op.groups;
    std::vector<float> levels = decoded(op.weights, out_dims[2], row);
    for (std::size_t i = 0; i < levels.size(); ++i) {
      const double scale = op.level_scale.data()[i / static_cast<std::size_t>(row)];
      levels[i] = f32(std::nearbyint(levels[i] / scale));
    }
    const Values x = values_[op.input];
    const std::vector<float> floats(x.begin(), x.end());
    reference::Quantized rounded;
    if (op.input_unit == 0.0F) {
      rounded = reference::quantize_i16(floats, static_cast<int>(op.input_limit));
    } else {
      const auto limit = static_cast<float>(op.input_limit);
      rounded.unit = op.input_unit;
      for (const float v : floats) {
        const float scaled = v * (1.0F / op.input_unit);
        rounded.q.push_back(
            static_cast<std::int16_t>(std::nearbyint(std::clamp(scaled, -limit, limit))));
      }
    }
    // Every run as a convolution of its own, with all other levels 0, in double precision.
    const std::int64_t piece = op.groups == 1 && op.window.dilations[1] == 1
                                   ? op.window.kernel[1] * in_dims[2]
                                   : in_dims[2] / op.groups;
    const std::int64_t run = (piece + 2 * op.run_parts - 1) / (2 * op.run_parts) * 2;
    const std::int64_t n_runs = row / piece * ((piece + run - 1) / run);
    const auto run_of = [&](std::int64_t k) {
      return k / piece * ((piece + run - 1) / run) + k % piece / run;
    };
    const std::vector<float> none(static_cast<std::size_t>(out_dims[2]), 0.0F);
    std::vector<float> totals;
    values_[op.input].assign(rounded.q.begin(), rounded.q.end());
    for (std::int64_t first = 0; first < n_runs; first += op.runs_per_sum) {
      std::vector<float> part = levels;
      for (std::size_t i = 0; i < part.size(); ++i) {
        const std::int64_t at = run_of(static_cast<std::int64_t>(i) % row);
        if (at < first || at - first >= op.runs_per_sum) part[i] = 0.0F;
      }
      std::vector<double> sums;
      convolve(op, part, none, sums);
      totals.resize(sums.size(), 0.0F);
      for (std::size_t i = 0; i < sums.size(); ++i) totals[i] += f32(sums[i]);
    }
    values_[op.input] = x;
    for (std::size_t i = 0; i < totals.size(); ++i) {
      const std::size_t o = i % none.size();
      const float scale = f32(op.level_scale.data()[o] * rounded.unit);
      const float scaled = scale * totals[i];
      values_[op.output].push_back(scaled + op.bias.data()[o]);
    }
  }

  void eval(const CodedLinear& op) {
    const std::vector<float> weights =
        decoded(op.weights, tensor(op.output).dims.back(), tensor(op.input).dims.back());
    eval(Linear{op.input, op.output, {std::as_bytes(std::span(weights))}, op.bias});
  }

  void eval(const Conv& op) {
    std::vector<double> sums;
    convolve(op, op.weights.view(), op.bias.view(), sums);
    for (const double sum : sums) values_[op.output].push_back(f32(sum));
  }

  // Sums in double precision, not rounded.
  template <class ConvOp>
  void convolve(const ConvOp& op, std::span<const float> weights, std::span<const float> bias,
                std::vector<double>& sums) {
    const Dims in_dims = tensor(op.input).dims, out_dims = tensor(op.output).dims;
    const std::int64_t cg = in_dims[2] / op.groups, og = out_dims[2] / op.groups;
    const std::int64_t kh = op.window.kernel[0], kw = op.window.kernel[1];
    for (std::int64_t oy = 0; oy < out_dims[0]; ++oy) {
      for (std::int64_t ox = 0; ox < out_dims[1]; ++ox) {
        for (std::int64_t o = 0; o < out_dims[2]; ++o) {
          double sum = bias[static_cast<std::size_t>(o)];
          for (std::int64_t ky = 0; ky < kh; ++ky) {
            for (std::int64_t kx = 0; kx < kw; ++kx) {
              const double* x = tap(op.input, op.window, in_dims, oy, ox, ky, kx);
              for (std::int64_t c = 0; x != nullptr && c < cg; ++c) {
                const std::int64_t at = ((o * kh + ky) * kw + kx) * cg + c;
                sum += double{weights[static_cast<std::size_t>(at)]} * x[o / og * cg + c];
              }
            }
          }
          sums.push_back(sum);
        }
      }
    }
  }

  void eval(const Affine& op) {
    const std::int64_t channels = tensor(op.input).dims.back();
    const Values& x = values_[op.input];
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::int64_t c = static_cast<std::int64_t>(i) % channels;
      const float product = op.scale.data()[op.scale.size() == 1 ? 0 : c] * f32(x[i]);
      values_[op.output].push_back(product + op.shift.data()[op.shift.size() == 1 ? 0 : c]);
    }
  }

  void eval(const Unary& op) {
    for (const double x : values_[op.input]) {
      values_[op.output].push_back(f32([&]() -> double {
        const double a = op.alpha, b = op.beta;
        switch (op.kind) {
          case UnaryKind::kRelu: return std::max(x, 0.0);
          case UnaryKind::kClip: return std::min(std::max(x, a), b);
          case UnaryKind::kLeakyRelu: return x < 0 ? a * x : x;
          case UnaryKind::kSigmoid: return 1 / (1 + std::exp(-x));
          case UnaryKind::kTanh: return std::tanh(x);
          case UnaryKind::kHardSigmoid: return std::clamp(double{f32(a * x)} + b, 0.0, 1.0);
          case UnaryKind::kHardSwish:
            return x * double{f32(std::clamp(double{f32(x / 6)} + 0.5, 0.0, 1.0))};
          case UnaryKind::kAbs: return std::abs(x);
          case UnaryKind::kNeg: return -x;
          case UnaryKind::kSqrt: return std::sqrt(x);
          case UnaryKind::kExp: return std::exp(x);
          case UnaryKind::kSign: return x > 0 ? 1 : x < 0 ? -1 : 0;
          case UnaryKind::kFloor: return std::floor(x);
          case UnaryKind::kCeil: return std::ceil(x);
          case UnaryKind::kRound: return std::nearbyint(x);
          case UnaryKind::kSoftsign: return x / double{f32(1 + std::abs(x))};
          case UnaryKind::kReciprocal: return 1 / x;
          case UnaryKind::kThresholdedRelu: return x > a ? x : 0;
          case UnaryKind::kTrunc: return x < 0 ? std::ceil(x) : std::floor(x);
          case UnaryKind::kElu:
          case UnaryKind::kSelu:
          case UnaryKind::kCelu:
          case UnaryKind::kSoftplus:
          case UnaryKind::kErf:
          case UnaryKind::kGelu:
          case UnaryKind::kGeluTanh:
          case UnaryKind::kLog:
          case UnaryKind::kMish: return reference::unary(op.kind, op.alpha, op.beta, f32(x));
        }
        std::abort();
      }()));
    }
  }

  void eval(const Binary& op) {
    const Dims &a_dims = tensor(op.a).dims, &b_dims = tensor(op.b).dims,
               &dims = tensor(op.output).dims;
    const std::int64_t n = count(dims);
    for (std::int64_t i = 0; i < n; ++i) {
      const double a = values_[op.a][broadcast_index(i, dims, a_dims)];
      const double b = values_[op.b][broadcast_index(i, dims, b_dims)];
      values_[op.output].push_back(f32([&]() -> double {
        switch (op.kind) {
          case BinaryKind::kAdd: return a + b;
          case BinaryKind::kSub: return a - b;
          case BinaryKind::kMul: return a * b;
          case BinaryKind::kDiv: return a / b;
          case BinaryKind::kMin: return std::min(a, b);
          case BinaryKind::kMax: return std::max(a, b);
          case BinaryKind::kPow: return std::pow(a, b);
          case BinaryKind::kPRelu: return a < 0 ? b * a : a;
          case BinaryKind::kLess: return a < b ? 1 : 0;
          case BinaryKind::kLessOrEqual: return a <= b ? 1 : 0;
          case BinaryKind::kEqual: return a == b ? 1 : 0;
        }
        std::abort();
      }()));
    }
  }

  void eval(const Where& op) {
    const Dims& dims = tensor(op.output).dims;
    for (std::int64_t i = 0; i < count(dims); ++i) {
      const auto at = [&](TensorId id) {
        return values_[id][broadcast_index(i, dims, tensor(id).dims)];
      };
      values_[op.output].push_back(at(op.condition) != 0 ? at(op.a) : at(op.b));
    }
  }

  void eval(const Lrn& op) {
    const Values& x = values_[op.input];
    const std::int64_t channels = tensor(op.input).dims.back();
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(x.size()); ++i) {
      const std::int64_t c = i % channels;
      double sum = 0;
      for (std::int64_t k = c - (op.size - 1) / 2; k <= c + op.size / 2; ++k) {
        if (k < 0 || k >= channels) continue;
        const double v = x[static_cast<std::size_t>(i - c + k)];
        sum += v * v;
      }
      const double divisor = op.bias + double{op.alpha} / static_cast<double>(op.size) * sum;
      values_[op.output].push_back(x[static_cast<std::size_t>(i)] / std::pow(divisor, op.beta));
    }
  }

  void eval(const MatMul& op) {
    const Values &a = values_[op.a], &b = values_[op.b];
    const Dims& dims = tensor(op.output).dims;
    const std::int64_t rows = dims[dims.size() - 2], columns = dims.back(),
                       depth = tensor(op.a).dims.back();
    for (std::int64_t i = 0; i < count(dims); ++i) {
      const std::int64_t matrix = i / columns / rows;
      double sum = 0;
      for (std::int64_t k = 0; k < depth; ++k) {
        sum += a[static_cast<std::size_t>(i / columns * depth + k)] *
               b[static_cast<std::size_t>((matrix * depth + k) * columns + i % columns)];
      }
      values_[op.output].push_back(f32(sum));
    }
  }

  void eval(const Concat& op) {
    const Dims& dims = tensor(op.output).dims;
    const auto axis = static_cast<std::size_t>(op.axis);
    const std::int64_t n = count(dims);
    for (std::int64_t i = 0; i < n; ++i) {
      Dims index = split(i, dims);
      for (const TensorId id : op.inputs.ids) {
        const Dims& part = tensor(id).dims;
        if (index[axis] < part[axis]) {
          values_[op.output].push_back(values_[id][flat(index, part)]);
          break;
        }
        index[axis] -= part[axis];
      }
    }
  }

  void eval(const Reshape& op) { values_[op.output] = values_[op.input]; }

  void eval(const Transpose& op) {
    const Dims &in = tensor(op.input).dims, &out = tensor(op.output).dims;
    const std::int64_t n = count(out);
    for (std::int64_t i = 0; i < n; ++i) {
      const Dims index = split(i, out);
      Dims from(index.size());
      for (std::size_t a = 0; a < index.size(); ++a)
        from[static_cast<std::size_t>(op.perm[a])] = index[a];
      values_[op.output].push_back(values_[op.input][flat(from, in)]);
    }
  }

  void eval(const Pad& op) {
    const Dims &in = tensor(op.input).dims, &out = tensor(op.output).dims;
    const std::int64_t n = count(out);
    for (std::int64_t i = 0; i < n; ++i) {
      Dims index = split(i, out);
      bool inside = true;
      for (std::size_t a = 0; a < index.size(); ++a) {
        index[a] -= op.begin[a];
        inside = inside && index[a] >= 0 && index[a] < in[a];
      }
      values_[op.output].push_back(inside ? values_[op.input][flat(index, in)] : double{op.value});
    }
  }

  void eval(const Softmax& op) {
    const Values& x = values_[op.input];
    Values& y = values_[op.output];
    y.resize(x.size());
    along(tensor(op.input).dims, op.axis, [&](const std::vector<std::size_t>& line) {
      double top = x[line[0]], sum = 0;
      for (const std::size_t i : line) top = std::max(top, x[i]);
      for (const std::size_t i : line) sum += std::exp(x[i] - top);
      for (const std::size_t i : line)
        y[i] = op.log ? x[i] - top - std::log(sum) : std::exp(x[i] - top) / sum;
    });
  }

  void eval(const ArgMax& op) {
    const Values& x = values_[op.input];
    along(tensor(op.input).dims, op.axis, [&](const std::vector<std::size_t>& line) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < line.size(); ++i) {
        if (x[line[i]] > x[line[best]] || (op.select_last && x[line[i]] == x[line[best]])) best = i;
      }
      values_[op.output].push_back(static_cast<double>(best));
    });
  }

  void eval(const Reduce& op) {
    const Dims& in = tensor(op.input).dims;
    Dims kept = in;
    for (const std::int64_t axis : op.axes) kept[static_cast<std::size_t>(axis)] = 1;
    std::vector<std::vector<double>> taken(static_cast<std::size_t>(count(kept)));
    for (std::int64_t i = 0; i < count(in); ++i) {
      taken[broadcast_index(i, in, kept)].push_back(values_[op.input][static_cast<std::size_t>(i)]);
    }
    for (const std::vector<double>& x : taken) {
      double y = x[0], sum = 0, magnitudes = 0, squares = 0, product = 1;
      for (const double v : x) {
        y = op.kind == ReduceKind::kMax ? std::max(y, v) : std::min(y, v);
        sum += v;
        magnitudes += std::abs(v);
        squares += v * v;
        product *= v;
      }
      switch (op.kind) {
        case ReduceKind::kMean: y = sum / static_cast<double>(x.size()); break;
        case ReduceKind::kSum: y = sum; break;
        case ReduceKind::kMax:
        case ReduceKind::kMin: break;
        case ReduceKind::kProd: y = product; break;
        case ReduceKind::kL1: y = magnitudes; break;
        case ReduceKind::kL2: y = std::sqrt(squares); break;
        case ReduceKind::kSumSquare: y = squares; break;
      }
      values_[op.output].push_back(f32(y));
    }
  }

  void eval(const Select& op) {
    const Dims &in = tensor(op.input).dims, &out = tensor(op.output).dims;
    const auto axis = static_cast<std::size_t>(op.axis);
    for (std::int64_t i = 0; i < count(out); ++i) {
      Dims index = split(i, out);
      index[axis] = op.indices.data()[index[axis]];
      values_[op.output].push_back(values_[op.input][flat(index, in)]);
    }
  }

  static Dims map_dims(const Dims& dims) { return dims.size() == 3 ? dims : Dims{1, 1, dims[0]}; }

  static Dims split(std::int64_t i, const Dims& dims) {
    Dims index(dims.size());
    for (std::size_t a = dims.size(); a-- > 0; i /= dims[a]) index[a] = i % dims[a];
    return index;
  }
  static std::size_t flat(const Dims& index, const Dims& dims) {
    std::int64_t i = 0;
    for (std::size_t a = 0; a < dims.size(); ++a) i = i * dims[a] + index[a];
    return static_cast<std::size_t>(i);
  }
  static std::size_t broadcast_index(std::int64_t i, const Dims& dims, const Dims& operand) {
    Dims index = split(i, dims);
    index.erase(index.begin(), index.end() - static_cast<std::ptrdiff_t>(operand.size()));
    for (std::size_t a = 0; a < operand.size(); ++a) index[a] = operand[a] == 1 ? 0 : index[a];
    return flat(index, operand);
  }

  // The channels under tap (ky, kx) of output (oy, ox), nullptr outside the map.
  const double* tap(TensorId input, const Window& w, const Dims& in, std::int64_t oy,
                    std::int64_t ox, std::int64_t ky, std::int64_t kx) const {
    const std::int64_t y = oy * w.strides[0] - w.pads[0] + ky * w.dilations[0];
    const std::int64_t x = ox * w.strides[1] - w.pads[1] + kx * w.dilations[1];
    if (y < 0 || y >= in[0] || x < 0 || x >= in[1]) return nullptr;
    return values_[input].data() + (y * in[1] + x) * in[2];
  }

  // fn(taps inside the map, channel, number of taps inside the padded map)
  template <class Fn>
  void pool(TensorId input, TensorId output, const Window& w, const Fn& fn) {
    const Dims in = tensor(input).dims, out = tensor(output).dims;
    for (std::int64_t oy = 0; oy < out[0]; ++oy) {
      for (std::int64_t ox = 0; ox < out[1]; ++ox) {
        std::vector<const double*> taps;
        std::int64_t padded = 0;
        for (std::int64_t ky = 0; ky < w.kernel[0]; ++ky) {
          for (std::int64_t kx = 0; kx < w.kernel[1]; ++kx) {
            const std::int64_t y = oy * w.strides[0] + ky * w.dilations[0],
                               x = ox * w.strides[1] + kx * w.dilations[1];
            if (y < in[0] + w.pads[0] + w.pads[2] && x < in[1] + w.pads[1] + w.pads[3]) ++padded;
            if (const double* t = tap(input, w, in, oy, ox, ky, kx)) taps.push_back(t);
          }
        }
        for (std::int64_t c = 0; c < out[2]; ++c) values_[output].push_back(fn(taps, c, padded));
      }
    }
  }

  void dense(TensorId input, TensorId output, const Values& weights, const BlobOf<float>& bias) {
    const std::int64_t k_size = tensor(input).dims.back(), o_size = tensor(output).dims.back();
    const std::int64_t rows = count(tensor(input).dims) / k_size;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = 0; o < o_size; ++o) {
        double sum = bias.data()[o];
        for (std::int64_t k = 0; k < k_size; ++k) {
          sum += weights[static_cast<std::size_t>(o * k_size + k)] *
                 values_[input][static_cast<std::size_t>(r * k_size + k)];
        }
        values_[output].push_back(f32(sum));
      }
    }
  }

  // fn(flat indices along the axis), for every position of the other axes in order
  template <class Fn>
  static void along(const Dims& dims, std::int64_t axis, const Fn& fn) {
    const auto a = static_cast<std::size_t>(axis);
    Dims others = dims;
    others[a] = 1;
    const std::int64_t n = count(others);
    for (std::int64_t i = 0; i < n; ++i) {
      Dims index = split(i, others);
      std::vector<std::size_t> line;
      for (index[a] = 0; index[a] < dims[a]; ++index[a]) line.push_back(flat(index, dims));
      fn(line);
    }
  }

  const Graph& graph_;
  std::vector<Values> values_;
};

}  // namespace tac::test
