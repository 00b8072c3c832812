"""DSnoT against the official code: masks bit for bit, in one layer and in two blocks in a row.

The layer and its calibration data are those of `wanda_sparsegpt.npz`. The official code prunes
int(ratio * inputs) weights of a row, so its counts are given here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparsecraft import prune
from sparsecraft.core.kinds import Layer
from sparsecraft.core.patterns import NM
from sparsecraft.core.statistics import Hessian, InputNorm, InputSum, InputVariance
from sparsecraft.kernels.backends import use_backend
from sparsecraft.methods.weights.dsnot import DSnoT

FOLDER = Path(__file__).parent
ARRAYS = {**np.load(FOLDER / "wanda_sparsegpt.npz"), **np.load(FOLDER / "dsnot.npz")}
KEPT_IN_ROW = {"u50": 128, "u60": 256 - 153, "u70": 256 - 179}
PATTERNS = {"2_4": NM(2, 4), "4_8": NM(4, 8)}
OFFICIAL = {"": "threshold", "_samesign": "same_sign"}


@pytest.fixture(params=["torch", "numba"], autouse=True)
def backend(request):
    with use_backend(request.param):
        yield


def array(name):
    return torch.from_numpy(ARRAYS[name])


def official_mask(name, columns=256):
    return torch.from_numpy(np.unpackbits(ARRAYS[name], axis=-1)[..., :columns]).bool()


def layer(density):
    statistics = {}
    for kind in (InputNorm, InputSum, InputVariance, Hessian):
        statistic = kind(256)
        for tokens in array("X"):
            statistic.observe(tokens)
        statistics[kind] = statistic.value
    return Layer(name="q_proj", density=density, statistics=statistics)


@pytest.mark.parametrize("start", ["wanda", "magnitude"])
@pytest.mark.parametrize("ratio", KEPT_IN_ROW)
@pytest.mark.parametrize("suffix", OFFICIAL)
def test_rows(start, ratio, suffix):
    method = DSnoT(start=start, stop=OFFICIAL[suffix])
    pruned = method.prune(array("W"), layer(KEPT_IN_ROW[ratio] / 256))
    assert torch.equal(pruned.mask, official_mask(f"keep_dsnot_{start}_{ratio}{suffix}"))
    assert torch.equal(pruned.weight, array("W") * pruned.mask)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("cycle5", {"cycles": 5}),
        ("thr1", {"threshold": 1.0}),
        ("pow0", {"variance_power": 0.0}),
        ("pow2", {"variance_power": 2.0}),
    ],
)
def test_options(suffix, options):
    method = DSnoT(stop="threshold", **options)
    pruned = method.prune(array("W"), layer(KEPT_IN_ROW["u60"] / 256))
    assert torch.equal(pruned.mask, official_mask(f"keep_dsnot_wanda_u60_{suffix}"))


@pytest.mark.parametrize("start", ["wanda", "magnitude"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_groups(start, pattern):
    method = DSnoT(start=start, pattern=PATTERNS[pattern])
    pruned = method.prune(array("W"), layer(0.5))
    assert torch.equal(pruned.mask, official_mask(f"keep_dsnot_{start}_{pattern}"))


def test_expected_errors_as_measured_with_the_official_code():
    """1.82 to 0.05 at half the weights, 3.85 to 0.05 at 70 %, both from Wanda."""
    method = DSnoT(stop="threshold")
    for ratio, before in (("u50", 1.82), ("u70", 3.85)):
        facts = method.prune(array("W"), layer(KEPT_IN_ROW[ratio] / 256)).facts
        assert facts["expected error before"] == pytest.approx(before, abs=0.005)
        assert facts["expected error"] == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(("stop", "error"), [("threshold", 0.175), ("same_sign", 0.154)])
def test_reconstruction_as_measured_with_the_official_code(stop, error):
    pruned = DSnoT(stop=stop, sparsity=0.5).prune(array("W"), layer(0.5))
    lost = array("X").flatten(0, 1) @ (pruned.weight - array("W")).T
    assert float(lost.square().mean()) == pytest.approx(error, abs=0.0005)


class Block(nn.Module):
    def __init__(self, q, up):
        super().__init__()
        self.q, self.up = (nn.Linear(64, 64, bias=False) for _ in range(2))
        self.q.weight.data, self.up.weight.data = q.clone(), up.clone()

    def forward(self, x):
        x = x + torch.tanh(self.q(x))
        return x + torch.relu(self.up(x))


class TwoBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        w = array("seq_W")
        self.blocks = nn.ModuleList([Block(w[0], w[1]), Block(w[2], w[3])])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("u50_cycle8", {"sparsity": 0.5, "stop": "threshold"}),
        ("u50_cycle8_skipmlp", {"sparsity": 0.5, "stop": "threshold", "layers": "*.q"}),
        ("2_4_cycle8", {"pattern": "2:4"}),
    ],
)
def test_block_after_block(name, options):
    """The host: statistics of the second block come from the first one already pruned."""
    model = TwoBlocks()
    batches = [{"x": part} for part in array("seq_X").split(3)]
    prune(model, "dsnot", cycles=8, calibration=batches, **options)
    official = official_mask(f"seq_keep_dsnot_{name}", columns=64)
    weights = [weight for block in model.blocks for weight in (block.q.weight, block.up.weight)]
    for weight, mask in zip(weights, official, strict=True):
        assert torch.equal(weight != 0, mask)


def test_from_the_weights_that_sparsegpt_updated():
    """What stays has the official code's updated values; what was grown its dense ones."""
    method = DSnoT(start="sparsegpt", updated_weights=True, pattern=NM(2, 4), cycles=1)
    pruned = method.prune(array("W"), layer(0.5))
    official, dense = array("W_sparsegpt_2_4"), array("W")
    stayed = pruned.mask & (official != 0)
    grown = pruned.mask & (official == 0)
    torch.testing.assert_close(pruned.weight[stayed], official[stayed], rtol=1e-3, atol=1e-4)
    assert grown.any() and torch.equal(pruned.weight[grown], dense[grown])
