"""Neighbours of directions, and what they do to logits."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.browse.effects import logit_effects, nearest


def test_the_opposite_direction_is_near_and_itself_is_not():
    directions = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    found = nearest(directions, torch.tensor([0]), places=1)
    assert found.latents.tolist() == [[1]]
    assert found.cosines.tolist() == [[-1.0]]


class Head(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.lm_head = nn.Linear(2, 3, bias=False)
        self.lm_head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])

    def get_output_embeddings(self):
        return self.lm_head


def test_effects_go_through_the_weights_of_the_last_norm():
    norm = nn.RMSNorm(2)
    norm.weight.data = torch.tensor([1.0, 10.0])
    found = logit_effects(Head(norm), torch.tensor([[1.0, 1.0]]), places=1)
    assert (found.raised.item(), found.raised_by.item()) == (1, 10.0)
    assert (found.lowered.item(), found.lowered_by.item()) == (2, -11.0)


def test_a_layer_norm_takes_the_mean_away():
    found = logit_effects(Head(nn.LayerNorm(2)), torch.tensor([[1.0, 1.0]]), places=1)
    assert found.raised_by.item() == found.lowered_by.item() == 0


def test_without_a_head_there_are_none():
    assert logit_effects(nn.Linear(2, 2), torch.ones(1, 2)) is None


def test_another_width_is_refused():
    with pytest.raises(InvalidValue, match="write 5 entries, the model's head reads 2"):
        logit_effects(Head(None), torch.ones(1, 5))
