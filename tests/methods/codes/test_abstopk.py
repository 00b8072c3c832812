"""AbsTopK in an autoencoder: signs, the batch's threshold, and the rectified copy."""

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Side
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.rectified import rectified


def autoencoder(activation, **options):
    sae = SparseAutoencoder(6, 24, activation, **options)
    with torch.no_grad():
        sae.b_enc.normal_(generator=generator(1, "bias"))
        sae.b_dec.normal_(generator=generator(2, "bias"))
    return sae


def rows(seed=0, count=40):
    return torch.randn(count, 6, generator=generator(seed, "rows"))


def observed(sae, x):
    sae.train()
    u = sae.pre_activations(x).detach()
    code = sae.sparse_encode(x)
    return sae.activation.observe(u, code, sae.own, Side(sae.W_dec.detach())), code


def test_each_row_keeps_k_of_both_signs():
    z = autoencoder(AbsTopK(k=5)).encode(rows())
    assert (z != 0).sum(1).tolist() == [5] * 40
    assert bool((z < 0).any()) and bool((z > 0).any())


def test_gradients_pass_through_what_is_selected_alone():
    sae, x = autoencoder(AbsTopK(k=3)), rows(count=1)
    sae.encode(x).sum().backward()
    selected = sae.encode(x)[0] != 0
    assert sae.b_enc.grad.tolist() == selected.float().tolist()
    assert bool((sae.W_enc.grad[:, ~selected] == 0).all())


def test_over_the_batch_rows_that_come_alone_need_a_threshold():
    sae = autoencoder(AbsTopK(k=4, scope="batch"))
    sae.train()
    assert int((sae.encode(rows()) != 0).sum()) == 160
    sae.eval()
    with pytest.raises(InvalidValue, match=r"selects over the batch.*freeze_thresholds"):
        sae.encode(rows())


def test_one_batch_sets_the_threshold_that_selects_it_again():
    sae, x = autoencoder(AbsTopK(k=4, scope="batch")), rows()
    statistics, code = observed(sae, x)
    sae.activation.update(sae.own, statistics, 0.5)
    sae.eval()
    assert torch.equal(sae.encode(x) != 0, code.dense() != 0)


def test_the_threshold_is_the_running_mean_over_batches_and_ranks():
    sae = autoencoder(AbsTopK(k=4, scope="batch", threshold_momentum=0.75))
    (first, _), (second, _), (third, _) = (observed(sae, rows(seed)) for seed in range(3))
    sae.activation.update(sae.own, first, 0.1)
    ranks = {name: second[name] + third[name] for name in second}
    sae.activation.update(sae.own, ranks, 0.2)
    mean = (second["threshold"] + third["threshold"]) / 2
    assert torch.allclose(sae.own.state["threshold"], 0.75 * first["threshold"] + 0.25 * mean)
    assert set(AbsTopK.reductions.values()) == {"sum"} and AbsTopK.reductions.keys() == first.keys()


def test_calibration_gives_k_on_average_exactly():
    activation = AbsTopK(k=4, scope="batch")
    sae, x = autoencoder(activation), rows(count=500)
    u = sae.pre_activations(x).detach()
    found = activation.calibrate(u.split(64), 500, sae.own)
    assert int((u.abs() > found).sum()) == 4 * 500
    assert AbsTopK(k=4).calibrate(u.split(64), 500, sae.own) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_norm": "layer"},
        {"tied": True},
        {"d_out": 3, "skip": True},
        {"prefixes": (8, 24)},
        {"subtract_bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("scope", ["token", "batch"])
def test_the_rectified_copy_gives_the_same_outputs(scope, options):
    sae, x = autoencoder(AbsTopK(k=4, scope=scope), **options), rows()
    if scope == "batch":
        sae.own.state["threshold"].fill_(1.0)
    sae.eval()
    copy = rectified(sae)
    z = copy.encode(x)
    assert copy.d_sae == 48 and not copy.training and bool((z >= 0).all())
    assert torch.allclose(copy(x), sae(x), atol=1e-5)
    sae.train(), copy.train()
    assert torch.allclose(copy(x), sae(x), atol=1e-5)
    if not options:
        assert torch.equal(z[:, :24] - z[:, 24:], sae.eval().encode(x))


def test_what_has_no_rectified_copy():
    with pytest.raises(InvalidValue, match="TopK has no mirrored form"):
        rectified(autoencoder(TopK(k=2)))
    with pytest.raises(InvalidValue, match="unroll=2"):
        rectified(autoencoder(AbsTopK(k=2), unroll=2))


def test_unrolled_steps_are_iterative_hard_thresholding():
    """z <- H_k(z + W^T (x - b - z W)), with an orthonormal dictionary a fixed point at once."""
    sae = SparseAutoencoder(6, 6, AbsTopK(k=2), unroll=4, tied=True)
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(sae.W_dec)[0])
    once = SparseAutoencoder(6, 6, AbsTopK(k=2), tied=True)
    once.load_state_dict(sae.state_dict())
    assert torch.allclose(sae.encode(rows()), once.encode(rows()), atol=1e-5)
    wide = autoencoder(AbsTopK(k=2), unroll=3)
    z = wide.encode(rows())
    assert (z != 0).sum(1).tolist() == [2] * 40


def test_settings_that_are_not_allowed():
    with pytest.raises(InvalidValue, match=r"k=0 is not allowed"):
        AbsTopK(k=0)
    with pytest.raises(InvalidValue, match="k=25 exceeds d_sae=24"):
        autoencoder(AbsTopK(k=25))
    with pytest.raises(UnknownName, match="Unknown scope 'feature'"):
        AbsTopK(k=2, scope="feature")
    with pytest.raises(InvalidValue, match="threshold_momentum=1 is not allowed"):
        AbsTopK(k=2, threshold_momentum=1)


def test_it_is_in_the_catalog():
    chosen = catalog.build("abstopk", k=3, scope="batch")
    assert catalog.restore(catalog.describe(chosen)) == chosen
