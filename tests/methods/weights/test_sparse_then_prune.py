"""Sparse then Prune: the list of weights, the penalty through real attention, masks, errors."""

from __future__ import annotations

import json
import math
from statistics import fmean

import pytest
import torch
from tests import models
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, MissingStatistic, NoMatch, UnknownName
from sparsecraft.core.kinds import Clock
from sparsecraft.methods.weights.sparse_then_prune import (
    SparseThenPrune,
    attention_stats,
)

CLOCK = Clock(0, 1)


def trained(method, steps=3, model=None, rate=0.05, **options):
    """Returns the model, what the penalty was at every step, and the Sparsifier."""
    model = (models.tiny_vit() if model is None else model).train()
    sparsifier = Sparsifier(model, method, total_steps=steps, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    sparsifier.attach(optimizer)
    batch = models.batches_for(model)[0]
    penalties = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(**batch, labels=torch.tensor([0, 1, 2]))
        added = sparsifier.loss()
        penalties.append(float(added.detach()))
        (output.loss + added).backward()
        optimizer.step()
    return model, penalties, sparsifier


def names(method, model) -> set[str]:
    return {target.parameter for target in method.targets(model, None)}


def test_the_official_list_found_by_structure():
    model = models.tiny_vit()
    block = {
        f"vit.layers.{i}.{part}.weight"
        for i in (0, 1)
        for part in (
            *(f"attention.{p}_proj" for p in "qkvo"),
            "layernorm_before",
            "layernorm_after",
            "mlp.fc1",
            "mlp.fc2",
        )
    }
    ends = {"vit.embeddings.patch_embeddings.projection.weight", "classifier.weight"}
    assert names(SparseThenPrune(), model) == block | ends
    spared = {name for name in block if "layernorm" in name}
    assert names(SparseThenPrune(include_norm=False), model) == (block | ends) - spared
    without = names(SparseThenPrune(include_embeddings=False), model)
    assert (block | ends) - without == {"vit.embeddings.patch_embeddings.projection.weight"}


def test_every_parameter_has_a_row_and_targets_come_in_model_order():
    model = models.tiny_vit()
    targets = SparseThenPrune(include_embeddings=False).targets(model, None)
    rows = {row["name"]: row for row in targets.table()}
    assert list(rows) == [name for name, _ in model.named_parameters()]
    order = [name for name in rows if rows[name]["targeted"]]
    assert [target.parameter for target in targets] == order
    projection = rows["vit.embeddings.patch_embeddings.projection.weight"]
    assert projection["reason"] == "embedding, left out by include_embeddings"
    norm = rows["vit.layers.0.layernorm_before.weight"]
    assert norm["reason"] == "normalisation scale of a block"


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "gpt-neox"])
def test_other_architectures_have_their_norms_and_fused_projections(name):
    model = models.ARCHITECTURES[name]()
    found = names(SparseThenPrune(), model)
    vectors = [n for n, p in model.named_parameters() if n in found and p.dim() == 1]
    assert len(vectors) == 4
    assert all("bias" not in n for n in found)
    targets = SparseThenPrune().targets(model, None)
    sizes = sum(p.numel() for n, p in model.named_parameters() if n in found)
    assert targets.numel == sizes


def test_the_official_penalty_of_a_real_vit():
    model, (first, *_), sparsifier = trained(SparseThenPrune(), steps=1)
    twin = models.tiny_vit().train()
    twin.set_attn_implementation("eager")
    last = twin(**models.batches_for(twin)[0], output_attentions=True).attentions[-1]
    assert first == pytest.approx(0.01 * float(torch.log1p(last.detach() ** 2).mean()), rel=1e-5)
    assert model.config._attn_implementation == "eager"
    sparsifier.finalize()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("penalty", "rises"), [("log1p_sq", True), ("negative_log1p_sq", False), ("entropy", False)]
)
def test_the_penalty_moves_attention_the_way_it_should(penalty, rises):
    """The official one makes attention flatter, the others make it peaky."""
    model = models.tiny_vit()
    with torch.no_grad():  # maps that are not flat to begin with
        for block in model.vit.layers:
            block.attention.q_proj.weight.mul_(20)
            block.attention.k_proj.weight.mul_(20)
    batch = models.batches_for(model)[0]
    before = fmean(each.entropy for each in attention_stats(model, batch))
    method = SparseThenPrune(penalty=penalty, weight=3.0, layers="all")
    model, _, sparsifier = trained(method, steps=20, model=model, rate=0.2)
    sparsifier.detach()
    after = fmean(each.entropy for each in attention_stats(model, batch))
    assert (after > before) == rises
    assert abs(after - before) > 0.01


def test_without_weight_nothing_is_captured_and_training_is_plain():
    method = SparseThenPrune(weight=0)
    assert method.captures == ()
    model, penalties, _ = trained(method)
    assert penalties == [0, 0, 0]
    assert model.config._attn_implementation == "sdpa"


def test_a_penalty_on_weights_needs_no_maps():
    method = SparseThenPrune(penalised="weights", penalty="l1", layers="all", reduce="sum")
    assert method.captures == ()
    weights = {"a": torch.tensor([[1.0, -2.0]]), "norm": torch.ones(3), "b": torch.ones(1, 2)}
    assert float(method.loss({}, weights, CLOCK)) == pytest.approx(0.01 * 5)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.7])
def test_exact_counts_and_zeros(sparsity):
    model, _, sparsifier = trained(SparseThenPrune(sparsity=sparsity))
    raw = {name: weight.detach().clone() for name, weight in sparsifier.weights().items()}
    report = sparsifier.finalize()
    total = report.targets.numel
    assert report.mask.numel - report.mask.kept == total - math.floor(total * (1 - sparsity) + 0.5)
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in report.mask)
    assert zeros == report.mask.numel - report.mask.kept
    assert not report.notes
    magnitudes = torch.cat([raw[t.name].abs().flatten() for t in report.targets])
    kept = torch.cat([report.mask[t.parameter].flatten() for t in report.targets])
    assert not sparsity or magnitudes[~kept].max() <= magnitudes[kept].min()


def test_one_threshold_over_matrices_kernels_and_scales():
    weights = {"conv": torch.tensor([[[1.0, -5.0]]]), "norm": torch.tensor([0.5, 3.0])}
    masks = SparseThenPrune(sparsity=0.5).final_masks(weights, {}, CLOCK)
    assert masks["conv"].tolist() == [[[False, True]]]
    assert masks["norm"].tolist() == [False, True]
    uneven = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0, 4.0])}
    one = SparseThenPrune(sparsity=0.5).final_masks(uneven, {}, CLOCK)
    each = SparseThenPrune(sparsity=0.5, scope="layer").final_masks(uneven, {}, CLOCK)
    assert [one["a"].tolist(), one["b"].tolist()] == [[[False, False]], [True, True]]
    assert [each["a"].tolist(), each["b"].tolist()] == [[[False, True]], [False, True]]


def test_pruning_twice_counts_the_zeros_that_are_there():
    weights = {"a": torch.tensor([[0.0, 0.0, 0.1, 2.0, 3.0, 4.0, 5.0, 6.0]])}
    masks = SparseThenPrune(sparsity=0.5).final_masks(weights, {}, CLOCK)
    assert masks["a"].tolist() == [[False] * 4 + [True] * 4]


def test_a_pattern_by_layer_is_checked_before_the_training():
    options = {"pattern": catalog.parse_pattern("2:4"), "scope": "layer"}
    with pytest.raises(InvalidValue, match=r"patch_embeddings.projection: .*multiple of 4 inputs"):
        trained(SparseThenPrune(**options))
    _, _, sparsifier = trained(SparseThenPrune(**options, include_embeddings=False))
    assert sparsifier.finalize().sparsity == 0.5


def test_targets_can_be_chosen():
    method = SparseThenPrune(sparsity=0.5)
    _, _, sparsifier = trained(method, targets="*.mlp.*")
    report = sparsifier.finalize()
    assert {name.split(".")[-2] for name in report.mask} == {"fc1", "fc2"}


def test_stats_leave_the_model_as_it_was():
    model = models.tiny_vit().train()
    found = attention_stats(model, models.batches_for(model)[0])
    assert len(found) == 2
    assert all(0 < each.entropy < each.uniform_entropy == math.log(17) for each in found)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert attention_stats(encoder, torch.randn(2, 3, 8))[0].uniform_entropy == math.log(3)


def test_settings_survive_json():
    method = SparseThenPrune(sparsity=0.3, layers=(0, -1), penalty="hoyer")
    written = json.loads(json.dumps(catalog.describe(method)))
    assert catalog.restore(written) == method


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, InvalidValue, r"in \[0, 1\)"),
        ({"weight": -0.01}, InvalidValue, r"allow_negative=True.*negative_log1p_sq"),
        ({"penalty": "log1p"}, UnknownName, r"Did you mean 'log1p_sq'"),
        ({"layers": "first"}, InvalidValue, r'give "last", "all" or numbers'),
        ({"reduce": "max"}, InvalidValue, r'give "mean" or "sum"'),
        ({"penalised": "values"}, InvalidValue, r"give one of attention, attention logits"),
        ({"penalised": "weights", "penalty": "entropy"}, InvalidValue, r"entropy of weights"),
        ({"scope": "block"}, InvalidValue, r'give "global" or "layer"'),
        ({"pattern": catalog.parse_pattern("2:4")}, InvalidValue, r'Set scope="layer"'),
    ],
)
def test_settings_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SparseThenPrune(**options)


def test_a_negative_weight_can_be_meant():
    assert SparseThenPrune(weight=-1.0, allow_negative=True).weight == -1


def test_models_without_attention_or_weights():
    model = nn.Sequential(nn.Linear(4, 4)).train()
    sparsifier = Sparsifier(model, "sparse_then_prune", total_steps=1)
    model(torch.ones(2, 4))
    with pytest.raises(MissingStatistic, match="attention"):
        sparsifier.loss()
    with pytest.raises(NoMatch):
        SparseThenPrune().targets(nn.Sequential(nn.ReLU()), None)


def test_a_layer_that_is_not_there():
    with pytest.raises(InvalidValue, match="there is no layer 5; there are 2, 0 to 1"):
        trained(SparseThenPrune(layers=(5,)), steps=1)
