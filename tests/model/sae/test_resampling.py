"""Dead latents start anew as what the reconstruction misses."""

import math

import pytest
import torch

from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.sae import Resampling, SAETraining, SparseAutoencoder
from sparsecraft.model.sae.projected_adam import ProjectedAdam
from sparsecraft.model.sae.resampling import resample


def begun(activation=None, **form):
    sae = SparseAutoencoder(6, 12, activation or ReLU(), **form)
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[1, 4, 8]] = True
    return sae, dead, torch.randn(5, 6, generator=generator(1, "rows"))


def resampled(sae, dead, x, errors):
    return resample(sae, dead, x, x, errors, 0.2, generator(0, "draw"))


def test_a_dead_latent_becomes_the_direction_of_a_row_drawn_by_its_loss():
    sae, dead, x = begun()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    with torch.no_grad():
        sae.b_enc.fill_(-1.0)
        sae.b_dec.fill_(0.3)
    norms = sae.W_enc.detach().norm(dim=0)
    latents = resampled(sae, dead, x, torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0]))
    assert latents.tolist() == [1, 4, 8]
    direction = (x[2] - 0.3) / (x[2] - 0.3).norm()
    torch.testing.assert_close(sae.W_dec[latents], direction.expand(3, 6))
    expected = 0.2 * norms[~dead].mean() * direction
    torch.testing.assert_close(sae.W_enc[:, latents], expected[:, None].expand(6, 3))
    assert sae.b_enc[latents].tolist() == [0.0] * 3
    assert torch.equal(sae.W_dec[~dead], before["W_dec"][~dead])
    assert torch.equal(sae.W_enc[:, ~dead], before["W_enc"][:, ~dead])
    assert sae.b_enc[~dead].tolist() == [-1.0] * 9


def test_rows_are_drawn_by_the_square_of_their_loss():
    sae, _, x = begun()
    draw, drawn = generator(0, "draw"), 0
    dead = torch.ones(12, dtype=torch.bool)
    second = x[1] / x[1].norm()
    for _ in range(100):
        resample(sae, dead, x, x, torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0]), 0.2, draw)
        drawn += int(((sae.W_dec - second).norm(dim=1) < 1e-5).sum())
    assert drawn / 1200 == pytest.approx(0.8, abs=0.05)


def test_a_tied_latent_gets_its_scale_back():
    sae, dead, x = begun(tied=True)
    with torch.no_grad():
        sae.scale.fill_(3.0)
    resampled(sae, dead, x, torch.ones(5))
    assert sae.scale[dead].tolist() == [1.0] * 3
    assert sae.scale[~dead].tolist() == [3.0] * 9


@pytest.mark.parametrize(
    ("activation", "killed"),
    [
        (JumpReLU(threshold=0.02), {"log_threshold": math.log(50.0)}),
        (Gated(), {"log_scale": -9.0, "magnitude_bias": -5.0}),
    ],
    ids=repr,
)
def test_what_an_activation_trains_starts_anew_too(activation, killed):
    sae, dead, x = begun(activation)
    first = {name: value.detach().clone() for name, value in sae.own.parameters.items()}
    with torch.no_grad():
        for name, value in killed.items():
            sae.own.parameters[name].fill_(value)
    latents = resampled(sae, dead, x, torch.ones(5))
    assert killed.keys() == first.keys()
    for name, parameter in sae.own.parameters.items():
        assert torch.equal(parameter[dead], first[name][dead])
        assert parameter[~dead].tolist() == pytest.approx([killed[name]] * 9)
    assert (sae.encode(30 * x)[:, latents] > 0).any(0).all(), "each can fire again"


@pytest.mark.parametrize("errors", [torch.zeros(5), torch.ones(5)])
def test_where_nothing_is_dead_or_missed_nothing_changes(errors):
    sae, dead, x = begun()
    before = sae.W_dec.detach().clone()
    latents = resampled(sae, dead & bool(not errors.any()), x, errors)
    assert len(latents) == 0
    assert torch.equal(sae.W_dec, before)


def test_moments_of_a_bias_as_wide_as_the_dictionary_stay():
    sae = SparseAutoencoder(6, 6, JumpReLU())
    x = 9 * torch.randn(50, 6, generator=generator(1, "rows"))
    optimizer = ProjectedAdam(sae, unit=True, betas=(0.9, 0.999), epsilon=1e-8)
    (sae(x) - x).square().sum().backward()
    sae.own.parameters["log_threshold"].grad = torch.ones(6)
    optimizer.step(1e-3)
    optimizer.forget(torch.tensor([0, 1]))
    moments = optimizer.adam.state
    assert bool((moments[sae.b_dec]["exp_avg"] != 0).all())
    forgotten = moments[sae.own.parameters["log_threshold"]]["exp_avg"] == 0
    assert forgotten.tolist() == [True, True, False, False, False, False]


def test_moments_of_latents_are_forgotten_and_no_others():
    sae, _, x = begun()
    optimizer = ProjectedAdam(sae, unit=True, betas=(0.9, 0.999), epsilon=1e-8)
    (sae(x) - x).square().sum().backward()
    optimizer.step(1e-3)
    optimizer.forget(torch.tensor([0, 1, 2]))
    moments = optimizer.adam.state
    for parameter, dim in ((sae.W_dec, 0), (sae.W_enc, 1), (sae.b_enc, 0)):
        for name in ("exp_avg", "exp_avg_sq"):
            kept = moments[parameter][name].transpose(0, dim)
            assert not kept[:3].any()
            assert kept[3:].any()
    assert moments[sae.b_dec]["exp_avg"].any()


def test_it_revives_what_could_not_fire():
    x = torch.randn(1000, 6, generator=generator(2, "rows"))
    dead = {}
    for name, settings in {"without": None, "with": Resampling(every=20)}.items():
        sae = SparseAutoencoder(6, 12, ReLU(l1=0.1))
        with torch.no_grad():
            sae.b_enc[:6] = -30.0
        training = SAETraining(steps=80, batch=64, dead_after=640, warm_up=0, resample=settings)
        dead[name] = sae.fit(x, training).report.dead
    assert dead == {"without": 0.5, "with": 0.0}


@pytest.mark.parametrize("activation", [JumpReLU(l0=0.01), Gated(l1=0.01)], ids=repr)
def test_it_revives_what_its_own_threshold_or_bias_silenced(activation):
    x = torch.randn(1000, 6, generator=generator(2, "rows"))
    dead = {}
    for name, settings in {"without": None, "with": Resampling(every=20)}.items():
        sae = SparseAutoencoder(6, 12, activation)
        with torch.no_grad():
            if isinstance(activation, Gated):
                sae.own_magnitude_bias[:6] = -1000.0
            else:
                sae.own_log_threshold[:6] = 5.0
        training = SAETraining(steps=80, batch=64, dead_after=640, warm_up=0, resample=settings)
        dead[name] = sae.fit(x, training).report.dead
    assert dead == {"without": 0.5, "with": 0.0}
