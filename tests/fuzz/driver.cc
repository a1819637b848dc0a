// Feeds the fuzz target with mutations of a model that uses every op, always the same ones.
//   driver ROUNDS        mutates ROUNDS times
//   driver --seed FILE   writes the model, as the first file of a corpus
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "format/tacbin.h"
#include "format/writer.h"
#include "sample_graphs.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes seed() {
  tac::ModelWriter w;
  tac::test::build_every_op(w);
  const std::vector<std::byte> model = tac::serialize(w.graph);
  Bytes bytes(model.size());
  std::memcpy(bytes.data(), model.data(), model.size());
  return bytes;
}

class Mutator {
 public:
  void mutate(Bytes& bytes) {
    // Half of the edits go where the lengths, counts and fields are.
    const std::size_t structure_end = tac::kHeaderBytes + structure_bytes(bytes);
    const std::size_t end = one_in(2) ? std::min(structure_end, bytes.size()) : bytes.size();
    const std::size_t at = below(end);
    switch (below(6)) {
      case 0: bytes[at] = static_cast<std::uint8_t>(random_()); break;
      case 1: bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ (1U << below(8))); break;
      case 2: bytes[at] = static_cast<std::uint8_t>(bytes[at] + (one_in(2) ? 1 : 255)); break;
      case 3: {
        static constexpr std::uint64_t kEdges[] = {0,
                                                   1,
                                                   2,
                                                   16,
                                                   64,
                                                   0x7FFF,
                                                   0xFFFF,
                                                   0x7FFFFFFF,
                                                   0x80000000,
                                                   0xFFFFFFFF,
                                                   0x7FC00000,
                                                   std::uint64_t{1} << 62,
                                                   0x7FFFFFFFFFFFFFFF,
                                                   0x8000000000000000,
                                                   0xFFFFFFFFFFFFFFFF};
        const std::uint64_t value = kEdges[below(std::size(kEdges))];
        const std::size_t n = std::min<std::size_t>(std::size_t{1} << below(4), bytes.size() - at);
        std::memcpy(bytes.data() + at, &value, n);
        break;
      }
      case 4: {  // a piece from elsewhere
        const std::size_t n = std::min(1 + below(16), bytes.size() - at);
        const std::size_t from = below(bytes.size() - n + 1);
        const Bytes piece(bytes.begin() + static_cast<std::ptrdiff_t>(from),
                          bytes.begin() + static_cast<std::ptrdiff_t>(from + n));
        std::memcpy(bytes.data() + at, piece.data(), n);
        break;
      }
      default:
        if (one_in(4)) bytes.resize(std::max(tac::kHeaderBytes, at));
        break;
    }
  }
  std::size_t below(std::size_t n) { return random_() % n; }
  bool one_in(std::size_t n) { return below(n) == 0; }

 private:
  static std::size_t structure_bytes(const Bytes& bytes) {
    std::uint64_t n;
    std::memcpy(&n, bytes.data() + tac::kStructureBytesOffset, sizeof(n));
    return std::min<std::uint64_t>(n, bytes.size() - tac::kHeaderBytes);
  }

  std::mt19937_64 random_{20240607};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0) {
    const Bytes bytes = seed();
    std::ofstream file(argv[2], std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return file.good() ? 0 : 1;
  }
  const long rounds = argc == 2 ? std::strtol(argv[1], nullptr, 10) : 0;
  if (rounds <= 0) {
    std::fprintf(stderr, "usage: %s ROUNDS | --seed FILE\n", argv[0]);
    return 2;
  }
  const Bytes whole = seed();
  Mutator mutator;
  LLVMFuzzerTestOneInput(whole.data(), whole.size());
  for (long round = 0; round < rounds; ++round) {
    Bytes bytes = whole;
    for (std::size_t edits = 1 + mutator.below(3); edits > 0; --edits) mutator.mutate(bytes);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  return 0;
}
