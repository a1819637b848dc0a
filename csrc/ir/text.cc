#include "ir/text.h"

#include <cstdint>

namespace tac {

namespace {

// Bytes of the well-formed UTF-8 sequence that `text` starts with; 0 if it starts with none.
std::size_t sequence_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t n = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < n) return 0;
  for (std::size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates and what lies beyond U+10FFFF show in the second byte.
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F)) return 0;
  if ((lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) return 0;
  return n;
}

}  // namespace

std::string text_problem(std::string_view text, const TextRule& rule) {
  if (text.size() > rule.max_bytes) {
    return "is " + std::to_string(text.size()) + " bytes long, limit " +
           std::to_string(rule.max_bytes);
  }
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = sequence_bytes(text.substr(i));
    if (n == 0) return "is not UTF-8 at byte " + std::to_string(i);
    const auto c = static_cast<std::uint8_t>(text[i]);
    const bool line = c == '\t' || c == '\n' || c == '\r';
    if ((c < 0x20 && !(rule.lines && line)) || c == 0x7F) {
      return "has the control character " + std::to_string(c) + " at byte " + std::to_string(i);
    }
    i += n;
  }
  return {};
}

}  // namespace tac
