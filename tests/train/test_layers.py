"""Forward values and gradients of every module against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tac_engine.errors import InvalidInputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from tac_engine import train
from tac_engine.train.quantizers import ste_temperature

Array = np.ndarray[Any, np.dtype[np.float32]]

# Every side of every step, and the steps themselves.
POINTS = np.array([-3, -1.25, -1, -0.75, -0.25, -1e-30, -0.0, 0.0, 1e-30, 0.25, 0.75, 1, 1.25, 3], np.float32)

DERIVATIVES: dict[str, Callable[[Array, float], Array]] = {
    "identity": lambda x, t: np.ones_like(x),
    "clip": lambda x, t: ((x >= -1) & (x <= 1)).astype(np.float32),
    "approx_sign": lambda x, t: np.where(np.abs(x) < 1, np.where(x < 0, 2 + 2 * x, 2 - 2 * x), 0),
    # d/dx of k tanh(t x).
    "ede": lambda x, t: max(1.0 / t, 1.0) * t / np.cosh(t * x.astype(np.float64)) ** 2,
}


def gradient_of(module: Any, x: Array, upstream: Array) -> tuple[Array, Array]:
    """Return the output of `module` and the gradient of sum(output * upstream) with respect to `x`."""
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    output = module(tensor)
    output.backward(torch.from_numpy(upstream))
    return output.detach().numpy(), tensor.grad.numpy()


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("ste", sorted(DERIVATIVES))
def test_sign_activation(ste: str, progress: float) -> None:
    module = train.SignActivation(ste)
    train.set_progress(module, progress)
    upstream = np.linspace(-1, 2, POINTS.size).astype(np.float32)
    y, gradient = gradient_of(module, POINTS, upstream)
    np.testing.assert_array_equal(y, np.where(POINTS >= 0, 1, -1))
    # Float32 of tanh, squared and subtracted from 1, against float64 of cosh: an absolute error of some 1e-7 times k t.
    expected = upstream * DERIVATIVES[ste](POINTS, 10 ** (2 * progress - 1))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-5)


def test_temperature_goes_from_a_tenth_to_ten() -> None:
    assert [round(ste_temperature(p), 6) for p in (0.0, 0.5, 1.0)] == [0.1, 1.0, 10.0]


def test_progress_reaches_every_layer_of_a_network() -> None:
    model = torch.nn.Sequential(train.SignActivation("ede"), train.BinaryConv2d(1, 1, 1, ste="ede"))
    train.set_progress(model, 1.0)
    assert [model[0].temperature, model[1].quantizer.temperature] == [10.0, 10.0]


def test_hwgq_activation() -> None:
    x = np.array([-1, -0.0, 0.0, 1e-30, 0.5, 0.806, 0.808, 1.344, 1.346, 1.613, 1.615, 9], np.float32)
    y, gradient = gradient_of(train.HwgqActivation(), x, np.full(x.size, 3, np.float32))
    levels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
    np.testing.assert_allclose(y, levels * 0.538, rtol=1e-7)
    np.testing.assert_array_equal(gradient, [0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 0, 0])
    with torch.no_grad():
        np.testing.assert_array_equal(train.HwgqActivation()(torch.from_numpy(x)).numpy(), y)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("normalise", ["none", "centre", "standardise"])
def test_binary_weight(normalise: str, scaled: bool) -> None:
    rng = np.random.default_rng(1)
    w = (rng.normal(size=(4, 3, 2, 2)) * 0.3 + 0.1).astype(np.float32)
    upstream = rng.normal(size=w.shape).astype(np.float32)
    y, gradient = gradient_of(train.BinaryWeight("identity", normalise, scaled=scaled), w, upstream)

    rows, g = w.reshape(4, -1).astype(np.float64), upstream.reshape(4, -1).astype(np.float64)
    centred = rows if normalise == "none" else rows - rows.mean(1, keepdims=True)
    deviation = centred.std(1, ddof=1, keepdims=True)
    latent = centred / deviation if normalise == "standardise" else centred
    alpha = np.abs(latent).mean(1, keepdims=True) if scaled else np.ones((4, 1))
    np.testing.assert_allclose(y.reshape(4, -1), np.where(latent >= 0, alpha, -alpha), rtol=1e-5)
    # Identity through the sign; alpha is a constant; then the derivative of the normalisation.
    expected = g * alpha
    if normalise == "standardise":
        n = rows.shape[1]
        inner = (expected * latent).sum(1, keepdims=True) / (n - 1)
        expected = (expected - latent * inner) / deviation
    if normalise != "none":
        expected = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(gradient.reshape(4, -1), expected, rtol=1e-4, atol=1e-6)


def test_ternary_weight() -> None:
    w = np.array([[0.9, -0.1, 0.0, -0.5], [0.3, 0.2, -0.35, 0.05]], np.float32)
    y, gradient = gradient_of(train.TernaryWeight(), w, w + 1)
    # The mean magnitude is 0.3, the threshold 0.21; 0.9, 0.5, 0.3 and 0.35 stay, 0.5125 on average.
    np.testing.assert_allclose(y, np.array([[1, 0, 0, -1], [1, 0, -1, 0]]) * 0.5125, rtol=1e-6)
    np.testing.assert_array_equal(gradient, w + 1)


def test_ternary_weight_of_zeros_is_zero() -> None:
    np.testing.assert_array_equal(train.TernaryWeight()(torch.zeros(2, 3)).numpy(), np.zeros((2, 3)))


def convolve(x: Array, w: Array, stride: int, pad: int) -> Array:
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, w)


@pytest.mark.parametrize(("name", "levels"), [("BinaryConv2d", 2), ("TernaryConv2d", 3)])
def test_convolutions_compute_with_the_quantized_weight(name: str, levels: int) -> None:
    torch.manual_seed(2)
    layer = getattr(train, name)(5, 4, 3, stride=2, padding=1)
    x = torch.randn(2, 5, 7, 6)
    weight = layer.quantizer(layer.weight).detach().numpy()
    assert all(np.unique(row).size <= levels for row in weight)
    expected = convolve(x.numpy(), weight, 2, 1) + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.baked()(x).detach().numpy(), layer(x).detach().numpy())


@pytest.mark.parametrize(("name", "levels"), [("BinaryLinear", 2), ("TernaryLinear", 3)])
def test_linear_layers_compute_with_the_quantized_weight(name: str, levels: int) -> None:
    torch.manual_seed(3)
    layer = getattr(train, name)(20, 6)
    x = torch.randn(3, 20)
    weight = layer.quantizer(layer.weight).detach().numpy()
    assert all(np.unique(row).size <= levels for row in weight)
    np.testing.assert_allclose(layer(x).detach().numpy(), x.numpy() @ weight.T + layer.bias.detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(layer.baked()(x).detach().numpy(), layer(x).detach().numpy())


def test_gradient_of_a_binary_convolution_reaches_the_latent_weight() -> None:
    torch.manual_seed(4)
    layer = train.BinaryConv2d(2, 3, 3, padding=1, bias=False)
    x = torch.randn(1, 2, 5, 5)
    layer(x).sum().backward()
    # d sum / d w[o, c, i, j] is the sum over the window positions of x, times alpha of the filter.
    padded = np.pad(x.numpy()[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    sums = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2)).sum((-2, -1))
    alpha = np.abs(layer.weight.detach().numpy()).mean((1, 2, 3))
    np.testing.assert_allclose(layer.weight.grad.numpy(), alpha[:, None, None, None] * sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: train.SignActivation("tanh"), "'tanh'.*identity, clip, approx_sign, ede"),
        (lambda: train.BinaryWeight(normalise="max"), "'max'.*none, centre, standardise"),
        (lambda: train.CodebookLinear(3, 3, centroids=17), "1 to 16.*17"),
        (lambda: train.PrunedLinear(3, 3).prune(1.0), "in \\[0, 1\\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Any], names: str) -> None:
    with pytest.raises(InvalidInputError, match=names):
        make()
