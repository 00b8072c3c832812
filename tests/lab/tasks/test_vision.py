from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import CheckpointError
from sparsecraft.lab.tasks import load_task
from sparsecraft.lab.tasks.digits import digits
from sparsecraft.lab.tasks.image_files import read_idx
from sparsecraft.lab.tasks.patches import PATCH, PER_PICTURE, picture_patches
from sparsecraft.lab.tasks.training import rate
from sparsecraft.lab.tasks.vision import Images, separate


def test_digits_are_split_by_class():
    parts = digits()
    counts = {part: torch.bincount(images.labels) for part, images in parts.items()}
    whole = sum(counts.values())
    assert int(whole.sum()) == 1797
    for part, share in (("training", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert ((counts[part] / whole) - share).abs().max() < 0.01


def test_accuracy_is_the_share_of_right_answers(make_task):
    task = make_task("digits-mlp")
    model = task.load_model()
    test = task.images["test"]
    with torch.inference_mode():
        guesses = model(test.pixels).argmax(1)
    scores = task.evaluate(model, "test")
    assert scores.values.tolist() == (guesses == test.labels).double().tolist()
    assert scores.metric == pytest.approx(float((guesses == test.labels).double().mean()))


def test_training_for_longer_learns_the_digits():
    task = load_task("digits-mlp", steps=150)
    assert task.evaluate(task.load_model(), "validation").metric > 0.9


def test_training_is_reproducible(make_task, monkeypatch, tmp_path):
    first = make_task("digits-vit").load_model().state_dict()
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path))
    again = load_task("digits-vit", steps=3).load_model().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = load_task("digits-vit", steps=3, seed=1).load_model().state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_no_pixel_of_a_picture_is_in_two_parts():
    # every pixel holds its own number, so that a patch tells which pixels it has
    numbers = np.arange(200 * 250, dtype=np.float64).reshape(200, 250) / 5000
    parts = picture_patches(numbers, "numbers")
    pixels = {
        part: set(np.round((np.stack(rows) * 0.25 + 0.5) * 5000).astype(int).ravel().tolist())
        for part, rows in parts.items()
    }
    assert {part: len(rows) for part, rows in parts.items()} == PER_PICTURE
    assert parts["test"][0].shape == (PATCH, PATCH)
    assert not pixels["training"] & pixels["validation"]
    assert not pixels["training"] & pixels["test"]
    assert not pixels["validation"] & pixels["test"]


def test_pictures_of_the_test_part_leave_the_others():
    pictures = torch.arange(4.0).view(4, 1, 1, 1)
    part = Images(pictures, torch.arange(4))
    parts = separate(
        {
            "training": part,
            "validation": part.take(torch.tensor([1, 2])),
            "test": part.take(torch.tensor([2])),
        }
    )
    assert {name: images.labels.tolist() for name, images in parts.items()} == {
        "test": [2],
        "validation": [1],
        "training": [0, 3],
    }


def test_fashion_drops_a_training_picture_that_the_test_half_repeats(make_task):
    task = make_task("fashion-mnist-mlp")
    sizes = {part: len(images) for part, images in task.images.items()}
    assert sizes == {"training": 99, "validation": 20, "test": 40}


def test_damaged_idx_files_are_refused(tmp_path):
    path = tmp_path / "images.gz"
    with pytest.raises(CheckpointError, match="could not read"):
        read_idx(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(CheckpointError, match="could not read"):
        read_idx(path)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2])))
    with pytest.raises(CheckpointError, match="holds 2 bytes"):
        read_idx(path)


def test_learning_rate_rises_then_falls():
    rates = [rate(step, 200) for step in range(200)]
    top = rates.index(max(rates))
    assert top == 9
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
