"""Pictures of activation sparsity say each layer's share."""

import xml.etree.ElementTree as ET

import pytest
import torch
from tests.models import Blocks

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.lab.report.activity import activity_bars, activity_curve
from sparsecraft.model.activation_sparsity import ActivationMonitor


def test_a_bar_for_each_layer():
    report = ActivationMonitor(Blocks()).measure([{"x": torch.randn(3, 4, 16)}])
    root = ET.fromstring(activity_bars(report))
    words = [each.text for each in root.iter() if each.tag.endswith("text")]
    assert words == [
        word for layer in report.layers for word in (layer.site.name, f"{layer.nonzero:.1%}")
    ]
    widths = [float(e.get("width")) for e in root.iter() if e.get("fill") == "#0072b2"]
    assert widths == pytest.approx([350 * layer.nonzero for layer in report.layers], abs=0.01)


def test_the_curve_needs_a_record():
    monitor = ActivationMonitor(Blocks())
    with pytest.raises(MissingStatistic, match=r"call monitor\.record\(step\)"):
        activity_curve(monitor)
    for step in (0, 10):
        monitor.measure([{"x": torch.randn(3, 4, 16)}])
        monitor.record(step)
    drawn = activity_curve(monitor)
    assert drawn.count("<polyline") == 2
    assert ">blocks.1<" in drawn
