// What names and free text of a model may hold, so that they can be printed and handed to Python as
// they are.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace tac {

struct TextRule {
  std::size_t max_bytes;
  bool lines;  // tab, line feed and carriage return are allowed
};
inline constexpr TextRule kNameRule{4096, false};                   // tensors and ops
inline constexpr TextRule kOriginRule{std::size_t{1} << 20, true};  // Op::origin
inline constexpr TextRule kMetadataRule{std::size_t{1} << 28, true};

// What is wrong with `text` ("is 5000 bytes long, limit 4096"); empty if it is UTF-8 without
// control characters.
std::string text_problem(std::string_view text, const TextRule& rule);

}  // namespace tac
