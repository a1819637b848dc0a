"""What the converter did, layer by layer, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explain import LayerExplanation


@dataclass(frozen=True)
class LayerReport:
    """One layer of the .tacbin.

    ``kind`` is what it became ("binary conv", "codebook linear", "float conv", ...), ``bits`` weights x activations,
    ``bytes_before`` its constants as float32, ``bytes_after`` in the file, ``reason`` why a layer with weights is
    float, or a note.
    """

    name: str
    kind: str
    op: str
    bits: str
    shape: str
    bytes_before: int
    bytes_after: int
    reason: str = ""


@dataclass
class ConversionReport:
    """Result of :func:`tac_engine.convert`: ``str(report)`` is a table, :meth:`to_json` the same as plain data.

    ``notes`` are about the model as a whole. ``explanations`` are there if they were asked for (``explain=True``).
    """

    source: str
    target: str
    layers: list[LayerReport] = field(default_factory=list)
    file_bytes: int = 0
    onnx_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    explanations: list[LayerExplanation] = field(default_factory=list)

    @property
    def float_bytes(self) -> int:
        """Bytes of all constants as float32."""
        return sum(layer.bytes_before for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "float_bytes": self.float_bytes}

    def __str__(self) -> str:
        header = ("layer", "became", "w x a", "output", "float32", "here", "note")
        rows = [
            (
                layer.name,
                layer.kind,
                layer.bits,
                layer.shape,
                _size(layer.bytes_before),
                _size(layer.bytes_after),
                layer.reason,
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines = [f"{self.source} -> {self.target}"]
        for row in (header, tuple("-" * width for width in widths), *rows):
            cells = [
                cell.rjust(w) if i in (4, 5) else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        smaller = f" ({self.float_bytes / self.file_bytes:.1f}x smaller)" if self.file_bytes < self.float_bytes else ""
        lines.append(f"float32 constants {_size(self.float_bytes)}, file {_size(self.file_bytes)}{smaller}")
        return "\n".join([*lines, *self.notes, *(["", *map(str, self.explanations)] if self.explanations else [])])


def _size(count: int) -> str:
    if count == 0:
        return "-"
    if count < 10_000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 10_000_000 else f"{count / 1e6:.2f} MB"
