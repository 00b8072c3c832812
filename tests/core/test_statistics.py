import pytest
import torch

from sparsecraft.core.statistics import Hessian, InputNorm, InputSum, InputVariance

SEQUENCES = [
    torch.randn(length, 6, generator=torch.Generator().manual_seed(length)) * 3 + 1
    for length in (5, 1, 9, 2)
]
WHOLE = torch.cat(SEQUENCES).double()


def observed(statistic, sequences, **options):
    gathered = statistic(6, **options)
    for tokens in sequences:
        gathered.observe(tokens)
    return gathered


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (InputNorm, (WHOLE.square().sum(0) / 4).sqrt()),
        (InputSum, WHOLE.sum(0) / 4),
        (Hessian, 2 / 4 * WHOLE.T @ WHOLE),
    ],
)
def test_streaming_equals_the_whole(statistic, expected):
    value = observed(statistic, SEQUENCES).value
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def test_variance_is_that_within_the_sequences():
    within = sum(len(s) * s.double().var(0, correction=0) for s in SEQUENCES) / len(WHOLE)
    torch.testing.assert_close(
        observed(InputVariance, SEQUENCES).value.double(), within, rtol=1e-5, atol=1e-6
    )


def test_variance_by_hand():
    gathered = InputVariance(1)
    gathered.observe(torch.tensor([[0.0], [2.0]]))
    gathered.observe(torch.tensor([[100.0]]))
    assert gathered.value.tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("statistic", [InputNorm, InputSum, InputVariance, Hessian])
def test_the_order_of_sequences_does_not_matter(statistic):
    forward, backward = observed(statistic, SEQUENCES), observed(statistic, SEQUENCES[::-1])
    torch.testing.assert_close(forward.value, backward.value, rtol=1e-5, atol=1e-5)
    assert (forward.sequences, forward.tokens) == (4, 17)


@pytest.mark.parametrize("statistic", [InputNorm, InputSum, InputVariance, Hessian])
def test_half_precision_is_summed_in_full(statistic):
    halves = [s.half() for s in SEQUENCES]
    exact = observed(statistic, [h.float() for h in halves]).value
    assert torch.equal(observed(statistic, halves).value, exact)


def test_many_small_values_do_not_vanish_beside_a_large_one():
    gathered = InputNorm(1)
    gathered.observe(torch.tensor([[1e4]]))
    for _ in range(1000):
        gathered.observe(torch.tensor([[1.0]]))
    assert gathered.value.square().item() * 1001 == pytest.approx(1e8 + 1000, rel=1e-6)
