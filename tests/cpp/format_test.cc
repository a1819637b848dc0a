#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/error.h"
#include "format/reader.h"
#include "format/tacbin.h"
#include "format/writer.h"
#include "ir/op_names.h"
#include "ir/text.h"
#include "sample_graphs.h"

namespace tac {
namespace {

using Bytes = std::vector<std::byte>;
namespace fs = std::filesystem;

Bytes sample() {
  ModelWriter w;
  test::build_every_op(w);
  return serialize(w.graph);
}

template <class T>
void put(Bytes& bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

// Makes the checksum right again after an edit, so that the checks behind it are reached.
Bytes sealed(Bytes bytes) {
  put(bytes, kChecksumOffset, checksum(std::span(bytes).subspan(kChecksummedFrom)));
  return bytes;
}

ErrorCode code_of(const Bytes& bytes) {
  try {
    load_model_from_memory(bytes);
  } catch (const Error& e) {
    EXPECT_FALSE(e.detail().empty());
    return e.code();
  }
  ADD_FAILURE() << "loaded";
  return ErrorCode::kIo;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "tacXXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Every field of every op as text, blobs by their bytes.
struct Dump {
  std::string text;
  void operator()(const char* name, TensorId& v) { add(name, std::to_string(v)); }
  void operator()(const char* name, TensorList& v) {
    for (TensorId id : v.ids) add(name, std::to_string(id));
  }
  void operator()(const char* name, std::int64_t& v) { add(name, std::to_string(v)); }
  void operator()(const char* name, float& v) { add(name, std::to_string(v)); }
  void operator()(const char* name, bool& v) { add(name, v ? "true" : "false"); }
  void operator()(const char* name, std::vector<std::int64_t>& v) {
    for (std::int64_t item : v) add(name, std::to_string(item));
  }
  template <class T>
  void operator()(const char* name, BlobOf<T>& v) {
    add(name, std::string(reinterpret_cast<const char*>(v.bytes.data()), v.bytes.size()));
  }
  template <class E>
    requires std::is_enum_v<E>
  void operator()(const char* name, E& v) {
    add(name, std::to_string(static_cast<int>(v)));
  }
  void add(const char* name, const std::string& value) {
    text += std::string(name) + "=" + value + ";";
  }
};

std::string dump(const Graph& graph) {
  Dump d;
  for (const Tensor& t : graph.tensors) {
    d.text += t.name + "/" + std::to_string(static_cast<int>(t.dtype)) + "/" +
              std::to_string(t.encoding.lo) + "/" + std::to_string(t.encoding.step) + "/" +
              std::to_string(t.encoding.n_levels) + "/";
    for (std::int64_t dim : t.dims) d.text += std::to_string(dim) + ",";
    d.text += std::string(reinterpret_cast<const char*>(t.data.data()), t.data.size());
  }
  for (const Op& op : graph.ops) {
    d.text += std::string(op_kind(op)) + op.name + op.origin;
    OpVariant copy = op.op;
    visit_op(copy, [&](auto& held) { held.fields(d); });
  }
  for (const ModelInput& in : graph.inputs) {
    d.add("input", std::to_string(in.tensor) + (in.preprocess.channels_first ? "c" : "l"));
    d.add("lut", std::string(reinterpret_cast<const char*>(in.preprocess.lut.bytes.data()),
                             in.preprocess.lut.bytes.size()));
  }
  for (TensorId id : graph.outputs) d.add("output", std::to_string(id));
  return d.text + graph.metadata;
}

TEST(Format, RoundTripKeepsEveryFieldOfEveryOp) {
  ModelWriter w;
  test::build_every_op(w);
  std::vector<bool> used(64, false);
  for (const Op& op : w.graph.ops) {
    OpVariant copy = op.op;
    visit_op(copy, [&](auto& held) {
      used[static_cast<std::size_t>(OpTraits<std::remove_cvref_t<decltype(held)>>::kCode)] = true;
    });
  }
  for (const OpSpec& spec : op_specs())
    EXPECT_TRUE(used[spec.code]) << spec.name << " is not in the sample";
  const LoadedModel model = load_model_from_memory(serialize(w.graph));
  EXPECT_EQ(dump(model.graph), dump(w.graph));
}

TEST(Format, BlobsAreAligned) {
  const LoadedModel model = load_model_from_memory(sample());
  for (const Op& op : model.graph.ops) {
    if (const auto* conv = std::get_if<BinaryConv>(&op.op)) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(conv->weights.data()) % kBlobAlignment, 0U);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(conv->thresholds.data()) % kBlobAlignment, 0U);
    }
  }
}

TEST(Format, TruncationAtEveryByteIsAnError) {
  const Bytes whole = sample();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    EXPECT_EQ(code_of(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n))),
              ErrorCode::kTruncated)
        << n;
  }
}

TEST(Format, EveryFlippedByteIsAnError) {
  const Bytes whole = sample();
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const std::byte mask : {std::byte{0x01}, std::byte{0x80}, std::byte{0xFF}}) {
      Bytes bad = whole;
      bad[i] ^= mask;
      EXPECT_THROW(load_model_from_memory(bad), Error) << i;
    }
  }
}

// With the checksum made right again, a changed file is either refused or a valid model; it never
// crashes the reader.
TEST(Format, ChangedAndResealedBytesNeverCrash) {
  const Bytes whole = sample();
  std::mt19937 random(7);
  std::size_t refused = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes bad = whole;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int e = 0; e < edits; ++e) {
      const std::size_t at = kChecksummedFrom + random() % (bad.size() - kChecksummedFrom);
      if (random() % 2 == 0 || at + 8 > bad.size()) {
        bad[at] = static_cast<std::byte>(random());
      } else {
        static constexpr std::uint64_t kNasty[] = {
            0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF};
        put(bad, at, kNasty[random() % 6]);
      }
    }
    try {
      load_model_from_memory(sealed(bad));
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 10000U);
}

TEST(Format, OneLiteralBadFilePerCode) {
  const Bytes good = sample();
  Bytes bad = good;
  bad[0] = std::byte{'X'};
  EXPECT_EQ(code_of(bad), ErrorCode::kBadMagic);
  bad = good;
  put(bad, 8, kFormatVersion + 1);
  EXPECT_EQ(code_of(bad), ErrorCode::kBadVersion);
  EXPECT_EQ(code_of({}), ErrorCode::kTruncated);
  bad = good;
  bad.back() ^= std::byte{1};
  EXPECT_EQ(code_of(bad), ErrorCode::kBadChecksum);
  bad = good;
  put(bad, 12, std::uint32_t{65});
  EXPECT_EQ(code_of(bad), ErrorCode::kBadHeader);
  bad = good;
  bad.push_back(std::byte{0});
  EXPECT_EQ(code_of(bad), ErrorCode::kBadHeader);  // trailing byte
  bad = good;
  put(bad, 32, std::uint64_t{1} << 63);
  EXPECT_EQ(code_of(sealed(bad)), ErrorCode::kBadHeader);  // size near 2^63
  bad = good;
  put(bad, 64, std::uint32_t{0xFFFFFFFF});
  EXPECT_EQ(code_of(sealed(bad)), ErrorCode::kBadHeader);  // more tensors than bytes
  bad = good;
  bad[64 + 4 + 4 + 1] = std::byte{9};  // dtype of the tensor "x"
  EXPECT_EQ(code_of(sealed(bad)), ErrorCode::kBadTensor);
  bad = good;
  put(bad, 64 + 4 + 4 + 1 + 4 + 12, std::int64_t{0x7FFFFFFFFFFFFFFF});  // its first dim
  EXPECT_EQ(code_of(sealed(bad)), ErrorCode::kInvalidModel);
  EXPECT_THROW(load_model("/nonexistent/model.tacbin"), Error);
}

TEST(Format, ANewerVersionSaysSo) {
  Bytes newer = sample();
  put(newer, 8, kFormatVersion + 1);
  try {
    load_model_from_memory(newer);
    FAIL() << "loaded";
  } catch (const Error& e) {
    EXPECT_EQ(e.detail(),
              "format version 2, this reader knows 1; a newer tac_engine wrote the file");
  }
}

TEST(Format, NamesAreText) {
  const auto with_name = [](char c) {  // "x" of the sample
    Bytes bytes = sample();
    bytes[kHeaderBytes + 4 + 4] = static_cast<std::byte>(c);
    return sealed(bytes);
  };
  EXPECT_NO_THROW(load_model_from_memory(with_name('z')));
  for (const char c : {'\0', '\n', '\x1F', '\x7F', '\x80', '\xC3', '\xFF'}) {
    EXPECT_EQ(code_of(with_name(c)), ErrorCode::kBadTensor) << static_cast<int>(c);
  }
}

TEST(TextRule, TakesUtf8Alone) {
  for (const char* good :
       {"", "conv/1", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_EQ(text_problem(good, kNameRule), "") << good;
  }
  // Stray continuation, overlong forms, cut sequences, a surrogate, beyond U+10FFFF.
  for (const char* bad :
       {"\x80", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xC3", "\xE2\x82",
        "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x28\xA1"}) {
    EXPECT_EQ(text_problem(bad, kNameRule), "is not UTF-8 at byte 0");
  }
  EXPECT_EQ(text_problem("a\tb\r\n", kOriginRule), "");
  EXPECT_NE(text_problem("a\tb", kNameRule), "");
  EXPECT_NE(text_problem("\x1B[2J", kOriginRule), "");
}

// No changed bit, no swap of two words beside each other and no zero at the end goes unseen.
TEST(Checksum, NoticesBitsSwapsAndLength) {
  Bytes bytes(200);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37);
  const std::uint64_t whole = checksum(bytes);
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    EXPECT_NE(checksum(bytes), whole) << bit;
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
  for (std::size_t at = 0; at + 16 <= bytes.size(); at += 8) {
    Bytes swapped = bytes;
    std::swap_ranges(swapped.begin() + static_cast<std::ptrdiff_t>(at),
                     swapped.begin() + static_cast<std::ptrdiff_t>(at) + 8,
                     swapped.begin() + static_cast<std::ptrdiff_t>(at) + 8);
    EXPECT_NE(checksum(swapped), whole) << at;
  }
  const Bytes zeros(64);
  EXPECT_NE(checksum(zeros), checksum(Bytes(72)));
  EXPECT_NE(checksum(zeros), checksum(Bytes(63)));
  // Part of the format: files written before a change must stay readable.
  EXPECT_EQ(whole, 10345169349677886989U);
}

TEST(Format, UnknownOpAndBlobOutsideTheFile) {
  ModelWriter w;
  Graph& g = w.graph;
  const TensorId x = test::add_tensor(g, "x", DType::kF32, {4});
  const TensorId y = test::add_tensor(g, "y", DType::kF32, {4});
  g.inputs.push_back({x, {}});
  g.outputs = {y};
  g.ops.push_back({"the_op", "",
                   Affine{x, y, test::filled<float>(w, 4, 1.0F), test::filled<float>(w, 4, 0.0F)}});
  const Bytes good = serialize(g);
  const std::string name = "the_op";
  const auto found =
      std::search(good.begin(), good.end(), reinterpret_cast<const std::byte*>(name.data()),
                  reinterpret_cast<const std::byte*>(name.data() + name.size()));
  const std::size_t at = static_cast<std::size_t>(found - good.begin());
  Bytes bad = good;
  put(bad, at - 12, std::uint16_t{999});  // the code stands 12 bytes before the name
  EXPECT_EQ(code_of(sealed(bad)), ErrorCode::kBadOp);
  bad = good;
  put(bad, at + name.size() + 4 + 8,
      std::uint64_t{0x7FFFFFFFFFFFFFF0});  // length of the scale blob
  EXPECT_EQ(code_of(sealed(bad)), ErrorCode::kBadBlob);
}

TEST(Format, FilesystemErrorsAreSentences) {
  const TemporaryFolder folder;
  const auto message = [](const fs::path& path) {
    try {
      load_model(path);
    } catch (const Error& e) {
      return e.detail();
    }
    return std::string();
  };
  EXPECT_NE(message(folder.path() / "none").find("No such file"), std::string::npos);
  EXPECT_NE(message(folder.path()).find("is a directory"), std::string::npos);
  std::ofstream(folder.path() / "empty").close();
  EXPECT_NE(message(folder.path() / "empty").find("is empty"), std::string::npos);
  // Opening a pipe must not wait for a writer.
  ASSERT_EQ(::mkfifo((folder.path() / "pipe").c_str(), 0600), 0);
  EXPECT_NE(message(folder.path() / "pipe").find("not a regular file"), std::string::npos);
}

TEST(Format, SaveReplacesInOneStepAndLeavesNothingBehind) {
  const TemporaryFolder folder;
  ModelWriter w;
  test::build_every_op(w);
  const fs::path path = folder.path() / "model.tacbin";
  w.save(path);
  w.save(path);
  EXPECT_EQ(dump(load_model(path).graph), dump(w.graph));
  fs::create_directory(folder.path() / "taken");  // the last step, the rename, fails
  EXPECT_THROW(w.save(folder.path() / "taken"), Error);
  EXPECT_TRUE(fs::is_empty(folder.path() / "taken"));
  fs::remove(folder.path() / "taken");
  w.graph.outputs.clear();  // invalid now
  EXPECT_THROW(w.save(path), Error);
  EXPECT_THROW(w.save(folder.path() / "no" / "such" / "folder.tacbin"), Error);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
  EXPECT_NO_THROW(load_model(path));
}

TEST(Format, LowBitWeightsTakeTheirBits) {
  constexpr std::int64_t kIn = 1024, kOut = 256, kWeights = kIn * kOut;
  // Header, structure, padding, and per output a scale and a bias.
  constexpr std::size_t kRest = 1024 + kOut * 8;
  const auto with_layer = [](auto&& add_layer) {
    ModelWriter w;
    Graph& g = w.graph;
    const TensorId x = test::add_tensor(g, "x", DType::kF32, {kIn});
    const TensorId y = test::add_tensor(g, "y", DType::kF32, {kOut});
    g.inputs.push_back({x, {}});
    g.outputs = {y};
    add_layer(w, x, y);
    return serialize(g).size();
  };
  const std::size_t binary = with_layer([](ModelWriter& w, TensorId x, TensorId y) {
    const TensorId b = test::add_tensor(w.graph, "b", DType::kBits, {kIn}, test::kBinary);
    w.graph.ops.push_back({"sign", "", Quantize{x, b, test::filled<float>(w, 1, 0.0F), {}}});
    BinaryConv conv;
    conv.input = b;
    conv.output = y;
    conv.weights = test::filled<std::uint32_t>(w, kWeights / 32, 0x5A5A5A5AU);
    conv.scale = test::filled<float>(w, kOut, 1.0F);
    conv.bias = test::filled<float>(w, kOut, 0.0F);
    w.graph.ops.push_back({"linear", "", conv});
  });
  EXPECT_LE(binary, kWeights / 8 + kRest);
  const std::size_t codebook = with_layer([](ModelWriter& w, TensorId x, TensorId y) {
    CodebookLinear book;
    book.input = x;
    book.output = y;
    book.codebook = test::filled<float>(w, 16, 0.5F);
    book.bitmap = test::filled<std::uint32_t>(w, kWeights / 32, 0x11111111U);  // 75 % zeros
    book.codes = test::filled<std::uint8_t>(w, kWeights / 4 / 2, 0xE7);
    book.bias = test::filled<float>(w, kOut, 0.0F);
    w.graph.ops.push_back({"linear", "", book});
  });
  EXPECT_LE(static_cast<double>(codebook) * 8, 2.1 * kWeights);
}

}  // namespace
}  // namespace tac
