// The weights of a codebook layer in integers, in the form that a kernel wants.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "runtime/codebook_layout.h"
#include "runtime/codebook_lists.h"
#include "runtime/step.h"

namespace tac {

class CodebookForm {
 public:
  // Rows of inputs, rounded to 16 bits (kernels/codebook_i16/codebook_i16.h), and what
  // prepare_row() made of them, row_bytes() each.
  struct Inputs {
    const std::int16_t* q;
    std::size_t q_stride;
    const std::byte* prepared;
    std::size_t n;
    const double* units;
  };

  virtual ~CodebookForm() = default;
  // Of the work, along the outputs.
  std::size_t n_items() const noexcept { return n_items_; }
  KernelId kernel_id() const noexcept { return kernel_id_; }
  virtual std::size_t bytes() const noexcept = 0;
  // Of lists beside this form, whose n_entries weights are not zero.
  virtual ListCosts list_costs(std::size_t n_entries) const noexcept = 0;
  // As ReadRows.
  virtual void read_rows(const UseRow& use) const = 0;

  virtual std::size_t row_bytes() const noexcept { return 0; }
  // q has kCodebookWindow inputs of 0 behind the last one.
  virtual void prepare_row(const std::int16_t* /*q*/, std::byte* /*row*/) const noexcept {}
  // Writes y [n][out_features] of an item.
  virtual void multiply(std::size_t item, const Inputs& inputs, const float* bias,
                        float* y) const noexcept = 0;

 protected:
  CodebookForm(KernelId kernel_id, std::size_t n_items)
      : kernel_id_(kernel_id), n_items_(n_items) {}

 private:
  KernelId kernel_id_;
  std::size_t n_items_;
};

// The form for this backend and these weights. `table` has the 16 levels twice, 0 where there is
// none, 64-byte aligned, and has to last.
std::unique_ptr<CodebookForm> make_codebook_form(const CodebookRows& weights,
                                                 std::size_t in_features, std::size_t out_features,
                                                 std::span<const std::int32_t> levels,
                                                 const std::int16_t* table,
                                                 const PrepareContext& ctx);

}  // namespace tac
