#include "base/cpu_features.h"

#include <array>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tac {

#if defined(__x86_64__) || defined(__i386__)

namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) noexcept {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}

std::uint64_t xgetbv0() noexcept {
  unsigned low = 0;
  unsigned high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Whether this process may use tile registers. The permission is for all its threads and for good.
bool may_use_tiles() noexcept {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, since Linux 5.16
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

CpuFeatures detect_cpu_features() noexcept {
  const Registers leaf1 = cpuid(1);
  const Registers leaf7 = cpuid(7);
  const bool os_saves_extended = (leaf1.c >> 27 & 1U) != 0;  // OSXSAVE
  const std::uint64_t saved = os_saves_extended ? xgetbv0() : 0;
  const bool ymm = (saved & 0x6U) == 0x6U;    // XMM and upper YMM halves
  const bool zmm = (saved & 0xE6U) == 0xE6U;  // and opmask, upper ZMM halves, ZMM16-31
  const bool tiles = (saved & 0x60000U) == 0x60000U;  // tile configuration and data
  CpuFeatures features = 0;
  const auto add = [&](bool os, unsigned reg, unsigned bit, CpuFeature feature) {
    if (os && (reg >> bit & 1U) != 0) features |= feature;
  };
  add(true, leaf1.c, 23, kPopcnt);
  add(ymm, leaf7.b, 5, kAvx2);
  add(ymm, leaf1.c, 12, kFma);
  add(zmm, leaf7.b, 16, kAvx512F);
  add(zmm, leaf7.b, 17, kAvx512DQ);
  add(zmm, leaf7.b, 30, kAvx512BW);
  add(zmm, leaf7.b, 31, kAvx512VL);
  add(zmm, leaf7.c, 14, kAvx512Vpopcntdq);
  add(zmm, leaf7.c, 11, kAvx512Vnni);
  const bool has_tiles = (leaf7.d >> 24 & leaf7.d >> 25 & 1U) != 0;  // AMX_TILE, AMX_INT8
  if (tiles && has_tiles && may_use_tiles()) features |= kAmxInt8;
#ifdef TAC_EMULATE_AVX512  // AVX-512 backends need no more than avx2 does
  if ((features & kAvx2) != 0) {
    features |= kAvx512F | kAvx512DQ | kAvx512BW | kAvx512VL | kAvx512Vpopcntdq | kAvx512Vnni;
    features |= kAmxInt8;
  }
#endif
  return features;
}

std::string cpu_name() {
  std::array<char, 49> name{};
  for (unsigned i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002U + i);
    std::memcpy(name.data() + 16 * i, &r, 16);
  }
  std::string text(name.data());
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

#else

CpuFeatures detect_cpu_features() noexcept {
  return 0;
}
std::string cpu_name() {
  return {};
}

#endif

}  // namespace tac
