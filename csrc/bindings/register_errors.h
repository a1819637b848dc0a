#pragma once

#include <pybind11/pybind11.h>

namespace tac {

// TacError and its subclasses, and the translation of tac::Error into them.
void register_errors(pybind11::module_& m);

}  // namespace tac
