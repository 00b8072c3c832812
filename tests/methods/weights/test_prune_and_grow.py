"""SET and RigL against a plain loop, step by step; when they update, and what they refuse."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.allocation import ERK, Uniform
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM
from sparsecraft.methods.weights.rigl import RigL
from sparsecraft.methods.weights.set import SET


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 6))


def batches(steps):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 20, generator=draw), torch.randint(0, 6, (16,), generator=draw))
        for _ in range(steps)
    ]


def optimizer(kind, model):
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def followed(method, steps=20, kind="sgd"):
    """Trains by the library; returns the masks after each step, the model and the report."""
    model = network()
    sparsifier = Sparsifier(model, method, total_steps=steps, targets="Linear")
    chosen = optimizer(kind, model)
    sparsifier.attach(chosen)
    seen = [sparsifier.mask]
    for x, labels in batches(steps):
        chosen.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        chosen.step()
        seen.append(sparsifier.mask)
    return seen, model, sparsifier.finalize()


def plain_rigl(masks, steps, every, drop, kind):
    """Returns masks and model of a loop that knows nothing of the library."""
    model = network()
    chosen = optimizer(kind, model)
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    masks = {name: masks[name].clone() for name in weights}
    total = {name: int(mask.sum()) for name, mask in masks.items()}
    for name, p in weights.items():
        p.data *= masks[name]
    for t, (x, labels) in enumerate(batches(steps), start=1):
        chosen.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        dense = {name: p.grad.clone() for name, p in weights.items()}
        for name, p in weights.items():
            p.grad *= masks[name]
        chosen.step()
        due = 0 < t < 0.75 * steps and t % every == 0
        fraction = drop / 2 * (1 + math.cos(math.pi * t / (0.75 * steps)))
        for name, p in weights.items():
            if due:
                keep = torch.zeros(p.numel(), dtype=torch.bool)
                kept = int(masks[name].sum()) - int(fraction * int(masks[name].sum()))
                keep[(p.data * masks[name]).abs().flatten().topk(kept).indices] = True
                grow = dense[name].abs().flatten().masked_fill(keep, -1.0)
                mask = keep.clone()
                mask[grow.topk(total[name] - kept).indices] = True
                masks[name] = mask.view_as(p)
                p.data *= keep.view_as(p)
            p.data *= masks[name]
            for value in chosen.state[p].values():
                if value.shape == p.shape:
                    value *= masks[name]
    return masks, model


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_rigl_is_the_plain_loop(kind):
    seen, model, _ = followed(RigL(sparsity=0.8, every=4, drop=0.4), kind=kind)
    masks, expected = plain_rigl(seen[0], 20, 4, 0.4, kind)
    for name, mask in masks.items():
        assert torch.equal(seen[-1][name], mask)
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", [SET, RigL])
def test_the_mask_changes_when_due_and_keeps_its_count(method):
    seen, _, report = followed(method(sparsity=0.8, every=4))
    changed = [t for t in range(1, 21) if seen[t] != seen[t - 1]]
    assert changed == [4, 8, 12]  # not at 15 = 0.75 * 20, nor after
    for mask in seen:
        assert mask.densities == seen[0].densities
    assert report.sparsity == pytest.approx(0.8, abs=2e-3)
    assert report.itop > 0.2


@pytest.mark.parametrize("method", [SET, RigL])
def test_what_is_dropped_is_zero_whether_or_not_it_grows_again(method):
    layer = TrainedLayer("0", (1, 6), mask=torch.tensor([[True] * 4 + [False] * 2]))
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0]])
    chosen = method(drop=0.5, every=4, end_at=1.0, anneal="constant")
    assert chosen.after_step(weight, layer, Clock(3, 5)).tolist() == [[4, 3, 0, 0, 0, 0]]
    assert torch.equal(chosen.after_step(weight, layer, Clock(2, 5)), weight)


def test_set_grows_at_random_by_layer_and_step():
    layer = TrainedLayer("0", (3, 4), seed=5)
    scores = [SET().scores(layer, {}, torch.zeros(3, 4), Clock(step, 10)) for step in (3, 3, 4)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_set_and_rigl_drop_alike_and_grow_apart():
    one, two = (followed(m(sparsity=0.8, every=4))[0] for m in (SET, RigL))
    assert one[0] == two[0]
    assert one[4] != two[4]


def test_densities_follow_the_allocation():
    shapes = {"0": (30, 20), "2": (6, 30)}
    for allocation in (ERK(), Uniform()):
        seen, _, _ = followed(SET(sparsity=0.8, allocation=allocation, every=2), steps=4)
        for name, density in allocation(shapes, 0.2).items():
            kept = count(math.prod(shapes[name]), density)
            assert int(seen[-1][f"{name}.weight"].sum()) == kept


def test_the_fraction_falls_over_the_updates():
    method = RigL(drop=0.3, begin_at=0.1, end_at=0.6)
    fractions = [method.fraction(Clock(done - 1, 100)) for done in (10, 35, 60)]
    assert fractions == pytest.approx([0.3, 0.15, 0.0])
    assert [done for done in range(1, 101) if method.due(Clock(done - 1, 100))] == list(
        range(15, 60, 5)
    )


def test_the_interval_by_default():
    assert [RigL().interval(total) for total in (5, 200, 2000, 10**6)] == [1, 10, 100, 100]
    assert RigL(every=7).interval(10**6) == 7


def test_cost_of_a_step_counts_the_dense_gradient():
    method = RigL(every=100)
    assert method.flops_of_step(1.0, 1.0, 1000) == pytest.approx(3.0)
    assert method.flops_of_step(10.0, 100.0, 1000) == pytest.approx((3000 + 20 + 100) / 101)


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_settings_survive_json(name):
    method = catalog.build(name, sparsity=0.9, allocation="uniform", every=10, anneal="constant")
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pattern": NM(2, 4)}, "breaks the pattern 2:4.*mdgf"),
        ({"drop": 0.0}, r"drop=0.0 .* in \(0, 1\)"),
        ({"every": 0}, "at least 1 step"),
        ({"begin_at": 0.8}, "from 0.8 to 0.75"),
        ({"sparsity": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InvalidValue, match=message):
        RigL(**options)


def test_an_unknown_anneal():
    with pytest.raises(UnknownName, match="Did you mean 'constant'"):
        SET(anneal="const")


def test_a_training_without_a_single_update_is_refused():
    with pytest.raises(InvalidValue, match=r"between 0 and 0\.75 of 100 steps"):
        Sparsifier(network(), RigL(every=100), total_steps=100, targets="Linear")


def test_a_gradient_that_is_not_finite_is_named():
    layer = TrainedLayer("0", (1, 2), mask=torch.tensor([[True, False]]))
    gradient = torch.tensor([[1.0, math.nan]])
    with pytest.raises(NonFinite, match="0: the gradient has 1 NaN"):
        RigL().scores(layer, {"0": gradient}, torch.ones(1, 2), Clock(0, 10))
