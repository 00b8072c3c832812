"""The best latent of every value, its likeness to the supervised code, and the floor of both."""

import math

import pytest
import torch

from sparsecraft.domains.interpretability.label_scores import label_scores
from sparsecraft.domains.interpretability.principled_scores import PrincipledScores
from sparsecraft.domains.interpretability.supervised_dictionary import SupervisedDictionary
from sparsecraft.domains.interpretability.value_latents import value_latents

ATTRIBUTES = {"side": ["left", "right"] * 20, "size": [(i // 2) % 4 for i in range(40)]}
X = torch.stack([torch.tensor([1.0, -1.0] * 20), torch.tensor(ATTRIBUTES["size"]).float()], 1)
KNOWN = SupervisedDictionary().fit(X, ATTRIBUTES)


def test_the_best_latent_by_hand():
    # Latent 0 fires on the left alone, latent 1 on the right and on one row of the left.
    right = X[:, 0] < 0
    code = torch.stack([(~right).float(), right.float(), torch.zeros(40)], 1)
    code[0, 1] = 1.0
    d = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, 1.0]])
    left, other = value_latents(code, d, KNOWN, ATTRIBUTES)[:2]
    assert (left.attribute, left.value, left.latent, left.f1) == ("side", "left", 0, 1)
    assert left.cosine == pytest.approx(1)
    assert (other.value, other.latent) == ("right", 1) and other.f1 == pytest.approx(40 / 41)
    assert other.cosine == pytest.approx(math.sqrt(0.5))


def test_a_signed_latent_counts_by_its_pole():
    code = torch.where(X[:, :1] < 0, -3.0, 0.0)
    right = value_latents(code, torch.tensor([[1.0, 0.0]]), KNOWN, ATTRIBUTES)[1]
    assert right.value == "right" and right.cosine == pytest.approx(1)


def test_shuffled_labels_are_the_floor():
    code = torch.stack([X[:, 0].relu(), (-X[:, 0]).relu()], 1)
    d = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = label_scores(code, d, KNOWN, ATTRIBUTES, "side").figures
    for name in ("best F1 of a value, mean", "cosine of a value's best latent and its code, mean"):
        assert found[name] == pytest.approx(1)
    assert found["best F1 of a value, mean, labels shuffled"] < 0.8
    again = label_scores(code, d, KNOWN, ATTRIBUTES, "side").figures
    assert found == again


def test_rare_conjunctions_are_said_to_be_left_out():
    code = torch.stack([X[:, 0].relu(), (-X[:, 0]).relu()], 1)
    found = label_scores(code, torch.eye(2), KNOWN, ATTRIBUTES, "side", max_conjunctions=3)
    assert found.figures["latents with conjunction F1 of at least 0.5"] == 0
    assert found.notes[0].startswith("5 conjunctions of two values were not scored")


def test_notes_come_first_and_what_is_not_defined_is_said():
    scores = PrincipledScores({"rescaled": math.nan}, value_latents(
        torch.ones(40, 1), torch.ones(1, 2), KNOWN, ATTRIBUTES
    ), ("another scale",))  # fmt: skip
    assert scores.rows() == [("NOTE", "another scale"), ("rescaled", "not defined")]
    assert scores.latent_rows()[0][:3] == ("side", "left", "0")
    plain = scores.to_json()
    assert plain["figures"] == {"rescaled": None} and plain["notes"] == ["another scale"]
    assert plain["latents"][1]["value"] == "right"
