"""Group Bias Adaptation in an autoencoder: its codes, frequencies, memory and errors."""

import copy

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Own, Side
from sparsecraft.methods.codes.group_bias_adaptation import GroupBiasAdaptation, gba_autoencoder
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder

QUICK = GroupBiasAdaptation(groups=2, high=0.2, low=0.05, buffer=400, step_down=0.05, step_up=0.05)


def rows(count, seed, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def adapt(sae, batches):
    """Lets biases move by batches of rows, as a training does after each step."""
    for x in batches:
        u = sae.pre_activations(sae.normalise_rows(x)[0])
        z, side = sae.activation.apply(u, sae.own), Side(sae.decoder_rows())
        sae.activation.update(sae.own, sae.activation.observe(u, z, sae.own, side), 0.0)


def test_found_by_name_and_restored():
    method = catalog.build("gba", groups="4", low="0.01")
    assert method == GroupBiasAdaptation(groups=4, low=0.01)
    assert method.info.paper.number == 22
    assert catalog.restore(catalog.describe(method)) == method


def test_forms_of_the_code_by_hand():
    own = Own(torch.tensor([-0.5, -0.25]))
    u = torch.tensor([[0.5, -0.1], [-2.0, 0.25]])
    assert GroupBiasAdaptation(form="relu").apply(u, own).tolist() == [[0.5, 0.0], [0.0, 0.25]]
    assert GroupBiasAdaptation().apply(u, own).tolist() == [[1.0, 0.0], [0.0, 0.5]]


def test_moving_a_bias_changes_no_value_of_the_default_form():
    sae = gba_autoencoder(8, 32, QUICK)
    x = rows(50, 0)
    before = sae.encode(x).detach()
    with torch.no_grad():
        sae.b_enc.fill_(-0.3)
    after = sae.encode(x).detach()
    kept = after != 0
    assert 0 < kept.sum() < (before != 0).sum()
    torch.testing.assert_close(after[kept], before[kept])


def test_the_papers_autoencoder():
    sae = gba_autoencoder(8, 32, QUICK, seed=3)
    x, factor = rows(20, 1), torch.linspace(0.1, 9, 20)[:, None]
    assert "W_enc" not in sae.state_dict()
    assert not sae.b_enc.requires_grad
    torch.testing.assert_close(sae.encode(x * factor), sae.encode(x))
    torch.testing.assert_close(sae(x * factor), sae(x) * factor)
    sae.encode(x).sum().backward()
    assert sae.b_enc.grad is None
    assert sae.W_dec.grad is not None


def test_frequencies_come_down_to_their_targets():
    sae = gba_autoencoder(8, 32, QUICK)
    assert not torch.equal(sae.own_group, gba_autoencoder(8, 32, QUICK, seed=1).own_group)
    adapt(sae, [rows(400, seed) for seed in range(60)])
    fired = (sae.encode(rows(4000, 99)) > 0).double().mean(0)
    targets = torch.tensor(QUICK.rule().targets)[sae.own_group]
    # Sampling moves a bias on until the frequency is measured below its target.
    assert (fired < targets + 0.03).all()
    assert (fired > targets / 4).all()
    assert ((sae.b_enc >= -1) & (sae.b_enc <= 0)).all()


def test_dead_latents_come_back():
    sae = gba_autoencoder(8, 32, QUICK)
    with torch.no_grad():
        sae.b_enc[0] = -1.0
    adapt(sae, [rows(400, seed) for seed in range(80)])
    assert (sae.encode(rows(4000, 99))[:, 0] > 0).any()


def test_any_autoencoder_with_a_bias_can_be_adapted():
    wide = GroupBiasAdaptation(
        groups=1, high=0.1, form="relu", buffer=200, lowest=-6.0, low=0.1, step_down=0.05
    )
    sae = SparseAutoencoder(8, 32, wide)
    adapt(sae, [rows(200, seed) for seed in range(60)])
    fired = (sae.encode(rows(4000, 99)) > 0).double().mean(0)
    # The target is an upper bound, and the last step down may go well below it.
    assert fired.max() < 0.15
    assert 0.04 < fired.mean() < 0.1


def test_a_stop_in_the_middle_of_a_buffer_changes_nothing():
    batches = [rows(150, seed) for seed in range(9)]
    whole = gba_autoencoder(8, 32, QUICK)
    adapt(whole, batches)
    first, second = gba_autoencoder(8, 32, QUICK), gba_autoencoder(8, 32, QUICK, seed=9)
    adapt(first, batches[:4])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    adapt(second, batches[4:])
    assert int(first.own_rows) == 150
    for name, value in whole.state_dict().items():
        if name.startswith(("own", "b_enc")):
            assert torch.equal(second.state_dict()[name], value), name
    assert whole.b_enc.min() < 0


def test_counting_by_parts_as_ranks_do_is_counting_the_whole():
    sae = gba_autoencoder(8, 32, QUICK)
    x = sae.normalise_rows(rows(100, 0))[0]
    u = sae.pre_activations(x).detach()
    side = Side(sae.decoder_rows().detach())
    whole = QUICK.observe(u, u, sae.own, side)
    one, other = (QUICK.observe(part, part, sae.own, side) for part in u.split([37, 63]))
    join = {"sum": torch.add, "max": torch.maximum}
    assert QUICK.reductions.keys() == whole.keys()
    for name, how in QUICK.reductions.items():
        assert torch.equal(join[how](one[name], other[name]), whole[name]), name


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GroupBiasAdaptation(high=1.5), InvalidValue, "above 0 and below 1"),
        (lambda: GroupBiasAdaptation(high=0.1, low=0.2), InvalidValue, r"low=0\.2 exceeds"),
        (lambda: GroupBiasAdaptation(groups=0), InvalidValue, "groups=0 is not allowed"),
        (lambda: GroupBiasAdaptation(highest=0.5), InvalidValue, "would let negative entries"),
        (lambda: GroupBiasAdaptation(buffer=100), InvalidValue, "give at least 10000"),
        (lambda: GroupBiasAdaptation(form="jump"), UnknownName, "Did you mean 'jumprelu'"),
        (lambda: gba_autoencoder(4, 8), InvalidValue, "8 latents cannot fill 10 groups"),
    ],
)
def test_settings_that_are_not_allowed(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_rows_that_are_not_of_norm_one_are_refused():
    sae = SparseAutoencoder(8, 32, QUICK, tied=True)
    with pytest.raises(InvalidValue, match="Encode inputs of norm one"):
        adapt(sae, [10 * rows(400, 0)])


def test_other_activations_train_their_bias():
    assert SparseAutoencoder(8, 32, TopK(k=2)).b_enc.requires_grad
