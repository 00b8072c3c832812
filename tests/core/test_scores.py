import pytest
import torch

from sparsecraft.core import scores
from sparsecraft.core.errors import NonFinite

W = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
G = torch.tensor([[3.0, 1.0], [5.0, -1.0]])


def test_magnitude():
    assert scores.magnitude(W).tolist() == [[1.0, 2.0], [0.0, 4.0]]


def test_wanda():
    assert scores.wanda(W, torch.tensor([10.0, 1.0])).tolist() == [[10.0, 2.0], [0.0, 4.0]]


def test_obs():
    found = scores.obs(W, torch.tensor([0.5, 2.0]))
    assert found.tolist() == [[4.0, 1.0], [0.0, 4.0]]


def test_snip_is_normalised_over_all_layers():
    found = scores.snip({"a": W, "b": W[:1]}, {"a": G, "b": G[:1]})
    torch.testing.assert_close(found["a"], torch.tensor([[3.0, 2.0], [0.0, 4.0]]) / 14)
    assert sum(float(s.sum()) for s in found.values()) == pytest.approx(1.0)


def test_snip_without_any_gradient():
    assert scores.snip({"a": W}, {"a": torch.zeros_like(W)})["a"].tolist() == [[0, 0], [0, 0]]


def test_grasp_keeps_its_sign():
    found = scores.grasp({"a": W}, {"a": G})["a"]
    assert found.tolist() == [
        [pytest.approx(1.0), pytest.approx(-2 / 3)],
        [0.0, pytest.approx(-4 / 3)],
    ]


def test_grasp_where_the_scores_cancel():
    found = scores.grasp({"a": W[:1]}, {"a": torch.tensor([[2.0, 1.0]])})["a"]
    assert torch.isfinite(found).all() and found[0, 0] > found[0, 1]


def test_synflow():
    assert scores.synflow(W, G).tolist() == [[3.0, 2.0], [0.0, 4.0]]


def test_obs_is_the_least_error_of_removing_one_input():
    """W^2 / U^2 at the first column is the loss after the best repair of all later ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    w = torch.randn(5, generator=generator, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(x.T @ x), upper=True)
    best = torch.linalg.lstsq(x[:, 1:], (x @ w)[:, None]).solution
    error = (x @ w - x[:, 1:] @ best[:, 0]).square().sum()
    torch.testing.assert_close(scores.obs(w[None], upper.diagonal())[0, 0], error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_and_counts(dtype, value):
    tensor = torch.ones(3, 4, dtype=dtype)
    scores.check_finite(tensor, "fine")
    tensor[1, 2] = value
    with pytest.raises(NonFinite, match="fc1: the weight has 1 NaN or infinite entries of 12"):
        scores.check_finite(tensor, "fc1: the weight")


def test_check_finite_of_nothing():
    scores.check_finite(torch.empty(0, 3), "empty")
