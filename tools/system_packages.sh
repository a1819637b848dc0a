#!/usr/bin/env bash
# Installs what the build needs from the system and does not have: a C++20 compiler, Python with venv and headers,
# GoogleTest; with the argument "emulators" also the cross compiler, the emulators and the emulated intrinsics of
# `make test-emulated`, with "clang" the compiler whose view of the sources clang-tidy needs, with what fuzzing links.
# Debian and Ubuntu. Where apt-get is missing, names the packages and stops.
set -euo pipefail

PYTHON=${PYTHON:-python3}
CXX=${CXX:-g++}
missing=()

need() { missing+=("$@"); }

can_compile() { # can_compile ARGS...: does standard input compile and link as C++20?
  "$CXX" -std=c++20 -x c++ - -o /dev/null "$@" >/dev/null 2>&1
}

if ! can_compile <<<'#include <span>
constinit int x = 0; int main() { return static_cast<int>(std::span<int>(&x, 1).size()) - 1; }'; then
  if command -v "$CXX" >/dev/null; then
    echo "error: $CXX ($("$CXX" -dumpfullversion -dumpversion)) does not compile C++20;" \
         "g++ 11 or newer is needed: install one and run make CXX=g++-11" >&2
    exit 1
  fi
  need g++
fi

# Only the header and the library are looked for; compiling all of gtest.h would take seconds.
if ! { "$CXX" -std=c++20 -x c++ -E - <<<'#include <gtest/gtest.h>' >/dev/null 2>&1 &&
       can_compile -lgtest <<<'int main() {}'; }; then
  need libgtest-dev
fi

if ! command -v "$PYTHON" >/dev/null; then
  need python3 python3-venv python3-dev
else
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $PYTHON is Python $version; 3.10 or newer is needed: run make PYTHON=python3.11, for example" >&2
    exit 1
  fi
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || need "python$version-venv"
  "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || need "python$version-dev"
fi

if [[ ${1:-} == emulators ]]; then
  command -v qemu-x86_64 >/dev/null && command -v qemu-aarch64 >/dev/null || need qemu-user
  command -v aarch64-linux-gnu-g++ >/dev/null || need g++-aarch64-linux-gnu
  [[ -f /usr/include/simde/x86/avx512.h ]] || need libsimde-dev
  # GoogleTest is cross-compiled from the sources that come with libgtest-dev.
  [[ -f /usr/src/googletest/CMakeLists.txt ]] || need googletest
fi

if [[ ${1:-} == clang ]]; then
  if ! command -v clang++ >/dev/null; then
    need clang
  elif ! CXX=clang++ can_compile -fsanitize=address,fuzzer <<<'#include <cstddef>
extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, std::size_t) { return 0; }'; then
    need libclang-rt-dev  # Debian's clang only recommends the runtime of its sanitizers
  fi
fi

((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "error: missing: ${missing[*]} (Debian's names); apt-get is not there: install them with your system's package manager" >&2
  exit 1
fi
as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "error: missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "installing: ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
# Only a clang that is there tells whether it lacks something.
[[ " ${missing[*]} " != *" clang "* ]] || exec bash "$0" clang
