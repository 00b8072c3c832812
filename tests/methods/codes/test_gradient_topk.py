"""Gradient-weighted TopK: when it is TopK, what does not change it, its memory, and its errors."""

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.kinds import CodeStep, Side
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder

ROWS, D_IN, D_SAE, K = 20, 6, 24, 3
X, G = (torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(s)) for s in (1, 2))


def autoencoder(method):
    return SparseAutoencoder(D_IN, D_SAE, method, seed=5)


def codes(method, gradient=None, x=X):
    return autoencoder(method).encode(x, gradient=gradient).detach()


PLAIN = codes(TopK(k=K))


def test_found_by_name_and_restored():
    method = catalog.build("gradient_topk", k="4", beta="2.5")
    assert method == GradientTopK(k=4, beta=2.5)
    assert method.info.kind == "Selecting"
    assert method.info.paper.number == 7
    assert catalog.restore(catalog.describe(method)) == method


@pytest.mark.parametrize("mode", ["sum", "product"])
def test_without_a_gradient_it_is_topk(mode):
    method = GradientTopK(k=K, beta=50.0, mode=mode)
    assert torch.equal(codes(method), PLAIN)
    assert torch.equal(codes(method, torch.zeros(ROWS, D_IN)), PLAIN)


def test_with_beta_zero_it_is_topk():
    assert torch.equal(codes(GradientTopK(k=K, beta=0.0), G), PLAIN)


@pytest.mark.parametrize("mode", ["sum", "product"])
def test_rows_without_a_gradient_fall_back_one_by_one(mode):
    gradient = G.clone()
    gradient[::2] = 0
    found = codes(GradientTopK(k=K, beta=50.0, mode=mode), gradient)
    assert torch.equal(found[::2], PLAIN[::2])
    assert not torch.equal(found[1::2], PLAIN[1::2])


def test_the_gradient_only_chooses():
    sae = autoencoder(GradientTopK(k=K, beta=50.0))
    found, u = sae.encode(X, gradient=G).detach(), sae.pre_activations(X).detach()
    kept = found != 0
    torch.testing.assert_close(found[kept], u[kept])
    assert (found[kept] > 0).all()
    assert kept.sum(1).max() == K


def test_no_gradient_flows_through_the_choice():
    gradient = G.clone().requires_grad_()
    sae = autoencoder(GradientTopK(k=K, beta=50.0))
    sae.encode(X, gradient=gradient).sum().backward()
    assert gradient.grad is None
    assert sae.W_dec.grad is None


def test_scale_of_the_gradient_against_beta():
    plain = codes(GradientTopK(k=K, beta=2.0, normalize_grad=False), G)
    scaled = codes(GradientTopK(k=K, beta=0.5, normalize_grad=False), 4 * G)
    assert torch.equal(plain, scaled)
    product = GradientTopK(k=K, mode="product", normalize_grad=False)
    assert torch.equal(codes(product, G), codes(product, 1024 * G))
    normalised = GradientTopK(k=K, beta=2.0)
    assert torch.equal(codes(normalised, G), codes(normalised, 1024 * G))


def test_normalised_gradients_have_the_mean_norm_of_their_width():
    factor = D_IN**0.5 / G.norm(dim=1).mean()
    plain = codes(GradientTopK(k=K, beta=2.0, normalize_grad=False), factor * G)
    assert torch.equal(codes(GradientTopK(k=K, beta=2.0), G), plain)


def test_the_whole_dictionary_makes_all_modes_equal():
    wanted = codes(TopK(k=D_SAE))
    for method in (GradientTopK(k=D_SAE, beta=9.0), GradientTopK(k=D_SAE, mode="product")):
        assert torch.equal(codes(method, G), wanted)


def test_permuted_latents_give_permuted_codes():
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
    sae = autoencoder(GradientTopK(k=K, beta=5.0))
    before = sae.encode(X, gradient=G).detach()
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec[order].clone())
        sae.W_enc.copy_(sae.W_enc[:, order].clone())
    torch.testing.assert_close(sae.encode(X, gradient=G).detach(), before[:, order])


def test_the_mean_norm_is_over_all_rows_that_have_a_gradient():
    sae = autoencoder(GradientTopK(k=K))
    first, second = G.clone(), 3 * G[:5]
    first[:4] = 0
    for gradient in (first, second):
        side = Side(sae.W_dec.detach(), gradient)
        found = sae.activation.observe(X, X, sae.own, side)
        sae.activation.update(sae.own, found, 0.0)
    wanted = torch.cat([first[4:], second]).norm(dim=1).mean()
    assert int(sae.own_gradient_rows) == ROWS - 4 + 5
    torch.testing.assert_close(sae.own_gradient_norms / sae.own_gradient_rows, wanted)


def test_what_was_seen_in_training_scales_later_rows_alone():
    sae = autoencoder(GradientTopK(k=K, beta=3.0))
    side = Side(sae.W_dec.detach(), G)
    sae.activation.update(sae.own, sae.activation.observe(X, X, sae.own, side), 0.0)
    together = sae.encode(X, gradient=G).detach()
    alone = torch.cat([sae.encode(X[i : i + 1], gradient=G[i : i + 1]) for i in range(ROWS)])
    torch.testing.assert_close(alone.detach(), together)
    loaded = autoencoder(GradientTopK(k=K, beta=3.0))
    loaded.load_state_dict(sae.state_dict())
    assert torch.equal(loaded.encode(X, gradient=2 * G), sae.encode(X, gradient=2 * G))


def _step(sae, gradient):
    z = sae.sparse_encode(X)
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


def test_attribution_losses_by_their_formulas():
    method = GradientTopK(k=K, beta=0.0, attribution=2.0, unexplained=3.0, normalize_grad=False)
    sae = autoencoder(method)
    step = _step(sae, G)
    found = method.losses(step, sae.own)
    z, left = step.z.dense(), X - step.reconstruction
    effect = (z * (G @ sae.W_dec.T)).abs().sum(1).mean()
    torch.testing.assert_close(found["attribution"], 0.5 * 2.0 * effect)
    torch.testing.assert_close(found["unexplained"], 0.5 * 3.0 * (left * G).sum(1).abs().mean())
    assert GradientTopK(k=K).losses(step, sae.own) == {}


def test_attribution_losses_without_a_gradient():
    sae = autoencoder(GradientTopK(k=K, unexplained=1.0))
    with pytest.raises(InvalidValue, match="harvest the activations with gradients=True"):
        sae.activation.losses(_step(sae, None), sae.own)


def test_a_batch_whose_gradients_are_all_zero():
    sae = autoencoder(GradientTopK(k=K))
    side = Side(sae.W_dec.detach(), torch.zeros(ROWS, D_IN))
    seen = sae.activation.observe(X, X, sae.own, side)
    with pytest.raises(InvalidValue, match="gradients of all 20 rows of a batch are zero"):
        sae.activation.update(sae.own, seen, 0.1)
    given = sae.activation.observe(X, X, sae.own, Side(side.decoder, G))
    joined = {name: seen[name] + given[name] for name in seen}  # as over ranks
    sae.activation.update(sae.own, joined, 0.1)
    assert int(sae.own.state["gradient_rows"]) == ROWS


def test_gradients_that_do_not_fit():
    method = GradientTopK(k=K)
    for gradient in (G[:-1], G[:, :-1]):
        with pytest.raises(InvalidValue, match=r"was given for activations of shape \(20, 6\)"):
            codes(method, gradient)
    sae = autoencoder(method)
    with pytest.raises(InvalidValue, match=r"shape \(19, 6\) was given"):
        method.select(sae.pre_activations(X), sae.own, Side(sae.W_dec, G[:-1]), training=True)
    bad = G.clone()
    bad[3, 1], bad[7, 0] = float("nan"), float("inf")
    with pytest.raises(NonFinite, match=r"2 of 20 rows have NaN .* first row 3: leave these"):
        codes(method, bad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, InvalidValue, "k=0 is not allowed"),
        ({"k": 3, "beta": -1.0}, InvalidValue, r"beta=-1\.0 is not allowed"),
        ({"k": 3, "attribution": float("inf")}, InvalidValue, "attribution=inf is not allowed"),
        ({"k": 3, "unexplained": -2.0}, InvalidValue, r"unexplained=-2\.0 is not allowed"),
        ({"k": 3, "mode": "prodct"}, UnknownName, "Did you mean 'product'"),
    ],
)
def test_settings_that_are_not_allowed(options, error, message):
    with pytest.raises(error, match=message):
        GradientTopK(**options)


def test_k_beyond_the_dictionary():
    with pytest.raises(InvalidValue, match="k=25 exceeds d_sae=24"):
        autoencoder(GradientTopK(k=25))
