"""ReLU, Gated and JumpReLU: codes and losses by hand, gradients, dead latents, errors."""

import math

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import CodeStep, Own
from sparsecraft.core.penalties import NonNegativeL0
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.relu import ReLU, weighted_l1

DECODER = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
U = torch.tensor([[1.0, -1.0], [0.4, 2.0]])
ALIVE = torch.zeros(2, dtype=torch.bool)


def own(method, bias=(0.0, 0.0), **values):
    parameters, state = method.initial(2, seed=0)
    for name, value in values.items():
        parameters[name].copy_(torch.tensor(value))
    return Own(torch.tensor(bias), {k: v.requires_grad_() for k, v in parameters.items()}, state)


def step(method, mine, *, u=U, warmth=1.0, dead=ALIVE, decoder=DECODER):
    z = method.apply(u, mine)
    return CodeStep(
        x=torch.zeros(len(u), 2),
        target=torch.zeros(len(u), 2),
        u=u,
        z=z,
        reconstruction=z @ decoder,
        frozen_decode=lambda code: code @ decoder.detach(),
        decoder=decoder,
        gradient=None,
        warmth=warmth,
        dead=dead,
    )


@pytest.mark.parametrize(
    ("name", "cls"), [("relu_sae", ReLU), ("gated_sae", Gated), ("jumprelu", JumpReLU)]
)
def test_found_by_name_and_restored(name, cls):
    method = catalog.build(name)
    assert type(method) is cls
    assert method.info.kind == "Elementwise"
    assert catalog.restore(catalog.describe(method)) == method


def test_relu_code_and_penalty_by_hand():
    method = ReLU(l1=0.5)
    mine = own(method)
    assert torch.equal(method.apply(U, mine), torch.tensor([[1.0, 0.0], [0.4, 2.0]]))
    # Rows: 1 * 5, and 0.4 * 5 + 2 * 2; half the weight at half the warm-up.
    found = method.losses(step(method, mine, warmth=0.5), mine)
    assert found["l1"].item() == pytest.approx(0.5 * 0.5 * (5 + 6) / 2)


def test_the_weighted_norm_does_not_change_with_the_scale_of_a_latent():
    z = torch.rand(5, 2)
    scales = torch.tensor([3.0, 0.2])
    moved = weighted_l1(z * scales, DECODER / scales[:, None])
    torch.testing.assert_close(moved, weighted_l1(z, DECODER))
    torch.testing.assert_close(weighted_l1(Code.of(z), DECODER), weighted_l1(z, DECODER))


def test_unit_rows_make_it_the_plain_norm():
    z = torch.rand(5, 2)
    torch.testing.assert_close(weighted_l1(z, torch.eye(2)), z.sum(1).mean())


def test_gated_code_by_hand():
    method = Gated()
    values = {"log_scale": (math.log(2.0), 0.0), "magnitude_bias": (-1.0, 5.0)}
    mine = own(method, bias=(0.5, -0.25), **values)
    # Gate 1 > 0: (1 - 0.5) * 2 - 1 = 0; gate 0.4: 0.2 - ... < 0; gate 2: 2 + 0.25 + 5.
    assert method.apply(U, mine).tolist() == [[0.0, 0.0], [0.0, 7.25]]


def test_gated_losses_by_hand_leave_the_decoder_to_the_values():
    method, decoder = Gated(l1=0.1), DECODER.clone().requires_grad_()
    mine = own(method)
    made = step(method, mine, u=U.clone().requires_grad_(), decoder=decoder)
    found = method.losses(made, mine)
    assert found["l1"].item() == pytest.approx(0.1 * (5 + 6) / 2)
    # The gates decode to (3, 4) and (1.2, 1.6 + 4), of targets that are zero.
    assert found["gate_reconstruction"].item() == pytest.approx((25 + 1.44 + 5.6**2) / 2)
    found["gate_reconstruction"].backward()
    assert decoder.grad is None
    assert made.u.grad.abs().sum() > 0


def test_jumprelu_is_the_prox_of_the_nonnegative_count():
    method = JumpReLU(threshold=0.7)
    u = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    mine = own(method)
    theta = method.inference_threshold(mine)
    assert theta.tolist() == pytest.approx([0.7, 0.7])
    wanted = NonNegativeL0(strength=0.5 * float(theta[0]) ** 2).prox(u, 1.0)
    assert torch.equal(method.apply(u, mine), wanted)
    assert torch.equal(wanted != 0, u > theta)


def test_jumprelu_gradients_by_hand():
    method = JumpReLU(threshold=0.5, bandwidth=0.4)
    mine = own(method)
    u = torch.tensor([[0.6, 0.45], [0.8, 0.0]], requires_grad=True)
    method.apply(u, mine).sum().backward()
    assert u.grad.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    # -theta / bandwidth where |u - theta| < 0.2, times theta for the logarithm.
    wanted = [-0.5 / 0.4 * 0.5] * 2
    assert mine.parameters["log_threshold"].grad.tolist() == pytest.approx(wanted)


def test_the_count_trains_thresholds_alone():
    method = JumpReLU(l0=2.0, threshold=0.5, bandwidth=0.4, pre_activation=0.0)
    mine = own(method)
    u = torch.tensor([[0.6, 0.45], [0.8, 0.0]], requires_grad=True)
    found = method.losses(step(method, mine, u=u), mine)
    assert found["l0"].item() == 2.0 * 1.0
    found["l0"].backward()
    assert u.grad is None
    # -1 / bandwidth for one of two rows, times weight and theta.
    wanted = [-2.0 / 0.4 / 2 * 0.5] * 2
    assert mine.parameters["log_threshold"].grad.tolist() == pytest.approx(wanted)


def test_the_jump_may_reach_the_encoder_too():
    method = JumpReLU(threshold=0.5, bandwidth=0.4, to_input=True, pre_activation=0.0)
    mine = own(method)
    u = torch.tensor([[0.6, 0.45], [0.8, 0.0]], requires_grad=True)
    method.apply(u, mine).sum().backward()
    torch.testing.assert_close(u.grad, torch.tensor([[1 + 1.25, 1.25], [1.0, 0.0]]))
    u.grad = None
    method.losses(step(method, mine, u=u), mine)["l0"].backward()
    torch.testing.assert_close(u.grad, torch.tensor([[1.25, 1.25], [0.0, 0.0]]))


@pytest.mark.parametrize(("target", "wanted"), [(1.0, 0.25), (1.5, 0.0), (3.0, 0.25)])
def test_a_target_is_a_minimum(target, wanted):
    method = JumpReLU(l0=1.0, target=target, threshold=0.3, pre_activation=0.0)
    mine = own(method)
    assert method.losses(step(method, mine), mine)["l0"].item() == pytest.approx(wanted)


def test_a_gradient_step_moves_the_count_towards_its_target():
    u = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    for target, sign in ((0.5, 1), (1.9, -1)):
        method = JumpReLU(target=target, threshold=0.1, bandwidth=0.5, pre_activation=0.0)
        mine = own(method)
        method.losses(step(method, mine, u=u), mine)["l0"].backward()
        falls = -mine.parameters["log_threshold"].grad
        assert (sign * falls > 0).all()


def test_tanh_by_hand():
    method = JumpReLU(l0=1.0, form="tanh", tanh_scale=0.1, threshold=0.3, pre_activation=0.0)
    mine = own(method)
    wanted = (math.tanh(0.5) + math.tanh(0.2) + math.tanh(0.4)) / 2
    assert method.losses(step(method, mine), mine)["l0"].item() == pytest.approx(wanted)


def test_dead_latents_are_pulled_towards_their_threshold():
    method = JumpReLU(threshold=0.5, pre_activation=0.1)
    mine = own(method)
    assert "pre_activation" not in method.losses(step(method, mine), mine)
    u = U.clone().requires_grad_()
    dead = torch.tensor([False, True])
    found = method.losses(step(method, mine, u=u, dead=dead), mine)["pre_activation"]
    # (0.5 + 1) * 2 in one of two rows, 2 above 0.5 in the other.
    assert found.item() == pytest.approx(0.1 * 3 / 2)
    found.backward()
    torch.testing.assert_close(u.grad, torch.tensor([[0.0, -0.1], [0.0, 0.0]]))


@pytest.mark.parametrize("method", [ReLU(), Gated(), JumpReLU()])
def test_types_of_half_the_width_stay(method):
    mine = own(method)
    assert method.apply(U.bfloat16(), mine).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ReLU(l1=-1.0), InvalidValue, r"strength=-1\.0 is not allowed"),
        (lambda: Gated(l1=float("nan")), InvalidValue, "strength=nan is not allowed"),
        (lambda: JumpReLU(threshold=0.0), InvalidValue, r"threshold=0\.0 is not allowed"),
        (lambda: JumpReLU(bandwidth=-1.0), InvalidValue, r"bandwidth=-1\.0 is not allowed"),
        (lambda: JumpReLU(form="sept"), UnknownName, "Did you mean 'step'"),
        (lambda: JumpReLU(form="tanh", target=4.0), InvalidValue, "a tanh is no count"),
        (lambda: JumpReLU(target=9.0).check(4, 8), InvalidValue, "target=9 exceeds d_sae=8"),
    ],
)
def test_settings_that_are_not_allowed(make, error, message):
    with pytest.raises(error, match=message):
        make()
