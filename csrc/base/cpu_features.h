// What the CPU and the operating system can run.
#pragma once

#include <cstdint>
#include <string>

namespace tac {

using CpuFeatures = std::uint32_t;
enum CpuFeature : CpuFeatures {
  kPopcnt = 1U << 0,
  kAvx2 = 1U << 1,
  kFma = 1U << 2,
  kAvx512F = 1U << 3,
  kAvx512BW = 1U << 4,
  kAvx512DQ = 1U << 5,
  kAvx512VL = 1U << 6,
  kAvx512Vpopcntdq = 1U << 7,
  kAvx512Vnni = 1U << 8,
  kAmxInt8 = 1U << 9,  // and AMX_TILE
};

// Features of this machine whose registers the OS saves (cpuid and xgetbv). 0 on CPUs other than
// x86. Linux hands out the tile registers of AMX on demand: asks it for them, for this process.
CpuFeatures detect_cpu_features() noexcept;

// Marketing name of the CPU, or empty.
std::string cpu_name();

}  // namespace tac
