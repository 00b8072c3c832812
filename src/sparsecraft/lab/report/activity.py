"""Pictures of activation sparsity: a bar for each MLP, and the curve over a training."""

from __future__ import annotations

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.lab.claims.curve import COLOURS, draw
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.report.svg import element, line, text
from sparsecraft.model.activation_report import ActivityReport
from sparsecraft.model.activation_sparsity import ActivationMonitor

WIDTH, LEFT, RIGHT, BAR, GAP = 640, 220, 70, 14, 8


def activity_bars(report: ActivityReport) -> str:
    """Returns an SVG with the share of non-zeros of each MLP, and how far its tokens spread.

    Args:
        report: What a monitor counted.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> activity_bars(ActivationMonitor(net).measure([{"input": torch.ones(1, 2)}]))[:4]
        '<svg'
    """
    height = GAP + (BAR + GAP) * len(report.layers)
    across = WIDTH - LEFT - RIGHT
    parts = [element("rect", width="100%", height="100%", fill="white")]
    for index, layer in enumerate(report.layers):
        top = GAP + (BAR + GAP) * index
        middle = top + BAR / 2
        low, _, high = (LEFT + across * each / layer.neurons for each in layer.quantiles)
        parts += [
            text(layer.site.name, LEFT - 8, top + BAR - 3, text_anchor="end"),
            element("rect", x=LEFT, y=top, width=across, height=BAR, fill="#eeeeee"),
            element(
                "rect", x=LEFT, y=top, width=across * layer.nonzero, height=BAR, fill=COLOURS[0]
            ),
            line(low, middle, high, middle, stroke=COLOURS[-1]),
            text(f"{layer.nonzero:.1%}", WIDTH - RIGHT + 8, top + BAR - 3),
        ]
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        font_family="sans-serif",
        font_size=12,
    )


def activity_curve(monitor: ActivationMonitor) -> str:
    """Returns an SVG with the share of non-zeros of each MLP over the recorded steps.

    Args:
        monitor: With at least one record.

    Raises:
        MissingStatistic: If nothing was recorded.
    """
    rows = [
        Row(f"{name}, step={moment.step}", 0, "non-zero share", share)
        for moment in monitor.curve
        for name, share in moment.nonzero.items()
    ]
    drawn = draw(rows, "non-zero share")
    if drawn is None:
        raise MissingStatistic("the monitor has no curve yet: call monitor.record(step)")
    return drawn
