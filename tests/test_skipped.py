"""The check that no test is skipped in silence, and the list that it reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two[x]"><skipped message="no data"/></testcase>
<testcase classname="tests.b" name="three"><skipped message="no package"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("skipped", ROOT / ".ci" / "skipped.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("always", "without", "data", "code"),
    [
        ("tests.b::three", "tests.a::two[x]", False, 0),
        ("tests.b::three\ntests.a::two[x]", "", True, 0),
        ("tests.b::three", "tests.a::two[x]", True, 1),
        ("tests.b::three", "", False, 1),
        ("tests.b::three\ntests.a::one", "tests.a::two[x]", False, 1),
    ],
)
def test_the_set_must_be_exactly_that_of_the_list(
    check, tmp_path, monkeypatch, always, without, data, code
):
    (tmp_path / "report.xml").write_text(REPORT)
    listing = tmp_path / "list.txt"
    listing.write_text(f"# always\n{always}\n\n# without SPARSECRAFT_DATA\n{without}\n")
    monkeypatch.setenv("SPARSECRAFT_DATA", "somewhere" if data else "")
    assert check.main(str(tmp_path / "report.xml"), str(listing)) == code


def test_every_listed_test_exists(check):
    for name in check.expected(ROOT / "tests" / "skipped.txt", with_data=False):
        module, _, function = name.partition("::")
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert f"def {function.partition('[')[0]}(" in path.read_text(), name
