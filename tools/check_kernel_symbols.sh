#!/usr/bin/env bash
# check_kernel_symbols.sh NM BACKEND OBJECT...: a backend's objects define no weak symbol, and every other global one inside
# tac::kernels::BACKEND. A weak one (a template instance, a shared inline function) could become the copy that the linker
# keeps for the whole program, and end CPUs that lack the backend's instructions with SIGILL.
set -euo pipefail
nm=$1 backend=$2
shift 2
(($#)) || { echo "no object of backend $backend" >&2; exit 1; }
symbols=$("$nm" --demangle --defined-only --extern-only "$@" | grep -E '^[0-9a-f]+ ')
[[ $symbols == *" tac::kernels::$backend::table"* ]] || { echo "no table in the objects of $backend" >&2; exit 1; }
if bad=$(grep -vE "^[0-9a-f]+ [A-UX-Z] tac::kernels::$backend::" <<<"$symbols"); then
  printf 'symbols of backend %s that may replace those of others:\n%s\n' "$backend" "$bad" >&2
  exit 1
fi
