"""Top-k as a gate: put on a trained model, said to be post hoc, and taken off again."""

import pytest
import torch
from tests.models import batches_for, tiny_bert, tiny_llama, tiny_opt

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.methods.activations.topk_mlp import TopK
from sparsecraft.model.activation_sparsity import ActivationMonitor
from sparsecraft.model.checkpoints import load, save
from sparsecraft.model.gating import gate
from sparsecraft.model.topk_mlp import apply_topk


def test_every_token_keeps_k_of_its_activations():
    model = tiny_opt()
    gated = gate(model, "topk_mlp", k=3, calibration=batches_for(model))
    for row in gated.report.rows:
        assert row.asked == 1 - 3 / 64
        assert row.achieved == row.asked
    layers = ActivationMonitor(model).measure(batches_for(model)).layers
    assert max(layer.quantiles[2] for layer in layers) == 3


def test_it_is_what_training_with_it_computes():
    gated, trained = tiny_opt(), tiny_opt()
    gate(gated, TopK(fraction=1 / 8))
    apply_topk(trained, fraction=1 / 8)
    (batch,) = batches_for(gated, count=1)
    with torch.no_grad():
        assert torch.equal(gated(**batch).logits, trained(**batch).logits)


def test_the_report_calls_it_post_hoc():
    plain = gate(tiny_opt(), "topk_mlp", k=3).report.notes
    assert any(note.startswith("post hoc: the model was not trained with top-k") for note in plain)
    swapped = gate(tiny_bert(), "topk_mlp", k=3, replace_activation="relu").report.notes
    assert any("relu stands in place of every other activation" in note for note in swapped)
    assert not any("stands in place" in note for note in plain)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_swapped_activations_are_saved_loaded_and_undone(make, tmp_path):
    model = make()
    (batch,) = batches_for(model, count=1)
    with torch.no_grad():
        before = model(**batch)[0]
        gated = gate(model, "topk_mlp", k=3, replace_activation="relu")
        during = model(**batch)[0]
        save(model, tmp_path / "gated", form="augmented")
        assert torch.equal(load(tmp_path / "gated")(**batch)[0], during)
        gated.undo()
        assert not torch.equal(before, during)
        assert torch.equal(model(**batch)[0], before)
    assert "TopKActivation" not in str(model)


def test_settings_are_checked():
    assert TopK().asked(64) == 1 - 4 / 64
    assert catalog.build("topk_mlp", k="8", replace_activation="none") == TopK(k=8)
    with pytest.raises(InvalidValue, match=r"both k=2 and fraction=0\.5"):
        TopK(k=2, fraction=0.5)
    with pytest.raises(InvalidValue, match="k=0"):
        TopK(k=0)
    with pytest.raises(UnknownName, match="activation 'gelu'"):
        TopK(k=2, replace_activation="gelu")
    with pytest.raises(InvalidValue, match="k=65 exceeds the 64 entries"):
        gate(tiny_opt(), "topk_mlp", k=65)


def test_a_described_method_is_restored():
    method = TopK(fraction=0.1, replace_activation="relu")
    assert catalog.restore(catalog.describe(method)) == method
