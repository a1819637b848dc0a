"""Makes the fixtures of tests/converters/test_fixtures.py with the tools that users export with.

Each fixture is ``tests/data/<producer>/<name>.onnx`` (and external data where the exporter writes them) with
``<name>.npz`` beside it: float32 inputs ``input.0``, ... and the outputs ``output.0``, ... that the original framework
computed for them. Neither tac_engine nor another ONNX engine takes part. Tests need none of the tools.

    python tests/data/generate.py [--list] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import numpy as np
import onnx
import producers
from producers import FIXTURES, Fixture

HERE = Path(__file__).parent
MAX_BYTES = 120_000  # of one fixture, all files together


def load_producers() -> dict[str, str]:
    """Imports every producer module; why each that cannot be is skipped."""
    skipped = {}
    for module in pkgutil.iter_modules(producers.__path__):
        try:
            importlib.import_module(f"producers.{module.name}")
        except ModuleNotFoundError as error:  # noqa: PERF203
            skipped[module.name] = str(error)
    return skipped


def strip_metadata(path: Path) -> None:
    """Removes what exporters note for developers: stack traces with the paths of this machine, half of a small file."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    path.write_bytes(model.SerializeToString())


def write(fixture: Fixture) -> int:
    """Writes the files of a fixture; their size in bytes."""
    folder = HERE / fixture.producer
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{fixture.name}.*"):
        old.unlink()
    recorded = fixture.write(folder / f"{fixture.name}.onnx")
    strip_metadata(folder / f"{fixture.name}.onnx")
    arrays = {f"input.{i}": value for i, value in enumerate(recorded.inputs)}
    arrays |= {f"output.{i}": value for i, value in enumerate(recorded.outputs)}
    for name, value in arrays.items():
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{fixture.producer}/{fixture.name}: {name} is not finite")
    np.savez_compressed(folder / f"{fixture.name}.npz", **arrays)
    size = sum(file.stat().st_size for file in folder.glob(f"{fixture.name}.*"))
    if size > MAX_BYTES:
        raise ValueError(f"{fixture.producer}/{fixture.name} takes {size} bytes, at most {MAX_BYTES} are allowed")
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the fixtures whose tools are installed")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="fixtures, or producers, to make")
    arguments = parser.parse_args()
    skipped = load_producers()
    chosen = FIXTURES
    if arguments.only:
        wanted = set(arguments.only)
        chosen = [item for item in FIXTURES if {item.name, item.producer} & wanted]
        unknown = wanted - {name for item in chosen for name in (item.name, item.producer)}
        if unknown:
            hint = "".join(f"\n  producer {name} is skipped: {why}" for name, why in skipped.items())
            parser.error(f"no such fixture: {', '.join(sorted(unknown))}{hint}")
    for item in chosen:
        label = f"{item.producer}/{item.name}"
        print(label if arguments.list else f"{label}: {write(item)} bytes", flush=True)
    for name, why in skipped.items():
        print(f"producer {name} is skipped: {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
