"""Why neurons become lazy: at initialisation the loss falls when an active neuron fires less.

For f = V a with a last layer V whose entries are drawn from N(0, s^2), independent of the
activation a, Li et al. (2022, theorem 3.1) show that E[dL/da_i] > 0 for every active neuron,
whatever the data: gradient descent makes it smaller. Here are the expectations to first order in
s^2, and an estimate by drawing V.

The closed forms are our own derivation. With C classes, dL/da_i = <softmax(V a) - y, v_i>. The
label's part is zero on average; softmax(V a) - 1/C is (V a - mean) / C to first order, and
E[<V a, v_i>] = a_i s^2 C, of which the mean over classes takes 1 / C.

Reference:
    Li et al., 2022, arXiv 2210.06313, theorem 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecraft.core.errors import InvalidValue


def expected_cross_entropy_gradient(activation: float, deviation: float, classes: int) -> float:
    """Returns E[dL/da_i] of the cross-entropy to first order: a_i s^2 (C - 1) / C.

    Args:
        activation: a_i, of the neuron.
        deviation: s, of the last layer's entries; the next term is of order s^4.
        classes: C.
    """
    return activation * deviation**2 * (classes - 1) / classes


def expected_squared_error_gradient(activation: float, deviation: float, classes: int) -> float:
    """Returns E[dL/da_i] of 1/2 |V a - y|^2, exactly: a_i s^2 C."""
    return activation * deviation**2 * classes


def sampled_gradients(
    activations: Tensor,
    index: int,
    *,
    deviation: float,
    classes: int,
    samples: int,
    generator: torch.Generator,
    label: int = 0,
) -> dict[str, tuple[float, float]]:
    """Returns the mean of dL/da_i over drawn last layers, and its standard error.

    What the other neurons add to the outputs is normal, and is drawn as a whole.

    Args:
        activations: (neurons,) the activation a of one example.
        index: i, of the neuron.
        deviation: s, of the drawn entries.
        classes: C.
        samples: How many last layers are drawn.
        generator: What draws them.
        label: The example's class.

    Returns:
        "cross-entropy" and "squared error", each (mean, standard error).

    Raises:
        InvalidValue: With fewer than two samples, or an index or label that does not exist.
    """
    if samples < 2 or not 0 <= index < len(activations) or not 0 <= label < classes:
        raise InvalidValue(
            f"samples={samples}, index={index}, label={label}: give at least 2 samples, an index "
            f"below {len(activations)} and a label below {classes}"
        )
    a = activations.detach().double().cpu()
    # The neuron, and one that stands for all others: their sum has the spread s |a_others|.
    pair = torch.stack([a[index], torch.cat([a[:index], a[index + 1 :]]).norm()])
    last = deviation * torch.randn(samples, classes, 2, generator=generator, dtype=torch.float64)
    outputs, column = last @ pair, last[:, :, 0]
    wanted = F.one_hot(torch.tensor(label), classes).double()
    found = {
        "cross-entropy": ((outputs.softmax(1) - wanted) * column).sum(1),
        "squared error": ((outputs - wanted) * column).sum(1),
    }
    return {name: _mean_and_error(values) for name, values in found.items()}


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
