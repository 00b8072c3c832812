from __future__ import annotations

import copy
import math
import re
from html.parser import HTMLParser

import pytest

from sparsecraft.lab.report import write_report
from sparsecraft.lab.report.page import render_page

VOID = {"meta", "input", "br", "link", "img", "hr"}
CHARTS = ("ms", "bytes", "sparsity")


class Page(HTMLParser):
    """Checks that tags are closed, and collects attributes, text and the arms of each chart."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.chart = ""
        self.drawing = ""
        self.arms: dict[tuple[str, str], list[str]] = {}
        self.ids: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if "id" in values:
            self.ids.append(values["id"])
        self.chart = values.get("data-chart", self.chart)
        if "data-option" in values:
            self.drawing = f"{values['data-option']} {values.get('data-view', 'absent')}"
        inside = "figure" in self.open
        if inside and "data-arm" in values:
            self.arms.setdefault((self.chart, self.drawing), []).append(values["data-arm"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def html(record):
    return render_page(record)


def test_page_is_well_formed_with_unique_ids(html):
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_page_needs_nothing_from_outside(html):
    for _, name, value in Page(html).attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith("#"), (name, value)
    assert not re.search(r"url\(|@import|https?://", html)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(", html)


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("view", ["full", "close"])
def test_every_arm_is_in_every_chart_once(record, html, chart, view):
    everyone = sorted(arm["id"] for arm in record["arms"])
    arms = Page(html).arms
    for option in "01":
        assert sorted(arms[chart, f"{option} {view}"]) == everyone


def test_all_sections_say_what_they_should(html):
    text = Page(html).text
    for words in (
        "Compact, 4 blocks, int8 is 62\u00a0% smaller on disk".replace("\u00a0", " "),
        "no speed-up",
        "sparsecraft compare --task stdlib-docs",
        "embedding: rows are looked up, not multiplied",
        "paired bootstrap over test examples",
        "1 of 36 layers miss what was asked",
        "75 rows have no input",
        "2.13.0",
    ):
        assert words in text, words


def test_masked_arms_are_said_to_bring_no_speed_up(record, html):
    rows = dict(re.findall(r'<tr data-arm="([^"]+)"(.*?)</tr>', html, flags=re.S))
    assert rows.keys() == {arm["id"] for arm in record["arms"]}
    for name, row in rows.items():
        masked = not name.startswith(("dense", "compact"))
        assert ("no speed-up" in row) == masked, name


def test_special_characters_are_escaped(record):
    nasty = "<script>alert(\"1\")</script> & 'x' </title>"
    record["title"] = record["command"] = record["model"]["name"] = nasty
    record["task"]["metric"] = nasty
    record["notes"] = record["problems"] = [nasty]
    record["choice"]["lines"] = [nasty]
    record["targets"][-1] |= {"name": nasty, "reason": nasty}
    record["machine"][nasty] = nasty
    for arm in record["arms"][:3]:
        arm |= {"id": nasty + arm["id"], "label": nasty, "note": nasty}
    record["arms"][5]["layers"][0]["name"] = nasty
    record["arms"][5]["method"] = record["arms"][5]["pattern"] = nasty
    record["knees"][0] |= {"method": nasty, "text": nasty}
    html = render_page(record)
    page = Page(html)
    assert page.open == []
    assert html.count("<script>") == 1
    assert nasty in page.text
    assert any(nasty in value for _, name, value in page.attributes if name == "data-arm")


BARE = {"version": 1, "arms": [{"id": "dense", "label": "Dense", "method": "dense"}]}


def drop_latency(record):
    for arm in record["arms"]:
        arm["latency"] = arm["throughput"] = None


def one_arm(record):
    record["arms"] = record["arms"][:1]
    record["choice"]["winner"] = None


def no_dense(record):
    record["arms"] = record["arms"][2:]


def nothing_finite(record):
    for arm in record["arms"]:
        for key in ("test", "validation", "sd", "sparsity", "sparsity_all"):
            arm[key] = math.nan
        arm["drop"] = {"estimate": math.nan, "low": -math.inf, "high": math.inf}
        arm["latency"] = {"1": {"ms": math.nan, "ratio": math.inf}}
    record["choice"]["max_drop"] = math.nan
    record["seconds"] = math.nan


def no_optional_parts(record):
    for key in ("knees", "choice", "problems", "notes", "targets", "backends", "machine"):
        record[key] = None
    for arm in record["arms"]:
        for key in ("drop", "bytes", "flops", "layers", "runs", "asked", "sd", "pattern", "note"):
            arm[key] = None


def lower_is_better(record):
    record["task"] |= {"higher_is_better": False, "metric": "perplexity"}
    for arm in record["arms"]:
        arm["test"] = 12.0 / (arm["test"] / 0.6472) ** 2
        arm["runs"] = []


def all_zero(record):
    for arm in record["arms"]:
        arm |= {"test": 0.0, "bytes": {"plain": 0, "packed": 0}, "runs": []}
        arm["latency"] = {"1": {"ms": 0.0, "dense_ms": 0.0}}


@pytest.mark.parametrize(
    "change",
    [
        drop_latency,
        one_arm,
        no_dense,
        nothing_finite,
        no_optional_parts,
        lower_is_better,
        all_zero,
    ],
)
def test_what_is_missing_is_tolerated_and_no_arm_is_lost(record, change):
    change(record)
    html = render_page(record)
    page = Page(html)
    assert page.open == []
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    assert not any(
        re.search(r"\b(nan|inf)\b", value) for tag, _, value in page.attributes if tag != "meta"
    )
    everyone = {arm["id"] for arm in record["arms"]}
    for chart in CHARTS:
        found = [arms for (name, _), arms in page.arms.items() if name == chart]
        assert set().union(*found) == everyone


def test_an_almost_empty_comparison_still_makes_a_page():
    page = Page(render_page(BARE))
    assert page.open == []
    assert "No arm was chosen." in page.text
    assert "not timed" in page.text


def test_arms_without_a_time_are_named_below_the_chart(record):
    record["arms"][4]["latency"] = None
    label = record["arms"][4]["label"]
    assert f"Not drawn (not timed): {label}." in Page(render_page(record)).text


def test_same_input_gives_the_same_page(record, html, tmp_path):
    assert render_page(copy.deepcopy(record)) == html
    first = write_report(record, tmp_path / "a").parent
    second = write_report(record, tmp_path / "b").parent
    for name in ("report.html", "results.csv", "comparison.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
