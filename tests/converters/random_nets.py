"""Random small networks: a description that a seed draws, and the ONNX model that it stands for.

A step that does not fit what is there (a convolution of vectors, a window larger than the map) is adapted or left out,
so that every list of steps is a network and steps can be dropped one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import onnx
from nets import Array, Net

QONNX = "qonnx.custom_op.general"


@dataclass(frozen=True)
class Weights:
    """``scale``: "1", "dyadic" (a power of two per output channel) or "any" (per output channel).

    ``form``: "constant", "sign" (Sign of latent weights) or "bipolar" (BipolarQuant of them), for +-1 only.
    """

    alphabet: str = "+-1"
    scale: str = "1"
    form: str = "constant"
    shared: bool = False  # takes the last weights of the same shape


@dataclass(frozen=True)
class Conv:
    out: int = 1
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: str = "1"  # "2", "all": depthwise
    auto_pad: str = "NOTSET"
    bias: bool = False
    weights: Weights = Weights()


@dataclass(frozen=True)
class Linear:
    out: int = 1
    form: str = "MatMul"  # "Gemm", "Gemm transposed"
    bias: bool = False
    weights: Weights = Weights()


@dataclass(frozen=True)
class Quantize:
    spelling: str = "Sign"


@dataclass(frozen=True)
class Elementwise:
    kind: str = "Relu"


@dataclass(frozen=True)
class BatchNorm:
    gamma: str = "any"  # "any" sign, or some of them "zero"


@dataclass(frozen=True)
class Pool:
    kind: str = "MaxPool"  # "AveragePool"
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil: bool = False


@dataclass(frozen=True)
class Pad:
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    value: float = 0.0


@dataclass(frozen=True)
class Join:
    """With an earlier tensor of the same shape: the ``back``-th last one that fits."""

    kind: str = "Add"  # "Concat"
    back: int = 0


@dataclass(frozen=True)
class Move:
    # NCHW <-> NHWC; "flatten", "global pool", "half" and "reverse" of the channels, "shuffle" of two groups, "output":
    # hands the tensor out as well.
    kind: str = "layout"


Step = Conv | Linear | Quantize | Elementwise | BatchNorm | Pool | Pad | Join | Move


@dataclass(frozen=True)
class Description:
    shape: tuple[int, ...] = (1, 1, 1)
    steps: tuple[Step, ...] = ()
    fixed_batch: bool = False
    ties: bool = False  # inputs are halves of small integers
    fc_precision: str = "f32"
    conv_precision: str = "f32"
    seed: int = 0


# Drawing and shrinking ------------------------------------------------------------------------------------------------


def draw(seed: int) -> Description:
    """The network of a seed: mostly blocks of quantizer, moves, layer and what may follow it."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    for _ in range(rng.integers(1, 5)):
        if rng.random() < 0.7:
            kinds = [*_some(rng, [BatchNorm, Elementwise], 0.3), Quantize, *_some(rng, [Pool, Move, Pad], 0.2)]
            kinds += [rng.choice([Conv, Conv, Linear]), *_some(rng, [Elementwise, Move, BatchNorm, Pool, Join], 0.3)]
        else:
            kinds = [rng.choice(list(_DRAW))]
        steps += [_DRAW[kind](rng) for kind in kinds]
    shape: tuple[int, ...] = (int(rng.choice([1, 2, 3, 4, 8, 31, 32, 33, 64, 65])),)
    if rng.random() < 0.8:
        shape += (int(rng.integers(1, 7)), int(rng.integers(1, 7)))
    return Description(
        shape,
        tuple(steps),
        fixed_batch=bool(rng.random() < 0.2),
        ties=bool(rng.random() < 0.3),
        fc_precision=str(rng.choice(["f32", "i16"])),
        # What is left of 1 grows what rounding does beyond every tolerance.
        conv_precision="f32" if Elementwise("Mod 1 by Floor") in steps else str(rng.choice(["f32", "i16"])),
        seed=seed,
    )


def shrink(description: Description, fails: Callable[[Description], bool]) -> Description:
    """A smaller description that fails too: without steps, with fields at their defaults."""
    while True:
        for smaller in _smaller(description):
            if fails(smaller):
                description = smaller
                break
        else:
            return description


def _smaller(description: Description) -> Iterator[Description]:
    steps = description.steps
    for index in range(len(steps) - 1, -1, -1):
        yield replace(description, steps=steps[:index] + steps[index + 1 :])
    for index, step in enumerate(steps):
        for simpler in _simpler(step):
            yield replace(description, steps=(*steps[:index], simpler, *steps[index + 1 :]))
    for name in ("fixed_batch", "ties", "fc_precision", "conv_precision"):
        if getattr(description, name) != getattr(Description, name):
            yield replace(description, **{name: getattr(Description, name)})
    for axis, size in enumerate(description.shape):
        for smaller in sorted({1, 2, size // 2, size - 1}):
            if 1 <= smaller < size:
                yield replace(description, shape=(*description.shape[:axis], smaller, *description.shape[axis + 1 :]))


def _simpler(step: Any) -> Iterator[Any]:
    for field in fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Weights):
            yield from (replace(step, weights=simpler) for simpler in _simpler(value))
        elif value != field.default:
            yield replace(step, **{field.name: field.default})


def _some(rng: np.random.Generator, kinds: list[Any], share: float) -> list[Any]:
    return [kind for kind in kinds if rng.random() < share]


def _ints(rng: np.random.Generator, low: int, high: int, count: int) -> tuple[int, ...]:
    return tuple(int(value) for value in rng.integers(low, high + 1, count))


def _pads(rng: np.random.Generator) -> Any:
    return (0, 0, 0, 0) if rng.random() < 0.4 else (1, 1, 1, 1) if rng.random() < 0.5 else _ints(rng, 0, 2, 4)


def _pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def _draw_weights(rng: np.random.Generator) -> Weights:
    alphabet = _pick(rng, "+-1", "+-1", "+-1", "0/1", "ternary", "2-bit", "3-bit", "4-bit", "one", "codebook", "real")
    return Weights(
        alphabet,
        _pick(rng, "1", "dyadic", "any"),
        _pick(rng, "constant", "constant", "sign", "bipolar"),
        bool(rng.random() < 0.3),
    )


def _draw_conv(rng: np.random.Generator) -> Conv:
    return Conv(
        int(_pick(rng, 1, 2, 3, 8, 16, 33)),
        _ints(rng, 1, 3, 2),  # type: ignore[arg-type]
        _ints(rng, 1, 2, 2),  # type: ignore[arg-type]
        _pads(rng),
        _ints(rng, 1, 2, 2) if rng.random() < 0.3 else (1, 1),  # type: ignore[arg-type]
        _pick(rng, "1", "1", "1", "2", "all"),
        _pick(rng, "NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
        bool(rng.random() < 0.3),
        _draw_weights(rng),
    )


_DRAW: dict[Any, Callable[[np.random.Generator], Step]] = {
    Conv: _draw_conv,
    Linear: lambda rng: Linear(
        int(_pick(rng, 1, 2, 5, 16, 33)),
        _pick(rng, "MatMul", "Gemm", "Gemm transposed"),
        bool(rng.random() < 0.3),
        _draw_weights(rng),
    ),
    Quantize: lambda rng: Quantize(_pick(rng, *QUANTIZERS)),
    Elementwise: lambda rng: Elementwise(_pick(rng, *ELEMENTWISE)),
    BatchNorm: lambda rng: BatchNorm(_pick(rng, "any", "any", "zero")),
    Pool: lambda rng: Pool(
        _pick(rng, "MaxPool", "MaxPool", "AveragePool"),
        _ints(rng, 1, 3, 2),  # type: ignore[arg-type]
        _ints(rng, 1, 2, 2),  # type: ignore[arg-type]
        _pads(rng),
        bool(rng.random() < 0.3),
    ),
    Pad: lambda rng: Pad(_pads(rng), _pick(rng, 0.0, -1.0, 1.0, 0.5)),
    Join: lambda rng: Join(_pick(rng, "Add", "Add", "Concat"), int(rng.integers(3))),
    Move: lambda rng: Move(
        _pick(rng, "layout", "layout", "flatten", "global pool", "half", "reverse", "shuffle", "output", "output")
    ),
}


# The ONNX model -------------------------------------------------------------------------------------------------------


class Builder(Net):
    """``at``: the current tensor; ``dims``: its (C, H, W) or (F,), whatever the layout."""

    def __init__(self, description: Description) -> None:
        self.batch = 3 if description.fixed_batch else 1 + description.seed % 5
        batch: int | str = self.batch if description.fixed_batch else "N"
        super().__init__((batch, *description.shape), seed=description.seed)
        self.at = "x"
        self.dims = description.shape
        self.channels_last = False
        self.exact = True  # see _settle
        self.earlier: list[tuple[str, tuple[int, ...], bool]] = []
        self.shared: dict[tuple[int, ...], str] = {}
        self.outputs: list[str] = []
        for step in description.steps:
            _ADD[type(step)](self, step)
            if not isinstance(step, Move):
                self.earlier.append((self.at, self.dims, self.channels_last))

    @property
    def is_map(self) -> bool:
        return len(self.dims) == 3

    @property
    def channels(self) -> int:
        return self.dims[0]

    def add(self, kind: str, *more: str, **attributes: object) -> None:
        self.at = self.op(kind, self.at, *more, **attributes)

    def channel_constant(self, values: Array) -> str:
        """One value per channel of the current tensor."""
        return self.constant(values if self.channels_last or not self.is_map else np.reshape(values, (-1, 1, 1)))

    def channels_first(self) -> None:
        if self.channels_last:
            self.add("Transpose", perm=[0, 3, 1, 2])
            self.channels_last = False

    def normalise(self, gamma: str = "any", spread: float = 1.0) -> None:
        self.channels_first()
        count = self.channels
        scale = self.rng.normal(size=count)
        if gamma == "zero":
            scale[::2] = 0
        values = (scale, self.rng.normal(size=count), self.rng.normal(size=count) * spread)
        variance = self.rng.uniform(0.5, 2, count) * spread**2
        self.add("BatchNormalization", *[self.constant(value) for value in (*values, variance)], epsilon=1e-5)

    def finish(self) -> onnx.ModelProto:
        if self.at == "x":
            self.add("Relu")
        outputs = [*dict.fromkeys(self.outputs)]
        if self.at in outputs:
            outputs.remove(self.at)
        return self.model(self.at, (QONNX,), tuple(outputs))


def build(description: Description) -> tuple[onnx.ModelProto, Array]:
    """The model and a batch for its input "x"."""
    builder = Builder(description)
    model = builder.finish()
    shape = (builder.batch, *description.shape)
    x = builder.rng.normal(size=shape)
    if description.ties:
        x = np.rint(2 * x) / 2
    x.reshape(-1)[::7] = 0.0
    return model, np.asarray(x, np.float32)


def _levels(net: Builder, alphabet: str, shape: tuple[int, ...]) -> Array:
    """The values before the scale."""
    choices = {
        "+-1": [-1, 1],
        "0/1": [0, 1],
        "ternary": [-1, 0, 1],
        "2-bit": [-2, -1, 0, 1],
        "3-bit": list(range(-3, 4)),
        "4-bit": list(range(-7, 8)),
        "one": [1],
        "codebook": [0.0, 0.0, 0.0, 0.0, *net.rng.normal(size=5)],
    }
    if alphabet == "real":
        return net.rng.normal(size=shape)
    return net.rng.choice(np.asarray(choices[alphabet], np.float64), shape)


def _weight(net: Builder, weights: Weights, shape: tuple[int, ...]) -> str:
    """Name of the weight tensor [O, ...]."""
    if weights.shared and shape in net.shared:
        return net.shared[shape]
    values = _levels(net, weights.alphabet, shape)
    if weights.alphabet == "+-1" and weights.form != "constant":
        latent = net.constant(values * net.rng.uniform(0.01, 2, shape))
        if weights.form == "sign":
            name = net.op("Sign", latent)
        else:
            scale = net.constant([1.0 if weights.scale == "1" else 0.5])
            name = net.op("BipolarQuant", latent, scale, domain=QONNX)
    else:
        column = (-1,) + (1,) * (len(shape) - 1)
        if weights.scale == "dyadic":
            values = values * np.exp2(net.rng.integers(-2, 3, shape[0])).reshape(column)
        if weights.scale == "any":
            values = values * net.rng.uniform(0.1, 1, shape[0]).reshape(column)
        name = net.constant(values)
        net.exact &= weights.scale != "any"
    net.shared[shape] = name
    return name


def _settle(net: Builder, terms: int) -> None:
    """Behind a sum of values that float32 adds up with rounding, a normalisation.

    The integer layer is exact and the reference is not, so a threshold right on one of the sums (a sign of a sum that
    is zero) has no one answer; behind a normalisation with arbitrary parameters none lies there.
    """
    if not net.exact:
        net.normalise(spread=float(np.sqrt(terms)))


def _conv(net: Builder, step: Conv) -> None:
    if not net.is_map:
        return
    net.channels_first()
    channels, *sizes = net.dims
    groups = {"1": 1, "2": 2 if channels % 2 == 0 else 1, "all": channels}[step.groups]
    out = groups * -(-step.out // groups)
    pads = list(step.pads) if step.auto_pad == "NOTSET" else [0] * 4
    kernel, result = [], []
    for axis in (0, 1):
        padded = sizes[axis] + pads[axis] + pads[axis + 2]
        taps = max(1, min(step.kernel[axis], (padded - 1) // step.dilations[axis] + 1))
        kernel.append(taps)
        span = padded - (taps - 1) * step.dilations[axis] - 1
        same = step.auto_pad.startswith("SAME")
        result.append(-(-sizes[axis] // step.strides[axis]) if same else span // step.strides[axis] + 1)
    weight = _weight(net, step.weights, (out, channels // groups, *kernel))
    inputs = [weight] + ([net.constant(np.rint(net.rng.normal(size=out) * 2))] if step.bias else [])
    window: dict[str, object] = {"strides": list(step.strides), "dilations": list(step.dilations), "group": groups}
    window["kernel_shape"] = kernel
    window |= {"pads": pads} if step.auto_pad == "NOTSET" else {"auto_pad": step.auto_pad}
    net.add("Conv", *inputs, **window)
    net.dims = (out, *result)
    _settle(net, channels // groups * int(np.prod(kernel)))


def _linear(net: Builder, step: Linear) -> None:
    if net.is_map:
        _move(net, Move("flatten"))
    features = net.channels
    weight = _weight(net, step.weights, (step.out, features))
    bias = [net.constant(np.rint(net.rng.normal(size=step.out) * 2))] if step.bias else []
    if step.form == "Gemm":
        net.add("Gemm", net.op("Transpose", weight, perm=[1, 0]), *bias)
    elif step.form == "Gemm transposed":
        net.add("Gemm", weight, *bias, transB=1)
    else:
        net.add("MatMul", net.op("Transpose", weight, perm=[1, 0]))
        if bias:
            net.add("Add", *bias)
    net.dims = (step.out,)
    _settle(net, features)


def _pool(net: Builder, step: Pool) -> None:
    if not net.is_map:
        return
    net.channels_first()
    kernel, pads, result = [], [], []
    for axis in (0, 1):
        taps = min(step.kernel[axis], net.dims[1 + axis])
        begin, end = min(step.pads[axis], taps - 1), min(step.pads[axis + 2], taps - 1)
        kernel.append(taps)
        pads.append((begin, end))
        span = net.dims[1 + axis] + begin + end - taps
        count = -(-span // step.strides[axis]) + 1 if step.ceil else span // step.strides[axis] + 1
        if step.ceil and (count - 1) * step.strides[axis] >= net.dims[1 + axis] + begin:
            count -= 1
        result.append(count)
    net.add(
        step.kind,
        kernel_shape=kernel,
        strides=list(step.strides),
        pads=[pads[0][0], pads[1][0], pads[0][1], pads[1][1]],
        ceil_mode=int(step.ceil),
    )
    if step.kind == "AveragePool":
        net.exact = False
    net.dims = (net.channels, *result)


def _pad(net: Builder, step: Pad) -> None:
    if not net.is_map:
        return
    top, left, bottom, right = step.pads
    pads = [0, top, left, 0, 0, bottom, right, 0] if net.channels_last else [0, 0, top, left, 0, 0, bottom, right]
    net.add("Pad", net.constant(pads, np.int64), net.constant(step.value))
    net.dims = (net.channels, net.dims[1] + top + bottom, net.dims[2] + left + right)


def _join(net: Builder, step: Join) -> None:
    fitting = [name for name, dims, last in net.earlier if dims == net.dims and last == net.channels_last]
    if not fitting:
        return
    other = fitting[-1 - step.back % len(fitting)]
    if step.kind == "Add":
        net.add("Add", other)
    elif net.channels <= 64:
        axis = 3 if net.channels_last else 1
        net.add("Concat", other, axis=axis)
        net.dims = (2 * net.channels, *net.dims[1:])


def _move(net: Builder, step: Move) -> None:
    if step.kind == "output":
        if net.at != "x":
            net.outputs.append(net.at)
    elif step.kind in ("half", "reverse"):
        half = net.channels // 2
        if half:
            first, last, by = (half, net.channels, 1) if step.kind == "half" else (-1, -(2**31), -1)
            axis = 3 if net.channels_last else 1
            net.add("Slice", *[net.constant([value], np.int64) for value in (first, last, axis, by)])
            net.dims = (net.channels - half if step.kind == "half" else net.channels, *net.dims[1:])
    elif not net.is_map:
        return
    elif step.kind == "shuffle":
        if net.channels % 2 == 0:
            net.channels_first()
            net.add("Reshape", net.constant([0, 2, net.channels // 2, *net.dims[1:]], np.int64))
            net.add("Transpose", perm=[0, 2, 1, 3, 4])
            net.add("Reshape", net.constant([0, *net.dims], np.int64))
    elif step.kind == "layout":
        net.add("Transpose", perm=[0, 3, 1, 2] if net.channels_last else [0, 2, 3, 1])
        net.channels_last = not net.channels_last
    elif step.kind == "global pool":
        net.channels_first()
        net.add("GlobalAveragePool")
        net.dims = (net.channels, 1, 1)
        net.exact = False
    else:
        if net.batch % 2:
            net.add("Flatten")
        else:
            net.add("Reshape", net.constant([0, -1], np.int64))
        net.dims = (int(np.prod(net.dims)),)
        net.channels_last = False


def _elementwise(net: Builder, step: Elementwise) -> None:
    ELEMENTWISE[step.kind](net)


def _quantize(net: Builder, step: Quantize) -> None:
    QUANTIZERS[step.spelling](net)


def _batch_norm(net: Builder, step: BatchNorm) -> None:
    net.normalise(step.gamma)


_ADD: dict[type, Callable[..., None]] = {
    Conv: _conv,
    Linear: _linear,
    Quantize: _quantize,
    Elementwise: _elementwise,
    BatchNorm: _batch_norm,
    Pool: _pool,
    Pad: _pad,
    Join: _join,
    Move: _move,
}


def _plain(kind: str, *values: float, **attributes: object) -> Callable[[Builder], None]:
    return lambda net: net.add(kind, *[net.constant(value) for value in values], **attributes)


def _per_channel(kind: str, inexact: bool = False) -> Callable[[Builder], None]:
    def add(net: Builder) -> None:
        net.add(kind, net.channel_constant(net.rng.normal(size=net.channels)))
        net.exact &= not inexact

    return add


def _full_shape(net: Builder) -> None:
    """An operand that repeats itself along all axes but the channels."""
    values = np.reshape(net.rng.normal(size=net.channels), (-1, 1, 1) if net.is_map else (-1,))
    full = np.broadcast_to(values, net.dims)
    if net.channels_last:
        full = np.moveaxis(full, 0, -1)
    net.add("Add", net.constant(full[None]))


def _everywhere(net: Builder) -> None:
    """An operand that differs at every element."""
    dims = (*net.dims[1:], net.channels) if net.channels_last else net.dims
    net.add("Add", net.constant(net.rng.normal(size=dims)))


def _squeeze_and_excite(net: Builder) -> None:
    """Each channel times a sigmoid of its mean: a run-time operand that broadcasts."""
    axes = [1, 2] if net.channels_last else [2, 3]
    if net.is_map:
        mean = net.op("ReduceMean", net.at, net.constant(axes, np.int64))
        net.add("Mul", net.op("Sigmoid", mean))
        net.exact = False


def _largest(net: Builder) -> None:
    """The largest channel of each place, taken off."""
    axis = 3 if net.is_map and net.channels_last else 1
    net.add("Sub", net.op("ReduceMax", net.at, net.constant([axis], np.int64)))


def _where_positive(net: Builder) -> None:
    condition = net.op("Greater", net.at, net.constant(0))
    net.at = net.op("Where", condition, net.at, net.op("Mul", net.at, net.constant(0.25)))


ELEMENTWISE: dict[str, Callable[[Builder], None]] = {
    "squeeze and excite": _squeeze_and_excite,
    "Sub ReduceMax": _largest,
    "Where": _where_positive,
    "Elu": _plain("Elu"),
    "Softplus": _plain("Softplus"),
    "Mod 1 by Floor": lambda net: net.add("Sub", net.op("Floor", net.at)),
    "Relu": _plain("Relu"),
    "LeakyRelu": _plain("LeakyRelu", alpha=0.25),
    "Clip": _plain("Clip", -1, 1),
    "Abs": _plain("Abs"),
    "Neg": _plain("Neg"),
    "Tanh": _plain("Tanh"),
    "HardSigmoid": _plain("HardSigmoid"),
    "Floor": _plain("Floor"),
    "Add 0.5": _plain("Add", 0.5),
    "Mul -2": _plain("Mul", -2),
    "Max channel": _per_channel("Max"),
    "Min channel": _per_channel("Min"),
    "Sub channel": _per_channel("Sub"),
    "Mul channel": _per_channel("Mul", inexact=True),
    "PRelu": _per_channel("PRelu"),
    "Add full shape": _full_shape,
    "Add everywhere": _everywhere,
}


def _where(comparison: str, yes: float, no: float) -> Callable[[Builder], None]:
    def add(net: Builder) -> None:
        condition = net.op(comparison, net.at, net.constant(0))
        net.at = net.op("Where", condition, net.constant(yes), net.constant(no))

    return add


def _cast(net: Builder) -> None:
    net.add("GreaterOrEqual", net.constant(0))
    net.add("Cast", to=1)
    net.add("Mul", net.constant(2))
    net.add("Sub", net.constant(1))


def _sign_add_sign(net: Builder) -> None:
    net.add("Sign")
    net.add("Add", net.constant(0.1))
    net.add("Sign")


def _shifted_sign(net: Builder) -> None:
    net.add("Add", net.channel_constant(net.rng.normal(size=net.channels)))
    net.add("Sign")


def _ternary(net: Builder) -> None:
    """Larq's ternary spelling."""
    above, below = net.op("Add", net.at, net.constant(0.3)), net.op("Sub", net.at, net.constant(0.3))
    net.at = net.op("Add", net.op("Sign", above), net.op("Sign", below))
    net.add("Sign")


def _dorefa(net: Builder) -> None:
    net.add("Clip", net.constant(0), net.constant(1))
    net.add("Mul", net.constant(3))
    net.add("Round")
    net.add("Mul", net.constant(1 / 3))
    net.exact = False


def _heaviside(net: Builder) -> None:
    net.add("Relu")
    net.add("Sign")


def _descending(net: Builder) -> None:
    net.add("Neg")
    net.add("Sign")


def _qonnx(bits: float, signed: int, narrow: int, scale: float) -> Callable[[Builder], None]:
    def add(net: Builder) -> None:
        if not signed:
            net.add("Relu")
        parameters = [net.constant(value) for value in (scale, 0.0, bits)]
        net.add("Quant", *parameters, domain=QONNX, signed=signed, narrow=narrow, rounding_mode="ROUND")
        net.exact &= float(np.log2(scale)).is_integer()

    return add


def _bipolar(net: Builder) -> None:
    net.add("BipolarQuant", net.constant([0.5]), domain=QONNX)


def _qdq(net: Builder) -> None:
    scale, zero = net.constant(0.25), net.constant(0, np.int8)
    net.add("QuantizeLinear", scale, zero)
    net.add("Clip", net.constant(-2, np.int8), net.constant(1, np.int8))
    net.add("DequantizeLinear", scale, zero)


QUANTIZERS: dict[str, Callable[[Builder], None]] = {
    "Sign": _plain("Sign"),
    "x >= 0": _where("GreaterOrEqual", 1, -1),
    "x > 0": _where("Greater", 1, -1),
    "x < 0": _where("Less", -1, 1),
    "x >= 0 gives 0.25": _where("GreaterOrEqual", 0.25, 0),
    "Cast": _cast,
    "Sign Add Sign": _sign_add_sign,
    "Sign per channel": _shifted_sign,
    "descending": _descending,
    "heaviside": _heaviside,
    "ternary": _ternary,
    "DoReFa": _dorefa,
    "Quant unsigned 2 bits": _qonnx(2, 0, 0, 0.5),
    "Quant signed 2 bits": _qonnx(2, 1, 1, 1.0),
    "Quant signed 3 bits": _qonnx(3, 1, 0, 0.3),
    "Quant unsigned 4 bits": _qonnx(4, 0, 0, 0.25),
    "Quant signed 8 bits": _qonnx(8, 1, 0, 1 / 64),
    "BipolarQuant": _bipolar,
    "QDQ": _qdq,
}
