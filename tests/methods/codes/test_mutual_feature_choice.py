"""Mutual and Feature Choice: budgets that hold exactly, phases, thresholds, what is remembered."""

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Own, Side
from sparsecraft.core.seeds import generator
from sparsecraft.core.zipf import ZipfBudget
from sparsecraft.methods.codes.batch_topk import BatchTopK
from sparsecraft.methods.codes.feature_choice import FeatureChoice
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.model.sae import SparseAutoencoder

ROWS, LATENTS = 60, 24


def autoencoder(activation):
    """All pre-activations can be positive, so that every budget can be filled."""
    sae = SparseAutoencoder(6, LATENTS, activation).train()
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(8, 10, LATENTS))
    return sae


def rows(seed=0, count=ROWS):
    return torch.randn(count, 6, generator=generator(seed, "rows"))


def step(sae, x, progress):
    """Encodes one training batch and lets the activation learn from it."""
    u = sae.pre_activations(x).detach()
    code = sae.sparse_encode(x)
    side = Side(sae.W_dec.detach())
    sae.activation.update(sae.own, sae.activation.observe(u, code, sae.own, side), progress)
    return code


@pytest.mark.parametrize("kind", [MutualChoice, BatchTopK])
def test_the_batch_keeps_its_total(kind):
    sae = autoencoder(kind(k=3))
    code = sae.sparse_encode(rows())
    assert code.counts().sum() == 3 * ROWS
    assert code.counts().min() < 3 < code.counts().max()


def test_zeros_are_never_selected():
    sae = autoencoder(MutualChoice(k=3))
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert sae.sparse_encode(rows()).counts().sum() == 0


def test_mutual_thresholds():
    sae, x = autoencoder(MutualChoice(k=3)), rows()
    sae.eval()
    with pytest.raises(InvalidValue, match=r"MutualChoice selects over the batch.*100,000 rows"):
        sae.encode(x)
    code = step(sae.train(), x, 0.1)
    assert torch.equal(sae.eval().encode(x) != 0, code.dense() != 0)
    # Products of one row may round otherwise, so no entry shall lie at the threshold.
    sae.own.state["threshold"].sub_(1e-4)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    assert torch.allclose(alone, sae.encode(x), atol=1e-5)


def test_every_latent_keeps_its_budget():
    sae = autoencoder(FeatureChoice(k=3, after=0))
    # 180 entries for 24 latents: 7 each, and one more for the first 12.
    assert sae.sparse_encode(rows()).fired().tolist() == [8] * 12 + [7] * 12


def test_a_latent_does_not_fill_its_budget_with_zeros():
    sae = autoencoder(FeatureChoice(k=3, after=0))
    with torch.no_grad():
        sae.b_enc[5] = -100.0
    fired = sae.sparse_encode(rows()).fired()
    assert fired[5] == 0 and fired.sum() == 180 - 8


def test_given_budgets():
    shares = torch.linspace(1, 3, LATENTS).double()
    shares = tuple((3 * shares / shares.sum()).tolist())
    sae = autoencoder(FeatureChoice(k=3, after=0, budget=shares))
    fired = sae.sparse_encode(rows()).fired()
    assert fired.sum() == 180
    assert torch.all((fired - 60 * torch.tensor(shares)).abs() < 1)


def test_the_choice_is_mutual_until_its_time_and_zipf_after():
    sae = autoencoder(FeatureChoice(k=3, budget="zipf", after=0.5, density_momentum=0.5))
    for number in range(4):
        code = step(sae, rows(number), (number + 1) / 8)
        assert code.counts().sum() == 180
    seen = sae.own.state["density"].clone()
    assert int(sae.own.state["chosen"]) == 0, "half of the training is done"
    code = sae.sparse_encode(rows(4))
    budget = sae.activation.budgets(sae.own, ROWS)
    assert torch.equal(code.fired(), budget) and budget.sum() == 180 and budget.min() >= 1
    order = seen.argsort(descending=True, stable=True)
    assert torch.all(budget[order].diff() <= 0), "a denser latent has no smaller budget"
    assert budget.max() > budget.min() + 3
    exponent, _ = sae.own.state["zipf"].tolist()
    assert exponent > 0


def test_latents_that_fell_silent_do_not_bend_the_law():
    """Three of ten fire no more for the last 150 of 160 steps of the mutual choice."""
    count, batch = 1000, 4096
    activation = FeatureChoice(k=32, budget="zipf", after=0.5)
    own = Own(torch.zeros(count), *activation.initial(count, seed=0))
    silent = torch.arange(count) % 10 >= 7
    fired = (batch * 0.3 * ZipfBudget(exponent=0.9, offset=2.0).weights(count)).ceil().long()
    for number in range(160):
        seen = {
            "fired": fired * ~silent if number >= 10 else fired,
            "rows": torch.tensor([batch]),
            "threshold": torch.ones(count),
            "batches": torch.ones(1),
        }
        activation.update(own, seen, (number + 1) / 320)
    exponent, offset = own.state["zipf"].tolist()
    assert exponent == pytest.approx(0.9, abs=0.05)
    assert offset < 10
    assert own.state["rank"][silent].min() >= 600
    assert int(activation.budgets(own, batch).sum()) == 32 * batch


def test_after_one_the_choice_stays_mutual_to_the_end():
    sae = autoencoder(FeatureChoice(k=3, after=1))
    for number in range(4):
        step(sae, rows(number), (number + 1) / 4)
    assert int(sae.own.state["chosen"]) == -1
    assert len(sae.freeze_thresholds(rows()).own.state["threshold"].unique()) == 1
    late = autoencoder(FeatureChoice(k=3, after=0.99))
    step(late, rows(), 1.0)
    assert int(late.own.state["chosen"]) == -1, "no step is left in which latents could choose"


def test_ranks_are_held_and_taken_anew_when_due():
    activation = FeatureChoice(k=3, budget="zipf", after=0.1, rerank_every=3, density_momentum=0.0)
    sae = autoencoder(activation)
    step(sae, rows(), 0.2)
    ranks = sae.own.state["rank"].clone()
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(10, -3, LATENTS))
    for number in range(1, 4):
        assert torch.equal(sae.own.state["rank"], ranks)
        step(sae, rows(number), 0.3)
    assert not torch.equal(sae.own.state["rank"], ranks)


def test_densities_are_running_shares_of_rows():
    sae = autoencoder(FeatureChoice(k=3, after=1.0, density_momentum=0.75))
    first = step(sae, rows(0), 0.1).fired() / ROWS
    second = step(sae, rows(1), 0.2).fired() / ROWS
    assert torch.allclose(sae.own.state["density"], 0.75 * first + 0.25 * second)


def test_thresholds_begin_anew_when_the_latents_choose():
    sae = autoencoder(FeatureChoice(k=3, after=0.5))
    step(sae, rows(0), 0.5)
    mutual = sae.own.state["threshold"].clone()
    assert len(mutual.unique()) == 1
    code = step(sae, rows(1), 0.6)
    assert len(sae.own.state["threshold"].unique()) == LATENTS
    assert torch.equal(sae.eval().encode(rows(1)) != 0, code.dense() != 0)
    # From then on a running mean.
    before = sae.own.state["threshold"].clone()
    step(sae.train(), rows(2), 0.7)
    after = sae.own.state["threshold"]
    assert bool((after != before).any()) and torch.allclose(after, before, atol=0.05)


@pytest.mark.parametrize("chosen", [-1, 1], ids=["mutual", "by latent"])
def test_calibration_gives_k_on_average_exactly(chosen):
    activation = FeatureChoice(k=3)
    sae = autoencoder(activation)
    sae.own.state["chosen"].fill_(chosen)
    u = sae.pre_activations(rows(count=400)).detach()
    found = activation.calibrate(u.split(64), 400, sae.own)
    sae.own.state["threshold"].copy_(found)
    assert sae.eval().sparse_encode(rows(count=400)).counts().sum() == 1200
    assert len(found) == (1 if chosen < 0 else LATENTS)


def test_what_is_remembered_comes_back():
    made = FeatureChoice(k=3, budget="zipf", after=0.5)
    sae = autoencoder(made)
    for number in range(4):
        step(sae, rows(number), 0.2 * (number + 1))
    other = SparseAutoencoder(6, LATENTS, catalog.restore(catalog.describe(made))).train()
    other.load_state_dict(sae.state_dict())
    x = rows(9)
    assert torch.equal(sae.encode(x), other.encode(x))
    step(sae, x, 0.9), step(other, x, 0.9)
    assert all(
        torch.equal(a, b)
        for a, b in zip(sae.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert torch.equal(sae.eval().encode(x), other.eval().encode(x))


def test_counts_are_summed_over_ranks():
    sae = autoencoder(FeatureChoice(k=3))
    side = Side(sae.W_dec.detach())
    parts = []
    for x in rows().split(ROWS // 2):
        u = sae.pre_activations(x).detach()
        parts.append(sae.activation.observe(u, sae.sparse_encode(x), sae.own, side))
    assert sae.activation.reductions.keys() == parts[0].keys()
    sae.activation.update(sae.own, {n: parts[0][n] + parts[1][n] for n in parts[0]}, 0.1)
    fired = sum((part["fired"] for part in parts), torch.zeros(LATENTS, dtype=torch.int64))
    assert torch.allclose(sae.own.state["density"], fired / ROWS)
    assert float(sae.own.state["density"].sum()) == pytest.approx(3)


def test_batches_too_small_for_a_choice_by_latents():
    sae = autoencoder(FeatureChoice(k=3))
    with pytest.raises(
        InvalidValue, match=r"7 rows has 21 entries for 24 latents.*at least 8 rows"
    ):
        sae.encode(rows(count=7))
    with pytest.raises(InvalidValue, match=r"a batch of 1 rows.*at least 2 rows"):
        autoencoder(FeatureChoice(k=24)).encode(rows(count=1))


def test_settings_that_are_not_allowed():
    with pytest.raises(UnknownName, match=r"Unknown budget 'zip'\. Did you mean 'zipf'"):
        FeatureChoice(k=2, budget="zip")
    with pytest.raises(InvalidValue, match=r"the budget sums to 1\.5; it must sum to k=2"):
        FeatureChoice(k=2, budget=(0.5, 1.0))
    with pytest.raises(InvalidValue, match=r"above 0 and up to 1, not -0\.5"):
        FeatureChoice(k=2, budget=(-0.5, 1.0, 1.0, 0.5))
    with pytest.raises(InvalidValue, match="budget has 3 numbers, and the dictionary d_sae=24"):
        autoencoder(FeatureChoice(k=2, budget=(0.5, 1.0, 0.5)))
    with pytest.raises(InvalidValue, match="after=0 leaves no time"):
        FeatureChoice(k=2, budget="zipf", after=0)
    with pytest.raises(InvalidValue, match=r"after=1\.5 is not allowed"):
        FeatureChoice(k=2, after=1.5)
    with pytest.raises(InvalidValue, match="rerank_every=0 is not allowed"):
        FeatureChoice(k=2, rerank_every=0)
    for kind in (MutualChoice, FeatureChoice):
        with pytest.raises(InvalidValue, match="k=25 exceeds d_sae=24"):
            autoencoder(kind(k=25))


def test_names_in_the_catalog():
    assert type(catalog.build("mutual_choice", k=2)) is MutualChoice
    assert type(catalog.build("batch_topk", k=2)) is BatchTopK
    shares = catalog.build("feature_choice", k=2, budget=[0.5, 1.0, 0.5])
    assert catalog.restore(catalog.describe(shares)) == shares
