import pytest
import torch
from tests.models import batches_for, tiny_llama

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.gating import gate, sparsity_report


def test_gated_tokens_and_the_whole_text_are_told_apart():
    model = tiny_llama()
    gate(model, "teal", rule="topk", sparsity=0.75, prefill=0.5)
    report = sparsity_report(model, batches_for(model))
    assert report.sparsity == pytest.approx(0.75)
    assert report.whole_text == pytest.approx(0.375)
    assert report.tokens == 2 * 3 * 12


def test_padding_is_left_out():
    model = tiny_llama()
    batch = batches_for(model, count=1)[0]
    gate(model, "teal", rule="topk", sparsity=0.5, prefill=1.0)
    batch["attention_mask"][:, 8:] = 0
    report = sparsity_report(model, [batch])
    assert report.tokens == 3 * 8
    assert report.sparsity == pytest.approx(0.5)


def test_places_are_weighted_by_their_weights():
    model = tiny_llama()
    batches = batches_for(model)
    gate(model, "teal", sparsity=0.5, calibration=batches)
    report = sparsity_report(model, batches)
    by_hand = sum(row.achieved * row.numel for row in report.rows) / sum(
        row.numel for row in report.rows
    )
    assert report.sparsity == pytest.approx(by_hand)
    needed, dense = report.flops
    assert dense == 2 * sum(row.numel for row in report.rows)
    assert needed == pytest.approx(dense * (1 - report.sparsity), abs=1)


def test_cats_saves_rows_of_up_and_columns_of_down():
    model = tiny_llama()
    batches = batches_for(model)
    gate(model, "cats", sparsity=0.5, calibration=batches)
    needed, dense = sparsity_report(model, batches).flops
    assert dense == 2 * 2 * (2 * 32 * 64)
    assert needed == pytest.approx(dense / 2, rel=0.01)


def test_what_is_dropped_is_counted_on_the_data_that_is_given():
    model = tiny_llama()
    gate(model, "teal", sparsity=0.5, calibration=batches_for(model), prefill=1.0)
    small = {"inputs_embeds": 1e-3 * torch.randn(1, 6, 32, generator=torch.Generator())}
    report = sparsity_report(model, [small, *batches_for(model, seed=9)])
    assert report.sparsity != pytest.approx(0.5, abs=1e-6)
    assert report.to_json()["flops_per_token"]["dense"] == report.flops[1]


def test_modes_are_left_as_they_were():
    model = tiny_llama().train()
    gate(model, "teal", rule="topk")
    sparsity_report(model, batches_for(model))
    assert all(module.training for module in model.modules())


def test_a_model_without_gates_or_data_is_refused():
    model = tiny_llama()
    with pytest.raises(InvalidValue, match="has no gates"):
        sparsity_report(model, batches_for(model))
    gate(model, "teal", rule="topk")
    with pytest.raises(InvalidValue, match="no batch"):
        sparsity_report(model, [])
