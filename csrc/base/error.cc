#include "base/error.h"

namespace tac {

std::string_view error_code_name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kIo: return "io";
    case ErrorCode::kBadMagic: return "bad_magic";
    case ErrorCode::kBadVersion: return "bad_version";
    case ErrorCode::kTruncated: return "truncated";
    case ErrorCode::kBadChecksum: return "bad_checksum";
    case ErrorCode::kBadHeader: return "bad_header";
    case ErrorCode::kBadTensor: return "bad_tensor";
    case ErrorCode::kBadOp: return "bad_op";
    case ErrorCode::kBadBlob: return "bad_blob";
    case ErrorCode::kInvalidModel: return "invalid_model";
    case ErrorCode::kInvalidInput: return "invalid_input";
    case ErrorCode::kInvalidArgument: return "invalid_argument";
    case ErrorCode::kLimit: return "limit";
  }
  return "unknown";
}

Error::Error(ErrorCode code, std::string op, std::string tensor, std::string detail)
    : code_(code), op_(std::move(op)), tensor_(std::move(tensor)), detail_(std::move(detail)) {
  what_ = "[" + std::string(error_code_name(code_)) + "] ";
  if (!op_.empty()) what_ += "op '" + op_ + "'";
  if (!op_.empty() && !tensor_.empty()) what_ += ", ";
  if (!tensor_.empty()) what_ += "tensor '" + tensor_ + "'";
  if (!op_.empty() || !tensor_.empty()) what_ += ": ";
  what_ += detail_;
}

}  // namespace tac
