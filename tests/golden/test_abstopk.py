"""AbsTopK and BatchTopK over the batch against the first author's code, and the prox table.

Forwards agree to 1e-10. That code forms its loss in float32 even for float64 weights, so
gradients agree to float32's rounding of the largest ones, 0.5.

The loss of that code is a mean over all entries, ours a sum over a row's: a factor of d_in. Its
auxiliary loss neither detaches the residual nor divides by a variance. It rescales the rows of the
dictionary before Adam's step, which leaves them nearly unit; ours are compared after scaling both.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.penalties import L0, L1, NonNegativeL0, NonNegativeL1
from sparsecraft.core.penalties import AbsTopK as AbsTopKPenalty
from sparsecraft.core.penalties import TopK as TopKPenalty
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.model.sae import AuxK, SparseAutoencoder
from sparsecraft.model.sae.counters import FiringCounter
from sparsecraft.model.sae.objective import objective
from sparsecraft.model.sae.projected_adam import ProjectedAdam

ARRAYS = np.load(Path(__file__).with_name("abstopk.npz"))
ACTIVATIONS = {"absk": AbsTopK(k=3, scope="batch"), "btopk": MutualChoice(k=3)}
ROW_NORMS = {"unit1": "layer", "unit0": "none"}
DEAD_AFTER = 5
MOST_REVIVED = 8
ROUNDED = {"rtol": 2e-7, "atol": 3e-8}
# Adam's first step goes 3e-4 along the sign of the gradient, less where it is as small as epsilon.
SIGN_OF_SMALL = 1e-7
PROX = {
    "relu": lambda s, k: NonNegativeL1(strength=s),
    "l1_soft": lambda s, k: L1(strength=s),
    "jumprelu": lambda s, k: NonNegativeL0(strength=s),
    "l0_hard": lambda s, k: L0(strength=s),
    "topk": lambda s, k: TopKPenalty(k=k),
    "abstopk": lambda s, k: AbsTopKPenalty(k=k),
}


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


def autoencoder(variant, row_norm, dtype=torch.float64):
    sae = SparseAutoencoder(12, 40, ACTIVATIONS[variant], row_norm=ROW_NORMS[row_norm]).to(dtype)
    with torch.no_grad():
        sae.W_enc.copy_(tensor("W_enc"))
        sae.W_dec.copy_(tensor("W_dec"))
        sae.b_dec.copy_(tensor("b_dec_init"))
    return sae.train()


def batch_losses(sae):
    """Returns the losses of the batch; latents are dead that are so after it was counted."""
    x = tensor("x").to(sae.W_dec)
    counter = FiringCounter(40)
    # The code counts batches, so each stands for as many tokens as it has rows.
    counter.silent.copy_(tensor("counter_init").long() * len(x))
    with torch.no_grad():
        counter.add(sae.sparse_encode(x))
    dead = counter.dead(DEAD_AFTER * len(x))
    # Ours shrinks the loss where fewer than k are dead; theirs takes the fewer as its k.
    k = min(MOST_REVIVED, int(dead.sum()))
    auxiliary = AuxK(coefficient=1 / 32, k=k, normalise="none", detach_residual=False)
    return objective(sae, x, dead=dead, auxiliary=auxiliary), counter.silent // len(x)


@pytest.mark.parametrize("name", PROX)
def test_the_prox_table(name):
    penalty = PROX[name](float(ARRAYS["prox_lambda"]), int(ARRAYS["prox_k"]))
    found = penalty.prox(tensor("prox_u"), 1.0)
    np.testing.assert_allclose(found, ARRAYS[f"prox_{name}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("row_norm", ROW_NORMS)
@pytest.mark.parametrize("variant", ACTIVATIONS)
def test_forward_losses_and_gradients(variant, row_norm):
    sae = autoencoder(variant, row_norm)
    wanted = {
        name.removeprefix(f"{variant}_{row_norm}_f64_"): ARRAYS[name]
        for name in ARRAYS
        if name.startswith(f"{variant}_{row_norm}_f64_")
    }
    np.testing.assert_allclose(sae(tensor("x")).detach(), wanted["sae_out"], atol=1e-10)
    np.testing.assert_allclose(sae.encode(tensor("x")).detach(), wanted["feature_acts"], atol=1e-10)
    losses, counter = batch_losses(sae)
    parts = {name: float(value.detach()) / 12 for name, value in losses.parts.items()}
    # The code keeps its losses in float32.
    assert parts["reconstruction"] == pytest.approx(float(wanted["l2_loss"]), rel=1e-6)
    assert parts["auxiliary"] == pytest.approx(float(wanted["aux_loss"]), rel=1e-6)
    np.testing.assert_array_equal(counter, wanted["counter_after"])
    assert float(losses.z.counts().double().mean()) == pytest.approx(float(wanted["l0_norm"]))
    assert int((losses.z.values < 0).sum()) / 16 == pytest.approx(
        float(wanted["negative_features"])
    )
    (losses.total / 12).backward()
    for name in ("b_dec", "W_enc", "W_dec"):
        np.testing.assert_allclose(
            getattr(sae, name).grad, wanted[f"grad_{name}"], **ROUNDED, err_msg=name
        )


@pytest.mark.parametrize("variant", ACTIVATIONS)
def test_one_step_of_the_optimiser(variant):
    sae = autoencoder(variant, "unit1")
    sae.b_enc.requires_grad_(False)
    (batch_losses(sae)[0].total / 12).backward()
    optimizer = ProjectedAdam(sae, unit=True, betas=(0.9, 0.99), epsilon=1e-8)
    optimizer.step(3e-4)
    # After one step the first moment is a tenth of the projected gradient.
    projected = optimizer.adam.state[sae.W_dec]["exp_avg"] / (1 - 0.9)
    prefix = f"{variant}_unit1_f64"
    np.testing.assert_allclose(projected, ARRAYS[f"{prefix}_W_dec_grad_projected"], **ROUNDED)
    after = tensor(f"{prefix}_step1_W_dec")
    near_unit = after.norm(dim=1, keepdim=True)
    assert 1e-6 < float((near_unit - 1).abs().max()) < 1e-2
    np.testing.assert_allclose(sae.W_dec.detach(), after / near_unit, atol=SIGN_OF_SMALL)
    for name in ("W_enc", "b_dec"):
        np.testing.assert_allclose(
            getattr(sae, name).detach(), ARRAYS[f"{prefix}_step1_{name}"], atol=SIGN_OF_SMALL
        )


def test_single_precision():
    sae = autoencoder("absk", "unit1", torch.float32)
    x = tensor("x").float()
    np.testing.assert_allclose(
        sae(x).detach(), ARRAYS["absk_unit1_f32_sae_out"], rtol=1e-4, atol=1e-6
    )
    (batch_losses(sae)[0].total / 12).backward()
    for name in ("b_dec", "W_enc", "W_dec"):
        wanted = ARRAYS[f"absk_unit1_f32_grad_{name}"]
        np.testing.assert_allclose(getattr(sae, name).grad, wanted, rtol=1e-4, atol=1e-6)
