// Names and field lists of the ops, made from ops.inc and the fields() visitors.
#pragma once

#include <concepts>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ir/ops.h"

namespace tac {

template <class Struct>
struct OpTraits;  // kCode, kName
#define TAC_OP(code, Struct, name)                     \
  template <>                                          \
  struct OpTraits<Struct> {                            \
    static constexpr OpCode kCode = OpCode::k##Struct; \
    static constexpr std::string_view kName = name;    \
  };
#include "ir/ops.inc"
#undef TAC_OP

// "binary_conv"; empty for an Op that holds none.
std::string_view op_kind(const Op& op) noexcept;

// A default-constructed op by name or by code; nullopt if there is none.
std::optional<OpVariant> make_op(std::string_view kind);
std::optional<OpVariant> make_op(std::uint16_t code);

struct FieldSpec {
  std::string_view name;
  std::string_view type;  // "tensor", "tensors", "int", "float", "bool", "ints", "enum", "f32[]",
                          // "i32[]", "u32[]", "u8[]"
};
struct OpSpec {
  std::uint16_t code;
  std::string_view name;
  std::vector<FieldSpec> fields;
};
std::vector<OpSpec> op_specs();

// Type name of a field as FieldSpec::type has it.
template <class T>
constexpr std::string_view field_type_name() {
  if constexpr (std::same_as<T, TensorId>) return "tensor";
  if constexpr (std::same_as<T, TensorList>) return "tensors";
  if constexpr (std::same_as<T, std::int64_t>) return "int";
  if constexpr (std::same_as<T, float>) return "float";
  if constexpr (std::same_as<T, bool>) return "bool";
  if constexpr (std::same_as<T, std::vector<std::int64_t>>) return "ints";
  if constexpr (std::same_as<T, BlobOf<float>>) return "f32[]";
  if constexpr (std::same_as<T, BlobOf<std::int32_t>>) return "i32[]";
  if constexpr (std::same_as<T, BlobOf<std::uint32_t>>) return "u32[]";
  if constexpr (std::same_as<T, BlobOf<std::uint8_t>>) return "u8[]";
  if constexpr (std::is_enum_v<T>) return "enum";
}

// Calls visitor(op struct) for the op that `variant` holds.
template <class Variant, class Visitor>
void visit_op(Variant& variant, Visitor&& visitor) {
  std::visit(
      [&](auto& held) {
        if constexpr (!std::same_as<std::remove_cvref_t<decltype(held)>, std::monostate>)
          visitor(held);
      },
      variant);
}

}  // namespace tac
