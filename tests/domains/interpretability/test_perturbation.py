"""Targeted perturbation: a separating dictionary hurts one probe, a mixing one hurts both."""

import pytest
import torch

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.perturbation import targeted_perturbation
from sparsecraft.methods.codes.abstopk import AbsTopK


def data(seed):
    """Two concepts, each along its own axis, of either sign."""
    draw = torch.Generator().manual_seed(seed)
    labels = {name: torch.rand(200, generator=draw) < 0.5 for name in ("warm", "loud")}
    x = 0.05 * torch.randn(200, 4, generator=draw)
    for axis, each in enumerate(labels.values()):
        x[:, axis] += 2.0 * each - 1
    return x, labels


def dictionary(rows):
    sae = SparseAutoencoder(4, 4, AbsTopK(k=4), subtract_bias=False).eval()
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(torch.linalg.inv(rows))
    return sae


def measured(rows):
    (x, y), (tested, truth) = data(0), data(1)
    return targeted_perturbation(dictionary(rows), (x, tested), (y, truth), k=1)


def test_one_latent_for_each_concept():
    found = measured(torch.eye(4))
    assert found.latents == {"warm": [0], "loud": [1]}
    assert found.before.tolist() == [1, 1]
    assert found.unintended == 0 and found.intended == pytest.approx(0.5, abs=0.1)
    assert found.score == found.intended
    assert found.rows()[0][:3] == ("warm", "0", "1.000")


def test_latents_that_mix_concepts_hurt_both():
    mixed = torch.eye(4)
    mixed[:2, :2] = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    found = measured(mixed)
    assert found.unintended > 0.1 and found.score < 0.2


def test_errors():
    x, y = data(0)
    with pytest.raises(InvalidValue, match="at least two"):
        targeted_perturbation(dictionary(torch.eye(4)), (x, x), ({"warm": y["warm"]}, y))
    with pytest.raises(InvalidValue, match="top=9"):
        targeted_perturbation(dictionary(torch.eye(4)), (x, x), (y, y), k=9)
