"""Fully connected layers on tokens [N, T, C], as binarized MLP mixers and transformers have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from nets import Net, check, kinds
from onnx_models import floats
from tac_engine.converters.verify import verify

TOKENS, CHANNELS, HIDDEN = 5, 70, 33


def sign(net: Net, x: str) -> str:
    zero, plus, minus = net.constant(0), net.constant(1), net.constant(-1)
    return net.op("Where", net.op("GreaterOrEqual", x, zero), plus, minus)


def layer_norm(net: Net, x: str, channels: int) -> str:
    scale, shift = (net.constant(net.rng.normal(size=channels)) for _ in range(2))
    return net.op("LayerNormalization", x, scale, shift, axis=-1)


@pytest.mark.parametrize("zeros", [False, True])
def test_binary_layers_stay_bits_from_one_to_the_next(tmp_path: Path, zeros: bool) -> None:
    net = Net(("N", TOKENS, CHANNELS))
    first, second = net.signs(CHANNELS, HIDDEN), net.signs(HIDDEN, 9)
    if zeros:
        first[net.rng.random(first.shape) < 0.4] = 0  # ternary
    y = net.op("MatMul", sign(net, "x"), net.constant(0.25 * first))
    y = net.op("Add", net.op("Mul", y, net.constant(net.rng.normal(size=HIDDEN))), net.constant(floats(HIDDEN)))
    y = net.op("MatMul", sign(net, y), net.constant(second))
    report = check(net.model(y), tmp_path, floats(3, TOKENS, CHANNELS))
    assert kinds(report) == ["quantizer", "ternary conv" if zeros else "binary conv", "binary conv"]


def test_residual_blocks_with_layer_normalization(tmp_path: Path) -> None:
    net, x = Net(("N", TOKENS, CHANNELS)), "x"
    for _ in range(2):
        y = net.op("MatMul", sign(net, layer_norm(net, x, CHANNELS)), net.constant(0.5 * net.signs(CHANNELS, HIDDEN)))
        y = net.op("MatMul", sign(net, layer_norm(net, y, HIDDEN)), net.constant(0.5 * net.signs(HIDDEN, CHANNELS)))
        x = net.op("Add", x, y)
    report = check(net.model(x), tmp_path, floats(3, TOKENS, CHANNELS), tolerance=2e-6)
    assert kinds(report).count("binary conv") == 4
    assert not {"codebook linear", "unpack to float"} & set(kinds(report))
    assert verify(tmp_path / "model.onnx", tmp_path / "model.tacbin").ok


def test_layers_on_floats_keep_their_codebook(tmp_path: Path) -> None:
    net = Net(("N", TOKENS, CHANNELS))
    y = net.op("MatMul", net.op("Tanh", "x"), net.constant(net.signs(CHANNELS, HIDDEN)))
    report = check(net.model(y), tmp_path, floats(3, TOKENS, CHANNELS), tolerance=2e-6)
    assert "codebook linear" in kinds(report)


def test_a_normalization_of_tokens_is_not_moved(tmp_path: Path) -> None:
    """BatchNormalization has its constants along axis 1, here the tokens."""
    net = Net(("N", TOKENS, CHANNELS))
    y = net.op("MatMul", sign(net, net.batch_norm("x", TOKENS)), net.constant(net.signs(CHANNELS, HIDDEN)))
    y = net.op("MatMul", sign(net, net.batch_norm(y, TOKENS, 5.0)), net.constant(net.signs(HIDDEN, 9)))
    report = check(net.model(y), tmp_path, floats(3, TOKENS, CHANNELS))
    assert kinds(report).count("binary conv") == 2
