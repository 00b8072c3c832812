"""ERK densities against the official In-Time-Over-Parameterization code (paper 10)."""

from pathlib import Path

import numpy as np
import pytest

from sparsecraft.core.allocation import ERK

ARRAYS = np.load(Path(__file__).with_name("erk.npz"))


@pytest.mark.parametrize("network", ["lenet", "conv"])
@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02])
def test_densities(network, density):
    shapes = {
        str(i): tuple(int(n) for n in shape if n)
        for i, shape in enumerate(ARRAYS[f"{network}_shapes"])
    }
    ours = list(ERK()(shapes, density).values())
    official = ARRAYS[f"{network}_erk_density_{density}"]
    np.testing.assert_allclose(ours, official, rtol=0, atol=1e-12)
