"""Losses by hand, nested dictionaries, what is asked of the data."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import AuxK, SparseAutoencoder
from sparsecraft.model.sae.auxiliary import nearest_power_of_two
from sparsecraft.model.sae.objective import objective


def rows(count=7, width=6):
    return torch.randn(count, width, generator=generator(1, "rows"))


def test_the_squared_error_is_summed_over_entries_and_averaged_over_rows():
    sae = SparseAutoencoder(2, 2, TopK(k=1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(2))
        sae.W_enc.copy_(torch.eye(2))
    found = objective(sae, torch.tensor([[3.0, 1.0], [2.0, 2.0]]))
    assert found.parts["reconstruction"].item() == pytest.approx((1 + 4) / 2)
    assert found.parts.keys() == {"reconstruction"}


@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("activation", [TopK(k=3), ReLU(l1=0.0)], ids=repr)
def test_nested_dictionaries_are_those_of_the_code_cut_off(activation, how):
    sae, x = SparseAutoencoder(6, 12, activation, prefixes=(3, 5, 12)), rows()
    found = objective(sae, x, prefix_loss=how)
    z, errors = sae.encode(x), []
    for width in sae.prefixes:
        out = z[:, :width] @ sae.W_dec[:width] + sae.b_dec
        errors.append((x - out).square().sum(1).mean())
    expected = sum(errors) / (3 if how == "mean" else 1)
    torch.testing.assert_close(found.parts["reconstruction"], expected)
    torch.testing.assert_close(found.reconstruction, sae(x))
    for parameter in (sae.W_dec, sae.W_enc, sae.b_dec):
        got = torch.autograd.grad(found.total, parameter, retain_graph=True)[0]
        wanted = torch.autograd.grad(expected, parameter, retain_graph=True)[0]
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("activation", [TopK(k=3), AbsTopK(k=3), ReLU(l1=0.0)], ids=repr)
def test_gradients_go_through_every_unrolled_step(activation):
    sae, x = SparseAutoencoder(6, 12, activation, unroll=3), rows()
    with torch.no_grad():
        sae.b_dec.fill_(0.1)

    def prox(v):
        if isinstance(activation, ReLU):
            return v.relu()
        return v * (activation.penalty().prox(v.detach()) != 0)

    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    z = prox(u)
    for _ in range(2):
        z = prox(z + u - z @ sae.W_dec @ sae.W_enc)
    expected = (x - z @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    found = objective(sae, x).total
    torch.testing.assert_close(found, expected)
    weights = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec]
    for got, wanted in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_a_transcoder_is_compared_with_its_target():
    sae, x = SparseAutoencoder(6, 12, TopK(k=3), d_out=4, skip=True), rows()
    with torch.no_grad():
        sae.W_dec.copy_(rows(count=12, width=4))
    target = rows(width=4)
    found = objective(sae, x, target=target)
    expected = (sae(x) - target).square().sum(1).mean()
    torch.testing.assert_close(found.parts["reconstruction"], expected)
    assert torch.autograd.grad(found.total, sae.W_skip)[0].abs().sum() > 0


def test_a_missing_target_or_gradient_is_said():
    with pytest.raises(InvalidValue, match=r"reconstructs 4 entries, .* has 6.*target"):
        objective(SparseAutoencoder(6, 12, TopK(k=3), d_out=4), rows())
    with pytest.raises(MissingStatistic, match=r"GradientTopK .* gradients=True"):
        objective(SparseAutoencoder(6, 12, GradientTopK(k=3)), rows())


def test_the_frozen_decoder_gets_no_gradient_from_the_gates():
    sae, x = SparseAutoencoder(6, 12, Gated(l1=0.0)), rows()
    part = objective(sae, x).parts["gate_reconstruction"]
    through_decoder, through_encoder = torch.autograd.grad(
        part, [sae.W_dec, sae.W_enc], allow_unused=True
    )
    assert through_decoder is None or not through_decoder.any()
    assert through_encoder.any()


def with_dead(activation=None, **form):
    sae = SparseAutoencoder(6, 12, activation or TopK(k=2), **form)
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[1, 4, 8]] = True
    return sae, dead


def test_auxk_by_hand():
    sae, dead = with_dead()
    x = rows()
    got = objective(sae, x, dead=dead, auxiliary=AuxK(k=2)).parts["auxiliary"]
    residual = (x - sae(x)).detach()
    u = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc)[:, dead].relu()
    values, index = u.topk(2, dim=1)
    code = torch.zeros_like(u).scatter(1, index, values)
    error = (code @ sae.W_dec[dead] - residual).square().sum(1).mean()
    variance = (residual - residual.mean(0)).square().sum(1).mean()
    total = (x - x.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(got, total * error / variance / 32)


def test_auxk_stands_to_the_reconstruction_as_if_both_were_shares_of_variance():
    (sae, dead), x = with_dead(), rows()
    found = objective(sae, x, dead=dead, auxiliary=AuxK()).parts
    residual = x - sae(x)
    left = (residual - residual.mean(0)).square().sum(1).mean()
    total = (x - x.mean(0)).square().sum(1).mean()
    alone = objective(sae, x, dead=dead, auxiliary=AuxK(normalise="none")).parts["auxiliary"]
    share_left = found["reconstruction"] / total
    torch.testing.assert_close(
        found["auxiliary"] / found["reconstruction"], alone / left / share_left
    )


def test_few_dead_latents_count_less():
    (sae, dead), x = with_dead(), rows()
    three = objective(sae, x, dead=dead, auxiliary=AuxK(k=3)).parts["auxiliary"]
    six = objective(sae, x, dead=dead, auxiliary=AuxK(k=6)).parts["auxiliary"]
    torch.testing.assert_close(six, three / 2)


@pytest.mark.parametrize("detach", [True, False])
def test_the_residual_is_held_constant_unless_asked(detach):
    (sae, dead), x = with_dead(), rows()
    part = objective(sae, x, dead=dead, auxiliary=AuxK(detach_residual=detach)).parts["auxiliary"]
    gradient = torch.autograd.grad(part, sae.W_dec)[0]
    assert bool(gradient[dead].any())
    assert bool(gradient[~dead].any()) is not detach


def test_signed_latents_are_ranked_by_magnitude_and_keep_their_sign():
    (sae, dead), x = with_dead(AbsTopK(k=2)), rows()
    got = objective(sae, x, dead=dead, auxiliary=AuxK(k=1, normalise="none")).parts["auxiliary"]
    u = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc)[:, dead]
    index = u.abs().argmax(1, keepdim=True)
    code = torch.zeros_like(u).scatter(1, index, u.gather(1, index))
    assert bool((code < 0).any())
    expected = (code @ sae.W_dec[dead] - (x - sae(x))).square().sum(1).mean() / 32
    torch.testing.assert_close(got, expected)


def test_without_dead_latents_there_is_no_auxiliary_loss():
    sae, _ = with_dead()
    assert "auxiliary" not in objective(sae, rows(), auxiliary=AuxK()).parts


def test_auxk_of_a_tied_autoencoder_decodes_scaled_directions():
    (sae, dead), x = with_dead(ReLU(), tied=True), rows()
    with torch.no_grad():
        sae.scale.copy_(torch.linspace(0.5, 2, 12))
    got = objective(sae, x, dead=dead, auxiliary=AuxK(k=3, normalise="none")).parts["auxiliary"]
    code = sae.encode(x)[:, dead]
    expected = (code @ sae.decoder_rows()[dead] - (x - sae(x))).square().sum(1).mean() / 32
    torch.testing.assert_close(got, expected)


def test_k_is_the_power_of_two_nearest_to_half_the_width():
    assert [nearest_power_of_two(n / 2) for n in (384, 768, 4096, 1)] == [256, 512, 2048, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k=0 is not allowed: give a whole number of at least 1"),
        ({"coefficient": -1.0}, "coefficient=-1.0 is not allowed"),
        ({"normalise": "mean"}, "Unknown normalise 'mean'"),
    ],
)
def test_settings_of_auxk_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        AuxK(**settings)


def test_the_bfloat16_product_only_selects():
    sae, x = SparseAutoencoder(6, 12, TopK(k=3)), rows()
    rounded = objective(sae, x, precision="bfloat16").z
    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(rounded.values, u[rounded.rows(), rounded.columns])
    coarse = (x.bfloat16() @ sae.W_enc.bfloat16()).float()
    assert not torch.equal(coarse[rounded.rows(), rounded.columns], rounded.values)
