#pragma once

#include <pybind11/pybind11.h>

namespace tac {

// ModelWriter, inspect, op_specs and pack_bits.
void register_format(pybind11::module_& m);

}  // namespace tac
