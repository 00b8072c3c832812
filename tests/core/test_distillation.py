"""Divergence from a teacher and the relative error of hidden states."""

import math

import pytest
import torch

from sparsecraft.core.distillation import counted_tokens, divergence, relative_error
from sparsecraft.core.errors import InvalidValue


def test_divergence_of_two_coins():
    teacher = torch.tensor([[math.log(0.75), math.log(0.25)]])
    student = torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(divergence(student, teacher)) == pytest.approx(expected, rel=1e-6)
    # At T = 2 the teacher's odds are the root of 3, and the divergence counts four times.
    p = math.sqrt(3) / (1 + math.sqrt(3))
    warm = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(divergence(student, teacher, temperature=2)) == pytest.approx(4 * warm, rel=1e-5)


def test_padding_does_not_count():
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    tokens = torch.tensor([[True, True, False], [True, False, False]])
    found = divergence(student, teacher, tokens=tokens)
    kept = divergence(student[tokens], teacher[tokens])
    torch.testing.assert_close(found, kept)
    inputs = {"attention_mask": tokens.long()}
    assert torch.equal(counted_tokens(inputs, student), tokens)
    assert counted_tokens({}, student) is None
    assert counted_tokens({"attention_mask": torch.ones(2, 4)}, student) is None


def test_other_vocabularies_are_an_error():
    with pytest.raises(InvalidValue, match="same vocabulary"):
        divergence(torch.zeros(1, 4), torch.zeros(1, 5))


def test_relative_error_sums_over_layers():
    teacher = [torch.full((2, 2), 2.0), torch.full((2, 2), 1.0)]
    student = [torch.full((2, 2), 1.0), torch.full((2, 2), 1.0)]
    assert float(relative_error(student, teacher)) == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(InvalidValue, match="same blocks"):
        relative_error(student[:1], teacher)
