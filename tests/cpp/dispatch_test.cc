#include "kernels/dispatch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <sstream>
#include <string_view>

#include "backends_under_test.h"
#include "base/error.h"

namespace tac::kernels {
namespace {

constexpr CpuFeatures kHaswell = kPopcnt | kAvx2 | kFma;
constexpr CpuFeatures kSkylakeX = kHaswell | kAvx512F | kAvx512BW | kAvx512DQ | kAvx512VL;
constexpr CpuFeatures kCascadeLake = kSkylakeX | kAvx512Vnni;
constexpr CpuFeatures kIceLake = kCascadeLake | kAvx512Vpopcntdq;
constexpr CpuFeatures kSapphireRapids = kIceLake | kAmxInt8;

#if defined(__x86_64__)
TEST(SelectKernels, PicksTheBestThatThePretendCpuRuns) {
  EXPECT_EQ(select_kernels(kSapphireRapids, "").backend, "amx");
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
    const bool strips = b.table->bconv_strip_pack != nullptr;
    EXPECT_EQ(b.table->bconv_strip_i32 != nullptr, strips) << b.name;
    EXPECT_EQ(b.table->bconv_strip_bits != nullptr, strips) << b.name;
    EXPECT_EQ(b.table->bconv_strip_scratch != nullptr, strips) << b.name;
  }
}

// What a backend leaves out is served by the next one down and its tests are skipped, so it is
// named here.
TEST(Backends, LeaveOutWhatTheyAreMeantTo) {
  using Names = std::set<std::string_view>;
  const auto slots = [](const KernelTable& table, bool filled) {
    Names names;
#define TAC_KERNEL(kernel) \
  if ((table.kernel != nullptr) == filled) names.insert(#kernel);
#include "kernels/kernels.def"
#undef TAC_KERNEL
    return names;
  };
  for (const BackendInfo& b : backends()) {
    if (b.table == nullptr) continue;
    if (b.name == "amx") {
      EXPECT_EQ(slots(*b.table, true), (Names{"bconv_strip_pack", "bconv_strip_scratch",
                                              "bconv_strip_i32", "bconv_strip_bits"}));
    } else if (b.name == "avx512") {
      EXPECT_EQ(slots(*b.table, true), (Names{"bconv_b1_pack", "bconv_b1_i32", "bconv_b1_bits"}));
    } else if (b.name == "avx512vnni") {
      EXPECT_EQ(slots(*b.table, true),
                (Names{"codebook_linear_i16_sliced", "codebook_sparse_i16", "conv_i16"}));
    } else if (b.name == "avx512bw") {
      EXPECT_EQ(slots(*b.table, false),
                (Names{"bit_pool_bits", "codebook_linear_i16", "codebook_linear_i16_bytes",
                       "split_i16_u8", "bconv_strip_bits", "bconv_strip_i32", "bconv_strip_pack",
                       "bconv_strip_scratch"}));
    } else if (b.name == "avx2") {
      EXPECT_EQ(slots(*b.table, false),
                (Names{"codebook_linear_i16_sliced", "bconv_strip_bits", "bconv_strip_i32",
                       "bconv_strip_pack", "bconv_strip_scratch"}));
    } else {
      EXPECT_EQ(slots(*b.table, false), Names{}) << b.name;
    }
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
