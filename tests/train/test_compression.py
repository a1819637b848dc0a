"""Pruned and weight-sharing layers: what they compute, and that zeros and codes stay what they are through training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tac_engine.errors import InvalidInputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from tac_engine import train
from tac_engine.train.compression import _sums_counted, _sums_masked

SCHEDULE = (0.2, 0.4, 0.6, 0.7, 0.75)


def test_pruning_takes_the_smallest_and_gives_them_no_gradient() -> None:
    layer = train.PrunedLinear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -0.4, 0.3, -0.2], [0.5, -0.05, 0.6, 0.0]]))
    layer.prune(0.5)
    expected = np.array([[0, -0.4, 0.3, 0], [0.5, 0, 0.6, 0]], np.float32)
    np.testing.assert_array_equal(layer.masked_weight().detach().numpy(), expected)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    layer(x).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy(), x.numpy() * (expected != 0))
    np.testing.assert_allclose(
        layer(x).detach().numpy(), x.numpy() @ expected.T + layer.bias.detach().numpy(), rtol=1e-6
    )


def test_what_is_pruned_stays_pruned_though_its_weight_grows() -> None:
    layer = train.PrunedLinear(10, 10)
    layer.prune(0.3)
    before = layer.mask.clone()
    with torch.no_grad():
        layer.weight[~layer.mask] = 100.0
    layer.prune(0.6)
    assert not bool((layer.mask & ~before).any())
    assert int((~layer.mask).sum()) == 60


def test_pruning_less_than_before_is_refused() -> None:
    layer = train.PrunedLinear(10, 10)
    layer.prune(0.6)
    with pytest.raises(InvalidInputError, match=r"60 weights are pruned already, a share of 0\.5 would be 50"):
        layer.prune(0.5)


def test_codebook_computes_with_its_centroids_and_sums_their_gradients() -> None:
    layer = train.CodebookLinear(3, 2, centroids=2)
    with torch.no_grad():
        layer.centroids.copy_(torch.tensor([-0.5, 2.0]))
        layer.codes.copy_(torch.tensor([[0, 1, 2], [2, 2, 0]]))
    x = torch.tensor([[1.0, 10.0, 100.0], [2.0, 0.0, -1.0]])
    y = layer(x)
    np.testing.assert_array_equal(y.detach().numpy(), [[195, 22], [-2, 4]])
    y.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    by_weight = np.array([[1.0, 2.0], [3.0, 4.0]]).T @ x.numpy()
    codes = layer.codes.numpy()
    np.testing.assert_array_equal(layer.centroids.grad.numpy(), [by_weight[codes == k].sum() for k in (1, 2)])


@pytest.mark.parametrize("sums", [_sums_counted, _sums_masked])
def test_sums_by_code(sums: Any) -> None:
    rng = np.random.default_rng(11)
    codes, gradient = rng.integers(0, 6, (70, 90), np.uint8), rng.normal(size=(70, 90)).astype(np.float32)
    expected = [gradient[codes == code].sum(dtype=np.float64) for code in range(1, 8)]
    found = sums(torch.from_numpy(gradient), torch.from_numpy(codes), 7)
    # Float32 sums of about 1000 numbers of magnitude 1.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("centroids", [3, 15, 16])
def test_clustering_keeps_zeros_and_takes_the_nearest_centroid(centroids: int) -> None:
    torch.manual_seed(5)
    layer = train.PrunedLinear(40, 30)
    layer.prune(0.75)
    dense = layer.masked_weight().detach().numpy()
    shared = train.CodebookLinear.of(layer, centroids)
    weight = shared.shared_weight().detach().numpy()
    np.testing.assert_array_equal(weight == 0, dense == 0)
    table = shared.centroids.detach().numpy()
    nearest = np.abs(dense[dense != 0][:, None] - table).min(1)
    np.testing.assert_allclose(np.abs(dense - weight)[dense != 0], nearest, rtol=1e-5, atol=1e-8)
    assert np.unique(weight).size <= centroids + 1


def test_no_centroid_is_lost_in_the_hole_that_pruning_leaves() -> None:
    torch.manual_seed(10)
    layer = train.PrunedLinear(200, 100)
    torch.nn.init.normal_(layer.weight)
    layer.prune(0.75)
    assert int(train.CodebookLinear.of(layer).members().min()) > 0


def test_clustering_of_nothing_but_zeros() -> None:
    layer = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(layer.weight)
    shared = train.CodebookLinear.of(layer)
    np.testing.assert_array_equal(shared.shared_weight().detach().numpy(), np.zeros((3, 4)))


def small_network() -> Any:
    torch.manual_seed(6)
    return torch.nn.Sequential(
        torch.nn.Linear(12, 40, bias=False), torch.nn.BatchNorm1d(40), torch.nn.ReLU(), torch.nn.Linear(40, 3)
    )


def steps(model: Any, optimizer: Any, count: int) -> list[float]:
    generator = torch.Generator().manual_seed(7)
    losses = []
    for _ in range(count):
        x = torch.randn(32, 12, generator=generator)
        loss = torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_zeros_stay_zero_and_codes_valid_through_the_schedule(kind: str) -> None:
    def optimizer(model: Any) -> Any:
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)

    model = small_network()
    steps(model, optimizer(model), 30)
    dead = [np.zeros(layer.weight.shape, bool) for layer in train.linears(model)]
    for share in SCHEDULE:
        train.prune_linears(model, share)
        steps(model, optimizer(model), 5)
        for index, layer in enumerate(train.linears(model)):
            weight = layer.masked_weight().detach().numpy()
            assert (weight == 0).sum() == round(share * weight.size)
            assert not np.any(weight[dead[index]])
            dead[index] = weight == 0
    train.compress_linears(model)
    codes = [layer.codes.clone() for layer in train.linears(model)]
    before = [layer.centroids.detach().clone() for layer in train.linears(model)]
    losses = steps(model, optimizer(model), 60)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    for index, layer in enumerate(train.linears(model)):
        assert torch.equal(layer.codes, codes[index])
        assert int(layer.codes.max()) <= 15
        weight = layer.shared_weight().detach().numpy()
        np.testing.assert_array_equal(weight == 0, dead[index])
        assert np.unique(weight).size <= 16
        assert not torch.equal(layer.centroids, before[index])


def test_a_codebook_is_not_pruned_again() -> None:
    model = small_network()
    train.compress_linears(model)
    with pytest.raises(InvalidInputError, match="'0' has a codebook already"):
        train.prune_linears(model, 0.5)
