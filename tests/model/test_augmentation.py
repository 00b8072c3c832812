"""Augmented models: saved, loaded by `sparsecraft.load`, and equal to what was saved."""

import json

import pytest
import torch
from tests.models import tiny_llama

import sparsecraft
from sparsecraft import Sparsifier
from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.adams import AdamS
from sparsecraft.model.checkpoints import CONFIG, save


def trained(**options):
    model = tiny_llama()
    sparsifier = Sparsifier(model, "ast", side_inputs=8, total_steps=2, **options)
    optimizer = AdamS(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    ids = torch.randint(3, 60, (2, 12))
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        (model(input_ids=ids, labels=ids).loss + sparsifier.loss()).backward()
        optimizer.step()
    return sparsifier.finalize(), ids


@pytest.mark.parametrize("projection", [False, True])
def test_side_branches_are_saved_and_loaded(projection, tmp_path):
    report, ids = trained(train_projection=projection)
    assert report.form == "augmented" and "side branches add" in " ".join(report.notes)
    save(report.model, tmp_path / "out", mask=report.mask, form="augmented")
    loaded = sparsecraft.load(tmp_path / "out")
    expected = report.model.eval()(input_ids=ids).logits
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    plain = tiny_llama().eval()
    plain.load_state_dict(loaded.state_dict(), strict=False)
    assert not torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-4)


def test_a_kind_that_is_not_known_is_refused(tmp_path):
    report, _ = trained()
    save(report.model, tmp_path / "out", form="augmented")
    path = tmp_path / "out" / CONFIG
    settings = json.loads(path.read_text())
    next(iter(settings["augmentations"].values()))["kind"] = "os.system"
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"'os\.system' cannot be put into"):
        sparsecraft.load(tmp_path / "out")
