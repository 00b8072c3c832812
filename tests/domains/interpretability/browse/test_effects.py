"""Neighbours of directions, and what they do to logits."""

import torch

from sparsecraft.domains.interpretability.browse.effects import logit_effects, nearest
from sparsecraft.domains.interpretability.browse.readout import Readout


def test_the_opposite_direction_is_near_and_itself_is_not():
    directions = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    found = nearest(directions, torch.tensor([0]), places=1)
    assert found.latents.tolist() == [[1]]
    assert found.cosines.tolist() == [[-1.0]]


HEAD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])


def test_effects_go_through_the_gain_of_the_last_norm():
    readout = Readout(HEAD, gain=torch.tensor([1.0, 10.0], dtype=torch.float64))
    found = logit_effects(readout, torch.tensor([[1.0, 1.0]]), places=1)
    assert (found.raised.item(), found.raised_by.item()) == (1, 10.0)
    assert (found.lowered.item(), found.lowered_by.item()) == (2, -11.0)


def test_a_layer_norm_takes_the_mean_away():
    found = logit_effects(Readout(HEAD, centred=True), torch.tensor([[1.0, 1.0]]), places=1)
    assert found.raised_by.item() == found.lowered_by.item() == 0
