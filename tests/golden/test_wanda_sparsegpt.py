"""Wanda, magnitude and SparseGPT against the official code (arrays of paper 28, DSnoT).

X: 8 calibration sequences of 12 tokens, W: one layer of 16 rows and 256 columns.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.kinds import Layer
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.core.statistics import Hessian, InputNorm, InputSum, InputVariance
from sparsecraft.methods.weights.magnitude import Magnitude
from sparsecraft.methods.weights.sparsegpt import SparseGPT
from sparsecraft.methods.weights.wanda import Wanda

ARRAYS = np.load(Path(__file__).with_name("wanda_sparsegpt.npz"))
PATTERNS = {"2_4": NM(2, 4), "4_8": NM(4, 8)}
# int(ratio * 256) weights of each row are pruned by the official code, not our rounding of 256.
KEPT_IN_ROW = {"u50": 128, "u60": 256 - 153, "u70": 256 - 179}


def array(name):
    return torch.from_numpy(ARRAYS[name])


def official_mask(name, columns=256):
    return torch.from_numpy(np.unpackbits(ARRAYS[name], axis=-1)[..., :columns]).bool()


def observed(statistic, sequences):
    gathered = statistic(sequences.shape[-1])
    for tokens in sequences:
        gathered.observe(tokens)
    return gathered.value


def layer(density, sequences, *statistics):
    values = {each: observed(each, sequences) for each in statistics}
    return Layer(name="q_proj", density=density, statistics=values)


def test_statistics():
    x = array("X")
    torch.testing.assert_close(observed(InputNorm, x).square(), array("scaler_row"))
    torch.testing.assert_close(observed(InputSum, x), array("sum_metric_row"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(observed(InputVariance, x), array("var"))


@pytest.mark.parametrize("ratio", KEPT_IN_ROW)
def test_wanda_in_each_row(ratio):
    pruned = Wanda().prune(array("W"), layer(KEPT_IN_ROW[ratio] / 256, array("X"), InputNorm))
    assert torch.equal(pruned.mask, official_mask(f"keep_wanda_{ratio}"))
    assert torch.equal(pruned.weight, array("W") * pruned.mask)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wanda_in_groups(pattern):
    wanda = Wanda(pattern=PATTERNS[pattern])
    pruned = wanda.prune(array("W"), layer(0.5, array("X"), InputNorm))
    assert torch.equal(pruned.mask, official_mask(f"keep_wanda_{pattern}"))


@pytest.mark.parametrize(("ratio", "sparsity"), [("u50", 0.5), ("u60", 0.6), ("u70", 0.7)])
def test_magnitude(ratio, sparsity):
    # The official threshold is inclusive: one weight more than int(ratio * numel) is pruned.
    numel = 16 * 256
    kept = numel - int(sparsity * numel) - 1
    pruned = Magnitude().prune(array("W"), layer(kept / numel, array("X")))
    assert torch.equal(pruned.mask, official_mask(f"keep_magnitude_{ratio}"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_magnitude_in_groups(pattern):
    pruned = Magnitude(pattern=PATTERNS[pattern]).prune(array("W"), layer(0.5, array("X")))
    assert torch.equal(pruned.mask, official_mask(f"keep_magnitude_{pattern}"))


def test_sparsegpt_unstructured():
    # Each block of 16 x 128 loses int(0.5 * 2048) + 1 weights, by the same inclusive threshold.
    pruned = SparseGPT().prune(array("W"), layer(1023 / 2048, array("X"), Hessian))
    official = array("W_sparsegpt_u50")
    assert torch.equal(pruned.mask, official != 0)
    torch.testing.assert_close(pruned.weight, official, rtol=1e-3, atol=1e-4)


def test_sparsegpt_in_groups():
    sparsegpt = SparseGPT(pattern=NM(2, 4))
    pruned = sparsegpt.prune(array("W"), layer(0.5, array("X"), Hessian))
    official = array("W_sparsegpt_2_4")
    assert torch.equal(pruned.mask, official != 0)
    torch.testing.assert_close(pruned.weight, official, rtol=1e-3, atol=1e-4)


def test_sparsegpt_repairs_what_magnitude_and_wanda_break():
    x, weight = array("X").flatten(0, 1), array("W")
    asked = layer(0.5, array("X"), Hessian, InputNorm)
    errors = [
        float((x @ (method.prune(weight, asked).weight - weight).T).square().sum())
        for method in (SparseGPT(), Wanda(), Magnitude())
    ]
    assert errors == sorted(errors)


def test_wanda_block_after_block():
    """Statistics of the second block come from the first one already pruned."""
    x, weights = array("seq_X"), array("seq_W")
    masks = official_mask("seq_keep_wanda_u50", columns=64)
    wanda = Wanda(pattern=Unstructured(per="row"))
    for block in range(2):
        q, up = weights[2 * block], weights[2 * block + 1]
        # Both layers of a block are observed while the block is still dense.
        inner = x + torch.tanh(x @ q.T)
        q_pruned = wanda.prune(q, layer(0.5, x, InputNorm))
        up_pruned = wanda.prune(up, layer(0.5, inner, InputNorm))
        assert torch.equal(q_pruned.mask, masks[2 * block])
        assert torch.equal(up_pruned.mask, masks[2 * block + 1])
        x = x + torch.tanh(x @ q_pruned.weight.T)
        x = x + torch.relu(x @ up_pruned.weight.T)
