import math

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask_graph import spectral_gap


def test_a_full_mask_has_one_singular_value():
    full = torch.ones(4, 9, dtype=torch.bool)
    assert spectral_gap(full) == pytest.approx(math.sqrt(3) + math.sqrt(8), abs=1e-6)
    assert spectral_gap(full.view(4, 1, 3, 3)) == pytest.approx(spectral_gap(full))


def test_two_separate_pieces_lie_below_the_bound():
    # Two complete 2 x 2 blocks: singular values 2, 2; degrees 2 and 2.
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) > 0
    assert spectral_gap(blocks) == pytest.approx(1 + 1 - 2)
    ring = torch.eye(4) + torch.eye(4).roll(1, 0) > 0  # as many edges, connected
    assert spectral_gap(ring) == pytest.approx(2 - math.sqrt(2), abs=1e-6)


def test_an_empty_mask_and_one_with_a_single_output():
    assert spectral_gap(torch.zeros(3, 3, dtype=torch.bool)) == 0
    with pytest.raises(InvalidValue, match=r"\(1, 5\).*at least two"):
        spectral_gap(torch.ones(1, 5, dtype=torch.bool))
