"""One Markdown table of several runs: `python -m tac_engine.train.table RUN ...`. Knows no torch.

Runs whose recipes differ by the seed alone share a row: mean accuracy, and the lowest and the highest. Milliseconds are
measured here and now, on the .tacbin of the first of them: one picture, one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench import bench
from ..cli import EXIT_ERROR, number
from ..errors import FormatError, InvalidInputError, TacError
from .recipe import Recipe

CARD, TACBIN = "model_card.json", "model.tacbin"
HEADER = ("network", "seeds", "after step 1", "test accuracy", ".tacbin, kB", "as float32, kB", "ms per picture")
_VARIANTS = {
    "float": "float",
    "binary": "fully binary",
    "step1": "binary convolutions, float FC",
    "tac": "TAC",
}


def markdown_table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def read_card(folder: Path) -> dict[str, Any]:
    """Read the model card of a run.

    Raises:
        FormatError: there is none, or it is not one.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        Recipe.from_json(card["recipe"])
        return card
    except FileNotFoundError:
        raise FormatError(f"{folder}: no {CARD}, so no finished run") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder}: no {CARD} of a finished run: {error}") from error


def runs_table(folders: Sequence[Path], *, seconds: float = 1.0) -> str:
    """Return the table of the runs in `folders`, in the order given; `seconds` is the time to measure each row.

    Raises:
        FormatError: one of them holds no finished run.
        InvalidInputError: two of them are of one recipe, data and seed.
    """
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder in folders:
        card = read_card(folder)
        # A card of before an option was there is one with its default.
        recipe = {**Recipe.from_json(card["recipe"]).to_json(), "seed": None}
        key = json.dumps([card["data"]["sha256"], recipe], sort_keys=True)
        group = groups.setdefault(key, [])
        for other, its_card in group:
            if its_card["recipe"]["seed"] == card["recipe"]["seed"]:
                raise InvalidInputError(f"{other} and {folder} are one run twice: the same recipe, data and seed")
        group.append((folder, card))
    rows = []
    for runs in groups.values():
        folder, card = runs[0]
        measured = bench(folder / TACBIN, batches=[1], threads=[1], seconds=seconds).measurements[0].timing.median_ms
        step1 = [run["stages"][0]["test_accuracy"] for _, run in runs if run["stages"][0]["name"] == "float FC"]
        rows.append(
            (
                _name(card["recipe"], card["data"]["name"]),
                ", ".join(str(run["recipe"]["seed"]) for _, run in runs),
                _spread(step1) if step1 else "",
                _spread([run["tacbin_test_accuracy"] for _, run in runs]),
                f"{card['tacbin_bytes'] / 1000:.1f}",
                f"{card['float32_bytes'] / 1000:.1f}",
                f"{measured:.3g}",
            )
        )
    return markdown_table(HEADER, rows)


def _name(recipe: dict[str, Any], data: str) -> str:
    variant = _VARIANTS[recipe["variant"]] + (" in a single step" if recipe["single_step"] else "")
    width = "" if recipe["width"] == 1 else f" x {recipe['width']:g}"
    return f"{recipe['arch']}{width}, {variant}, {recipe['epochs']} epochs, {data}"


def _spread(percents: Sequence[float]) -> str:
    mean = sum(percents) / len(percents)
    return f"{mean:.2f} %" + (f" ({min(percents):.2f} to {max(percents):.2f})" if len(percents) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run of tac-engine train"
    )
    parser.add_argument("--seconds", type=number, default=1.0, help="time to measure each row (default 1)")
    args = parser.parse_args(argv)
    try:
        print(runs_table(args.runs, seconds=args.seconds))
    except (TacError, OSError) as error:
        print(f"tac-engine: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
