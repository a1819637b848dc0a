#include "kernels/dispatch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "backends_under_test.h"
#include "base/error.h"

namespace tac::kernels {
namespace {

constexpr CpuFeatures kHaswell = kPopcnt | kAvx2 | kFma;
constexpr CpuFeatures kSkylakeX = kHaswell | kAvx512F | kAvx512BW | kAvx512DQ | kAvx512VL;
constexpr CpuFeatures kCascadeLake = kSkylakeX | kAvx512Vnni;
constexpr CpuFeatures kIceLake = kCascadeLake | kAvx512Vpopcntdq;

#if defined(__x86_64__)
TEST(SelectKernels, PicksTheBestThatThePretendCpuRuns) {
  EXPECT_EQ(select_kernels(kIceLake, "").backend, "avx512");
  EXPECT_EQ(select_kernels(kCascadeLake, "").backend, "avx512vnni");
  EXPECT_EQ(select_kernels(kSkylakeX, "").backend, "avx512bw");
  EXPECT_EQ(select_kernels(kSkylakeX & ~kAvx512BW, "").backend, "avx2");
  EXPECT_EQ(select_kernels(kHaswell, "").backend, "avx2");
  EXPECT_EQ(select_kernels(kHaswell & ~kFma, "").backend, "scalar");
}

TEST(SelectKernels, RefusesABackendThatCannotRun) {
  try {
    select_kernels(kHaswell, "avx512");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(e.detail().find("avx512"), std::string::npos);
  }
}
#endif

TEST(SelectKernels, ForcedScalarUsesNothingElse) {
  const Selection selection = select_kernels(kIceLake, "scalar");
  EXPECT_EQ(selection.backend, "scalar");
  EXPECT_TRUE(
      std::ranges::all_of(selection.kernel_backend, [](auto name) { return name == "scalar"; }));
}

TEST(SelectKernels, RefusesAnUnknownName) {
  EXPECT_THROW(select_kernels(0, "sse9"), Error);
}

TEST(SelectKernels, ScalarFillsEverySlot) {
  const Selection selection = select_kernels(0, "");
  EXPECT_EQ(selection.backend, "scalar");
#define TAC_KERNEL(name) EXPECT_NE(selection.kernels.name, nullptr) << #name;
#include "kernels/kernels.def"
#undef TAC_KERNEL
}

// What one backend packs, another one cannot read.
TEST(Backends, HaveBinaryConvolutionsAndTheirPackerOrNone) {
  for (const BackendInfo& b : backends()) {
    if (b.table == nullptr) continue;
    EXPECT_EQ(b.table->bconv_b1_i32 == nullptr, b.table->bconv_b1_pack == nullptr) << b.name;
    EXPECT_EQ(b.table->bconv_b1_bits == nullptr, b.table->bconv_b1_pack == nullptr) << b.name;
  }
}

// CI names the backends that its machine must have tested: TAC_EXPECT_BACKENDS="avx2,scalar".
TEST(Backends, ThoseExpectedAreRunnable) {
  const char* expected = std::getenv("TAC_EXPECT_BACKENDS");
  if (expected == nullptr) return;
  std::stringstream list(expected);
  const auto runnable = test::backends_under_test();
  for (std::string name; std::getline(list, name, ',');) {
    EXPECT_TRUE(std::ranges::any_of(runnable, [&](const auto& b) { return b.name == name; }))
        << name;
  }
}

}  // namespace
}  // namespace tac::kernels
