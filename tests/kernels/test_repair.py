import pytest
import torch

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.repair import remove_and_repair


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factor(columns, seed=0):
    inputs = drawn(4 * columns, columns, seed=seed)
    return torch.linalg.cholesky(torch.linalg.inv(inputs.T @ inputs), upper=True)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_small_case_by_hand(backend):
    weight = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    upper = torch.tensor([[0.5, 1.0], [0.0, 2.0]])
    keep = torch.tensor([[False, True], [True, False]])
    with use_backend(backend):
        errors = remove_and_repair(weight, upper, keep)
    # Row 0: e = 2 / 0.5 = 4; 2 - 4 * 0.5 = 0 and 3 - 4 * 1 = -1. Row 1: e = 5 / 2; 5 - 5 = 0.
    assert torch.equal(weight, torch.tensor([[0.0, -1.0], [4.0, 0.0]]))
    assert torch.equal(errors, torch.tensor([[4.0, 0.0], [0.0, 2.5]]))


@pytest.mark.parametrize("groups", [None, (2, 4), (1, 3), (5, 6)])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_both_back_ends_agree(groups, rows):
    upper = factor(12)
    wide = drawn(rows, 20, seed=1)
    given = drawn(rows, 12, seed=2) > 0
    results = []
    for backend in ("numba", "torch"):
        weight, keep = wide.clone()[:, 4:16], given.clone()
        with use_backend(backend):
            errors = remove_and_repair(weight, upper, keep, groups)
        results.append((weight, keep, errors))
    (weight, keep, errors), (expected, marks, lost) = results
    assert torch.equal(keep, marks)
    assert torch.allclose(weight, expected, atol=1e-4) and torch.allclose(errors, lost, atol=1e-3)
    assert not errors[keep].any() and errors[~keep].all()
    if groups is not None:
        assert (keep.view(rows, -1, groups[1]).sum(-1) == groups[0]).all()


def test_equal_losses_keep_the_earlier_entry():
    keep = torch.zeros(1, 4, dtype=torch.bool)
    remove_and_repair(torch.ones(1, 4), torch.eye(4), keep, (2, 4))
    assert keep.tolist() == [[True, True, False, False]]


def test_only_the_weight_of_the_block_changes():
    whole = drawn(5, 10, seed=3)
    before = whole.clone()
    remove_and_repair(whole[:, 2:6], factor(4), torch.zeros(5, 4, dtype=torch.bool))
    assert torch.equal(whole[:, :2], before[:, :2]) and torch.equal(whole[:, 6:], before[:, 6:])
    assert torch.allclose(whole[:, 2:6], torch.zeros(5, 4), atol=1e-5)


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="needs float32"):
        remove_and_repair(torch.ones(1, 2).double(), torch.eye(2), torch.ones(1, 2) > 0)
