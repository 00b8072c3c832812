"""AST against its official code, CAST against a float64 reference of its equations (paper 20)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core import scores
from sparsecraft.core.adams import Pull, Rates, adam_step_, share_at
from sparsecraft.core.distillation import divergence
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.patterns import NM
from sparsecraft.core.side_branch import initial_side, projection
from sparsecraft.core.statistics import InputNorm
from sparsecraft.methods.weights.ast import AST
from sparsecraft.methods.weights.cast import CAST, scaled
from sparsecraft.model.adams import AdamS
from sparsecraft.model.side_branch import SideBranchLinear
from sparsecraft.model.sparsifier import Sparsifier

ARRAYS = np.load(Path(__file__).with_name("cast.npz"))
NOW = Clock(0, 10)


def array(name):
    return torch.from_numpy(ARRAYS[name])


def close(found, name, tolerance):
    torch.testing.assert_close(found, array(name), rtol=tolerance, atol=tolerance)
    return True


def test_the_largest_of_each_group_are_kept():
    assert torch.equal(AST().largest(array("ast_W")), array("ast_mask").bool())


def test_wandas_mask():
    norm = InputNorm(32)
    norm.observe(array("ast_X"))
    assert close(norm.value.square(), "ast_wanda_scaler", 1e-5)
    found = NM().mask(scores.wanda(array("ast_W"), norm.value))
    assert torch.equal(found, array("ast_wanda_mask").bool())


@pytest.mark.parametrize("start", ["mean", "sum"])
def test_masked_forward_with_a_side_branch_and_its_gradients(start):
    method = AST(side_inputs=8, side_start=start, train_projection=True)
    layer = TrainedLayer("layer", (12, 32))
    weight = array("ast_W").clone().requires_grad_()
    method.begin(weight, layer, NOW)
    own = method.own_parameters({"layer": weight.detach()}, {"layer": layer})["layer"]
    assert close(own["side"], f"ast_S_{start}", 1e-5)
    assert close(own["projection"], "ast_P", 0)
    layer.parameters = {name: value.clone().requires_grad_() for name, value in own.items()}
    output = array("ast_X") @ method.forward(weight, layer, NOW).T
    assert close(output.detach(), f"ast_y_{start}", 1e-5)
    output.backward(array("ast_G"))
    assert close(weight.grad, f"ast_gradW_{start}", 1e-5)
    assert close(layer.parameters["side"].grad, f"ast_gradS_{start}", 1e-5)
    assert close(layer.parameters["projection"].grad, f"ast_gradP_{start}", 1e-5)


@pytest.mark.parametrize("start", ["mean", "sum"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_finished_layer_gives_the_same(start, trained):
    weight, mask = array("ast_W"), array("ast_mask").bool()
    linear = torch.nn.Linear(32, 12, bias=False)
    linear.weight.data.copy_(weight * mask)
    side = initial_side(weight, mask, 8, start, torch.Generator())
    layer = SideBranchLinear(linear, side, projection(32, 8) if trained else None)
    assert close(layer(array("ast_X")).detach(), f"ast_y_{start}", 1e-5)


def test_annealed_decay_in_the_optimiser():
    weight, mask = array("ast_W").clone(), array("ast_mask").bool()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    rates = Rates(1e-2, (0.9, 0.95), weight_decay=0.1)
    for step, gradient in enumerate(array("ast_opt_G")):
        pull = Pull("weight", float(ARRAYS["ast_opt_decay"][step]))
        adam_step_(weight, gradient, mean, square, done=step + 1, rates=rates, keep=mask, pull=pull)
        torch.testing.assert_close(weight, array("ast_opt_W")[step], rtol=1e-5, atol=1e-6)


def test_a_parameter_without_mask_gets_plain_adam():
    weight = torch.ones(7)
    mean, square = torch.zeros(7), torch.zeros(7)
    for step, gradient in enumerate(array("ast_opt_gb")):
        rates = Rates(1e-2, (0.9, 0.95))
        adam_step_(weight, gradient, mean, square, done=step + 1, rates=rates)
        torch.testing.assert_close(weight, array("ast_opt_b")[step], rtol=1e-5, atol=1e-6)


def test_distillation_at_temperature_two():
    student = array("ast_kd_student").clone().requires_grad_()
    found = divergence(student, array("ast_kd_teacher"), temperature=2.0)
    found.backward()
    assert close(found.detach(), "ast_kd_loss_T2", 1e-5)
    assert close(student.grad, "ast_kd_grad_T2", 1e-6)


def cast_trajectory(weight, gradients, total, rate, every):
    """Trains a linear layer with the host, CAST and AdamS, its gradients being given."""
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    model.weight.data.copy_(weight)
    method = CAST(lam=0.02, mask_every=every, scale_groups=0, distillation=0.0)
    sparsifier = Sparsifier(model, method, total_steps=total)
    optimizer = AdamS(model.parameters(), lr=rate)
    sparsifier.attach(optimizer)
    for gradient in gradients:
        in_force = sparsifier.mask["weight"]
        model(torch.zeros(1, weight.shape[1], dtype=weight.dtype))
        model.weight.grad = gradient.clone()
        optimizer.step()
        yield model.weight.detach(), in_force, optimizer.state[model.weight], sparsifier


def test_adams_through_the_host():
    steps = cast_trajectory(array("cast_W0"), array("cast_G"), total=12, rate=1e-2, every=2)
    for step, (weight, mask, state, _) in enumerate(steps):  # noqa: B007 - the last one is used
        torch.testing.assert_close(weight, array("cast_W")[step], rtol=1e-10, atol=1e-12)
        assert torch.equal(mask, array("cast_masks")[step].bool())
    assert close(state["mean"], "cast_mu_last", 1e-10)
    assert close(state["square"], "cast_v_last", 1e-10)


def test_without_gradients_masked_weights_collapse_and_kept_ones_stay():
    start = array("cast_W0")
    gradients = torch.zeros(400, *start.shape, dtype=start.dtype)
    for weight, _, _, sparsifier in cast_trajectory(start, gradients, 400, 2e-3, every=10):  # noqa: B007
        pass
    assert close(weight, "cast_zero_grad_final", 1e-10)
    mask = sparsifier.mask["weight"]
    assert torch.equal(mask, array("cast_zero_grad_mask").bool())
    assert weight[~mask].abs().max() <= 2 * 2e-3
    assert torch.equal(weight[mask], start[mask])


def test_the_pure_step_gives_the_same():
    weight = array("cast_W0").clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(12):
        adam_step_(
            weight,
            array("cast_G")[step],
            mean,
            square,
            done=step + 1,
            rates=Rates(1e-2),
            keep=array("cast_masks")[step].bool(),
            pull=Pull("mixed", 0.02, share_at(step, 12)),
        )
        torch.testing.assert_close(weight, array("cast_W")[step], rtol=1e-10, atol=1e-12)


def test_scales_of_halves_of_a_row():
    weight = array("cast_W0").clone().requires_grad_()
    scale = array("cast_A").clone().requires_grad_()
    layer = TrainedLayer("layer", (8, 16), parameters={"scale": scale})
    effective = CAST().forward(weight, layer, NOW)
    assert close(effective.detach(), "cast_scaled_W", 1e-10)
    output = array("cast_scale_X") @ effective.T
    assert close(output.detach(), "cast_scale_y", 1e-10)
    output.backward(array("cast_scale_Gy"))
    assert close(weight.grad, "cast_scale_gradW", 1e-10)
    assert close(scale.grad, "cast_scale_gradA", 1e-10)


def test_folding_scales_keeps_zeros():
    mask = NM().mask(array("cast_W0").abs())
    folded = scaled(array("cast_W0") * mask, array("cast_A"))
    assert torch.equal(folded != 0, mask)


def test_the_whole_loss():
    logits = array("ast_kd_student").double()
    captured = {"inputs": {}, "logits": logits, "teacher": array("ast_kd_teacher").double()}
    divergent = divergence(captured["logits"], captured["teacher"])
    assert close(divergent.double(), "cast_kd_kl", 1e-10)
    task = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), array("cast_kd_labels").flatten()
    )
    assert close(task, "cast_kd_ce", 1e-10)
    method = CAST()
    whole = task + method.loss(captured, {}, NOW)
    assert close(whole.double() / method.loss_scale, "cast_kd_total_eta_third", 1e-10)
