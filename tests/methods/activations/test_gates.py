"""What each gate fits to a place; the rule they share is tested in tests/core/test_gating.py."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.gating import RandomGate
from sparsecraft.core.kinds import GateSite
from sparsecraft.core.thresholds import exact_threshold
from sparsecraft.methods.activations.cats import CATS
from sparsecraft.methods.activations.random_gate import RandomInputGate
from sparsecraft.methods.activations.teal import TEAL
from sparsecraft.methods.activations.wina import WINA

DRAWS = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 10, generator=DRAWS) * torch.randn(10, generator=DRAWS).exp()
VALUES = torch.randn(200, 10, generator=DRAWS)


def site(**changes) -> GateSite:
    known = {"weight": WEIGHT, "values": VALUES, "orthogonal": True, **changes}
    return GateSite("site", 10, known.pop("sparsity", 0.5), **known)


def test_wina_takes_column_norms_and_an_exact_count():
    gate = WINA().fit(site(sparsity=0.65))
    assert gate.keep == 3
    assert gate.prefill == 0.99
    assert torch.allclose(gate.norms, WEIGHT.square().sum(0).sqrt())


@pytest.mark.parametrize(
    ("options", "orthogonal", "normed"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"norms": "all"}, False, True),
        ({"score": "teal"}, True, False),
        ({"score": "teal", "norms": "all"}, True, False),
    ],
)
def test_which_matrices_count_their_norms(options, orthogonal, normed):
    gate = WINA(**options).fit(site(orthogonal=orthogonal))
    assert (gate.norms is not None) == normed


def test_winas_thresholds_are_of_scores_with_norms():
    gate = WINA(rule="threshold").fit(site(sparsity=0.7))
    scores = VALUES.abs() * WEIGHT.norm(dim=0)
    assert gate.threshold == pytest.approx(exact_threshold(scores, 0.7))
    assert float((scores > gate.threshold).float().mean()) == pytest.approx(0.3)


def test_teal_takes_magnitudes_and_spares_half_of_a_prompt():
    gate = TEAL().fit(site(sparsity=0.4))
    assert gate.norms is None
    assert gate.prefill == 0.5
    assert float((VALUES.abs() > gate.threshold).float().mean()) == pytest.approx(0.6)
    assert TEAL(rule="topk").fit(site(values=None)).keep == 5


def test_a_loaded_bfloat16_site_keeps_the_share_in_its_own_precision():
    values = VALUES.bfloat16()
    gate = TEAL(sparsity=0.5).fit(site(values=values))
    assert float(gate.mask(values).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_cats_gates_every_token_by_magnitude():
    gate = CATS().fit(GateSite("act", 10, 0.9, values=VALUES))
    assert gate.prefill == 1.0
    assert gate.norms is None
    assert float((VALUES.abs() > gate.threshold).float().mean()) == pytest.approx(0.1)
    assert gate.threshold > 1  # the paper's histogram ends there


def test_the_control_has_a_stream_for_each_place_and_seed():
    fits = [
        RandomInputGate().fit(GateSite(name, 10, 0.5, seed=seed))
        for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    ]
    assert all(type(gate) is RandomGate and gate.keep == 5 for gate in fits)
    assert fits[0].seed == fits[1].seed
    assert len({gate.seed for gate in fits}) == 3


def test_what_is_not_allowed():
    with pytest.raises(InvalidValue, match="keeps an exact count"):
        RandomInputGate(rule="threshold")
    with pytest.raises(MissingStatistic, match="a threshold is chosen on data"):
        CATS().fit(GateSite("act", 10, 0.5))
    with pytest.raises(InvalidValue, match=r"For 65 % write 0\.65"):
        WINA(sparsity=65)
