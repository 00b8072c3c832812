"""The bytes of the standard library, the decoder, and how they are trained and scored."""

import math

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.claims import source_bytes as sb
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.pruning import prune
from sparsecraft.model.sparsifier import Sparsifier
from sparsecraft.model.targets import find_targets


def test_the_test_part_is_fixed_and_the_parts_are_disjoint():
    one, two = sb.load_source(0), sb.load_source(1)
    assert torch.equal(one.test, two.test)
    assert not torch.equal(one.validation, two.validation)
    assert len(one.test) == sb.TEST_FILES * sb.EXCERPT
    assert len(one.validation) == sb.VALIDATION_FILES * sb.EXCERPT
    assert len(one.train) == sb.TRAINING_BYTES
    trained_on = bytes(one.train.tolist())
    for part in (one.validation, one.test):
        excerpts = [bytes(part[i : i + sb.EXCERPT].tolist()) for i in (0, sb.EXCERPT)]
        assert not any(excerpt in trained_on for excerpt in excerpts)


def test_the_model_is_causal_and_of_the_seed():
    model = sb.byte_model(2, 64, 0, context=16)
    ids = torch.arange(16).view(1, 16)
    changed = ids.clone()
    changed[0, 10] = 99
    a, b = model(ids), model(changed)
    assert a.shape == (1, 16, 256)
    torch.testing.assert_close(a[:, :10], b[:, :10])
    assert not torch.allclose(a[:, 10], b[:, 10])
    assert torch.equal(sb.byte_model(2, 64, 0, context=16)(ids), a)
    assert not torch.equal(sb.byte_model(2, 64, 1, context=16)(ids), a)


def test_its_targets_are_the_matrices_of_the_blocks():
    model = sb.byte_model(2, 32, 0)
    assert list(find_blocks(model)) == ["blocks"]
    names = [target.name for target in find_targets(model)]
    assert names == [f"blocks.{n}.{x}" for n in (0, 1) for x in ("q", "k", "v", "o", "fc1", "fc2")]
    with pytest.raises(InvalidValue, match="multiple of 32"):
        sb.byte_model(1, 40, 0)


def test_bits_of_a_uniform_model():
    model = sb.byte_model(1, 32, 0, context=8)
    torch.nn.init.zeros_(model.head.weight)
    model.train()
    assert sb.bits_per_byte(model, torch.arange(30)) == pytest.approx(8)
    assert model.training


def test_windows():
    tokens = torch.arange(10)
    assert sb.cut(tokens, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    draws = sb.random_windows(tokens, 4, 50, torch.Generator().manual_seed(0))
    assert (draws.diff(dim=1) == 1).all()
    assert {int(first) for first in draws[:, 0]} == set(range(7))
    batches = sb.calibration(torch.arange(400), context=4, windows=20)
    assert [len(batch["input_ids"]) for batch in batches] == [16, 4]


def test_it_learns_and_a_sparsifier_takes_part():
    data = torch.arange(4000) % 7
    model = sb.byte_model(1, 32, 0, context=16)
    before = sb.bits_per_byte(model, data)
    sparsifier = Sparsifier(model, "static", sparsity=0.5, total_steps=30)
    sb.train(model, data, seed=0, steps=30, rate=1e-2, sparsifier=sparsifier)
    assert sparsifier.step == 30
    assert sb.bits_per_byte(sparsifier.finalize().model, data) < before / 2
    assert not model.training


def test_calibration_fits_prune():
    model = sb.byte_model(1, 32, 0, context=16)
    batches = sb.calibration(torch.arange(4000) % 256, context=16, windows=4)
    assert prune(model, "sparsegpt", pattern="2:4", calibration=batches).sparsity == 0.5


def test_a_loss_that_is_not_finite():
    model = sb.byte_model(1, 32, 0, context=16)
    torch.nn.init.constant_(model.head.bias, math.nan)
    with pytest.raises(NonFinite, match="nan at step 0"):
        sb.train(model, torch.arange(99), seed=0, steps=1, rate=1e-3)
