"""Under-used latents reconstruct the residual; the dead ones alone are AuxK."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.seeds import generator
from sparsecraft.core.zipf import ZipfBudget
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import AuxK, SAETraining, SparseAutoencoder
from sparsecraft.model.sae.auxiliary import AuxiliaryStep
from sparsecraft.model.sae.auxiliary_zipf import AuxZipf
from sparsecraft.model.sae.counters import FiringCounter

LATENTS = 40


def batch(activation, density=None, dead=None):
    sae = SparseAutoencoder(8, LATENTS, activation)
    x = torch.randn(16, 8, generator=generator(0, "rows"))
    z = sae.sparse_encode(x)
    dead = torch.zeros(LATENTS, dtype=torch.bool) if dead is None else dead
    return AuxiliaryStep(sae, x, x, sae.decode(z), z, dead, density)


def lawful():
    """Densities that follow a law exactly, in the order of the latents."""
    return (0.3 * ZipfBudget(exponent=0.9, offset=2.0).weights(LATENTS)).float()


@pytest.mark.parametrize("activation", [TopK(k=3), AbsTopK(k=3)], ids=["topk", "abstopk"])
@pytest.mark.parametrize("rectify", [True, False])
def test_auxk_is_the_case_of_dead_latents_alone(activation, rectify):
    dead = torch.arange(LATENTS) % 4 == 1
    step = batch(activation, dead=dead)
    zipf, auxk = AuxZipf(k=4, rectify=rectify), AuxK(k=4, rectify=rectify)
    one = zipf.weighted_loss(step, dead.float())
    gradient = torch.autograd.grad(one, step.sae.W_enc, retain_graph=True)[0]
    other = auxk.loss(step)
    assert torch.equal(one, other) and float(one.detach()) > 0
    assert torch.equal(gradient, torch.autograd.grad(other, step.sae.W_enc)[0])


def test_weights_are_the_under_use():
    density = lawful()
    assert float(AuxZipf().weights(density).max()) < 0.02, "all are on target"
    density[30] = 0.0
    density[-1] /= 10
    weights = AuxZipf().weights(density)
    assert float(weights[30]) == 1.0
    assert 0.5 < float(weights[-1]) < 1
    hard = AuxZipf(weighting="hard").weights(density)
    assert hard.nonzero()[:, 0].tolist() == [30, LATENTS - 1]


def test_the_estimate_by_hand():
    """One under-used latent with weight w decodes w times its pre-activation."""
    step = batch(TopK(k=3))
    weights = torch.zeros(LATENTS)
    weights[7] = 0.25
    loss = AuxZipf(k=1, normalise="none", coefficient=2.0).weighted_loss(step, weights)
    estimate = 0.25 * step.pre_activations(torch.tensor([7])).clamp_min(0) * step.sae.W_dec[7]
    error = (step.target - step.reconstruction - estimate).square().sum(1).mean()
    assert float(loss.detach()) == pytest.approx(2.0 * 0.25 * float(error.detach()), rel=1e-5)


def test_the_ranking_is_weighted():
    step = batch(TopK(k=3))
    u = step.pre_activations(torch.arange(2))
    ranked = (u.clamp_min(0) * torch.tensor([1.0, 0.01])).argmax(1)
    weights = torch.zeros(LATENTS)
    weights[:2] = torch.tensor([1.0, 0.01])
    loss = AuxZipf(k=1, normalise="none", coefficient=1.0).weighted_loss(step, weights)
    values = u[torch.arange(16), ranked].clamp_min(0) * weights[ranked]
    estimate = values[:, None] * step.sae.W_dec[ranked]
    error = (step.target - step.reconstruction - estimate).square().sum(1).mean()
    assert float(loss.detach()) == pytest.approx(float(error.detach()), rel=1e-5)


def test_nothing_before_the_first_batch_and_only_the_dead_where_few_fire():
    assert AuxZipf().loss(batch(TopK(k=3))) is None
    assert AuxZipf().loss(batch(TopK(k=3), density=torch.full((LATENTS,), torch.nan))) is None
    density = torch.zeros(LATENTS)
    density[:2] = 0.5
    assert AuxZipf().weights(density).tolist() == [0.0, 0.0] + [1.0] * (LATENTS - 2)


def test_it_trains_and_goes_on_where_it_stopped(tmp_path):
    x = torch.randn(600, 8, generator=generator(3, "rows"))

    def trained(steps_at_first):
        def stop(stage, done, steps):
            if done == steps_at_first:
                raise KeyboardInterrupt

        training = SAETraining(
            steps=12, batch=64, auxiliary=AuxZipf(k=4, density_momentum=0.5), checkpoint_every=4
        )
        made = [SparseAutoencoder(8, LATENTS, TopK(k=2)) for _ in range(2)]
        folder = tmp_path / str(steps_at_first)
        if steps_at_first:
            with pytest.raises(KeyboardInterrupt):
                made[0].fit(x, training, directory=folder, progress=stop)
        return made[1].fit(x, training, directory=folder)

    whole, resumed = trained(0), trained(6)
    assert resumed.report.resumed_from == 4
    assert torch.equal(whole.W_enc, resumed.W_enc)
    assert whole.report.losses["auxiliary"] > 0


def test_settings_that_are_not_allowed():
    with pytest.raises(UnknownName, match=r"Unknown weighting 'sof'\. Did you mean 'soft'"):
        AuxZipf(weighting="sof")
    with pytest.raises(InvalidValue, match=r"density_momentum=1\.0 is not allowed"):
        AuxZipf(density_momentum=1.0)
    with pytest.raises(InvalidValue, match="k=0 is not allowed"):
        AuxZipf(k=0)


def with_silent_tail(steps=110, latents=1000, rows=4096):
    """Counts a training in which three of ten latents fall silent for the last steps."""
    counter = FiringCounter(latents, density_momentum=0.99)
    silent = torch.arange(latents) % 10 >= 7
    fired = (rows * 0.3 * ZipfBudget(exponent=0.9, offset=2.0).weights(latents)).ceil().long()
    for alive in [torch.ones_like(silent)] * 3 + [~silent] * steps:
        columns = torch.arange(latents)[alive].repeat_interleave(fired[alive])
        starts = torch.linspace(0, len(columns), rows + 1).long()
        counter.add(Code(starts, columns, torch.ones(len(columns)), latents))
    return counter, silent


def test_a_tail_that_fell_silent_is_dead_and_does_not_bend_the_law():
    counter, silent = with_silent_tail()
    weights = AuxZipf().weights(counter.density)
    assert weights[silent].unique().tolist() == [1.0]
    law = ZipfBudget.fit(counter.density)
    assert law.exponent == pytest.approx(0.9, abs=0.05)
    # Those that live fire as often as ranks without the silent ones would have it, or more seldom.
    assert float(weights[~silent].max()) < 0.5


def test_what_the_training_calls_dead_has_the_whole_weight():
    density, dead = lawful(), torch.arange(LATENTS) == 20
    step = batch(TopK(k=3), density=density, dead=dead)
    seen = {}

    class Watched(AuxZipf):
        def weighted_loss(self, step, weights):
            seen["weights"] = weights
            return super().weighted_loss(step, weights)

    assert Watched().loss(step) is not None
    assert float(seen["weights"][20]) == 1.0
    assert float(seen["weights"][:20].max()) < 0.05


@given(st.lists(st.floats(-45, 0), min_size=1, max_size=30), st.integers(0, 5))
def test_weights_of_any_densities_are_shares(logs, dead):
    density = torch.cat([torch.tensor(logs).exp(), torch.zeros(dead)])
    weights = AuxZipf().weights(density)
    assert bool(((weights >= 0) & (weights <= 1)).all())
    assert weights[len(logs) :].tolist() == [1.0] * dead
