"""Terms in the gradients of scales: that they are the penalties' gradients, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.scale_gradients import SMALL, scale_gradient

SCALE = torch.tensor([0.8, -0.3, 0.05, 0.0, -0.002], dtype=torch.float64)


def differentiated(value):
    scale = SCALE.clone().requires_grad_()
    value(scale).backward()
    return scale.grad


def test_l1_and_l2_are_the_gradients_of_their_penalties():
    away = SCALE != 0
    l1 = differentiated(lambda scale: 0.1 * scale.abs().sum())
    torch.testing.assert_close(scale_gradient(SCALE, 0.1)[away], l1[away], atol=1e-15, rtol=0)
    l2 = differentiated(lambda scale: 0.1 * scale.square().sum() / 2)
    torch.testing.assert_close(scale_gradient(SCALE, 0.1, "l2"), l2, atol=1e-15, rtol=0)


def test_zero_gets_no_push():
    for penalty in ("l1", "l2", "smooth_l1", "small_l2"):
        assert scale_gradient(SCALE, 0.1, penalty, rate=0.1)[3] == 0


def test_smooth_l1_is_l2_within_a_step_of_zero():
    found = scale_gradient(SCALE, 0.1, "smooth_l1", rate=1.0)
    assert found.tolist() == pytest.approx([0.1, -0.1, 0.005, 0, -0.0002])
    assert torch.equal(
        scale_gradient(SCALE, 0.1, "smooth_l1", rate=0.0), scale_gradient(SCALE, 0.1)
    )


def test_smooth_l1_comes_to_rest_where_l1_jumps_to_and_fro():
    ends = {}
    for penalty in ("l1", "smooth_l1"):
        scale = torch.tensor([0.0307], dtype=torch.float64)
        for _ in range(400):
            scale -= 0.1 * scale_gradient(scale, 0.1, penalty, rate=0.1)
        ends[penalty] = float(scale.abs())
    assert ends["l1"] > 1e-4 and ends["smooth_l1"] < ends["l1"] / 10


def test_small_l2_leaves_large_scales_free():
    found = scale_gradient(torch.tensor([SMALL, -SMALL - 1e-3, 0.5]), 2.0, "small_l2")
    assert found.tolist() == pytest.approx([2 * SMALL, 0, 0])


def test_what_is_refused():
    with pytest.raises(InvalidValue, match="needs the learning rate"):
        scale_gradient(SCALE, 0.1, "smooth_l1")
    with pytest.raises(InvalidValue, match="needs the learning rate"):
        scale_gradient(SCALE, 0.1, "smooth_l1", rate=float("nan"))
    with pytest.raises(UnknownName, match="smooth_l1"):
        scale_gradient(SCALE, 0.1, "smoothl1")
    with pytest.raises(InvalidValue, match="strength=-0"):
        scale_gradient(SCALE, -0.1)
