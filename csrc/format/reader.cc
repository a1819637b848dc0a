#include "format/reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <type_traits>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "format/tacbin.h"
#include "ir/op_names.h"
#include "ir/text.h"

namespace tac {

namespace {

// Walks the structure section and hands out blobs in the order of their appearance. No read leaves
// the section; no length is believed before the bytes it speaks of are there.
class Decoder {
 public:
  Decoder(std::span<const std::byte> file, std::size_t structure_end, std::size_t blob_offset)
      : file_(file), position_(kHeaderBytes), end_(structure_end), blob_position_(blob_offset) {}

  std::size_t position() const { return position_; }
  std::size_t remaining() const { return end_ - position_; }
  std::size_t blobs_end() const { return blob_position_; }

  template <class T>
    requires std::is_arithmetic_v<T>
  T number(const char* what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, file_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }
  // A count of items that take at least `item_bytes` each.
  std::size_t count(const char* what, std::size_t item_bytes) {
    const auto n = number<std::uint32_t>(what);
    if (n > remaining() / item_bytes) {
      fail(std::string(what) + " is " + std::to_string(n) + ", more than the section can hold");
    }
    return n;
  }
  std::string text(const char* what, const TextRule& rule) {
    const std::size_t length = count(what, 1);
    const std::string_view value(reinterpret_cast<const char*>(file_.data() + position_), length);
    const std::string problem = text_problem(value, rule);
    if (!problem.empty()) fail(std::string(what) + " " + problem);
    position_ += length;
    return std::string(value);
  }
  Blob blob(const char* what) {
    const auto length = number<std::uint64_t>(what);
    if (length == 0) return {};
    const std::size_t begin = round_up(blob_position_, kBlobAlignment);
    if (begin > file_.size() || length > file_.size() - begin) {
      throw Error(ErrorCode::kBadBlob, op_, tensor_,
                  std::string(what) + " of " + std::to_string(length) + " bytes at " +
                      std::to_string(begin) + " ends outside the file of " +
                      std::to_string(file_.size()) + " bytes");
    }
    for (std::size_t i = blob_position_; i < begin; ++i) {
      if (file_[i] != std::byte{0}) {
        throw Error(ErrorCode::kBadBlob, op_, tensor_,
                    "padding byte " + std::to_string(i) + " before " + what + " is not 0");
      }
    }
    blob_position_ = begin + length;
    return file_.subspan(begin, length);
  }

  void operator()(const char* name, TensorId& v) { v = number<TensorId>(name); }
  void operator()(const char* name, TensorList& v) {
    v.ids.resize(count(name, sizeof(TensorId)));
    for (TensorId& id : v.ids) id = number<TensorId>(name);
  }
  void operator()(const char* name, std::int64_t& v) { v = number<std::int64_t>(name); }
  void operator()(const char* name, float& v) { v = number<float>(name); }
  void operator()(const char* name, bool& v) {
    const auto byte = number<std::uint8_t>(name);
    if (byte > 1) fail(std::string(name) + " is " + std::to_string(byte) + ", expected 0 or 1");
    v = byte != 0;
  }
  void operator()(const char* name, std::vector<std::int64_t>& v) {
    v.resize(count(name, sizeof(std::int64_t)));
    for (std::int64_t& item : v) item = number<std::int64_t>(name);
  }
  template <class T>
  void operator()(const char* name, BlobOf<T>& v) {
    v.bytes = blob(name);
    if (v.bytes.size() % sizeof(T) != 0) {
      throw Error(ErrorCode::kBadBlob, op_, tensor_,
                  std::string(name) + " has " + std::to_string(v.bytes.size()) +
                      " bytes, not a multiple of " + std::to_string(sizeof(T)));
    }
  }
  template <class E>
    requires std::is_enum_v<E>
  void operator()(const char* name, E& v) {
    const auto byte = number<std::uint8_t>(name);
    if (byte >= EnumNames<E>::kNames.size()) {
      fail(std::string(name) + " is " + std::to_string(byte) + ", expected less than " +
           std::to_string(EnumNames<E>::kNames.size()));
    }
    v = static_cast<E>(byte);
  }

  // What is being read, for messages.
  void set_context(ErrorCode code, std::string op, std::string tensor) {
    code_ = code;
    op_ = std::move(op);
    tensor_ = std::move(tensor);
  }
  [[noreturn]] void fail(const std::string& detail) const {
    throw Error(code_, op_, tensor_, detail);
  }

 private:
  void need(std::size_t bytes, const char* what) const {
    if (remaining() < bytes) fail(std::string(what) + " lies outside the structure section");
  }

  std::span<const std::byte> file_;
  std::size_t position_, end_, blob_position_;
  ErrorCode code_ = ErrorCode::kBadHeader;
  std::string op_, tensor_;
};

Tensor read_tensor(Decoder& d, std::size_t index) {
  Tensor t;
  d.set_context(ErrorCode::kBadTensor, "", "#" + std::to_string(index));
  t.name = d.text("name", kNameRule);
  d.set_context(ErrorCode::kBadTensor, "", t.name);
  const auto dtype = d.number<std::uint8_t>("dtype");
  if (dtype < 1 || dtype > 3)
    d.fail("dtype is " + std::to_string(dtype) + ", expected 1 (f32), 2 (bits) or 3 (i64)");
  t.dtype = static_cast<DType>(dtype);
  d("is_constant", t.is_constant);
  const auto kind = d.number<std::uint8_t>("encoding kind");
  if (kind > 2) d.fail("encoding kind is " + std::to_string(kind) + ", expected 0, 1 or 2");
  t.encoding.kind = static_cast<Encoding::Kind>(kind);
  const auto rank = d.number<std::uint8_t>("rank");
  if (rank > kMaxRank)
    d.fail("rank is " + std::to_string(rank) + ", limit " + std::to_string(kMaxRank));
  t.encoding.lo = d.number<std::int32_t>("lo");
  t.encoding.step = d.number<std::int32_t>("step");
  t.encoding.n_levels = d.number<std::uint32_t>("n_levels");
  t.dims.resize(rank);
  for (std::int64_t& dim : t.dims) dim = d.number<std::int64_t>("dim");
  if (t.is_constant) t.data = d.blob("data");
  return t;
}

Op read_op(Decoder& d, std::size_t index) {
  Op op;
  d.set_context(ErrorCode::kBadOp, "#" + std::to_string(index), "");
  const auto code = d.number<std::uint16_t>("op code");
  if (d.number<std::uint16_t>("reserved") != 0) d.fail("reserved field is not 0");
  const std::size_t length = d.count("record length", 1);
  const std::size_t end = d.position() + length;
  op.name = d.text("name", kNameRule);
  d.set_context(ErrorCode::kBadOp, op.name, "");
  op.origin = d.text("origin", kOriginRule);
  auto made = make_op(code);
  if (!made) d.fail("unknown op code " + std::to_string(code));
  op.op = std::move(*made);
  visit_op(op.op, [&](auto& held) { held.fields(d); });
  if (d.position() != end) {
    d.fail(
        "its record is " + std::to_string(length) +
        " bytes long, its fields end at a distance of " +
        std::to_string(static_cast<std::int64_t>(d.position()) - static_cast<std::int64_t>(end)));
  }
  return op;
}

template <class T>
T get(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

Graph parse(std::span<const std::byte> file) {
  if (file.empty()) throw Error(ErrorCode::kTruncated, "the file is empty");
  if (file.size() < sizeof(kMagic) || std::memcmp(file.data(), kMagic, sizeof(kMagic)) != 0) {
    const bool begins =
        std::memcmp(file.data(), kMagic, std::min(file.size(), sizeof(kMagic))) == 0;
    if (begins)
      throw Error(ErrorCode::kTruncated,
                  "the file ends after " + std::to_string(file.size()) + " bytes");
    throw Error(ErrorCode::kBadMagic, "not a .tacbin: the first 8 bytes are not its magic");
  }
  if (file.size() < kHeaderBytes) {
    throw Error(ErrorCode::kTruncated, "the file has " + std::to_string(file.size()) +
                                           " bytes, its header alone " +
                                           std::to_string(kHeaderBytes));
  }
  const auto version = get<std::uint32_t>(file, 8);
  if (version != kFormatVersion) {
    throw Error(ErrorCode::kBadVersion,
                "format version " + std::to_string(version) + ", this reader knows " +
                    std::to_string(kFormatVersion) +
                    (version > kFormatVersion ? "; a newer tac_engine wrote the file" : ""));
  }
  const auto header_bytes = get<std::uint32_t>(file, 12);
  if (header_bytes != kHeaderBytes) {
    throw Error(ErrorCode::kBadHeader, "header of " + std::to_string(header_bytes) +
                                           " bytes, expected " + std::to_string(kHeaderBytes));
  }
  const auto file_bytes = get<std::uint64_t>(file, kFileBytesOffset);
  if (file_bytes > file.size()) {
    throw Error(ErrorCode::kTruncated, "the file has " + std::to_string(file.size()) +
                                           " bytes, its header says " + std::to_string(file_bytes));
  }
  if (file_bytes < file.size()) {
    throw Error(ErrorCode::kBadHeader,
                std::to_string(file.size() - file_bytes) + " bytes follow the end of the model");
  }
  const std::uint64_t stored = get<std::uint64_t>(file, kChecksumOffset);
  if (checksum(file.subspan(kChecksummedFrom)) != stored) {
    throw Error(ErrorCode::kBadChecksum, "the file was changed or damaged after it was written");
  }
  const auto structure_bytes = get<std::uint64_t>(file, kStructureBytesOffset);
  const auto blob_offset = get<std::uint64_t>(file, kBlobSectionOffset);
  if (structure_bytes > file.size() - kHeaderBytes) {
    throw Error(ErrorCode::kBadHeader, "structure of " + std::to_string(structure_bytes) +
                                           " bytes in a file of " + std::to_string(file.size()));
  }
  const std::size_t structure_end = kHeaderBytes + structure_bytes;
  if (blob_offset != round_up(structure_end, kBlobAlignment) || blob_offset > file.size()) {
    throw Error(ErrorCode::kBadHeader, "blob section at " + std::to_string(blob_offset) +
                                           ", expected " +
                                           std::to_string(round_up(structure_end, kBlobAlignment)));
  }
  const auto zero = [&](std::size_t begin, std::size_t end) {
    return std::all_of(file.begin() + static_cast<std::ptrdiff_t>(begin),
                       file.begin() + static_cast<std::ptrdiff_t>(end),
                       [](std::byte b) { return b == std::byte{0}; });
  };
  if (!zero(48, kHeaderBytes) || !zero(structure_end, blob_offset)) {
    throw Error(ErrorCode::kBadHeader, "a reserved or padding byte is not 0");
  }

  Decoder d(file, structure_end, blob_offset);
  Graph graph;
  d.set_context(ErrorCode::kBadHeader, "", "");
  const std::size_t n_tensors = d.count("number of tensors", 20);
  graph.tensors.reserve(n_tensors);
  for (std::size_t i = 0; i < n_tensors; ++i) graph.tensors.push_back(read_tensor(d, i));
  d.set_context(ErrorCode::kBadHeader, "", "");
  const std::size_t n_ops = d.count("number of ops", 16);
  graph.ops.reserve(n_ops);
  for (std::size_t i = 0; i < n_ops; ++i) graph.ops.push_back(read_op(d, i));
  d.set_context(ErrorCode::kBadHeader, "", "");
  const std::size_t n_inputs = d.count("number of inputs", 16);
  for (std::size_t i = 0; i < n_inputs; ++i) {
    ModelInput& input = graph.inputs.emplace_back();
    input.tensor = d.number<TensorId>("input tensor");
    const auto channels_first = d.number<std::uint32_t>("channels_first");
    if (channels_first > 1)
      d.fail("channels_first is " + std::to_string(channels_first) + ", expected 0 or 1");
    input.preprocess.channels_first = channels_first != 0;
    d("preprocessing table", input.preprocess.lut);
  }
  const std::size_t n_outputs = d.count("number of outputs", 4);
  for (std::size_t i = 0; i < n_outputs; ++i)
    graph.outputs.push_back(d.number<TensorId>("output tensor"));
  graph.metadata = d.text("metadata", kMetadataRule);
  if (d.remaining() != 0) d.fail(std::to_string(d.remaining()) + " bytes follow the structure");
  if (d.blobs_end() != file.size()) {
    throw Error(ErrorCode::kBadBlob, "the blobs end at " + std::to_string(d.blobs_end()) +
                                         ", the file at " + std::to_string(file.size()));
  }
  validate(graph);
  return graph;
}

Error io_error(const std::filesystem::path& path) {
  return {ErrorCode::kIo, "cannot open '" + path.string() + "': " + std::strerror(errno)};
}

// An open file, closed when it goes out of scope.
struct File {
  int descriptor;
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

}  // namespace

LoadedModel load_model(const std::filesystem::path& path) {
  // O_NONBLOCK: a named pipe is refused below instead of waiting for its writer.
  const File file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.descriptor < 0) throw io_error(path);
  struct stat status{};
  if (::fstat(file.descriptor, &status) != 0) throw io_error(path);
  if (S_ISDIR(status.st_mode))
    throw Error(ErrorCode::kIo, "cannot open '" + path.string() + "': it is a directory");
  if (!S_ISREG(status.st_mode))
    throw Error(ErrorCode::kIo, "cannot open '" + path.string() + "': not a regular file");
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) throw Error(ErrorCode::kTruncated, "'" + path.string() + "' is empty");
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.descriptor, 0);
  if (mapped == MAP_FAILED) throw io_error(path);
  LoadedModel model;
  model.storage = std::shared_ptr<const void>(
      mapped, [size](const void* p) { ::munmap(const_cast<void*>(p), size); });
  model.file_bytes = size;
  try {
    model.graph = parse({static_cast<const std::byte*>(mapped), size});
  } catch (const Error& e) {
    throw Error(e.code(), e.op(), e.tensor(), "'" + path.string() + "': " + e.detail());
  }
  return model;
}

LoadedModel load_model_from_memory(std::span<const std::byte> bytes) {
  auto copy = std::make_shared<AlignedBuffer<std::byte>>(bytes.size());
  if (!bytes.empty()) std::memcpy(copy->data(), bytes.data(), bytes.size());
  LoadedModel model;
  model.file_bytes = bytes.size();
  model.graph = parse(copy->view());
  model.storage = std::move(copy);
  return model;
}

}  // namespace tac
