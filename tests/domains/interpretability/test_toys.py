"""Occlusion and over-splitting appear where they should."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability import toys


def test_the_weaker_attribute_is_occluded_as_the_stronger_grows():
    equal, far = (toys.occlusion(ratio, seed=0, steps=300) for ratio in (1.0, 2.5))
    assert equal["weak"].f1 > 0.8 and far["strong"].f1 > 0.9
    assert far["weak"].f1 < equal["weak"].f1 - 0.3


def test_two_values_fall_into_many_latents_of_a_large_dictionary():
    two, many = (toys.over_splitting(latents, seed=0, steps=300) for latents in (2, 64))
    assert two.latents == 1 and two.f1 > 0.95
    assert many.latents > 1.5 and many.f1 < two.f1


def test_data_are_what_they_are_said_to_be():
    data = toys.two_attributes(3.0, seed=1, rows=500)
    strong = data.attributes["strong"]
    within = data.x[strong == strong[0]]
    assert within.std(0).norm() < data.x.std(0).norm()
    assert torch.equal(data.x, toys.two_attributes(3.0, seed=1, rows=500).x)
    with pytest.raises(InvalidValue, match=r"ratio=0\.5"):
        toys.two_attributes(0.5, seed=0)
