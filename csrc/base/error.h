// The one exception of the core. Thrown by load, validate, plan and the argument checks of run;
// never by a kernel.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace tac {

enum class ErrorCode : std::uint8_t {
  // The file, found by the reader. Python: FormatError.
  kIo,           // cannot be opened, read, mapped, written or renamed
  kBadMagic,     // not a .tacbin
  kBadVersion,   // written by a newer format
  kTruncated,    // shorter than its own header says
  kBadChecksum,  // bytes changed since they were written
  kBadHeader,    // a header field is impossible (length, offset, count, trailing bytes)
  kBadTensor,    // a tensor table entry is impossible
  kBadOp,        // unknown op code, or a field that does not decode
  kBadBlob,      // a blob outside the file, misaligned, overlapping or of the wrong size
  // The model, found by validate when it is written or loaded. Python: FormatError.
  kInvalidModel,  // an op's fields, shapes and dtypes do not fit together
  // The caller. Python: InvalidInputError.
  kInvalidInput,     // wrong input or output array: name, dtype, shape, layout, NaN
  kInvalidArgument,  // unknown or unrunnable backend, bad thread count
  kLimit,            // memory or size limit exceeded
};

// "kBadMagic" -> "bad_magic"; stable, shown to users and matched by tests.
std::string_view error_code_name(ErrorCode code) noexcept;

class Error : public std::exception {
 public:
  // `op` and `tensor` may be empty. what() is "[code] op 'x', tensor 'y': detail" with the empty
  // parts left out.
  Error(ErrorCode code, std::string op, std::string tensor, std::string detail);
  Error(ErrorCode code, std::string detail) : Error(code, {}, {}, std::move(detail)) {}

  ErrorCode code() const noexcept { return code_; }
  const std::string& op() const noexcept { return op_; }
  const std::string& tensor() const noexcept { return tensor_; }
  const std::string& detail() const noexcept { return detail_; }
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  ErrorCode code_;
  std::string op_, tensor_, detail_, what_;
};

}  // namespace tac
