#!/usr/bin/env bash
# mypy over the package laid out as it is installed: python/tac_engine with converters/ inside it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
layout=build/typecheck
rm -rf "$layout/tac_engine"
mkdir -p "$layout/tac_engine"
ln -s "$PWD"/python/tac_engine/* "$layout/tac_engine/"
ln -s "$PWD/converters" "$layout/tac_engine/converters"
MYPYPATH=$layout "${MYPY:-.venv/bin/mypy}" -p tac_engine
"${MYPY:-.venv/bin/mypy}" --no-namespace-packages tools/check_layering.py
