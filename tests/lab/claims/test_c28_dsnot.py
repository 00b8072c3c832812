"""Claim 28: arms that differ in the swaps alone, and what is measured of them."""

import copy

import pytest
import torch

from sparsecraft import prune
from sparsecraft.lab.claims import c28_dsnot as c28
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.claims.cells import Cell


@pytest.mark.parametrize("budget", ["small", "full"])
def test_every_stated_arm_is_run(budget):
    arms = c28._settings(budget)["arms"]
    for contrast in c28.STATED:
        assert contrast.terms.keys() <= arms.keys()
        assert sum(contrast.terms.values()) == pytest.approx(0)


def test_full_contains_small():
    small, full = (c28._settings(budget)["arms"] for budget in ("small", "full"))
    assert small.items() <= full.items()


def test_a_start_and_its_swaps_keep_as_many_in_every_row():
    model = source_bytes.byte_model(1, 32, 0, c28.CONTEXT)
    windows = [{"input_ids": torch.arange(192).view(2, 96)}]
    arms = c28._settings("small")["arms"]
    for start in c28.STARTS:
        for name in (c28.arm(start, c28.HIGH), c28.arm(c28.improved(start), c28.HIGH)):
            pruned = copy.deepcopy(model)
            mask = prune(pruned, calibration=windows, **arms[name]).mask
            assert mask.density == pytest.approx(0.2, abs=0.01)
            if start != "sparsegpt":
                assert all(len(set(keep.sum(1).tolist())) == 1 for keep in mask.values())


def test_reconstruction_error_is_that_of_the_outputs():
    model = source_bytes.byte_model(1, 32, 0, c28.CONTEXT)
    windows = [{"input_ids": torch.arange(192).view(2, 96)}]
    hessians = c28.input_hessians(model, windows)
    assert set(hessians) == {f"blocks.0.{name}" for name in ("q", "k", "v", "o", "fc1", "fc2")}
    seen = []
    hook = model.blocks[0].q.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**windows[0])
    hook.remove()
    pruned = copy.deepcopy(model)
    prune(pruned, "magnitude", sparsity=0.5, targets="*.q")
    x, weight = seen[0].flatten(0, 1).detach(), model.blocks[0].q.weight.detach()
    change = (x @ (pruned.blocks[0].q.weight - weight).T).square().sum() / (
        x @ weight.T
    ).square().sum()
    only = {"blocks.0.q": hessians["blocks.0.q"]}
    assert c28.lost(model, pruned, only) == pytest.approx(float(change.detach()), rel=1e-4)
    assert c28.lost(model, model, hessians) == 0


def test_a_cell_gives_every_arm_its_metrics():
    settings = c28._settings("smoke")
    found = c28.measure(Cell("all arms", 0, settings))
    by_arm = {}
    for key in found:
        name, _, metric = key.rpartition(" | ")
        by_arm.setdefault(name, set()).add(metric)
    assert by_arm.keys() == {"dense", *settings["arms"]}
    assert by_arm["dense"] == {c28.METRIC}
    assert by_arm[c28.arm("wanda", c28.HIGH)] == {c28.METRIC, "reconstruction error"}
    assert by_arm[c28.arm("wanda + dsnot", c28.HIGH)] == {
        c28.METRIC, "reconstruction error", "expected error before", "expected error", "swaps",
    }  # fmt: skip


@pytest.mark.parametrize("start", c28.STARTS)
def test_without_swaps_dsnot_is_its_start(start):
    model = source_bytes.byte_model(1, 32, 0, c28.CONTEXT)
    windows = [{"input_ids": torch.arange(192).view(2, 96)}]
    arms = c28._settings("small")["arms"]
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    prune(one, calibration=windows, **arms[c28.arm(start, c28.HIGH)])
    prune(two, calibration=windows, **arms[c28.arm(c28.improved(start), c28.HIGH)], cycles=0)
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)
