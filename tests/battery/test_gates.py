"""Every Gate of the catalog through the same laws."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tests.models import batches_for, tiny_llama

from sparsecraft.core import catalog
from sparsecraft.core.kinds import Gate
from sparsecraft.model.checkpoints import load
from sparsecraft.model.gate_hooks import installed
from sparsecraft.model.gating import Gated, gate

GATES = [name for name in catalog.names() if issubclass(catalog.get(name).cls, Gate)]


def gated(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Gated:
    model = tiny_llama().to(dtype)
    return gate(model, name, calibration=batches_for(model, count=3), seed=seed)


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batches_for(model, seed=8)[0]).logits


def test_the_papers_gates_are_there():
    assert {"cats", "random_gate", "teal", "wina"} <= set(GATES)


@pytest.mark.parametrize("name", GATES)
def test_what_is_asked_is_got(name):
    report = gated(name).report
    assert report.sparsity == pytest.approx(report.asked, abs=0.05)
    assert all(0 <= row.achieved < 1 for row in report.rows)


@pytest.mark.parametrize("name", GATES)
def test_one_seed_gives_one_result(name):
    assert torch.equal(outputs(gated(name, seed=7).model), outputs(gated(name, seed=7).model))


@pytest.mark.parametrize("name", GATES)
def test_a_copy_computes_the_same_and_undo_leaves_it_alone(name):
    first = gated(name)
    twin = copy.deepcopy(first.model)
    expected = outputs(first.model)
    first.undo()
    assert torch.equal(outputs(twin), expected)
    assert installed(twin)
    assert torch.equal(outputs(first.model), outputs(tiny_llama()))


@pytest.mark.parametrize("name", GATES)
def test_saved_and_loaded_it_computes_the_same(name, tmp_path):
    first = gated(name)
    loaded = load(first.save(tmp_path / "gated"))
    assert torch.equal(outputs(loaded), outputs(first.model))


@pytest.mark.parametrize("name", GATES)
def test_bfloat16_models_are_gated_in_their_own_dtype(name):
    first = gated(name, dtype=torch.bfloat16)
    assert outputs(first.model).dtype == torch.bfloat16
    assert first.report.sparsity == pytest.approx(first.report.asked, abs=0.06)


@pytest.mark.parametrize("name", GATES)
def test_settings_written_and_read_give_the_same_method(name):
    method = catalog.build(name)
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method
