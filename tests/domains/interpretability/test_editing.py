"""Edits by few latents: nearer with every step, only what is active, signs kept."""

import pytest
import torch

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.editing import f1_edit, greedy_edit
from sparsecraft.domains.interpretability.latent_amplitudes import (
    amplitudes,
    directions,
    row_scale,
    scale_warning,
)
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.topk import TopK


def made(activation, **options):
    return SparseAutoencoder(6, 16, activation, seed=1, **options).double().eval()


def rows(seed, count=20):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", [TopK(k=3), AbsTopK(k=3)])
def test_a_greedy_edit_comes_nearer_or_stays(activation):
    sae, x, target = made(activation), rows(0), rows(1)
    edit = greedy_edit(sae, x, target, 8)
    begin = (target - x).norm(dim=1, keepdim=True)
    steps = torch.cat([begin, edit.distances], 1)
    assert bool((steps.diff(dim=1) <= 1e-12).all())
    torch.testing.assert_close((target - edit.edited).norm(dim=1), edit.distances[:, -1])


def test_the_first_step_is_the_best_of_all_single_latents():
    sae, x, target = made(AbsTopK(k=3)), rows(0), rows(1)
    delta = (amplitudes(sae, target) - amplitudes(sae, x))[:, :, None] * directions(sae)
    best = (target[:, None] - x[:, None] - delta).norm(dim=2).min(1).values
    torch.testing.assert_close(greedy_edit(sae, x, target, 1).distances[:, 0], best)


def test_all_latents_move_one_reconstruction_to_the_other():
    sae, x, target = made(AbsTopK(k=2)), rows(0), rows(1)
    edit = greedy_edit(sae, x, target, 16, toward="reconstruction")
    expected = x + sae(target) - sae(x)
    assert bool(((edit.edited - expected).norm(dim=1) <= (x - expected).norm(dim=1)).all())


def test_f1_edits_take_out_only_what_is_active_and_keep_signs():
    sae, x, target = made(AbsTopK(k=2)), rows(0), rows(1)
    f1 = torch.rand(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    old, new = torch.arange(20) % 3, (torch.arange(20) + 1) % 3
    edit = f1_edit(sae, x, target, f1, old, new, 2)
    # With k as large as the code, everything that is active goes and everything new comes.
    torch.testing.assert_close(edit.edited, x - sae(x) + sae(target))
    torch.testing.assert_close(edit.weight, torch.ones(20, dtype=torch.float64))
    assert bool((amplitudes(sae, x) < 0).any())
    one = f1_edit(sae, x, target, f1, old, new, 1)
    active = amplitudes(sae, x) != 0
    assert bool(active.gather(1, one.removed).all())
    ranked = f1.T[old].masked_fill(~active, -1)
    assert torch.equal(one.removed[:, 0], ranked.argmax(1))


def test_f1_edits_change_fewer_where_fewer_are_active():
    sae, x, target = made(AbsTopK(k=2)), rows(0), rows(1)
    f1, same = torch.ones(16, 1, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    two = f1_edit(sae, x, target, f1, same, same, 2)
    many = f1_edit(sae, x, target, f1, same, same, 9)
    torch.testing.assert_close(two.edited, many.edited)
    torch.testing.assert_close(two.weight, many.weight)
    active = (amplitudes(sae, x) != 0) | (amplitudes(sae, target) != 0)
    assert torch.equal(many.changed, active.sum(1)) and bool((many.changed <= 4).all())


def test_changed_counts_the_latents_that_have_another_amplitude():
    sae, x = made(TopK(k=2)), rows(0)
    assert greedy_edit(sae, x, rows(1), 16).changed.max() <= 4
    f1, same = torch.ones(16, 1, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    assert f1_edit(sae, x, x, f1, same, same, 3).changed.tolist() == [0] * 20
    assert greedy_edit(sae, x, x, 3).changed.tolist() == [0] * 20
    one = greedy_edit(sae, x, rows(1), 1)
    moved = (amplitudes(sae, x) != amplitudes(sae, rows(1))).gather(1, one.removed)[:, 0]
    assert torch.equal(one.changed, moved.long())


@pytest.mark.parametrize("row_norm", ["unit", "layer"])
def test_amplitudes_are_in_the_units_of_the_activation(row_norm):
    sae, x = made(AbsTopK(k=3), row_norm=row_norm), 7 * rows(0)
    shift = sae(x) - amplitudes(sae, x) @ directions(sae) - row_scale(sae, x) * sae.b_dec
    mean = x.mean(1, keepdim=True) if row_norm == "layer" else torch.zeros_like(x[:, :1])
    torch.testing.assert_close(shift, mean.expand_as(x))


def test_another_scale_is_noticed():
    sae, x = made(TopK(k=3)), rows(0)
    assert scale_warning(sae, x) is None
    sae.info["mean_norm"] = float(x.norm(dim=1).mean())
    assert scale_warning(sae, 1.1 * x) is None
    assert "scaled otherwise" in scale_warning(sae, 1.3 * x)


@pytest.mark.parametrize("k", [0, 17, 2.0, True])
def test_impossible_numbers_of_latents(k):
    with pytest.raises(InvalidValue, match=r"1 to the number of latents, 16"):
        greedy_edit(made(TopK(k=3)), rows(0), rows(1), k)


def test_errors():
    sae = made(TopK(k=3))
    with pytest.raises(InvalidValue, match="must be of one shape"):
        greedy_edit(sae, rows(0), rows(1, 3), 1)
    with pytest.raises(InvalidValue, match="toward='mean'"):
        greedy_edit(sae, rows(0), rows(1), 1, toward="mean")
    transcoder = SparseAutoencoder(6, 16, TopK(k=3), d_out=4).double()
    with pytest.raises(InvalidValue, match="transcoder"):
        greedy_edit(transcoder, rows(0), rows(1), 1)
