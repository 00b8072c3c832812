"""Laws that hold for every task of the registry, each in a tiny version."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.tasks import task_names
from sparsecraft.lab.tasks.base import SPLITS

pytestmark = pytest.mark.parametrize("name", task_names())


def rows(task, part):
    """The inputs of one part as a set of hashable rows."""
    if task.kind == "classification":
        return {row.numpy().tobytes() for row in task.images[part].pixels}
    if task.kind == "causal-lm":
        return set(map(tuple, task.windows[part].tolist()))
    if part == "training":
        return set(task.corpus.training)
    queries = task.corpus.queries[part]
    return {*queries.texts, *(task.corpus.documents[index] for index in queries.relevant)}


def test_training_validation_and_test_are_disjoint(name, make_task):
    task = make_task(name)
    training, validation, test = (rows(task, part) for part in ("training", *SPLITS))
    assert training and validation and test
    assert not training & validation
    assert not training & test
    assert not validation & test


def test_calibration_and_training_batches_come_from_the_training_part(name, make_task):
    task = make_task(name)
    drawn = [*task.calibration(200, seed=0), *islice(task.training_batches(4, seed=0), 3)]
    if task.kind == "embedding":
        known = {tuple(ids) for ids in task._training_ids(list(range(len(task.corpus.training))))}
        for batch in drawn:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                text = tuple(ids[mask.bool()].tolist())
                # the last text of a calibration may be cut to meet the number of tokens
                assert text in known or any(other[: len(text)] == text for other in known)
    elif task.kind == "causal-lm":
        known = rows(task, "training")
        assert all(tuple(row) in known for batch in drawn for row in batch["input_ids"].tolist())
    else:
        known = rows(task, "training")
        assert all(row.numpy().tobytes() in known for b in drawn for row in b["pixel_values"])


def test_calibration_keeps_to_its_size_and_seed(name, make_task):
    task = make_task(name)
    batches = task.calibration(150, seed=3)
    size = sum(
        int(batch["attention_mask"].sum())
        if "attention_mask" in batch
        else batch["input_ids"].numel()
        if "input_ids" in batch
        else len(batch["pixel_values"])
        for batch in batches
    )
    assert 0 < size <= 150
    again, other = task.calibration(150, seed=3), task.calibration(150, seed=4)
    first = next(iter(batches[0]))
    assert torch.equal(batches[0][first], again[0][first])
    assert not torch.equal(batches[0][first], other[0][first])
    assert "labels" not in batches[0]


def test_dense_model_is_fresh_float32_and_runs_on_every_kind_of_input(name, make_task):
    task = make_task(name)
    model, other = task.load_model(), task.load_model()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert next(model.parameters()) is not next(other.parameters())
    example = task.example_input(3)
    assert {len(tensor) for tensor in example.values()} == {3}
    with torch.inference_mode():
        model(**example)
        model(**task.calibration(100, seed=0)[0])


def test_loading_and_drawing_leave_the_global_random_state_alone(name, make_task):
    task = make_task(name)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    task.load_model()
    task.calibration(50, seed=0)
    next(task.training_batches(2, seed=0))
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_repeats_itself_and_leaves_the_model_as_it_was(name, make_task):
    task = make_task(name)
    model = task.load_model()
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    seen: list[tuple[int, int]] = []
    both = task.evaluate_both(model, progress=lambda done, total: seen.append((done, total)))
    assert [module.training for module in model.modules()] == modes
    assert seen and seen[-1][0] == seen[-1][1]
    for split in SPLITS:
        alone = task.evaluate(model, split)
        np.testing.assert_allclose(alone.values, both[split].values, rtol=1e-4, atol=1e-5)
        assert both[split].metric == pytest.approx(task.aggregate(both[split].values))
        assert both[split].values.ndim == 1 and both[split].values.dtype == np.float64


def test_dense_model_agrees_with_itself(name, make_task):
    task = make_task(name)
    extra = task.evaluate(task.load_model(), "validation").extra
    if task.kind == "embedding":
        assert extra["cosine"] == pytest.approx(1, abs=1e-5)
    elif task.kind == "causal-lm":
        assert extra.get("kl", 0) == pytest.approx(0, abs=1e-6)


def test_a_damaged_model_scores_otherwise(name, make_task):
    task = make_task(name)
    model = task.load_model()
    dense = task.evaluate(model, "validation")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    damaged = task.evaluate(model, "validation")
    assert not np.allclose(dense.values, damaged.values) or dense.extra != damaged.extra
    if "cosine" in dense.extra:
        assert damaged.extra["cosine"] < 0.9


def test_nan_weights_are_an_error(name, make_task):
    task = make_task(name)
    model = task.load_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFinite, match=name):
        task.evaluate(model, "test")


def test_loss_has_a_gradient_or_says_to_distil(name, make_task):
    task = make_task(name)
    model = task.load_model()
    batch = next(task.training_batches(4, seed=0))
    if task.kind == "embedding":
        assert "labels" not in batch
        with pytest.raises(InvalidValue, match="distil"):
            task.loss(model, batch)
    else:
        task.loss(model, batch).backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_outputs_carry_a_gradient(name, make_task):
    task = make_task(name)
    found = task.outputs(task.load_model(), next(task.training_batches(4, seed=0)))
    assert len(found) == 4
    assert found.requires_grad


def test_saved_extras_make_a_loadable_directory(name, make_task, tmp_path):
    task = make_task(name)
    task.save_extras(tmp_path)
    if task.tokenizer is not None:
        text = "find the words in the end"
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded(text)["input_ids"] == task.tokenizer(text)["input_ids"]


def test_describes_itself(name, make_task):
    task = make_task(name)
    assert task.name == name
    assert task.metric in {"nDCG@10", "accuracy", "perplexity"}
    assert task.higher_is_better == (task.kind != "causal-lm")
    assert any(digit.isdigit() for digit in task.description)
    assert len(task.fingerprint) == 16


def test_rejects_unknown_splits_and_sizes(name, make_task):
    task = make_task(name)
    with pytest.raises(InvalidValue, match="'validation' or 'test'"):
        task.evaluate(task.load_model(), "training")
    with pytest.raises(InvalidValue, match="max_tokens=0"):
        task.calibration(0, seed=0)
