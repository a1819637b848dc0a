// The extension module tac_engine._core.
#include <pybind11/pybind11.h>

#include "bindings/register_engine.h"
#include "bindings/register_errors.h"
#include "bindings/register_format.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ half of tac_engine; use the package instead.";
  m.attr("__version__") = TAC_VERSION;
  tac::register_errors(m);
  tac::register_format(m);
  tac::register_engine(m);
}
