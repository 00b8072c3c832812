"""One-shot magnitude masks, N:M and ERK against the official code of paper 13."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.allocation import ERK
from sparsecraft.core.kinds import Layer
from sparsecraft.core.patterns import NM
from sparsecraft.methods.weights.magnitude import GlobalMagnitude, Magnitude

ARRAYS = np.load(Path(__file__).with_name("essential_sparsity.npz"))
BERT_SHAPES = ([(16, 16)] * 4 + [(32, 16), (16, 32)]) * 12
OPT_SHAPES = [tuple(int(n) for n in shape) for shape in ARRAYS["opt_shapes"]]


def matrices(flat, shapes):
    parts = torch.from_numpy(flat).split([a * b for a, b in shapes])
    return {f"layer{i}": p.view(s) for i, (p, s) in enumerate(zip(parts, shapes, strict=True))}


def official_masks(name, shapes):
    total = sum(a * b for a, b in shapes)
    return matrices(np.unpackbits(ARRAYS[name])[:total].astype(bool), shapes)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_bert_global_masks(sparsity):
    weights = matrices(ARRAYS["bert_weights_flat"], BERT_SHAPES)
    pruned = GlobalMagnitude(sparsity=sparsity).prune(weights, context=None)
    for name, mask in official_masks(f"bert_mask_{sparsity}", BERT_SHAPES).items():
        assert torch.equal(pruned[name].mask, mask), name


def differing_layers(name, magnitude, density):
    """Returns the layers whose mask is not the official one."""
    weights = matrices(ARRAYS["opt_weights_flat"], OPT_SHAPES)
    return [
        layer
        for layer, mask in official_masks(name, OPT_SHAPES).items()
        if not torch.equal(
            magnitude.prune(weights[layer], Layer(name=layer, density=density)).mask, mask
        )
    ]


def test_opt_half_of_each_matrix():
    assert differing_layers("opt_mask_layerwise_0.5", Magnitude(), 0.5) == []


@pytest.mark.parametrize(("pruned", "of"), [(2, 4), (1, 4), (4, 8)])
def test_opt_in_groups(pruned, of):
    pattern = NM(keep=of - pruned, of=of)
    name = f"opt_mask_nm_prune{pruned}of{of}"
    assert differing_layers(name, Magnitude(pattern=pattern), pattern.fixed_density) == []


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_opt_erk_densities(sparsity):
    shapes = {f"layer{i}": shape for i, shape in enumerate(OPT_SHAPES)}
    ours = list(ERK()(shapes, 1 - sparsity).values())
    np.testing.assert_allclose(ours, ARRAYS[f"opt_erk_density_{sparsity}"], rtol=0, atol=1e-12)
