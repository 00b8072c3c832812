"""Group Bias Adaptation against our own float64 NumPy reference; official code was not read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core import bias_adaptation
from sparsecraft.core.bias_adaptation import BiasAdaptation, geometric_targets, group_means
from sparsecraft.methods.codes.group_bias_adaptation import GroupBiasAdaptation
from sparsecraft.model.sae import SparseAutoencoder

ARRAYS = np.load(Path(__file__).with_name("gba.npz"))
CLOSE = {"rtol": 0, "atol": 1e-9}
BUFFER, BATCH = 150, 40


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


TARGETS = geometric_targets(0.3, 0.003, 4)


def pre_activations(first, last, bias):
    return (tensor("x")[first:last] - tensor("b_pre")) @ tensor("W").T + bias


def test_target_frequencies():
    np.testing.assert_allclose(TARGETS, ARRAYS["taf"], **CLOSE)


def test_buffers_and_the_biases_after_each(monkeypatch):
    # The reference asks for a frequency of 0.003 over 150 rows, which we refuse.
    monkeypatch.setattr(bias_adaptation, "EXPECTED_FIRINGS", 0)
    rule = BiasAdaptation(targets=TARGETS, step_down=0.05, step_up=0.05, buffer=BUFFER)
    group, bias = tensor("group"), tensor("b_init")
    state = {
        "group": group,
        "count": torch.zeros(24, dtype=torch.int64),
        "largest": torch.zeros(24, dtype=torch.float64),
        "rows": torch.tensor(0),
    }
    for turn in range(4):
        begin = BUFFER * turn
        parts = [(begin, begin + 50), (begin + 50, begin + 51), (begin + 51, begin + BUFFER)]
        stored = pre_activations(begin, begin + BUFFER, bias)
        frequency, largest = (stored > 0).double().mean(0), stored.amax(0).clamp_min(0)
        np.testing.assert_allclose(frequency, ARRAYS[f"upd{turn}_freq"], **CLOSE)
        np.testing.assert_allclose(largest, ARRAYS[f"upd{turn}_rmax"], **CLOSE)
        means = group_means(largest, group, 4)
        np.testing.assert_allclose(means, ARRAYS[f"upd{turn}_T_group"], **CLOSE)
        targets = torch.tensor(TARGETS, dtype=torch.float64)[group]
        assert int((frequency > targets).sum()) == ARRAYS[f"upd{turn}_n_high"]
        assert int((frequency < rule.floor).sum()) == ARRAYS[f"upd{turn}_n_dead"]
        before = bias.clone()
        moved = [rule.update(bias, state, rule.observe(pre_activations(*p, before))) for p in parts]
        assert moved == [False, False, True]
        np.testing.assert_allclose(bias, ARRAYS[f"upd{turn}_b_after"], **CLOSE)
        assert not state["count"].any() and not state["largest"].any() and not state["rows"]


@pytest.mark.parametrize("form", ["relu", "jumprelu"])
def test_forward_loss_and_gradients(form):
    sae = SparseAutoencoder(12, 24, GroupBiasAdaptation(form=form), tied=True).double()
    with torch.no_grad():
        values = {"W_dec": "W", "scale": "a", "b_dec": "b_pre", "b_enc": "b_init"}
        for ours, theirs in values.items():
            getattr(sae, ours).copy_(tensor(theirs))
    x = tensor("x")[:BATCH]
    z = sae.code_of(x)
    out = sae.decode(z)
    loss = 0.5 * (out - x).square().sum(1).mean()
    loss.backward()
    np.testing.assert_allclose(z.detach(), ARRAYS[f"{form}_act"], **CLOSE)
    np.testing.assert_allclose(out.detach(), ARRAYS[f"{form}_recon"], **CLOSE)
    assert loss.item() == pytest.approx(float(ARRAYS[f"{form}_loss"]), abs=1e-9)
    for ours, theirs in {"W_dec": "W", "scale": "a", "b_dec": "b_pre"}.items():
        wanted = ARRAYS[f"{form}_grad_{theirs}"]
        np.testing.assert_allclose(sae.get_parameter(ours).grad, wanted, **CLOSE, err_msg=ours)
    assert sae.b_enc.grad is None


def test_the_bias_that_gives_random_directions_a_frequency():
    frequencies = tensor("rate_p").double()
    np.testing.assert_allclose(
        torch.special.ndtri(frequencies), ARRAYS["rate_bias_sqrt_d"], rtol=0, atol=1e-6
    )
    width = 400
    directions = torch.randn(200_000, width, generator=torch.Generator().manual_seed(0))
    y = directions[:, 0] / directions.norm(dim=1)
    for p, bias in zip(frequencies, tensor("rate_bias_sqrt_d") / width**0.5, strict=True):
        fired = float((y + bias > 0).double().mean())
        assert fired == pytest.approx(float(p), abs=4 * float(p * (1 - p) / 200_000) ** 0.5 + 3e-4)
