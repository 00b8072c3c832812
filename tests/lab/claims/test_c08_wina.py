"""Claim 08: its grid, equal sparsity of its arms, and what it calls a block's error."""

import math

import pytest
import torch

pytest.importorskip("transformers")

from sparsecraft.core.greedy_allocation import block_error
from sparsecraft.lab.claims import c08_wina as c08
from sparsecraft.lab.claims import gated_language as language
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.model.gating import gate
from sparsecraft.model.targets import find_targets

SIZE = c08.SIZES["smoke"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    language.load_language.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSECRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = language.load_language(0, **SIZE)
        short = {part: windows[:8] for part, windows in made.windows.items()}
        made.windows.update(short)
        yield made
    language.load_language.cache_clear()


@pytest.mark.parametrize("budget", ["small", "full"])
def test_the_grid_has_every_stated_arm_and_no_arm_twice(budget):
    arms = [cell.arm for cell in c08._grid(budget, 0)]
    assert len(set(arms)) == len(arms)
    for contrast in c08.STATED:
        assert contrast.terms.keys() <= set(arms)


def test_full_contains_small():
    def keys(budget):
        return {(c.arm, str(sorted(c.settings.items()))) for c in c08._grid(budget, 0)}

    assert keys("small") <= keys("full")


def test_the_stated_arms_differ_in_the_score_alone():
    wina, rival = c08.ARMS["wina"], c08.ARMS["teal-transform"]
    assert {key: value for key, value in rival.items() if wina.get(key) != value} == {
        "score": "teal"
    }
    assert wina["rotated"] and rival["rotated"]


@pytest.mark.parametrize("arm", [*c08.FULL_ARMS, "cats"])
def test_all_arms_drop_equally_much(arm, task):
    options = {**c08.FULL_ARMS, "cats": c08.CATS}[arm]
    if options.get("allocation") == "greedy":
        options = {**options, "step": 0.5}
    cell = Cell(arm, 0, {"task": dict(SIZE), "options": dict(options), "sparsity": 0.25})
    found = c08.measure(cell)
    # Half a query's size at a time lands beside the sparsity asked.
    slack = 0.15 if options.get("allocation") == "greedy" else 0.02
    assert found["sparsity"] == pytest.approx(0.25, abs=slack)
    assert 0 < found["loss"] < 8 and found[c08.BLOCK_ERROR] > 0
    assert (c08.ERROR_RATIO in found) == (options.get("allocation") == "greedy")


def test_dense_cells_have_no_gates(task):
    found = c08.measure(Cell("dense", 0, {"task": dict(SIZE)}))
    assert found == language.losses(task.load_model(), task)


def test_greedy_is_compared_at_the_sparsity_that_it_reached(task, monkeypatch):
    asked = []

    def watched(model, *args, **kwargs):
        asked.append(kwargs["sparsity"])
        return gate(model, *args, **kwargs)

    monkeypatch.setattr(c08, "gate", watched)
    options = {**c08.ARMS["wina greedy"], "step": 0.5}
    found = c08.measure(Cell("g", 0, {"task": dict(SIZE), "options": options, "sparsity": 0.4}))
    assert asked == [0.4, found["sparsity"]]


@torch.no_grad()
def test_a_block_is_judged_on_dense_inputs(task):
    model, windows = task.load_model(), task.windows["test"][:8]
    (step,) = language.BlockTrace.of(model, windows).steps
    block, call, hidden, given = step
    assert torch.equal(given, model.model.layers[0](hidden, *call.args, **call.kwargs))
    trace = language.BlockTrace([step, step])
    assert trace.error() == 0.0
    with gate(model, "teal", rule="topk", sparsity=0.5):
        expected = block_error(given, call.run(block, hidden))
        assert trace.error() == pytest.approx(expected) and expected > 0
    assert block is model.model.layers[0]


def test_what_is_dropped_counts_ungated_matrices_as_kept(task):
    model, windows = task.load_model(), task.windows["test"][:8]
    total = find_targets(model).numel
    mlp = 2 * SIZE["width"] * (11 * SIZE["width"] // 4)
    with gate(model, "cats", sparsity=0.5, calibration=[{"input_ids": windows}]):
        found = language.dropped(model, windows)
    assert found == pytest.approx(0.5 * mlp / total, rel=0.02)
    assert math.isclose(c08._share_of_cats(model, [{"input_ids": windows}]), mlp / total)
