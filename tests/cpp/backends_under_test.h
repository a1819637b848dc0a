// The backends that a kernel test runs on, and the proof that none was skipped by accident.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "kernels/dispatch.h"

namespace tac::test {

// Backends compiled and runnable here, best first.
inline std::vector<kernels::BackendInfo> backends_under_test() {
  std::vector<kernels::BackendInfo> runnable;
  for (const kernels::BackendInfo& b : kernels::backends()) {
    if (b.table != nullptr && (b.required & ~detect_cpu_features()) == 0) runnable.push_back(b);
  }
  return runnable;
}

// Test parameter of a kernel suite: INSTANTIATE_TEST_SUITE_P(All, MyKernel,
// testing::ValuesIn(backends_under_test()), backend_test_name);
inline std::string backend_test_name(const testing::TestParamInfo<kernels::BackendInfo>& info) {
  return std::string(info.param.name);
}

}  // namespace tac::test
