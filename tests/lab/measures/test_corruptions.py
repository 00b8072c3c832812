"""Disturbed images: in range, of their seed, worse with the severity; and the gradient's sign."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.seeds import generator
from sparsecraft.lab.measures import CORRUPTIONS, corrupt, fgsm

IMAGES = torch.rand(20, 2, 8, 10, generator=generator(0, "images"))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_results_are_in_range_of_the_seed_and_worse_with_the_severity(kind):
    before = IMAGES.clone()
    moved = []
    for severity in range(1, 6):
        found = corrupt(IMAGES, kind, severity, seed=1)
        assert found.shape == IMAGES.shape
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        assert torch.equal(found, corrupt(IMAGES, kind, severity, seed=1))
        moved.append(float((found - IMAGES).abs().mean()))
    assert moved[-1] > moved[0] > 0
    if kind != "shift":  # images of noise are as far off by one pixel as by two
        assert moved == sorted(moved)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("kind", ["noise", "impulse", "shot", "shift", "occlusion"])
def test_another_seed_draws_otherwise(kind):
    assert not torch.equal(corrupt(IMAGES, kind, 3, 1), corrupt(IMAGES, kind, 3, 2))


def test_impulses_are_black_or_white_as_often_as_said():
    image = torch.full((1, 1, 200, 200), 0.5)
    found = corrupt(image, "impulse", 4)
    black, white, grey = ((found == value).float().mean().item() for value in (0.0, 1.0, 0.5))
    assert black == pytest.approx(0.1, abs=0.01)
    assert white == pytest.approx(0.1, abs=0.01)
    assert grey == pytest.approx(0.8, abs=0.02)


def test_shots_are_counts_whose_spread_grows_with_the_brightness():
    image = torch.tensor([0.0, 0.25, 0.5]).view(1, 1, 3, 1).expand(1, 1, 3, 20000)
    found = corrupt(image, "shot", 2)  # 24 photons for white
    counts = found * 24
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    black, dark, bright = found[0, 0]
    assert float(black.max()) == 0
    assert float(dark.mean()) == pytest.approx(0.25, abs=0.005)
    assert float(dark.var()) == pytest.approx(0.25 / 24, rel=0.05)
    assert float(bright.var()) == pytest.approx(0.5 / 24, rel=0.05)


def test_contrast_and_blur_by_hand():
    image = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(corrupt(image, "contrast", 2).flatten(), torch.tensor([0.15, 0.85]))
    even = torch.full((1, 3, 8, 8), 0.4)
    torch.testing.assert_close(corrupt(even, "blur", 5), even)
    torch.testing.assert_close(
        corrupt(IMAGES, "blur", 1)[:, :, 3:5, 4:6].mean(), IMAGES.mean(), atol=0.1, rtol=0
    )


def test_a_shift_moves_every_image_whole_and_fills_with_black():
    image = torch.zeros(50, 1, 9, 9)
    image[:, :, 4, 4] = 1
    found = corrupt(image, "shift", 5)
    assert found.sum((1, 2, 3)).tolist() == [1.0] * 50
    places = {tuple((each[0] == 1).nonzero()[0].tolist()) for each in found}
    assert places <= {(4 + a, 4 + b) for a in (-2, -1, 0, 1, 2) for b in (-2, -1, 0, 1, 2)}
    assert len(places) > 10
    edge = torch.ones(20, 1, 8, 8)
    assert set(corrupt(edge, "shift", 1).unique().tolist()) == {0.0, 1.0}


def test_an_occlusion_hides_one_rectangle():
    found = corrupt(torch.ones(30, 1, 10, 10), "occlusion", 3)
    assert (found == 0).sum((1, 2, 3)).tolist() == [9] * 30


def test_the_sign_of_the_gradient_raises_the_loss_and_leaves_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(160, 3)).train()
    labels = torch.arange(20) % 3
    moved = fgsm(model, IMAGES, labels, 0.1)
    assert model.training
    assert model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not moved.requires_grad
    assert float((moved - IMAGES).abs().max()) <= 0.1 + 1e-6
    model.eval()
    losses = [
        float(nn.functional.cross_entropy(model(x).detach(), labels)) for x in (IMAGES, moved)
    ]
    assert losses[1] > losses[0]
    # A linear model: the gradient is known.
    weights = model[2].weight.detach()
    pull = (model(IMAGES).softmax(1).detach() - nn.functional.one_hot(labels)) @ weights
    wanted = (IMAGES + 0.1 * pull.view_as(IMAGES).sign()).clamp(0, 1)
    torch.testing.assert_close(moved, wanted)
    assert torch.equal(fgsm(model, IMAGES, labels, 0.0), IMAGES)


def test_it_works_where_gradients_are_off():
    model = nn.Sequential(nn.Flatten(), nn.Linear(160, 3))
    with torch.no_grad():
        assert not torch.equal(fgsm(model, IMAGES, torch.zeros(20).long(), 0.1), IMAGES)


def test_errors():
    with pytest.raises(UnknownName, match="blur"):
        corrupt(IMAGES, "blurr")
    for severity in (0, 6, 2.5):
        with pytest.raises(InvalidValue, match="from 1 to 5"):
            corrupt(IMAGES, "blur", severity)
    with pytest.raises(InvalidValue, match="scale them"):
        corrupt(IMAGES * 255, "noise")
    with pytest.raises(InvalidValue, match="give floats"):
        corrupt(IMAGES[0], "noise")
    with pytest.raises(InvalidValue, match="epsilon=-1"):
        fgsm(nn.Flatten(), IMAGES, torch.zeros(20).long(), -1)
