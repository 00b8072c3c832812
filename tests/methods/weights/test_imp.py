"""Iterative magnitude pruning against a hand-written loop, and its laws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite, SparsityError
from sparsecraft.core.mask import count
from sparsecraft.core.seeds import generator
from sparsecraft.methods.weights.imp import IterativeMagnitude
from sparsecraft.model.frozen import hold_mask
from sparsecraft.model.pruning import prune


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


class Training:
    """A short training that remembers what it was given."""

    def __init__(self, steps=10):
        self.steps = steps
        self.calls = []

    def __call__(self, model, mask=None, *, branch):
        self.calls.append((branch, mask, copy.deepcopy(model.state_dict())))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        held = hold_mask(model, mask, optimizer) if mask is not None else None
        data = generator(0, "data")
        model.train()
        for _ in range(self.steps):
            x, y = torch.randn(8, 5, generator=data), torch.randint(4, (8,), generator=data)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if held is not None:
            held.remove()


@pytest.mark.parametrize("path", ["geometric", "linear"])
def test_the_rounds_are_those_of_a_loop_by_hand(path):
    model, train = net(), Training()
    tickets = IterativeMagnitude(sparsity=0.7, rounds=3, path=path).run(model, train)

    densities = {
        "geometric": [0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3],
        "linear": [23 / 30, 16 / 30, 0.3],
    }
    names = ["0.weight", "3.weight"]
    mask = None
    for density, found in zip(densities[path], tickets.masks, strict=True):
        trained = net()
        if mask is not None:
            mask.apply_(dict(trained.named_parameters()))
        Training()(trained, mask, branch="by hand")
        flat = torch.cat([trained.get_parameter(name).abs().flatten() for name in names])
        limit = flat.topk(count(108, density)).values.min()
        for name in names:
            assert torch.equal(found[name], trained.get_parameter(name).abs() >= limit)
        mask = found


def test_every_round_starts_from_the_given_weights_under_its_mask():
    model, train = net(), Training()
    start = copy.deepcopy(model.state_dict())
    tickets = IterativeMagnitude(sparsity=0.6, rounds=3).run(model, train)
    assert [branch for branch, _, _ in train.calls] == ["round 1", "round 2", "round 3"]
    held = [None, *tickets.masks[:2]]
    states = [state for _, _, state in train.calls]
    for mask, given, state in [
        *zip(held, [mask for _, mask, _ in train.calls], states, strict=True),
        (tickets.mask, tickets.mask, model.state_dict()),
    ]:
        assert given is mask
        for name, value in state.items():
            keep = mask[name] if mask is not None and name in mask else True
            assert torch.equal(value, start[name] * keep)


def test_masks_shrink_to_the_exact_count_and_nest():
    tickets = IterativeMagnitude(sparsity=0.9, rounds=4).run(net(), Training())
    kept = [mask.kept for mask in tickets.masks]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == count(108, 0.1)
    for before, after in zip(tickets.masks, tickets.masks[1:], strict=False):
        assert all((after[name] & ~before[name]).sum() == 0 for name in after)


def test_survivors_at_zero_come_before_what_is_pruned():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))

    def to_zero(model, mask=None, *, branch):
        with torch.no_grad():
            model[0].weight.mul_(0.0 if branch == "round 2" else 1.0)

    tickets = IterativeMagnitude(sparsity=0.75, rounds=2).run(model, to_zero)
    first, second = (mask["0.weight"] for mask in tickets.masks)
    assert second.sum() == 4
    assert not (second & ~first).any()


def test_one_round_without_training_is_one_shot_magnitude():
    model, twin = net(), net()
    tickets = IterativeMagnitude(sparsity=0.5, rounds=1).run(model, Training(steps=0))
    report = prune(twin, "global_magnitude", sparsity=0.5)
    assert tickets.mask == report.mask
    assert tickets.mask.similarity(report.mask) == 1.0


def test_targets_choose_the_layers():
    tickets = IterativeMagnitude(sparsity=0.5, targets="3").run(net(), Training())
    assert list(tickets.mask) == ["3.weight"]


def test_a_training_that_diverges_is_named():
    def diverge(model, mask=None, *, branch):
        with torch.no_grad():
            model[3].weight.fill_(float("nan"))

    with pytest.raises(NonFinite, match="3: the trained weight"):
        IterativeMagnitude().run(net(), diverge)


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"path": "cubic"}])
def test_settings_are_checked(settings):
    with pytest.raises(InvalidValue, match="is not allowed"):
        IterativeMagnitude(**settings)


def test_it_is_in_the_catalog_and_prune_says_where_it_belongs():
    made = catalog.build("iterative_magnitude", sparsity="0.8", rounds="2", path="linear")
    assert made == IterativeMagnitude(sparsity=0.8, rounds=2, path="linear")
    assert catalog.restore(catalog.describe(made)) == made
    with pytest.raises(SparsityError, match="is a Recipe method"):
        prune(net(), "iterative_magnitude")
