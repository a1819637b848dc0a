"""Makes the Markdown tables and the plots of a JSON file of bench_models.py: `python report.py RESULTS.json OUTDIR`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from networks import (
    BINARY_CHAINS,
    CHAIN,
    CODEBOOK_BATCHES,
    CODEBOOKS,
    FLOAT_CHAINS,
    LINEARS,
    STEMS,
    chain_name,
    linear_name,
    stem_name,
)

OURS = "tac_engine"
FLOAT = "onnxruntime float32"
COLOURS = {
    "tac_engine": "#c0392b",
    "tac_engine avx2": "#e59866",
    "tac_engine i16": "#f0b27a",
    "onnxruntime float32": "#1f618d",
    "onnxruntime int8": "#7fb3d5",
    "openvino float32": "#1e8449",
    "openvino int8": "#7dcea0",
    "openvino binary": "#145a32",
    "torch float32": "#6c3483",
    "tflite xnnpack float32": "#b7950b",
    "larq compute engine": "#616a6b",
}


class Results:
    """The JSON file with its lookups."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.networks: dict[str, dict[str, Any]] = data["networks"]
        self.layers = [name for name in self.networks if name.startswith("layer_")]
        self.binary = [name for name in self.networks if name.endswith("_binary")]
        self.published = [name for name in self.networks if name not in (*self.layers, *self.binary)]

    def contenders(self, names: Iterable[str]) -> list[str]:
        """Return who took part in any of the networks, in the order of the colours."""
        present = {key for name in names for key in self.networks[name]["contenders"]}
        return [name for name in COLOURS if name in present]

    def timing(self, network: str, contender: str, batch: int, threads: int) -> dict[str, Any] | None:
        """Return one measurement, None where there is none."""
        for timing in self.networks[network]["timings"]:
            if (timing["contender"], timing["batch"], timing["threads"]) == (contender, batch, threads):
                return dict(timing)
        return None

    def ms(self, network: str, contender: str, batch: int, threads: int) -> float | None:
        """Return the median per picture."""
        timing = self.timing(network, contender, batch, threads)
        return None if timing is None else timing["median_ms"] / batch

    def best(self, network: str, kind: str, batch: int, threads: int) -> float | None:
        """Return the median per picture of the fastest contender whose name ends with `kind`."""
        times = [self.ms(network, name, batch, threads) for name in self.contenders([network]) if name.endswith(kind)]
        return min((time for time in times if time is not None), default=None)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def figure(value: float | None, digits: int = 3) -> str:
    """Return `value` with about `digits` significant digits."""
    if value is None:
        return "-"
    decimals = max(0, digits - len(str(int(value)))) if value >= 1 else digits
    return f"{value:.{decimals}f}"


def times_table(results: Results, networks: Sequence[str], threads: int) -> str:
    """Return ms per picture, a row per contender, a column per network and batch."""
    columns = [(network, batch) for network in networks for batch in results.data["batches"]]
    rows = []
    for name in results.contenders(networks):
        cells = []
        for network, batch in columns:
            value = results.ms(network, name, batch, threads)
            fastest = min(
                (time for other in COLOURS if (time := results.ms(network, other, batch, threads)) is not None),
                default=None,
            )
            text = figure(value)
            cells.append(f"**{text}**" if value is not None and value == fastest else text)
        rows.append([name, *cells])
    header = [f"ms per picture, {threads} thread{'s' if threads > 1 else ''}"]
    return table([*header, *(f"{network.removesuffix('_binary')}, batch {batch}" for network, batch in columns)], rows)


def ratios_table(results: Results) -> str:
    """Return how many times as fast tac_engine is as the others."""
    rows = []
    for network in results.networks:
        for threads in results.data["threads"]:
            for batch in results.data["batches"]:
                ours = results.ms(network, OURS, batch, threads)
                if ours is None:
                    continue
                others = [
                    results.ms(network, FLOAT, batch, threads),
                    results.best(network, "int8", batch, threads),
                    results.ms(network, "openvino binary", batch, threads),
                    results.ms(network, "larq compute engine", batch, threads),
                ]
                one = results.ms(network, OURS, batch, 1)
                rows.append(
                    [
                        f"{network}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}",
                        figure(ours),
                        *(figure(None if other is None else other / ours, 2) for other in others),
                        figure(one / ours if one is not None and threads > 1 else None, 2),
                    ]
                )
    header = [
        "",
        "tac_engine, ms per picture",
        "onnxruntime float32",
        "best int8",
        "openvino binary",
        "larq",
        "from 1 thread",
    ]
    return table(header, rows)


def sizes_table(results: Results) -> str:
    """Return files, loading and memory of every published network and contender."""
    rows = []
    for network in results.published:
        entry = results.networks[network]
        for name in results.contenders([network]):
            facts = entry["contenders"][name]
            load = facts.get("load", {})
            timing = results.timing(network, name, 1, 1) or {}
            rows.append(
                [
                    f"{network}: {name}",
                    figure(facts["file_bytes"] / 1e3 if "file_bytes" in facts else None, 4),
                    figure(load.get("median_ms")),
                    figure(facts["resident_bytes"] / 1e6 if "resident_bytes" in facts else None, 4),
                    figure(facts["added_bytes"] / 1e6 if "added_bytes" in facts else None, 4),
                    figure(timing["peak_bytes"] / 1e6 if "peak_bytes" in timing else None, 4),
                ]
            )
    return table(
        ["", "file, kB", "file to first answer, ms", "resident, MB", "of it since import, MB", "peak_bytes, MB"], rows
    )


def packages_table(results: Results) -> str:
    """Return version, size and import time of the packages."""
    rows = []
    for name in results.contenders(results.networks):
        facts = [entry["contenders"][name] for entry in results.networks.values() if name in entry["contenders"]]
        rows.append(
            [
                name,
                facts[0]["version"],
                figure(facts[0]["installed_bytes"] / 1e6),
                figure(min(fact["import_ms"] for fact in facts)),
            ]
        )
    return table(["", "version", "installed, MB", "import without numpy, ms"], rows)


def answers_table(results: Results) -> str:
    """Return how near the answers are to those of the reference."""
    rows = []
    for network, entry in results.networks.items():
        for name in results.contenders([network]):
            timing = results.timing(network, name, 1, 1)
            if timing is not None and name != FLOAT:
                own = timing.get("int8_correlation")
                rows.append(
                    [
                        f"{network}: {name}",
                        f"{timing['agreeing']:.0%}",
                        f"{timing['same_top1']:.0%}",
                        f"{timing['error']:.1e}",
                        f"{timing['correlation']:.3f}",
                        "-" if own is None else f"{own:.3f}",
                        str(entry["contenders"][name].get("detail", "")),
                    ]
                )
    header = [
        "against onnxruntime float32",
        "pictures that agree",
        "same top-1",
        "median error",
        "correlation",
        "with its QDQ file",
        "chosen",
    ]
    return table(header, rows)


def layers_table(results: Results) -> str:
    """Return microseconds per layer; of a layer inside a network from a chain and a single one."""
    names = [OURS, f"{OURS} avx2", FLOAT, "openvino float32", "openvino binary"]
    rows = []
    for kind, chains in (("binary", BINARY_CHAINS), ("float", FLOAT_CHAINS)):
        for kernel, channels, pixels in chains:
            one, chain = (chain_name(kind, kernel, channels, pixels, depth) for depth in (1, CHAIN))
            if one in results.networks and chain in results.networks:
                pairs = [(results.ms(one, name, 1, 1), results.ms(chain, name, 1, 1)) for name in names]
                times = [None if a is None or b is None else (b - a) / (CHAIN - 1) for a, b in pairs]
                rows.append([f"{kind} {kernel}x{kernel}, {channels} at {pixels} x {pixels}", *microseconds(times)])
    single = {
        stem_name(kernel, channels, pixels, stride): f"float {kernel}x{kernel}, 3 -> {channels} at {pixels} x {pixels}"
        + (f", stride {stride}" if stride > 1 else "")
        for kernel, channels, pixels, stride in STEMS
    } | {linear_name(inputs, outputs): f"float {inputs} -> {outputs}" for inputs, outputs in LINEARS}
    for network, title in single.items():
        if network in results.networks:
            rows.append([title, *microseconds([results.ms(network, name, 1, 1) for name in names])])
    return table(["us per layer, 1 picture, 1 thread", *names, "fastest rival / tac_engine"], rows)


def codebooks_table(results: Results) -> str:
    """Return microseconds per picture of codebook layers in batches."""
    names = [OURS, f"{OURS} avx2", FLOAT, "openvino float32", "onnxruntime int8", "openvino int8"]
    rows = [
        [
            f"{inputs} -> {outputs}, batch {batch}",
            *microseconds([results.ms(network, name, batch, 1) for name in names]),
        ]
        for inputs, outputs in CODEBOOKS
        if (network := linear_name(inputs, outputs, codebook=True)) in results.networks
        for batch in CODEBOOK_BATCHES
    ]
    return table(["us per picture, 1 thread, 75 % zeros, 15 values", *names, "fastest rival / tac_engine"], rows)


def microseconds(times: Sequence[float | None]) -> list[str]:
    """Return the cells of one row of milliseconds: ours, ours on AVX2, rivals; then the best rival by ours."""
    rivals = [time for time in times[2:] if time is not None]
    ratio = min(rivals) / times[0] if rivals and times[0] is not None else None
    return [*(figure(None if time is None else 1e3 * time) for time in times), figure(ratio, 3)]


def markdown(results: Results) -> str:
    """Return the whole report."""
    data = results.data
    parts = [
        f"{data['cpu']}, {data['cpus']} CPUs, {data['date']}, commit {data['commit']}. Medians of runs in turn, warm;"
        " the networks of benchmarks/models/networks.py. Random networks of signs amplify what int8 rounds: int8"
        " answers are judged by the QDQ file computed node by node. Others count as right where an eighth of the"
        " pictures or more is within 1e-4 of the largest logit: a sign near 0 that flips with the order of a float sum"
        " changes the whole picture in a residual network. Times of TFLite and Larq hold the copy to channels last.",
    ]
    if results.published:
        parts += [times_table(results, results.published, threads) for threads in results.data["threads"]]
    if results.binary:
        parts.append("Every layer binary but the first and the last:")
        parts += [times_table(results, results.binary, threads) for threads in results.data["threads"]]
    if results.layers:
        parts.append(layers_table(results))
        if any(name.startswith("layer_codebook") for name in results.layers):
            parts.append(codebooks_table(results))
    if results.published or results.binary:
        parts += ["How many times as fast tac_engine is:", ratios_table(results)]
    parts.append(packages_table(results))
    if results.published:
        parts.append(sizes_table(results))
    parts.append(answers_table(results))
    missing = [
        f"- {network}: {name}: {reason}"
        for network, entry in results.networks.items()
        for name, reason in entry["failed"].items()
    ]
    return "\n\n".join([*parts, *(["Not timed:", "\n".join(missing)] if missing else [])]) + "\n"


# --- plots --------------------------------------------------------------------------------------


def save_plot(path: Path, draw: Callable[[Any], None], title: str, width: float = 10) -> None:
    """Save what `draw` puts on an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shape, axis = pyplot.subplots(figsize=(width, 4.5), dpi=120)
    draw(axis)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    shape.tight_layout()
    shape.savefig(path)
    pyplot.close(shape)


def plot_times(results: Results, networks: Sequence[str], batch: int, threads: int, path: Path) -> None:
    """Draw ms per picture as bars on a log axis."""

    def draw(axis: Any) -> None:
        names = results.contenders(networks)
        width = 0.85 / len(names)
        for row, name in enumerate(names):
            for column, network in enumerate(networks):
                value = results.ms(network, name, batch, threads)
                if value is None:
                    continue
                x = column + (row - len(names) / 2 + 0.5) * width
                axis.bar(x, value, width, color=COLOURS[name])
                axis.text(x, value * 1.04, figure(value, 2), ha="center", va="bottom", fontsize=6, rotation=90)
            axis.bar(0, 0, color=COLOURS[name], label=name)
        axis.set_yscale("log")
        axis.margins(y=0.12)
        axis.set_xticks(range(len(networks)), [name.removesuffix("_binary") for name in networks])
        axis.set_ylabel("ms per picture (lower is better)")
        axis.legend(fontsize=7, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.08), frameon=False)

    text = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {results.data['cpu']}"
    save_plot(
        path, draw, f"{'Every layer binary but the first and the last: ' if networks == results.binary else ''}{text}"
    )


def plot_batches(results: Results, network: str, path: Path) -> None:
    """Draw pictures per second against the batch, one thread."""

    def draw(axis: Any) -> None:
        batches = sorted({timing["batch"] for timing in results.networks[network]["timings"]})
        for name in results.contenders([network]):
            points = [(batch, ms) for batch in batches if (ms := results.ms(network, name, batch, 1)) is not None]
            if points:
                axis.plot(
                    *zip(*[(batch, 1e3 / ms) for batch, ms in points], strict=True),
                    "o-",
                    color=COLOURS[name],
                    label=name,
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.set_xlabel("batch")
        axis.set_ylabel("pictures per second")
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    save_plot(path, draw, f"{network}, 1 thread, {results.data['cpu']}", 8)


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("outdir", type=Path)
    args = parser.parse_args()
    results = Results(json.loads(args.results.read_text()))
    args.outdir.mkdir(parents=True, exist_ok=True)
    stem = args.outdir / args.results.stem
    stem.with_suffix(".md").write_text(markdown(results))
    for group, networks in (("", results.published), ("_binary", results.binary)):
        for threads in results.data["threads"]:
            for batch in results.data["batches"]:
                if networks:
                    file = args.outdir / f"{args.results.stem}{group}_batch{batch}_threads{threads}.png"
                    plot_times(results, networks, batch, threads, file)
    for network, entry in results.networks.items():
        if len({timing["batch"] for timing in entry["timings"]}) > 2:
            plot_batches(results, network, args.outdir / f"{args.results.stem}_{network}_batches.png")


if __name__ == "__main__":
    main()
