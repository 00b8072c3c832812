import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.gating import ActivationGate, RandomGate


def orthogonal_columns(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix whose columns are orthogonal and of very different norms."""
    basis = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))[0]
    return basis[:, :columns] * torch.randn(columns, generator=generator, dtype=torch.float64).exp()


def error(weight: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> float:
    return float(((weight @ (x * mask)) - weight @ x).square().sum())


def test_by_hand():
    x = torch.tensor([[3.0, -1.0, 0.5, 2.0]])
    norms = torch.tensor([1.0, 4.0, 1.0, 1.0])
    assert ActivationGate(keep=2).mask(x).tolist() == [[True, False, False, True]]
    assert ActivationGate(keep=2, norms=norms).mask(x).tolist() == [[True, True, False, False]]
    assert ActivationGate(threshold=2.0).mask(x).tolist() == [[True, False, False, False]]
    kept = ActivationGate(threshold=1.0, norms=norms).apply(x)
    assert kept.tolist() == [[3.0, -1.0, 0.0, 2.0]]


def test_exact_counts_under_ties_and_the_first_stay():
    gate = ActivationGate(keep=2)
    assert gate.mask(torch.ones(3, 5)).tolist() == [[True, True, False, False, False]] * 3


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_winas_mask_is_the_best_of_its_size_for_orthogonal_columns(columns, seed):
    draws = torch.Generator().manual_seed(seed)
    weight = orthogonal_columns(12, columns, draws)
    x = torch.randn(columns, generator=draws, dtype=torch.float64)
    for keep in range(1, columns + 1):
        chosen = ActivationGate(keep=keep, norms=weight.norm(dim=0)).mask(x[None])[0]
        masks = (
            torch.zeros(columns, dtype=torch.bool).scatter(0, torch.tensor(places), True)
            for places in itertools.combinations(range(columns), keep)
        )
        best = min(error(weight, x, mask) for mask in masks)
        assert error(weight, x, chosen) == pytest.approx(best, rel=1e-9, abs=1e-18)


def test_magnitude_alone_is_not_the_best_there():
    weight = torch.diag(torch.tensor([0.1, 1.0], dtype=torch.float64))
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    teal = ActivationGate(keep=1).mask(x)[0]
    wina = ActivationGate(keep=1, norms=weight.norm(dim=0)).mask(x)[0]
    assert error(weight, x[0], teal) == pytest.approx(1.0)
    assert error(weight, x[0], wina) == pytest.approx(0.04)


@given(st.integers(2, 12), st.integers(0, 10_000))
def test_wina_errs_no_more_than_teal_for_orthogonal_columns(columns, seed):
    draws = torch.Generator().manual_seed(seed)
    weight = orthogonal_columns(12, columns, draws)
    x = torch.randn(4, columns, generator=draws, dtype=torch.float64)
    keep = 1 + seed % columns
    wina = ActivationGate(keep=keep, norms=weight.norm(dim=0)).mask(x)
    teal = ActivationGate(keep=keep).mask(x)
    for row in range(4):
        assert error(weight, x[row], wina[row]) <= error(weight, x[row], teal[row]) * (1 + 1e-9)


def test_without_orthogonality_wina_errs_less_on_average():
    draws = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(1000):
        weight = torch.randn(16, 8, generator=draws) * torch.randn(8, generator=draws).exp()
        x = torch.randn(1, 8, generator=draws)
        wina = ActivationGate(keep=4, norms=weight.norm(dim=0)).mask(x)[0]
        teal = ActivationGate(keep=4).mask(x)[0]
        ratios.append(error(weight, x[0], wina) - error(weight, x[0], teal))
    assert sum(ratios) / len(ratios) < 0


@pytest.mark.parametrize(
    ("tokens", "prefill", "spared"),
    [(100, 0.99, 1), (10, 0.99, 1), (2, 0.99, 1), (10, 0.5, 5), (11, 0.5, 6), (7, 1.0, 0)],
)
def test_the_first_tokens_of_a_prompt_are_spared(tokens, prefill, spared):
    gate = ActivationGate(keep=1, prefill=prefill)
    mask = gate.mask(torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(0)))
    assert mask[:, :spared].all()
    assert (mask[:, spared:].sum(-1) == 1).all()
    assert gate.spared(torch.zeros(2, tokens, 4)) == spared


def test_a_token_alone_is_always_gated():
    gate = ActivationGate(keep=1, prefill=0.5)
    assert int(gate.mask(torch.tensor([[[1.0, 2.0, 3.0]]])).sum()) == 1
    assert int(gate.mask(torch.tensor([[1.0, 2.0, 3.0]])).sum()) == 1


def test_the_gradient_passes_what_is_kept():
    x = torch.tensor([[3.0, -1.0]], requires_grad=True)
    ActivationGate(keep=1).apply(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0]]


def test_compiled_selection_is_the_same_ties_included():
    gate = ActivationGate(keep=3, prefill=0.99)
    x = torch.randint(-2, 3, (2, 7, 8), generator=torch.Generator().manual_seed(0)).float()
    compiled = torch.compile(gate.mask, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), gate.mask(x))


def test_random_subsets_are_exact_and_of_the_token_alone():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(64, 40, generator=draws)
    gate = RandomGate(keep=10, seed=3)
    mask = gate.mask(x)
    assert (mask.sum(-1) == 10).all()
    assert torch.equal(mask[5:9], gate.mask(x[5:9]))
    assert torch.equal(mask, gate.mask(x[None])[0])
    assert not torch.equal(mask, RandomGate(keep=10, seed=4).mask(x))


def test_random_subsets_know_nothing_of_the_values():
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    mask = RandomGate(keep=8, seed=0).mask(x)
    largest = ActivationGate(keep=8).mask(x)
    assert float((mask & largest).sum(-1).float().mean()) == pytest.approx(4, abs=0.15)
    assert mask.float().mean(0).sub(0.5).abs().max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either keep or threshold"),
        ({"keep": 1, "threshold": 0.1}, "either keep or threshold"),
        ({"keep": 0}, "keeps at least 1"),
        ({"threshold": -1.0}, "at least 0"),
        ({"threshold": float("nan")}, "at least 0"),
        ({"keep": 1, "prefill": 1.5}, r"share in \[0, 1\]"),
    ],
)
def test_what_is_not_allowed(options, message):
    with pytest.raises(InvalidValue, match=message):
        ActivationGate(**options)


def test_more_than_there_is_cannot_be_kept():
    with pytest.raises(InvalidValue, match="exceeds the 2 entries"):
        ActivationGate(keep=3).mask(torch.zeros(1, 2))
