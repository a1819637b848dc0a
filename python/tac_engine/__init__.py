"""Runs low-bit neural networks on CPUs.

    engine = tac_engine.load("vgg9.tacbin")
    logits = engine.run(image)

``convert`` makes a ``.tacbin`` out of an ONNX model.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"tac_engine cannot load its compiled part tac_engine._core ({error}). "
        "It is built when the package is installed: run `pip install .` in the source tree, "
        "and import tac_engine from outside of it."
    ) from error

from .engine import Engine, TensorSpec, backends, load
from .errors import FormatError, InvalidInputError, TacError, UnsupportedModelError
from .profile import Profile

if TYPE_CHECKING:
    from .converters import ConversionReport

__version__: str = _core.__version__

__all__ = [
    "Engine",
    "FormatError",
    "InvalidInputError",
    "Profile",
    "TacError",
    "TensorSpec",
    "UnsupportedModelError",
    "__version__",
    "backends",
    "convert",
    "load",
]


def convert(model: str | os.PathLike[str], output: str | os.PathLike[str], **options: Any) -> ConversionReport:
    """Convert the ONNX file `model` into the .tacbin file `output`.

    Args:
        model: path of the ONNX file.
        output: path of the file to write.
        **options: those of ``tac_engine.converters.convert``.

    Returns:
        What became of every layer; ``print`` it.

    Raises:
        ImportError: the extra ``[convert]`` is not installed.
        FormatError: `model` cannot be read, or `output` not written.
        UnsupportedModelError: the model holds something that cannot be converted.
    """
    try:
        from .converters import convert as convert_model
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == __name__:
            raise
        raise ImportError(f"converting needs the extra: pip install 'tac_engine[convert]' ({error})") from error
    return convert_model(model, output, **options)
