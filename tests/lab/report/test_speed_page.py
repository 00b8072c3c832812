"""The speed page shows every layer and says what was gained, whatever the names hold."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.model.runtime.scripted import scripted
from tests.models import save_directory, tiny_llama

from sparsecraft.lab.report.speed_bars import BarGroup, render_bars
from sparsecraft.lab.report.speed_page import render_speed_page
from sparsecraft.lab.speed import SpeedSettings, measure_speed
from sparsecraft.lab.speed_words import verdicts
from sparsecraft.model.pruning import prune


class Reader(HTMLParser):
    """Collects the words and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.words, self.open, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    model = tiny_llama()
    prune(model, "magnitude", sparsity=0.5)
    folder = save_directory(model, tmp_path_factory.mktemp("page") / "pruned")
    settings = SpeedSettings(rounds=3, tokens=4, batch_sizes=(1, 2), prompt="the cat")
    return measure_speed(folder, settings, measure=scripted("bitmask float32@1"))


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader, " ".join(" ".join(reader.words).split())


def test_the_page_holds_layers_answer_and_texts(report):
    reader, words = read(render_speed_page(report))
    assert reader.links == []
    for choice in report.record.choices:
        assert choice.layer in words
        assert choice.why in words
    for line in verdicts(report):
        assert " ".join(line.split()) in words
    assert "packed: the cat" in words.replace(" :", ":")
    assert "an embedding: rows are looked up, not multiplied" in words
    assert words.count("rows of input") + words.count("row of input") >= 2


def test_names_and_prompts_are_escaped(report):
    odd = replace(report, prompt="<script>x</script>", name="a<b")
    page = render_speed_page(odd)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    read(page)


def test_bars_are_as_long_as_their_times_and_the_chosen_is_marked():
    group = BarGroup(
        name="a", microseconds=[40, None, 10], labels=["as it was", "", "csr"], chosen="csr"
    )
    drawing = render_bars([group], "times")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawing)]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    assert re.findall(r">([\d]+ ?✓?)<", drawing)[-1] == "10 ✓"
    assert drawing.count("✓") == 1
