"""Robustness in one call: the figures of the measures it is made of, the model untouched."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.seeds import generator
from sparsecraft.lab.measures import corrupt, evaluate_robustness, expected_calibration_error

IMAGES = torch.rand(40, 1, 6, 6, generator=generator(0, "images"))
LABELS = torch.arange(40) % 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4)).train()


def test_figures_are_those_of_the_measures():
    model = network()
    found = evaluate_robustness(model, IMAGES, LABELS, severity=5, seed=3, batch_size=7)
    assert model.training and model[1].training
    model.eval()
    logits = model(IMAGES).detach()
    assert found.accuracy == float((logits.argmax(1) == LABELS).double().mean())
    assert found.ece == pytest.approx(expected_calibration_error(logits, LABELS), abs=1e-6)
    for kind in ("noise", "impulse", "shot"):
        disturbed = model(corrupt(IMAGES, kind, 5, 3)).argmax(1)
        assert found.noisy[kind] == float((disturbed == LABELS).double().mean())
    assert set(found.to_json()) == {
        "accuracy",
        "ECE",
        "NLL",
        "accuracy under noise",
        "accuracy under impulse",
        "accuracy under shot",
    }


def test_the_calibration_is_of_the_whole_set_not_of_batches():
    one = evaluate_robustness(network(), IMAGES, LABELS, noises=(), batch_size=1)
    whole = evaluate_robustness(network(), IMAGES, LABELS, noises=())
    assert one.ece == pytest.approx(whole.ece, abs=1e-6)


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(InvalidValue, match="at least 1 of each"):
        evaluate_robustness(network(), IMAGES[:0], LABELS[:0])
    with pytest.raises(UnknownName, match="fog"):
        evaluate_robustness(network(), IMAGES, LABELS, noises=("fog",))
