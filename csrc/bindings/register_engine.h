#pragma once

#include <pybind11/pybind11.h>

namespace tac {

// Engine and backends(). tac_engine/engine.py checks arrays for people; here they are checked
// again, for safety alone.
void register_engine(pybind11::module_& m);

}  // namespace tac
