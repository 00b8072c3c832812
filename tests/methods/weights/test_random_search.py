"""Random search: golden losses, the laws of the search, resuming, and the trained arms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, MissingStatistic, NonFinite, UnknownName
from sparsecraft.core.node_space import weight_density
from sparsecraft.methods.weights.random_search import (
    FixedBatch,
    RandomSearch,
    Scored,
    SearchResult,
    score_configurations,
)
from sparsecraft.model.compaction import compact
from sparsecraft.model.units import find_units

GOLDEN = Path(__file__).parents[2] / "golden" / "random_search.npz"


def parent(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def batch(rows: int = 20) -> FixedBatch:
    draws = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (rows,), generator=draws)
    return FixedBatch(torch.randn(rows, 6, generator=draws), labels)


@pytest.mark.parametrize("sparsity", ["0.25", "0.5", "0.75"])
def test_golden_losses_argmin_and_density(sparsity):
    arrays = np.load(GOLDEN)
    weights = [torch.from_numpy(arrays[name]) for name in ("W0", "W1", "W2")]
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False).double() for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.copy_(weight)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    score = FixedBatch(torch.from_numpy(arrays["X"]), torch.from_numpy(arrays["Y"]))
    groups = find_units(model, score.inputs)
    masks = [torch.from_numpy(arrays[f"masks{i}_s{sparsity}"]).bool() for i in (0, 1)]
    configurations = [{"0": a, "2": b} for a, b in zip(*masks, strict=True)]
    scored = score_configurations(model, groups, configurations, score)
    losses = np.array([each.loss for each in scored])
    np.testing.assert_allclose(losses, arrays[f"losses_s{sparsity}"], rtol=0, atol=1e-10)
    assert losses.argmin() == arrays[f"best_s{sparsity}"]
    assert score(model).loss == pytest.approx(float(arrays["loss_parent"]), abs=1e-10)

    best = configurations[int(losses.argmin())]
    smaller, index_map = compact(model, best, score.inputs, groups=groups)
    expected = float(arrays[f"weight_density_s{sparsity}"])
    report = index_map.report
    assert report.parameters_after / report.parameters_before == pytest.approx(expected, abs=1e-10)
    kept = [12, int(best["0"].sum()), int(best["2"].sum()), 3]
    assert weight_density([12, 20, 16, 3], kept) == pytest.approx(expected, abs=1e-10)
    assert score(smaller).loss == pytest.approx(losses.min(), abs=1e-10)


@given(st.floats(0, 0.9), st.integers(1, 12), st.integers(0, 3), st.booleans())
@settings(max_examples=15)
def test_laws_of_the_search(sparsity, trials, seed, reinit):
    model, score = parent(), batch()
    search = RandomSearch(sparsity=sparsity, trials=trials, seed=seed, reinit=reinit)
    result = search.search(model, score)
    assert len(result.losses) == trials and result.non_finite == 0
    assert bool((result.best_so_far.diff() <= 0).all())
    assert float(result.losses[result.best]) == float(result.best_so_far[-1])
    # The compact network of any trial has the loss that the masked one was scored by.
    for trial in {0, result.best}:
        found = score(search.sub_network(model, result, trial))
        assert found.loss == pytest.approx(float(result.losses[trial]), rel=1e-5)
        assert found.logit_norm == pytest.approx(float(result.logit_norms[trial]), rel=1e-5)


def test_no_sparsity_is_the_parent():
    result = RandomSearch(sparsity=0.0, trials=3).search(parent(), batch())
    assert result.losses.tolist() == [batch()(parent()).loss] * 3
    assert result.best == 0


@pytest.mark.parametrize("reinit", [False, True])
def test_a_hundred_and_a_hundred_trials_are_two_hundred(reinit):
    model, score = parent(), batch()
    half = RandomSearch(trials=100, reinit=reinit)
    first = half.search(model, score)
    kept = SearchResult.from_json(first.to_json())
    resumed = half.search(model, score, previous=kept)
    whole = RandomSearch(trials=200, reinit=reinit).search(model, score)
    assert torch.equal(resumed.losses, whole.losses)
    assert torch.equal(resumed.logit_norms, whole.logit_norms)
    assert resumed.best == whole.best
    for name, keep in whole.configuration().items():
        assert torch.equal(resumed.configuration()[name], keep)


def test_only_the_same_search_goes_on():
    model, score = parent(), batch()
    first = RandomSearch(trials=2).search(model, score)
    for other in ({"seed": 1}, {"sparsity": 0.5}, {"reinit": True}, {"mode": "global"}):
        with pytest.raises(InvalidValue, match="same settings"):
            RandomSearch(trials=2, **other).search(model, score, previous=first)


def test_new_weights_change_the_trials_and_not_the_random_state():
    model, score = parent(), batch()
    state = torch.get_rng_state()
    own = RandomSearch(trials=4, reinit=True).search(model, score)
    assert torch.equal(torch.get_rng_state(), state)
    inherited = RandomSearch(trials=4).search(model, score)
    assert not torch.equal(own.losses, inherited.losses)

    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*parent())
            self.scale = nn.Parameter(torch.ones(()))

    with pytest.raises(InvalidValue, match="reset_parameters"):
        RandomSearch(trials=2, reinit=True).search(Scaled(), score)


def test_batch_norm_scores_by_its_batch_and_keeps_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[1].running_mean.fill_(50.0)  # what evaluation mode would see
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score = batch()
    (found,) = score_configurations(
        model, find_units(model), [{"0": torch.ones(8, dtype=torch.bool)}], score
    )
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not model[1].training
    with torch.no_grad():
        hidden = model[0](score.inputs)
        normal = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + model[1].eps).sqrt()
        logits = model[3](torch.relu(normal))
        expected = float(nn.functional.cross_entropy(logits, score.labels))
    assert found.loss == pytest.approx(expected, rel=1e-5)


def test_failed_trials_are_counted_and_never_chosen():
    losses = iter([float("nan"), 2.0, 1.0, float("-inf"), 1.0, float("inf")])
    result = RandomSearch(trials=6).search(parent(), lambda model: Scored(next(losses), 1.0))
    assert (result.non_finite, result.best) == (3, 2)  # ties: the first
    assert result.best_so_far.tolist() == [float("inf"), 2.0, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(NonFinite, match="none of 2"):
        RandomSearch(trials=2).search(parent(), lambda model: Scored(float("nan"), 1.0))


def test_the_arms_are_paired_and_compact():
    model, seen = parent(), []

    def train(each, mask=None, *, branch):
        seen.append(branch)
        with torch.no_grad():
            each[4].bias.add_(1.0)

    search = RandomSearch(sparsity=0.75, trials=20)
    outcome = search.run(model, train, score=batch())
    assert seen == ["searched", "random", "parent"]
    density = weight_density([6, 16, 12, 3], [6, 4, 3, 3])
    assert outcome.weight_densities == {
        "searched": density, "random": density, "parent": 1.0
    }  # fmt: skip
    assert outcome.models["random"][0].weight.shape == (4, 6)
    keep = outcome.result.configuration(0)["0"]
    assert torch.equal(outcome.models["random"][0].weight, model[0].weight[keep])
    assert torch.equal(outcome.models["parent"][4].bias, model[4].bias + 1)
    assert not torch.equal(model[4].bias, outcome.models["searched"][4].bias)


def test_global_mode_lets_layers_differ():
    result = RandomSearch(sparsity=0.5, mode="global", trials=8).search(parent(), batch())
    kept = {tuple(int(keep.sum()) for keep in result.configuration(t).values()) for t in range(8)}
    assert len(kept) > 1 and {sum(each) for each in kept} == {14}


def test_convolutions_with_a_residual_are_searched_as_well():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 3, padding=1)
            self.outer, self.head = nn.Conv2d(5, 6, 1), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model, score = Block(), FixedBatch(torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0]))
    groups = find_units(model, score.inputs)
    result = RandomSearch(sparsity=0.5, trials=5).search(model, score, groups=groups)
    small = RandomSearch(sparsity=0.5).sub_network(model, result, groups=groups)
    assert small.stem.out_channels == small.outer.out_channels == 3
    assert score(small).loss == pytest.approx(float(result.losses.min()), rel=1e-5)


def test_settings_are_checked_and_the_catalog_builds_it():
    assert catalog.build("random_search", sparsity="0.9", trials="5") == RandomSearch(
        sparsity=0.9, trials=5
    )
    with pytest.raises(InvalidValue, match="trials=0"):
        RandomSearch(trials=0)
    with pytest.raises(InvalidValue, match="sparsity=1"):
        RandomSearch(sparsity=1.0)
    with pytest.raises(UnknownName, match="global"):
        RandomSearch(mode="globall")
    with pytest.raises(MissingStatistic, match="FixedBatch"):
        RandomSearch(trials=1).run(parent(), lambda model, mask=None, *, branch: None)
