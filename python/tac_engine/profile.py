"""Where the time of a run goes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ProfileRow:
    """One part of a run: the check of an input, a layer, or the copy of an output.

    Attributes:
        name: of the layer in the ONNX model, or of the input or output.
        kind: "binary_conv", "linear", ..., "input" or "output".
        kernel: the kernel and its backend, as "bconv_b1_i32/avx512".
        ms: median time of the whole batch in milliseconds.
        share: of the sum of all rows, 0..1.
        macs: multiplications with a weight, whole batch.
        gmacs_per_s: macs per nanosecond; 0.0 for a layer without weights.
        bytes: parameters, plus what is read and written for the whole batch.
    """

    name: str
    kind: str
    kernel: str
    ms: float
    share: float
    macs: int
    gmacs_per_s: float
    bytes: int


@dataclass(frozen=True)
class Profile:
    """Result of ``Engine.profile``; ``str()`` is a table."""

    rows: tuple[ProfileRow, ...]
    backend: str
    threads: int
    batch: int
    runs: int

    @classmethod
    def from_rows(
        cls,
        rows: list[tuple[str, str, str, float, int, int]],
        *,
        backend: str,
        threads: int,
        batch: int,
        runs: int,
    ) -> Profile:
        """Make a profile of what the core measured."""
        total = sum(row[3] for row in rows)
        return cls(
            tuple(
                ProfileRow(
                    name,
                    kind,
                    kernel,
                    ms=1e3 * seconds,
                    share=seconds / total if total > 0 else 0.0,
                    macs=macs,
                    gmacs_per_s=1e-9 * macs / seconds if seconds > 0 else 0.0,
                    bytes=n_bytes,
                )
                for name, kind, kernel, seconds, macs, n_bytes in rows
            ),
            backend,
            threads,
            batch,
            runs,
        )

    @property
    def ms(self) -> float:
        """Sum of the medians of all rows in milliseconds."""
        return sum(row.ms for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain data for ``json.dumps``."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "ms": self.ms}

    def __str__(self) -> str:
        header = ("layer", "kind", "kernel", "ms", "share", "MMAC", "GMAC/s", "kB")
        body = [
            (
                row.name,
                row.kind,
                row.kernel,
                f"{row.ms:.3f}",
                f"{100 * row.share:.1f} %",
                f"{row.macs / 1e6:.2f}" if row.macs else "",
                f"{row.gmacs_per_s:.1f}" if row.macs else "",
                f"{row.bytes / 1e3:.1f}",
            )
            for row in self.rows
        ]
        macs = sum(row.macs for row in self.rows)
        rate = f"{1e-6 * macs / self.ms:.1f}" if self.ms > 0 else ""
        total = ("total", "", "", f"{self.ms:.3f}", "", f"{macs / 1e6:.2f}", rate, "")
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        widths = [max(len(row[i]) for row in (header, *body, total)) for i in range(len(header))]
        lines = [f"backend {self.backend}, {threads}, batch {self.batch}, median of {self.runs} runs"]
        for row in (header, tuple("-" * width for width in widths), *body, total):
            cells = (
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)
