"""The value of one tensor with the gradient of another."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.straight_through import straight_through


def test_the_value_is_exact_and_the_gradient_is_the_identity():
    trained = torch.randn(3, 4, requires_grad=True)
    value = torch.full((3, 4), 1e-30)
    passed = straight_through(value, trained)
    assert torch.equal(passed, value)
    upstream = torch.randn(3, 4)
    passed.backward(upstream)
    assert torch.equal(trained.grad, upstream)


def test_no_gradient_reaches_what_made_the_value():
    weight = torch.ones(2, requires_grad=True)
    straight_through(weight * 5, weight).sum().backward()
    assert weight.grad.tolist() == [1, 1]


def test_nothing_is_copied():
    value = torch.randn(4)
    passed = straight_through(value, torch.zeros(4, requires_grad=True))
    assert passed.data_ptr() == value.data_ptr()


def test_the_gradient_has_the_dtype_of_what_trains():
    trained = torch.ones(2, requires_grad=True)
    straight_through(torch.ones(2, dtype=torch.bfloat16), trained).sum().backward()
    assert trained.grad.dtype == torch.float32


def test_no_graph_without_a_gradient():
    assert not straight_through(torch.ones(2), torch.ones(2)).requires_grad


def test_shapes_must_agree():
    with pytest.raises(InvalidValue, match=r"\(2, 3\) cannot stand for .*\(3, 2\)"):
        straight_through(torch.ones(2, 3), torch.ones(3, 2))
