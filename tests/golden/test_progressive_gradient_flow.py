"""STE, SR-STE, MDGF and SDGF against the official code of paper 02.

W (16, 64) and Wconv (8, 16, 3, 3) are weights, G is the gradient of what W computes with.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.gradient_flow import patterns_towards, stages
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.methods.weights.nm_decay import MDGF, SDGF
from sparsecraft.methods.weights.sr_ste import SRSTE
from sparsecraft.methods.weights.ste import STE

ARRAYS = np.load(Path(__file__).with_name("progressive_gradient_flow.npz"))
SCHEDULES = [name for name in ARRAYS.files if name.startswith("sched_")]
OURS = {"sparsify": "stepwise", "fine": "geometric", "densify": "densify"}
ROWS = [(2, 4), (1, 4), (2, 8), (1, 8), (1, 16), (1, 32)]
# The official code takes the step as it is; a training this long never reaches its last phase.
TOTAL = 1_000_000


def array(name):
    return torch.from_numpy(ARRAYS[name])


def computed(method, step=0):
    """Returns what a layer computes with and the gradient that the optimiser gets."""
    weight = array("W").clone().requires_grad_()
    layer = TrainedLayer("w", tuple(weight.shape))
    clock = Clock(step, TOTAL)
    value = method.forward(weight, layer, clock)
    value.backward(array("G"))
    with torch.no_grad():
        gradient = method.edit_gradient(weight.detach(), weight.grad.clone(), layer, clock)
    return value.detach(), gradient


@pytest.mark.parametrize("n, m", ROWS)
def test_masks_along_the_inputs(n, m):
    mask = STE(pattern=NM(n, m)).mask(array("W"), NM(n, m))
    assert torch.equal(mask, array(f"mask_row_{n}_{m}").bool())


@pytest.mark.parametrize("n, m", [(2, 4), (1, 8)])
def test_masks_along_the_outputs_and_of_convolutions(n, m):
    columns = STE(pattern=NM(n, m), along="outputs").mask(array("W"), NM(n, m))
    assert torch.equal(columns, array(f"mask_col_{n}_{m}").bool())
    channels = STE(pattern=NM(n, m)).mask(array("Wconv"), NM(n, m))
    assert torch.equal(channels, array(f"mask_conv_{n}_{m}").bool())


def test_the_unstructured_mask():
    mask = STE(pattern=Unstructured(), sparsity=0.9).mask(array("W"), Unstructured())
    assert torch.equal(mask, array("mask_unstructured_rate0.9").bool())


@pytest.mark.parametrize("n, m", [(2, 4), (1, 8)])
@pytest.mark.parametrize("kind, method", [("step", STE), ("srste", SRSTE)])
def test_values_and_gradients(kind, method, n, m):
    value, gradient = computed(method(pattern=NM(n, m)))
    torch.testing.assert_close(value, array(f"{kind}_fwd_{n}_{m}"), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, array(f"{kind}_grad_{n}_{m}"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [0, 500, 2500, 20001])
@pytest.mark.parametrize("n, m", [(2, 4), (1, 8)])
@pytest.mark.parametrize("kind, decay", [("linear", "linear"), ("exp", "exponential")])
def test_mask_decay(kind, decay, n, m, step):
    method = MDGF(pattern=NM(n, m), decay=decay, beta=1e-4, finetune=0.0)
    value, gradient = computed(method, step)
    official = array(f"{kind}_b1e-4_s{step}_fwd_{n}_{m}")
    torch.testing.assert_close(value, official, rtol=0, atol=1e-6)
    assert torch.equal(gradient, array("G"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_structure_decay(name):
    _, kind, n, m, *lengths = name.split("_")
    total, dense, finetune = (int(length.lstrip("Tdf")) for length in lengths)
    towards = patterns_towards(OURS[kind], NM(int(n), int(m)))
    table = stages(towards, total, dense, finetune)
    assert [[s.start, s.pattern.keep, s.pattern.of] for s in table] == ARRAYS[name].tolist()


@pytest.mark.parametrize("name", SCHEDULES)
def test_structure_decay_by_the_fractions_of_the_method(name):
    _, kind, n, m, *lengths = name.split("_")
    total, dense, finetune = (int(length.lstrip("Tdf")) for length in lengths)
    method = SDGF(
        pattern=NM(int(n), int(m)),
        schedule=OURS[kind],
        dense=dense / total,
        finetune=finetune / total,
    )
    table = method.table(total)
    assert [[s.start, s.pattern.keep, s.pattern.of] for s in table] == ARRAYS[name].tolist()
