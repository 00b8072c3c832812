import dataclasses
import json
import subprocess
import sys
import textwrap

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.allocation import ERK, Given, Uniform, UniformPlus
from sparsecraft.core.catalog import ALLOWED, NEEDS, Paper, Taxonomy
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Layer, WeightMethod
from sparsecraft.core.patterns import NM, Block, Unstructured

TAXONOMY = {
    "of": "weights",
    "when": "after training",
    "start_to_end": "dense to sparse",
    "mask": "static",
    "criterion": "magnitude",
    "granularity": ("unstructured",),
    "allocation": "uniform",
    "budget": "hard per layer",
    "needs": (),
    "cost": "none",
    "runtime": "none",
}

MINE = '''
from __future__ import annotations
from dataclasses import dataclass
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import Layerwise, Pruned

@method("{name}", paper=Paper("Me", 2026), taxonomy=Taxonomy(**{taxonomy}))
@dataclass(frozen=True, kw_only=True)
class Mine(Layerwise):
    """Keeps the smallest weights."""

    strength: float = 1.0
    {body}

class Plain:
    pass

class Bare(Layerwise):
    pass
'''
PRUNE = """
    def prune(self, weight, layer):
        return Pruned.keeping(weight, self.pattern.mask(-weight.abs(), layer.density))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a method file; what it registers is forgotten after the test."""
    catalog.names()  # Loads the methods into the registry that stays.
    monkeypatch.setattr(catalog, "_REGISTRY", dict(catalog._REGISTRY))

    def write(name="mine", body=PRUNE):
        path = tmp_path / "mine.py"
        path.write_text(MINE.format(name=name, taxonomy=TAXONOMY, body=body))
        return str(path)

    return write


def test_every_entry_is_complete():
    for name in catalog.names():
        info = catalog.get(name)
        assert info.name == name and info.cls.info is info
        assert info.summary.endswith(".") and len(info.summary) <= 100
        assert info.taxonomy.cost and info.paper.authors
        assert info.kind in dir(sys.modules["sparsecraft.core.kinds"])


def test_every_method_builds_by_its_name_alone():
    for name in catalog.names():
        assert isinstance(catalog.build(name), catalog.get(name).cls)


def test_unknown_method():
    with pytest.raises(UnknownName, match=r"Unknown method 'wnada'\. Did you mean 'wanda'"):
        catalog.get("wnada")


def test_unknown_option():
    with pytest.raises(UnknownName, match=r"option of wanda 'sparsty'\. Did you mean 'sparsity'"):
        catalog.build("wanda", sparsty=0.5)


def test_build_converts_texts():
    built = catalog.build("magnitude", sparsity="0.6", pattern="block:2x4", allocation="erk")
    assert (built.sparsity, built.pattern, built.allocation) == (0.6, Block(2, 4), ERK())
    assert catalog.build("random", bernoulli="yes").bernoulli is True
    assert catalog.build("synflow", rounds="7").rounds == 7
    assert catalog.build("random_ratios", ratios_of="synflow").ratios_of.info.name == "synflow"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("magnitude", {"sparsity": "half"}),
        ("magnitude", {"sparsity": 1.5}),
        ("magnitude", {"pattern": "2;4"}),
        ("magnitude", {"allocation": "erx"}),
        ("magnitude", {"allocation": {"name": "erx"}}),
        ("synflow", {"rounds": "1.5"}),
        ("random", {"bernoulli": "maybe"}),
    ],
)
def test_build_refuses(name, options):
    with pytest.raises((InvalidValue, UnknownName)):
        catalog.build(name, **options)


def test_build_of_a_built_method():
    built = catalog.build("wanda", sparsity=0.6)
    assert catalog.build(built) is built
    with pytest.raises(InvalidValue, match="Wanda is built already"):
        catalog.build(built, sparsity=0.5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wanda", {}),
        ("wanda", {"sparsity": 0.75, "pattern": NM(1, 4)}),
        ("magnitude", {"allocation": ERK(power=0.5), "pattern": Unstructured(per="row")}),
        ("magnitude", {"allocation": UniformPlus()}),
        ("magnitude", {"allocation": Given({"a": 0.25, "b": 0.5})}),
        ("random", {"bernoulli": True}),
        ("sparsegpt", {"block_size": 64, "damping": 0.1}),
        ("random_ratios", {"ratios_of": "grasp", "sparsity": 0.9}),
    ],
)
def test_describe_and_restore_through_json(name, options):
    built = catalog.build(name, **options)
    assert catalog.restore(json.loads(json.dumps(catalog.describe(built)))) == built


def test_describe_all_through_json():
    for name in catalog.names():
        built = catalog.build(name)
        assert catalog.restore(json.loads(json.dumps(catalog.describe(built)))) == built


def test_describe_is_short_for_defaults():
    settings = catalog.describe(catalog.build("magnitude"))
    assert settings["allocation"] == "uniform" and settings["pattern"] == "unstructured"
    assert catalog.restore(settings).allocation == Uniform()


def test_select():
    found = {info.name for info in catalog.select(of="weights", criterion="magnitude")}
    assert {"magnitude", "global_magnitude"} <= found and "wanda" not in found
    without = {info.name for info in catalog.select(of="weights", without="data")}
    assert {"magnitude", "synflow", "random"} <= without and not {"wanda", "snip"} & without
    assert "wanda" in {info.name for info in catalog.select(granularity="N:M", needs="data")}


@pytest.mark.parametrize("wanted", [{"off": "weights"}, {"of": "wieghts"}])
def test_select_refuses(wanted):
    with pytest.raises(UnknownName, match="Did you mean"):
        catalog.select(**wanted)


@pytest.mark.parametrize("field", [*ALLOWED, "needs"])
def test_the_taxonomy_knows_its_values(field):
    wrong = ("wrong",) if field in ("granularity", "needs") else "wrong"
    with pytest.raises(UnknownName, match="taxonomy"):
        Taxonomy(**{**TAXONOMY, field: wrong})
    with pytest.raises(TypeError, match=field):
        Taxonomy(**{key: value for key, value in TAXONOMY.items() if key != field})
    assert len(set(NEEDS)) == len(NEEDS)


def test_a_name_is_taken_once(mine):
    with pytest.raises(InvalidValue, match="'wanda' is registered already"):
        catalog.get(mine(name="wanda") + ":Mine")
    assert catalog.get("wanda").cls.__module__ == "sparsecraft.methods.weights.wanda"


def test_a_method_needs_a_docstring():
    with pytest.raises(InvalidValue, match="needs a docstring"):

        @catalog.method("silent", paper=Paper("Me", 2026), taxonomy=Taxonomy(**TAXONOMY))
        class Silent(WeightMethod):
            pass


def test_a_method_from_a_file(mine):
    text = mine() + ":Mine"
    built = catalog.build(text, strength="2", sparsity=0.5)
    pruned = built.prune(torch.tensor([[1.0, 3.0]]), Layer(name="a", density=built.density))
    assert built.strength == 2.0 and pruned.weight.tolist() == [[1.0, 0.0]]
    assert catalog.get(text) is catalog.get("mine")
    assert "mine" in catalog.names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mime", "Did you mean 'Mine'"),
        ("Plain", "not a sparsecraft Method"),
        ("Bare", "lacks @method"),
    ],
)
def test_a_wrong_class_in_a_file(mine, name, message):
    with pytest.raises((InvalidValue, UnknownName), match=message):
        catalog.get(f"{mine()}:{name}")


def test_a_class_that_leaves_prune_open(mine):
    with pytest.raises(InvalidValue, match=r"Mine leaves \['prune'\] open"):
        catalog.get(mine(body="") + ":Mine")


def test_a_missing_file_and_a_broken_one(tmp_path):
    with pytest.raises(InvalidValue, match="there is no file"):
        catalog.get(f"{tmp_path}/none.py:Mine")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            catalog.get(f"{broken}:Mine")


def test_an_entry_point_of_another_package(tmp_path):
    """A distribution on the path is all it takes; it is found in a fresh interpreter."""
    (tmp_path / "theirs.py").write_text(MINE.format(name="theirs", taxonomy=TAXONOMY, body=PRUNE))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparsecraft.methods]\ntheirs = theirs:Mine\n")
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from sparsecraft.core import catalog
        print(catalog.build("theirs", sparsity=0.25).density)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0.75", done.stderr


def test_kind_and_options():
    info = catalog.get("sparsegpt")
    assert info.kind == "Layerwise" and catalog.get("snip").kind == "ModelWide"
    assert list(info.options) == ["sparsity", "pattern", "allocation", "block_size", "damping"]
    assert all(isinstance(each, dataclasses.Field) for each in info.options.values())
    assert str(info.paper) == "Frantar, Alistarh, 2023, arXiv 2301.00774"
