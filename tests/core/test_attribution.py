"""First-order effects: by hand, and the same for dense and sparse codes."""

import torch

from sparsecraft.core.attribution import attribution_sum, influence, unexplained_effect
from sparsecraft.core.code import Code

DECODER = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
GRADIENT = torch.tensor([[2.0, -1.0], [0.0, 5.0]])


def test_influence_by_hand():
    torch.testing.assert_close(influence(DECODER, GRADIENT), torch.tensor([[2.0, 0.4], [0.0, 4.0]]))


def test_attribution_by_hand_and_of_both_kinds_of_code():
    z = torch.tensor([[3.0, 1.0], [7.0, -0.5]])
    # |3 * 2| + |1 * 0.4|, and |7 * 0| + |-0.5 * 4|, over two rows.
    dense = attribution_sum(z, DECODER, GRADIENT)
    torch.testing.assert_close(dense, torch.tensor(4.2))
    torch.testing.assert_close(attribution_sum(Code.of(z), DECODER, GRADIENT), dense)


def test_a_row_of_an_empty_code_counts():
    z = Code.of(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    assert attribution_sum(z, DECODER, GRADIENT).item() == 3.0


def test_unexplained_effect_by_hand():
    target, out = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.5, 2.0], [0.0, 0.2]])
    # (0.5 * 2 + -1 * -1) and (0, -0.2 * 5).
    torch.testing.assert_close(unexplained_effect(target, out, GRADIENT), torch.tensor(1.5))
