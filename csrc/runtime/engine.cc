#include "runtime/engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "base/cpu_features.h"
#include "base/error.h"
#include "runtime/layout.h"

namespace tac {

namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << (sizeof(std::size_t) * 8 - 2);

// The working memory that a tile of a batch may take for each thread: about a second-level cache.
constexpr std::size_t kTileBytes = std::size_t{2} << 20;
// Where that would be few samples, so many that reading the weights costs little beside what flows
// between the layers, but no more than the lists of codebook layers take at once.
constexpr std::size_t kMinTileSamples = 16;
constexpr std::size_t kWeightShare = 4;  // of the bytes that flow

// a * b, or kLimit.
std::size_t checked_product(std::size_t a, std::size_t b, const char* what) {
  if (b != 0 && a > kMaxBytes / b)
    throw Error(ErrorCode::kLimit, std::string(what) + " exceeds the address space");
  return a * b;
}

// Adds up whether any value has an exponent of ones and a fraction: cheaper than a comparison that
// may exit.
bool has_nan(const float* values, std::size_t count) noexcept {
  std::uint32_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude = std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU;
    found |= 0x7F800000U - magnitude;  // the top bit is set where magnitude is larger
  }
  return (found >> 31) != 0;
}

bool overlap(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) noexcept {
  const auto a0 = reinterpret_cast<std::uintptr_t>(a), b0 = reinterpret_cast<std::uintptr_t>(b);
  return a0 < b0 + b_bytes && b0 < a0 + a_bytes;
}

std::string position_text(std::size_t flat, std::size_t sample_size,
                          const std::vector<std::int64_t>& dims) {
  std::vector<std::size_t> index(dims.size());
  std::size_t rest = flat % sample_size;
  for (std::size_t i = dims.size(); i-- > 0;) {
    index[i] = rest % static_cast<std::size_t>(dims[i]);
    rest /= static_cast<std::size_t>(dims[i]);
  }
  std::string text = "[" + std::to_string(flat / sample_size);
  for (const std::size_t i : index) text += ", " + std::to_string(i);
  return text + "]";
}

}  // namespace

kernels::Selection choose_kernels(const std::string& backend) {
  if (!backend.empty()) return kernels::select_kernels(detect_cpu_features(), backend);
  const char* forced = std::getenv("TAC_BACKEND");
  if (forced == nullptr || *forced == '\0')
    return kernels::select_kernels(detect_cpu_features(), {});
  try {
    return kernels::select_kernels(detect_cpu_features(), forced);
  } catch (const Error& e) {
    throw Error(e.code(), "environment variable TAC_BACKEND: " + e.detail());
  }
}

std::size_t TensorSpec::sample_bytes() const noexcept {
  return element_count(dims) * (dtype == DType::kI64 ? sizeof(std::int64_t) : sizeof(float));
}
std::size_t TensorSpec::image_bytes() const noexcept {
  return element_count(image_dims);
}

// What one run needs for itself.
struct Engine::RunState {
  AlignedBuffer<std::byte> arena;
  std::vector<std::byte*> tensors;
};

// A RunState with an arena of at least `bytes`, taken from the spare ones and given back.
class Engine::Lease {
 public:
  Lease(const Engine& engine, std::size_t bytes) : engine_(engine) {
    {
      const std::lock_guard lock(engine.mutex_);
      auto& spare = engine.spare_;
      const auto largest =
          std::ranges::max_element(spare, {}, [](const auto& s) { return s->arena.size(); });
      if (largest != spare.end()) {
        std::swap(*largest, spare.back());
        state_ = std::move(spare.back());
        spare.pop_back();
      } else {
        spare.reserve(engine.n_states_ + 1);  // room for all to come back
        state_ = std::make_unique<RunState>();
        state_->tensors.resize(engine.plan_->placements.size());
        ++engine.n_states_;
      }
    }
    if (state_->arena.size() >= bytes) return;
    state_->arena = {};
    try {
      state_->arena = AlignedBuffer<std::byte>(bytes);
    } catch (const std::bad_alloc&) {
      give_back();
      throw Error(ErrorCode::kLimit, "no memory for an arena of " + std::to_string(bytes) +
                                         " bytes; run smaller batches");
    }
  }
  ~Lease() { give_back(); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  RunState& operator*() const noexcept { return *state_; }
  RunState* operator->() const noexcept { return state_.get(); }

 private:
  void give_back() noexcept {
    const std::lock_guard lock(engine_.mutex_);
    engine_.spare_.push_back(std::move(state_));
  }

  const Engine& engine_;
  std::unique_ptr<RunState> state_;
};

Engine::Engine(const std::filesystem::path& path, const EngineOptions& options)
    : Engine(load_model(path), options) {}
Engine::Engine(std::span<const std::byte> file, const EngineOptions& options)
    : Engine(load_model_from_memory(file), options) {}
Engine::Engine(const LoadedModel& model, const EngineOptions& options)
    : Engine(model.graph, model.file_bytes, options) {}
Engine::Engine(const Graph& graph, const EngineOptions& options)
    : Engine((validate(graph), graph), std::size_t{0}, options) {}

Engine::Engine(const Graph& graph, std::size_t file_bytes, const EngineOptions& options)
    : metadata_(graph.metadata),
      file_bytes_(file_bytes),
      selection_(choose_kernels(options.backend)) {
  if (options.threads < 1 || options.threads > kMaxThreads) {
    throw Error(ErrorCode::kInvalidArgument, "threads is " + std::to_string(options.threads) +
                                                 ", expected 1.." + std::to_string(kMaxThreads));
  }
  for (const ModelInput& input : graph.inputs) {
    const Tensor& tensor = graph.tensors[input.tensor];
    const Preprocess& preprocess = input.preprocess;
    TensorSpec spec{tensor.name, tensor.dtype, tensor.dims, preprocess.lut.size() != 0, {}};
    AlignedBuffer<float> lut(preprocess.lut.size());
    std::ranges::copy(preprocess.lut.view(), lut.data());
    if (spec.takes_images) {
      spec.image_dims = tensor.dims;
      if (preprocess.channels_first)
        std::rotate(spec.image_dims.begin(), spec.image_dims.begin() + 1, spec.image_dims.end());
    }
    inputs_.push_back(std::move(spec));
    input_tensors_.push_back(input.tensor);
    luts_.push_back(std::move(lut));
    channels_first_.push_back(preprocess.channels_first);
  }
  for (const TensorId id : graph.outputs) {
    const Tensor& tensor = graph.tensors[id];
    outputs_.push_back({tensor.name, tensor.dtype, tensor.dims, false, {}});
  }
  try {
    plan_ = std::make_unique<Plan>(graph, selection_, options.threads);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kLimit, "no memory for the weights of the model");
  }
  tile_samples_ = std::max({
      std::size_t{1},
      std::min(kMinTileSamples, kWeightShare * (plan_->param_bytes + plan_->batch_bytes) /
                                    std::max<std::size_t>(1, plan_->flow_sample_bytes)),
      options.threads * kTileBytes / std::max<std::size_t>(1, plan_->arena_sample_bytes),
  });
  try {
    pool_ = std::make_unique<ThreadPool>(options.threads);
  } catch (const std::system_error&) {
    throw Error(ErrorCode::kLimit,
                "the system refused to start " + std::to_string(options.threads) + " threads");
  }
}

Engine::~Engine() = default;

std::size_t Engine::tile_of(std::size_t n_samples) const noexcept {
  return ceil_div(n_samples, ceil_div(n_samples, tile_samples_));
}

std::size_t Engine::arena_bytes(std::size_t n_samples) const {
  checked_product(n_samples, plan_->largest_sample_bytes, "a tensor of the batch");
  const std::size_t samples =
      checked_product(std::min(n_samples, tile_samples_), plan_->arena_sample_bytes,
                      "the working memory of the batch");
  const std::size_t scratch =
      checked_product(pool_->size(), plan_->thread_scratch_bytes, "the scratch of the threads");
  return samples + scratch;
}

void Engine::make_ready(std::size_t n_samples) const {
  if (n_samples == 0) return;
  try {
    for (const PlannedStep& planned : plan_->steps) planned.step->make_ready(tile_of(n_samples));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kLimit, "no memory for the weights as a batch of " +
                                       std::to_string(n_samples) +
                                       " needs them; run smaller batches");
  }
}

std::size_t Engine::peak_bytes(std::size_t n_samples) const {
  std::size_t bytes = plan_->param_bytes + arena_bytes(n_samples);
  if (n_samples == 0) return bytes;
  make_ready(n_samples);
  for (const PlannedStep& planned : plan_->steps)
    bytes += planned.step->param_bytes_for(tile_of(n_samples)) - planned.step->param_bytes;
  return bytes;
}

void Engine::check_arrays(std::span<const InputArray> inputs, std::span<void* const> outputs,
                          std::size_t n_samples) const {
  const auto count_error = [](const char* what, std::size_t found, std::size_t expected) {
    throw Error(ErrorCode::kInvalidInput, std::to_string(found) + " " + what +
                                              " arrays, the model has " + std::to_string(expected));
  };
  if (inputs.size() != inputs_.size()) count_error("input", inputs.size(), inputs_.size());
  if (outputs.size() != outputs_.size()) count_error("output", outputs.size(), outputs_.size());
  if (n_samples == 0) return;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if ((inputs[i].values == nullptr) == (inputs[i].images == nullptr)) {
      throw Error(ErrorCode::kInvalidInput, {}, inputs_[i].name,
                  "expected either float values or images");
    }
    if (inputs[i].images != nullptr && !inputs_[i].takes_images) {
      throw Error(ErrorCode::kInvalidInput, {}, inputs_[i].name,
                  "the model has no preprocessing for images; pass float values");
    }
  }
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    const std::size_t bytes = n_samples * outputs_[o].sample_bytes();
    if (outputs[o] == nullptr)
      throw Error(ErrorCode::kInvalidInput, {}, outputs_[o].name, "the output array is null");
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const bool image = inputs[i].images != nullptr;
      const void* data = image ? static_cast<const void*>(inputs[i].images) : inputs[i].values;
      const std::size_t in_bytes =
          n_samples * (image ? inputs_[i].image_bytes() : inputs_[i].sample_bytes());
      if (overlap(outputs[o], bytes, data, in_bytes)) {
        throw Error(ErrorCode::kInvalidInput, {}, outputs_[o].name,
                    "the output array overlaps the array of input '" + inputs_[i].name + "'");
      }
    }
    for (std::size_t other = 0; other < o; ++other) {
      if (overlap(outputs[o], bytes, outputs[other], n_samples * outputs_[other].sample_bytes())) {
        throw Error(ErrorCode::kInvalidInput, {}, outputs_[o].name,
                    "the output array overlaps the array of output '" + outputs_[other].name + "'");
      }
    }
  }
}

void Engine::check_no_nan(std::size_t input, const float* values, std::size_t n_samples) const {
  const std::size_t sample_size = element_count(inputs_[input].dims),
                    count = n_samples * sample_size;
  if (!has_nan(values, count)) return;
  const auto first = static_cast<std::size_t>(
      std::find_if(values, values + count, [](float v) { return v != v; }) - values);
  throw Error(ErrorCode::kInvalidInput, {}, inputs_[input].name,
              "expected numbers, found NaN at index " +
                  position_text(first, sample_size, inputs_[input].dims));
}

void Engine::images_to_floats(std::size_t input, const std::uint8_t* images, std::size_t n_samples,
                              float* values) const {
  const std::vector<std::int64_t>& dims = inputs_[input].image_dims;
  const auto height = static_cast<std::size_t>(dims[0]), width = static_cast<std::size_t>(dims[1]),
             channels = static_cast<std::size_t>(dims[2]);
  const float* lut = luts_[input].data();
  const bool channels_first = channels_first_[input];
  pool_->parallel_for(n_samples * height, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t row = begin; row < end; ++row) {
      const std::uint8_t* in = images + row * width * channels;
      if (channels_first) {
        const std::size_t sample = row / height, y = row % height;
        for (std::size_t c = 0; c < channels; ++c) {
          float* out = values + ((sample * channels + c) * height + y) * width;
          for (std::size_t x = 0; x < width; ++x) out[x] = lut[c * 256 + in[x * channels + c]];
        }
      } else {
        float* out = values + row * width * channels;
        for (std::size_t x = 0; x < width; ++x) {
          for (std::size_t c = 0; c < channels; ++c)
            out[x * channels + c] = lut[c * 256 + in[x * channels + c]];
        }
      }
    }
  });
}

template <class Lap>
void Engine::run_parts(std::span<const InputArray> inputs, std::span<void* const> outputs,
                       std::size_t n_samples, const Lap& lap) const {
  const std::size_t bytes = arena_bytes(n_samples);
  check_arrays(inputs, outputs, n_samples);
  if (n_samples == 0) return;
  make_ready(n_samples);
  const Lease state(*this, bytes);
  // All of the batch is checked before any of it is computed: on an error the outputs are as they
  // were.
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].values != nullptr) check_no_nan(i, inputs[i].values, n_samples);
    lap(i);
  }
  const std::size_t tile = tile_of(n_samples);
  for (std::size_t first = 0; first < n_samples; first += tile) {
    run_tile(inputs, outputs, first, std::min(tile, n_samples - first), *state, lap);
  }
}

template <class Lap>
void Engine::run_tile(std::span<const InputArray> inputs, std::span<void* const> outputs,
                      std::size_t first, std::size_t n_samples, RunState& state,
                      const Lap& lap) const {
  std::byte* arena = state.arena.data();
  const auto image_floats = [&](std::size_t i) {
    return arena + n_samples * plan_->image_offsets[i];
  };
  const auto output = [&](std::size_t i) {
    return static_cast<std::byte*>(outputs[i]) + first * outputs_[i].sample_bytes();
  };
  std::size_t part = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].images != nullptr) {
      images_to_floats(i, inputs[i].images + first * inputs_[i].image_bytes(), n_samples,
                       reinterpret_cast<float*>(image_floats(i)));
    }
    lap(part++);
  }
  for (std::size_t t = 0; t < state.tensors.size(); ++t) {
    const Placement& place = plan_->placements[t];
    const std::size_t i = place.index;
    switch (place.kind) {
      // Steps only read constants and inputs.
      case Placement::Kind::kConstant:
        state.tensors[t] = const_cast<std::byte*>(plan_->constants.data()) + place.offset;
        break;
      case Placement::Kind::kArena: state.tensors[t] = arena + n_samples * place.offset; break;
      case Placement::Kind::kInput:
        state.tensors[t] =
            inputs[i].images != nullptr
                ? image_floats(i)
                : reinterpret_cast<std::byte*>(const_cast<float*>(inputs[i].values)) +
                      first * inputs_[i].sample_bytes();
        break;
      case Placement::Kind::kOutput: state.tensors[t] = output(i); break;
    }
  }

  RunContext ctx;
  ctx.pool = pool_.get();
  ctx.tensors = state.tensors.data();
  ctx.n_samples = n_samples;
  ctx.thread_scratch = arena + n_samples * plan_->arena_sample_bytes;
  ctx.thread_scratch_stride = plan_->thread_scratch_bytes;
  for (const PlannedStep& planned : plan_->steps) {
    ctx.sample_scratch = arena + n_samples * planned.scratch_offset;
    planned.step->run(ctx);
    lap(part++);
  }
  for (const OutputCopy& copy : plan_->copies) {
    std::memcpy(output(copy.output), state.tensors[copy.tensor],
                n_samples * outputs_[copy.output].sample_bytes());
    lap(part++);
  }
}

void Engine::run(std::span<const InputArray> inputs, std::span<void* const> outputs,
                 std::size_t n_samples) const {
  run_parts(inputs, outputs, n_samples, [](std::size_t) {});
}

std::vector<StepProfile> Engine::profile(std::span<const InputArray> inputs, std::size_t n_samples,
                                         std::size_t n_runs) const {
  using Clock = std::chrono::steady_clock;
  if (n_runs == 0) throw Error(ErrorCode::kInvalidInput, "runs is 0, expected at least 1");
  if (n_samples == 0) throw Error(ErrorCode::kInvalidInput, "an empty batch cannot be profiled");
  make_ready(n_samples);

  std::vector<StepProfile> rows;
  for (std::size_t i = 0; i < inputs_.size() && i < inputs.size(); ++i) {
    const bool image = inputs[i].images != nullptr;
    rows.push_back(
        {inputs_[i].name, "input", image ? "image_table" : "nan_check", 0.0, 0,
         n_samples * (inputs_[i].sample_bytes() + (image ? inputs_[i].image_bytes() : 0))});
  }
  for (const PlannedStep& planned : plan_->steps) {
    const Step& leader = *planned.step;
    StepProfile row{
        leader.name, std::string(leader.kind), leader.kernel_for(tile_of(n_samples)), 0.0, 0, 0};
    const auto count = [&](const Step& step) {
      row.macs += n_samples * step.macs;
      row.bytes += step.param_bytes_for(tile_of(n_samples)) + n_samples * step.io_bytes;
    };
    count(leader);
    for (const auto& follower : planned.followers) {
      row.kernel += " + " + std::string(follower->kind);
      count(*follower);
    }
    rows.push_back(std::move(row));
  }
  for (const OutputCopy& copy : plan_->copies) {
    rows.push_back({outputs_[copy.output].name, "output", "copy", 0.0, 0,
                    2 * n_samples * outputs_[copy.output].sample_bytes()});
  }

  std::vector<AlignedBuffer<std::byte>> buffers;
  std::vector<void*> outputs;
  for (const TensorSpec& spec : outputs_) {
    buffers.emplace_back(checked_product(n_samples, spec.sample_bytes(), "an output of the batch"));
    outputs.push_back(buffers.back().data());
  }
  run(inputs, outputs, n_samples);  // warms up, and checks
  std::vector<std::vector<double>> seconds(rows.size(), std::vector<double>(n_runs));
  for (std::size_t r = 0; r < n_runs; ++r) {
    Clock::time_point last = Clock::now();
    run_parts(inputs, outputs, n_samples, [&](std::size_t part) {
      const Clock::time_point now = Clock::now();
      seconds[part][r] += std::chrono::duration<double>(now - last).count();
      last = now;
    });
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto middle = seconds[i].begin() + static_cast<std::ptrdiff_t>(n_runs / 2);
    std::ranges::nth_element(seconds[i], middle);
    rows[i].seconds = *middle;
  }
  return rows;
}

}  // namespace tac
