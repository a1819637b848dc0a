#!/usr/bin/env bash
# The backends that Linux says this CPU runs, for TAC_EXPECT_BACKENDS: a second opinion on csrc/base/cpu_features.cc.
set -euo pipefail
flags=" $(sed -n 's/^flags[^:]*://p;/^flags/q' /proc/cpuinfo 2>/dev/null) "
has() { for flag; do [[ $flags == *" $flag "* ]] || return 1; done; }
avx512bw=(avx2 fma popcnt avx512f avx512bw avx512dq avx512vl)
if has "${avx512bw[@]}" avx512_vnni avx512_vpopcntdq amx_tile amx_int8; then printf 'amx,'; fi
if has "${avx512bw[@]}" avx512_vnni avx512_vpopcntdq; then printf 'avx512,'; fi
if has "${avx512bw[@]}" avx512_vnni; then printf 'avx512vnni,'; fi
if has "${avx512bw[@]}"; then printf 'avx512bw,'; fi
if has avx2 fma popcnt; then printf 'avx2,'; fi
echo scalar
