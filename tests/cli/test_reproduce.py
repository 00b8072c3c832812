"""`sparsecraft reproduce`: claims by number."""

from __future__ import annotations

import json

import pytest
from tests.command import refused, run

from sparsecraft.lab.claims import claim_numbers


def test_unknown_claims_and_budgets(capsys, tmp_path):
    assert "Known: " in refused(capsys, "reproduce", "99", "--out", tmp_path)
    assert "'smoke'" in refused(capsys, "reproduce", "13", "--budget", "smok", "--out", tmp_path)
    assert "at least 1" in refused(capsys, "reproduce", "13", "--seeds", "0", "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [f"{each:02d}" for each in claim_numbers()])
def test_smoke_form_runs_and_gives_no_verdict(capsys, tmp_path, number):
    outcome = run(capsys, "reproduce", number, "--budget", "smoke", "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip().splitlines()[-1].startswith(f"{number} smoke: no verdict")
    found = json.loads((tmp_path / f"{number}-smoke" / "verdict.json").read_text())
    assert found["number"] == int(number)
