"""Under-used latents reconstruct the residual; the dead ones alone are AuxK."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.seeds import generator
from sparsecraft.core.zipf import ZipfBudget
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import AuxK, SAETraining, SparseAutoencoder
from sparsecraft.model.sae.auxiliary import AuxiliaryStep
from sparsecraft.model.sae.auxiliary_zipf import AuxZipf

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
