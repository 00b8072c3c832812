"""Noise that stays as it was, and data that never repeats."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims.data_controls import GaussianClasses, noisy_labels, random_inputs


def test_noisy_labels_change_the_share_that_was_asked():
    labels = torch.arange(10_000) % 10
    found = noisy_labels(labels, 0.4, 10, seed=0)
    assert (found != labels).float().mean().item() == pytest.approx(0.36, abs=0.02)
    assert torch.equal(found, noisy_labels(labels, 0.4, 10, seed=0))
    assert not torch.equal(found, noisy_labels(labels, 0.4, 10, seed=1))
    assert torch.equal(noisy_labels(labels, 0.0, 10, seed=0), labels)
    assert torch.equal(labels, torch.arange(10_000) % 10)
    uniform = noisy_labels(torch.zeros(10_000, dtype=torch.long), 1.0, 10, seed=0).bincount()
    assert uniform.min() > 850
    with pytest.raises(InvalidValue, match="a share of labels"):
        noisy_labels(labels, 40, 10, seed=0)


def test_random_inputs_have_mean_and_spread_and_no_structure():
    inputs = torch.rand(500, 1, 8, 8, generator=generator(0, "x")) * 3
    found = random_inputs(inputs, seed=0)
    assert found.shape == inputs.shape
    assert found.mean().item() == pytest.approx(inputs.mean().item(), abs=0.02)
    assert found.std().item() == pytest.approx(inputs.std().item(), abs=0.02)
    assert torch.equal(found, random_inputs(inputs, seed=0))
    assert torch.corrcoef(torch.stack([found.flatten(), inputs.flatten()]))[0, 1].abs() < 0.02


def test_a_fitted_process_has_the_means_and_covariances_and_never_repeats():
    labels = torch.arange(400) % 2
    inputs = torch.randn(400, 1, 1, 2, generator=generator(0, "x"))
    inputs[labels == 1] = inputs[labels == 1] * torch.tensor([2.0, 0.0]) + 5
    process = GaussianClasses.fitted(inputs, labels)
    draw = generator(0, "draw")
    found, classes = process.draw(20_000, draw)
    assert found.shape == (20_000, 1, 1, 2)
    for label in (0, 1):
        drawn, given = found[classes == label].flatten(1), inputs[labels == label].flatten(1)
        torch.testing.assert_close(drawn.mean(0), given.mean(0), atol=0.06, rtol=0)
        torch.testing.assert_close(drawn.T.cov(), given.T.cov(), atol=0.15, rtol=0)
    assert not torch.equal(found, process.draw(20_000, draw)[0])
    with pytest.raises(InvalidValue, match="class 1 has fewer than two"):
        GaussianClasses.fitted(inputs[:3], torch.tensor([0, 0, 1]))
