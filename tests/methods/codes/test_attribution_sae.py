"""The losses of the attribution SAE, by their formulas; a training that uses them."""

from dataclasses import replace

import pytest
import torch

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import CodeStep
from sparsecraft.methods.codes.attribution_sae import AttributionSAE
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SAETraining

ROWS, D_IN, D_SAE = 20, 6, 16


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, G = normal(0, ROWS, D_IN), normal(1, ROWS, D_IN)


def step_of(sae, gradient):
    z = sae.encode(X)
    return CodeStep(
        x=X,
        target=X,
        u=sae.pre_activations(X),
        z=z,
        reconstruction=sae.decode(z),
        frozen_decode=sae.decode,
        decoder=sae.decoder_rows(),
        gradient=gradient,
        warmth=0.5,
        dead=torch.zeros(D_SAE, dtype=torch.bool),
    )


def losses(gradient=G, **options):
    sae = SparseAutoencoder(D_IN, D_SAE, AttributionSAE(**options), seed=1)
    return sae, sae.activation.losses(step_of(sae, gradient), sae.own)


def test_losses_by_their_formulas():
    sae, found = losses(l1=2.0, attribution=3.0, unexplained=4.0, normalize_grad=False)
    z, d = sae.encode(X), sae.decoder_rows()
    expected = {
        "l1": 2.0 * (z * d.norm(dim=1)).sum(1).mean(),
        "attribution": 3.0 * (z * (G @ d.T)).abs().sum(1).mean(),
        "unexplained": 4.0 * ((X - sae.decode(z)) * G).sum(1).abs().mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], 0.5 * value)


def test_normalised_gradients_mean_the_same_at_every_scale():
    _, one = losses()
    _, other = losses(1e-4 * G)
    torch.testing.assert_close(one, other)
    _, raw = losses(6**0.5 * G / G.norm(dim=1).mean(), normalize_grad=False)
    torch.testing.assert_close(one, raw)
    _, nothing = losses(torch.zeros_like(G))
    assert not bool(nothing["attribution"]) and not bool(nothing["unexplained"])


def test_codes_are_those_of_the_relu():
    sae, _ = losses()
    plain = SparseAutoencoder(D_IN, D_SAE, ReLU(), seed=1)
    assert torch.equal(sae.encode(X), plain.encode(X))


@pytest.mark.parametrize(
    ("gradient", "error", "text"),
    [
        (None, InvalidValue, "gradients=True"),
        (G[:, :2], InvalidValue, "very same ones"),
        (G * float("nan"), NonFinite, "NaN or infinite gradients"),
    ],
)
def test_gradients_that_cannot_be_used(gradient, error, text):
    with pytest.raises(error, match=text):
        losses(gradient)


@pytest.mark.parametrize("name", ["attribution", "unexplained"])
def test_weights_are_checked(name):
    with pytest.raises(InvalidValue, match=f"{name}=-1"):
        AttributionSAE(**{name: -1.0})


def test_what_matters_to_the_model_is_explained_better():
    """The metric looks along one direction: with the loss less is left out of it."""
    x = normal(2, 2000, D_IN)
    gradient = torch.zeros_like(x)
    gradient[:, 0] = 1.0
    left = {}
    training = SAETraining(steps=300, batch=256, learning_rate=3e-3, auxiliary=None, held_out=0.0)
    for weight in (0.0, 5.0):
        activation = AttributionSAE(l1=1.0, attribution=0.0, unexplained=weight)
        sae = SparseAutoencoder(D_IN, D_SAE, activation, seed=1)
        sae.fit(ActivationStore.from_tensor(x, gradient=gradient), training)
        with torch.no_grad():
            left[weight] = float((x - sae(x))[:, 0].abs().mean())
    assert left[5.0] < 0.8 * left[0.0]
    with pytest.raises(Exception, match="gradients=True"):
        SparseAutoencoder(D_IN, D_SAE, replace(activation)).fit(x, training)


def test_a_trained_one_is_a_relu_autoencoder_to_others(tmp_path):
    sae = SparseAutoencoder(D_IN, D_SAE, AttributionSAE(), seed=1).eval()
    sae.save_pretrained(tmp_path / "sae", format="saelens")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert isinstance(again.activation, ReLU)
    torch.testing.assert_close(again.encode(X), sae.encode(X))
