"""Gradual magnitude pruning: its schedule, its nested masks, its two scopes."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.allocation import ERK
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Block
from sparsecraft.methods.weights.gradual_magnitude import GradualMagnitude

STEPS = 20


def followed(method):
    """Returns the masks after each step, the model and the report."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    sparsifier = Sparsifier(model, method, total_steps=STEPS, targets="Linear")
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier.attach(adam)
    draw, seen = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        adam.zero_grad()
        x = torch.randn(16, 16, generator=draw)
        F.cross_entropy(model(x), torch.arange(16) % 8).backward()
        adam.step()
        seen.append(sparsifier.mask)
    return seen, model, sparsifier.finalize()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_cubic_curve_is_followed_exactly(scope):
    method = GradualMagnitude(sparsity=0.9, begin_at=0.2, end_at=0.8, every=0.1, scope=scope)
    seen, _, report = followed(method)
    for done, mask in enumerate(seen, start=1):
        # The mask of the last cut, at step 4 or 2, 4, ... steps later, up to step 16.
        cut = min(done - done % 2, 16)
        if done < 4:
            assert not mask
            continue
        wanted = 0.1 + 0.9 * (1 - (cut - 4) / 12) ** 3
        assert mask.kept == pytest.approx(768 * wanted, abs=1.01)
    assert report.sparsity == pytest.approx(0.9, abs=2e-3)
    assert report.notes == ()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_each_mask_is_a_part_of_the_one_before(scope):
    seen, model, report = followed(GradualMagnitude(sparsity=0.9, every=0.1, scope=scope))
    cuts = [mask for mask in seen if mask]
    for before, after in itertools.pairwise(cuts):
        assert all(bool((after[name] <= before[name]).all()) for name in after)
    report.mask.verify(dict(model.named_parameters()))


def test_the_smallest_go_within_a_layer_or_over_all():
    weights = {"a": torch.tensor([[4.0, 3.0], [2.0, 1.0]]), "b": torch.full((2, 2), 9.0)}
    layers = {name: TrainedLayer(name, (2, 2)) for name in weights}
    last = Clock(9, 10)
    by_layer = GradualMagnitude(end_at=1.0).update_masks(weights, {}, layers, last)
    assert by_layer["a"].tolist() == [[True, True], [False, False]]
    assert int(by_layer["b"].sum()) == 2
    over_all = GradualMagnitude(end_at=1.0, scope="global")
    found = over_all.update_masks(weights, {}, layers, last)
    assert int(found["a"].sum()) == 0 and bool(found["b"].all())


def test_a_survivor_of_exactly_zero_comes_before_what_is_pruned():
    layer = TrainedLayer("a", (1, 4), mask=torch.tensor([[False, True, True, False]]))
    method = GradualMagnitude(sparsity=0.5, end_at=1.0)
    found = method.update_masks({"a": torch.zeros(1, 4)}, {}, {"a": layer}, Clock(9, 10))
    assert torch.equal(found["a"], layer.mask)


def test_every_density_is_shared_out_by_the_allocation():
    seen, _, _ = followed(GradualMagnitude(sparsity=0.8, allocation=ERK()))
    shares = ERK()({"0": (32, 16), "2": (8, 32)}, 0.2)
    assert int(seen[-1]["0.weight"].sum()) == count(512, shares["0"])
    assert int(seen[-1]["2.weight"].sum()) == count(256, shares["2"])


def test_blocks_and_convolutions():
    method = GradualMagnitude(sparsity=0.5, pattern=Block(4, 4))
    seen, _, _ = followed(method)
    blocks = seen[-1]["0.weight"].float().view(8, 4, 4, 4).mean((1, 3))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    weight = {"c": torch.randn(4, 3, 3, 3)}
    layers = {"c": TrainedLayer("c", (4, 3, 3, 3))}
    for scope in ("layer", "global"):
        found = GradualMagnitude(scope=scope).update_masks(weight, {}, layers, Clock(9, 10))
        assert found["c"].shape == (4, 3, 3, 3) and int(found["c"].sum()) == 54


def test_settings_survive_json():
    method = catalog.build("gradual_magnitude", sparsity=0.9, scope="global", every=0.05)
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pattern": NM(2, 4)}, "nothing gradual.*sdgf"),
        ({"begin_at": 0.8, "end_at": 0.5}, "from 0.8 to 0.5 of the training"),
        ({"end_at": 0.0}, "end_at above 0"),
        ({"every": 0.0}, r"in \(0, 1\]"),
        ({"scope": "global", "allocation": ERK()}, "would not be heard"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InvalidValue, match=message):
        GradualMagnitude(**options)


def test_an_unknown_scope():
    with pytest.raises(UnknownName, match="scope 'model'"):
        GradualMagnitude(scope="model")


def test_weights_that_are_not_finite_are_named():
    layers = {"a": TrainedLayer("a", (1, 2))}
    with pytest.raises(NonFinite, match="a: the weight has 1 NaN"):
        GradualMagnitude().update_masks(
            {"a": torch.tensor([[1.0, torch.nan]])}, {}, layers, Clock(9, 10)
        )
