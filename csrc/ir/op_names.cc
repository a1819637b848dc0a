#include "ir/op_names.h"

namespace tac {

namespace {

struct SpecCollector {
  std::vector<FieldSpec>& fields;
  template <class T>
  void operator()(const char* name, T&) {
    fields.push_back({name, field_type_name<T>()});
  }
};

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): an op is never valueless, so the visit cannot throw
std::string_view op_kind(const Op& op) noexcept {
  std::string_view kind;
  visit_op(op.op,
           [&](const auto& held) { kind = OpTraits<std::remove_cvref_t<decltype(held)>>::kName; });
  return kind;
}

std::optional<OpVariant> make_op(std::string_view kind) {
#define TAC_OP(code, Struct, name) \
  if (kind == name) return Struct{};
#include "ir/ops.inc"
#undef TAC_OP
  return std::nullopt;
}

std::optional<OpVariant> make_op(std::uint16_t code) {
  switch (code) {
#define TAC_OP(code, Struct, name) \
  case code: return Struct{};
#include "ir/ops.inc"
#undef TAC_OP
    default: return std::nullopt;
  }
}

std::vector<OpSpec> op_specs() {
  std::vector<OpSpec> specs;
#define TAC_OP(op_code, Struct, op_name)  \
  {                                       \
    OpSpec& spec = specs.emplace_back();  \
    spec.code = op_code;                  \
    spec.name = op_name;                  \
    Struct op;                            \
    SpecCollector collector{spec.fields}; \
    op.fields(collector);                 \
  }
#include "ir/ops.inc"
#undef TAC_OP
  return specs;
}

}  // namespace tac
