#include "format/writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "format/tacbin.h"
#include "ir/op_names.h"

namespace tac {

namespace {

class Encoder {
 public:
  template <class T>
    requires std::is_arithmetic_v<T>
  void number(T value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof(T));
  }
  void text(const std::string& value) {
    number(static_cast<std::uint32_t>(value.size()));
    const auto* bytes = reinterpret_cast<const std::byte*>(value.data());
    out_.insert(out_.end(), bytes, bytes + value.size());
  }
  void blob(Blob value) {
    number(static_cast<std::uint64_t>(value.size()));
    if (!value.empty()) blobs_.push_back(value);
  }

  // One overload per field type of ops.h.
  void operator()(const char*, TensorId& v) { number(v); }
  void operator()(const char*, TensorList& v) {
    number(static_cast<std::uint32_t>(v.ids.size()));
    for (const TensorId id : v.ids) number(id);
  }
  void operator()(const char*, std::int64_t& v) { number(v); }
  void operator()(const char*, float& v) { number(v); }
  void operator()(const char*, bool& v) { number(static_cast<std::uint8_t>(v)); }
  void operator()(const char*, std::vector<std::int64_t>& v) {
    number(static_cast<std::uint32_t>(v.size()));
    for (const std::int64_t item : v) number(item);
  }
  template <class T>
  void operator()(const char*, BlobOf<T>& v) {
    blob(v.bytes);
  }
  template <class E>
    requires std::is_enum_v<E>
  void operator()(const char*, E& v) {
    number(static_cast<std::uint8_t>(v));
  }

  std::vector<std::byte>& bytes() { return out_; }
  const std::vector<Blob>& blobs() const { return blobs_; }

 private:
  std::vector<std::byte> out_;
  std::vector<Blob> blobs_;
};

template <class T>
void put(std::vector<std::byte>& bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

void encode_structure(Encoder& e, const Graph& graph) {
  e.number(static_cast<std::uint32_t>(graph.tensors.size()));
  for (const Tensor& t : graph.tensors) {
    e.text(t.name);
    e.number(static_cast<std::uint8_t>(t.dtype));
    e.number(static_cast<std::uint8_t>(t.is_constant));
    e.number(static_cast<std::uint8_t>(t.encoding.kind));
    e.number(static_cast<std::uint8_t>(t.dims.size()));
    e.number(t.encoding.lo);
    e.number(t.encoding.step);
    e.number(t.encoding.n_levels);
    for (const std::int64_t dim : t.dims) e.number(dim);
    if (t.is_constant) e.blob(t.data);
  }
  e.number(static_cast<std::uint32_t>(graph.ops.size()));
  for (const Op& op : graph.ops) {
    OpVariant copy = op.op;  // visitors take fields by reference; blobs are views, so this is cheap
    visit_op(copy, [&](auto& held) {
      e.number(static_cast<std::uint16_t>(OpTraits<std::remove_cvref_t<decltype(held)>>::kCode));
      e.number(std::uint16_t{0});
      const std::size_t length_at = e.bytes().size();
      e.number(std::uint32_t{0});
      e.text(op.name);
      e.text(op.origin);
      held.fields(e);
      put(e.bytes(), length_at, static_cast<std::uint32_t>(e.bytes().size() - length_at - 4));
    });
  }
  e.number(static_cast<std::uint32_t>(graph.inputs.size()));
  for (const ModelInput& input : graph.inputs) {
    e.number(input.tensor);
    e.number(static_cast<std::uint32_t>(input.preprocess.channels_first));
    e.blob(input.preprocess.lut.bytes);
  }
  e.number(static_cast<std::uint32_t>(graph.outputs.size()));
  for (const TensorId id : graph.outputs) e.number(id);
  e.text(graph.metadata);
}

}  // namespace

std::vector<std::byte> serialize(const Graph& graph) {
  validate(graph);
  Encoder encoder;
  encoder.bytes().resize(kHeaderBytes);
  encode_structure(encoder, graph);
  const std::size_t structure_bytes = encoder.bytes().size() - kHeaderBytes;
  std::vector<std::byte> bytes = std::move(encoder.bytes());
  const std::size_t blob_offset = round_up(bytes.size(), kBlobAlignment);
  std::size_t file_bytes = blob_offset;
  for (const Blob blob : encoder.blobs())
    file_bytes = round_up(file_bytes, kBlobAlignment) + blob.size();
  bytes.reserve(file_bytes);
  bytes.resize(blob_offset);
  for (const Blob blob : encoder.blobs()) {
    bytes.resize(round_up(bytes.size(), kBlobAlignment));
    bytes.insert(bytes.end(), blob.begin(), blob.end());
  }
  std::memcpy(bytes.data(), kMagic, sizeof(kMagic));
  put(bytes, 8, kFormatVersion);
  put(bytes, 12, static_cast<std::uint32_t>(kHeaderBytes));
  put(bytes, kFileBytesOffset, static_cast<std::uint64_t>(bytes.size()));
  put(bytes, kStructureBytesOffset, static_cast<std::uint64_t>(structure_bytes));
  put(bytes, kBlobSectionOffset, static_cast<std::uint64_t>(blob_offset));
  put(bytes, kChecksumOffset, checksum(std::span(bytes).subspan(kChecksummedFrom)));
  return bytes;
}

Blob ModelWriter::own(std::span<const std::byte> bytes) {
  if (bytes.empty()) return {};
  AlignedBuffer<std::byte>& buffer = blobs_.emplace_back(bytes.size());
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer.view();
}

void ModelWriter::save(const std::filesystem::path& path) const {
  const std::vector<std::byte> bytes = serialize(graph);
  std::string problem;
  const auto check = [&](bool ok) {
    if (!ok && problem.empty()) problem = std::strerror(errno);
    return ok;
  };
  // A name of its own beside `path`, so that the rename stays within one file system.
  std::string temporary;
  int file = -1;
  for (int attempt = 0; file < 0 && attempt < 100; ++attempt) {
    temporary =
        path.string() + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0 && errno != EEXIST) break;
  }
  if (!check(file >= 0))
    throw Error(ErrorCode::kIo, "cannot write '" + path.string() + "': " + problem);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(file, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (!check(n > 0)) break;
    done += static_cast<std::size_t>(n);
  }
  if (problem.empty()) check(::fsync(file) == 0);
  check(::close(file) == 0);
  if (problem.empty()) check(::rename(temporary.c_str(), path.c_str()) == 0);
  if (!problem.empty()) {
    ::unlink(temporary.c_str());
    throw Error(ErrorCode::kIo, "cannot write '" + path.string() + "': " + problem);
  }
}

}  // namespace tac
