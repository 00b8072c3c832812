"""Difference in means, contrasts of latents, one latent for two poles, probes, steering."""

import pytest
import torch
from torch import nn

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.domains.interpretability.directions import (
    DifferenceInMeans,
    auc,
    bipolarity,
    contrast_latents,
)
from sparsecraft.domains.interpretability.probing import probe, sparse_probe
from sparsecraft.domains.interpretability.steering import ablating, latent_direction, steering
from sparsecraft.methods.codes.topk import TopK


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_difference_in_means_over_examples_and_positions():
    x = normal(0, 4, 5, 3)
    y = torch.arange(20).view(4, 5) % 2
    found = DifferenceInMeans().fit(x, y)
    expected = x[y == 1].mean(0) - x[y == 0].mean(0)
    torch.testing.assert_close(found.direction, expected)
    torch.testing.assert_close(found.steer(x, -2.0), x - 2 * expected)
    torch.testing.assert_close(found.ablate(x) @ expected, torch.zeros(4, 5), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("x", "y", "error", "text"),
    [
        (normal(0, 3, 2), torch.tensor([1, 1, 1]), InvalidValue, "two classes are needed"),
        (normal(0, 3, 2), torch.tensor([0, 1, 2]), InvalidValue, "two classes are needed"),
        (normal(0, 3, 2), torch.tensor([0, 1]), InvalidValue, "2 labels for 3 activations"),
        (normal(0, 2, 2) * float("inf"), torch.tensor([0, 1]), NonFinite, "infinite"),
        (torch.ones(2, 2), torch.tensor([0, 1]), InvalidValue, "same mean"),
    ],
)
def test_labels_that_give_no_direction(x, y, error, text):
    with pytest.raises(error, match=text):
        DifferenceInMeans().fit(x, y)


def test_unfitted():
    with pytest.raises(InvalidValue, match="call fit"):
        DifferenceInMeans().steer(torch.ones(2))


def test_a_contrast_ranks_by_size_and_keeps_the_sign():
    a = torch.tensor([[-3.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    b = torch.tensor([[0.0, 0.0, 1.0]])
    found = contrast_latents(a, b, top=3)
    assert found.latents.tolist() == [0, 1, 2] and found.difference.tolist() == [-2, 1, -1]
    with pytest.raises(InvalidValue, match="top=4"):
        contrast_latents(a, b, top=4)
    with pytest.raises(InvalidValue, match="empty"):
        contrast_latents(a[:0], b)
    with pytest.raises(InvalidValue, match="cannot be contrasted"):
        contrast_latents(a[:, :2], b)


def test_auc_against_all_pairs():
    a, b = normal(0, 20).round(decimals=1), normal(1, 30).round(decimals=1)
    pairs = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    assert auc(a, b) == pytest.approx(float(pairs.mean()))


def test_one_signed_latent_for_both_poles_scores_one_and_rectified_pairs_zero():
    size = normal(0, 50).abs() + 0.1
    signed_a, signed_b = torch.stack([size, 0 * size], 1), torch.stack([-size, 0 * size], 1)
    assert bipolarity(signed_a, signed_b).score == 1
    # The same written with one latent for each pole: it separates as well, but it takes two.
    split_a, split_b = torch.stack([size, 0 * size], 1), torch.stack([0 * size, size], 1)
    found = bipolarity(split_a, split_b)
    assert found.score == 0 and found.pair == 1 and set(found.partners) == {0, 1}


def test_noise_is_not_bipolar():
    z = normal(0, 400, 6)
    found = bipolarity(z[:100], z[100:200], (z[200:300], z[300:]))
    assert abs(found.one - 0.5) < 0.1 and 0 <= found.score < 0.8


def test_probes_use_both_signs():
    y = torch.arange(60) % 2
    z = 0.1 * normal(0, 60, 5)
    z[:, 3] = torch.where(y == 1, -1.0, -2.0) + 0.01 * normal(1, 60)
    found = sparse_probe(z, y, 1)
    assert found.latents.tolist() == [3] and found.accuracy(z, y) == 1
    with pytest.raises(InvalidValue, match="k=6"):
        sparse_probe(z, y, 6)


def test_probing_has_floor_and_baselines():
    y = torch.arange(200) % 3 == 0
    x = normal(0, 200, 6) + 4 * y[:, None] * torch.eye(6)[0]
    z = torch.cat([x, -x], 1).relu()
    half = lambda t: (t[:100], t[100:])  # noqa: E731
    found = probe(half(z), half(x), half(y), ks=(1, 2))
    assert found.majority == pytest.approx(0.67, abs=0.01)
    assert found.sparse[1] > 0.9 and found.dense > 0.9 and found.difference_in_means > 0.9
    assert found.latents[1] == [0]
    assert [name for name, _ in found.rows()][:2] == ["larger class", "1 latent"]


def test_a_probe_is_the_logistic_regression_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = normal(0, 80, 3).double(), torch.arange(80) % 2
    x[:, 0] += y
    found = sparse_probe(x, y, 3)
    values = ((x[:, found.latents] - found.mean) / found.deviation).numpy()
    # The ridge is 1e-2 / 2 ||w||^2 on the mean loss, so C is 1 / (rows * 1e-2).
    theirs = linear.LogisticRegression(C=1 / 0.8, tol=1e-10).fit(values, y.numpy())
    assert found.weight.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=1e-4)


def test_steering_adds_a_latents_direction():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    sae = SparseAutoencoder(4, 8, TopK(k=2))
    x = normal(0, 3, 4)
    direction = latent_direction(sae, 5)
    with steering(model, "0", direction, -2.0):
        steered = model(x)
    torch.testing.assert_close(steered, model[1](model[0](x) - 2 * direction))
    with steering(model, "0", direction, 1.0, mask=torch.tensor([True, False, False])):
        assert torch.equal(model(x)[1:], model[1](model[0](x))[1:])
    found = DifferenceInMeans().fit(normal(1, 10, 4), torch.arange(10) % 2)
    with ablating(model, "0", found):
        ablated = model(x)
    torch.testing.assert_close(ablated, model[1](found.ablate(model[0](x))))
    torch.testing.assert_close(model(x), model[1](model[0](x)))


def test_steering_errors():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with (
        pytest.raises(InvalidValue, match="the direction 2"),
        steering(model, "0", torch.ones(2)),
    ):
        model(torch.ones(1, 4))
    with pytest.raises(InvalidValue, match="is zero"), ablating(model, "0", torch.zeros(4)):
        pass
    with pytest.raises(UnknownName, match="hook point"), steering(model, "7", torch.ones(4)):
        pass
    with pytest.raises(InvalidValue, match="latent=8"):
        latent_direction(SparseAutoencoder(4, 8, TopK(k=2)), 8)
    assert not model[0]._forward_hooks


def test_directions_and_masks_go_to_where_the_model_is():
    model = nn.Sequential(nn.Linear(2, 3)).to("meta")
    x, mask = torch.empty(4, 2, device="meta"), torch.tensor([True, False, True, False])
    with steering(model, "0", torch.ones(3), 2.0, mask=mask):
        assert model(x).device.type == "meta"
    with ablating(model, "0", torch.ones(3)):
        assert model(x).device.type == "meta"
