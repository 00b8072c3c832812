"""Gradients, thresholds, votes and surgery against the official code of paper 18."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft.core.channel_masks import choose_channels, energy_threshold, tied
from sparsecraft.methods.weights.mask_sparsity import MaskSparsity
from sparsecraft.methods.weights.network_slimming import NetworkSlimming
from sparsecraft.model.channels import prune_channels
from sparsecraft.model.sparsifier import Sparsifier

ARRAYS = np.load(Path(__file__).with_name("mask_sparsity.npz"))
NORMS = ("b1", "b2", "b3")


def array(name):
    return torch.from_numpy(ARRAYS[name])


class Net(nn.Module):
    """The oracle's network: a convolution, and one residual block whose branches share channels."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c3, self.b3 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.f = nn.Linear(6, 4)

    def forward(self, x):
        x = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
        y = self.b3(self.c3(F.relu(x)))
        return self.f(F.relu(x + y).mean((2, 3)))


def network(prefix="net__"):
    net = Net().double()
    net.load_state_dict({k.removeprefix(prefix): array(k) for k in ARRAYS if k.startswith(prefix)})
    return net


def after_backward():
    net = network()
    net.train()
    F.cross_entropy(net(array("x")), array("y")).backward()
    return net


def gradients(net):
    return {name: net.get_submodule(name).weight.grad for name in NORMS}


def kept(prefix="keepmask", names=("b1", "b3")):
    return {name: array(f"{prefix}_{name}").bool() for name in names}


STRENGTH, RATE = float(ARRAYS["s"]), float(ARRAYS["lr_smoothL1"])
PENALTIES = {"L1": "l1", "L2": "l2", "smoothL1": "smooth_l1"}


@pytest.mark.parametrize("theirs", PENALTIES)
def test_gradients_of_masked_channels(theirs):
    net = after_backward()
    MaskSparsity(strength=STRENGTH, penalty=PENALTIES[theirs]).add_gradients(net, kept(), rate=RATE)
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, array(f"grad_{theirs}_{name}"), atol=1e-12, rtol=0)


@pytest.mark.parametrize("theirs", ["L1", "L2"])
def test_gradients_of_all_channels(theirs):
    net = after_backward()
    NetworkSlimming(strength=STRENGTH, penalty=PENALTIES[theirs]).add_gradients(net)
    for name, gradient in gradients(net).items():
        expected = array(f"grad_{theirs}_global_{name}")
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_the_sparsifier_shows_the_optimizer_the_same_gradients():
    net = after_backward()
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, array(f"grad_none_{name}"), atol=1e-12, rtol=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    method = MaskSparsity(strength=STRENGTH, penalty="smooth_l1", masks=kept())
    Sparsifier(net, method, total_steps=1).attach(optimizer)
    optimizer.step()
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, array(f"grad_smoothL1_{name}"), atol=1e-12, rtol=0)


@pytest.mark.parametrize("energy", ["0.0001", "0.001", "0.01"])
@pytest.mark.parametrize("name", NORMS)
def test_energy_thresholds(name, energy):
    found = energy_threshold(array(f"net__{name}.weight"), float(energy))
    assert found == pytest.approx(float(ARRAYS[f"th_OT_{name}_{energy}"]), abs=1e-12)


def test_fixed_threshold_and_vote():
    scales = {name: array(f"net__{name}.weight") for name in NORMS}
    chosen = choose_channels(scales, "threshold", threshold=0.01)
    for name in ("b2", "b3"):
        assert torch.equal(chosen[name], array(f"prevote_keep_{name}").bool())
    assert torch.equal(chosen["b1"], array("prune_keepmask_b1").bool())
    voted = tied([chosen["b2"], chosen["b3"]], "vote", [scales["b2"], scales["b3"]])
    assert torch.equal(voted, array("prune_keepmask_b2").bool())


@pytest.mark.parametrize("where", ["before the vote", "after it"])
def test_surgery(where):
    """The statistics are those that the official run had gathered before it pruned."""
    net = after_backward()
    with torch.no_grad():  # the oracle forwards once for each of its six gradient runs
        for _ in range(5):
            net(array("x"))
    if where == "after it":
        masks, tie = kept("prune_keepmask", NORMS), None
    else:
        masks, tie = kept("prevote_keep", ("b2", "b3")), "vote"
        masks["b1"] = array("prune_keepmask_b1").bool()
    smaller, index_map = prune_channels(net, masks, example_input=array("x"), tie=tie)
    for name, value in smaller.state_dict().items():
        expected = array(f"pruned__{name}")
        if value.dim():
            torch.testing.assert_close(value, expected, atol=1e-12, rtol=0, msg=name)
    smaller.eval()
    net.eval()
    with torch.no_grad():
        full, pruned = net(array("x")), smaller(array("x"))
    torch.testing.assert_close(full, array("full_eval_logits"), atol=1e-12, rtol=0)
    torch.testing.assert_close(pruned, array("pruned_eval_logits"), atol=1e-12, rtol=0)
    assert index_map["c2.weight"][1].tolist() == [0, 1, 3, 6]
    assert index_map["f.weight"][1].tolist() == [2, 5]
