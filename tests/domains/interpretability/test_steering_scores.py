"""Effect and cost of steering, on a model whose direction was planted."""

import math

import pytest
import torch
from torch import nn

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.domains.interpretability.directions import DifferenceInMeans
from sparsecraft.domains.interpretability.steering_scores import (
    FLOOR,
    SteeringPoint,
    SteeringScores,
    concept_latent,
    probability_of,
    steering_scores,
)
from sparsecraft.methods.codes.abstopk import AbsTopK

WORDS, WIDTH = 6, 8


class Planted(nn.Module):
    """Says the words as they are; what lies along the last entry says word 0, whatever the rest."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.node = nn.Identity()
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(3 * torch.eye(WORDS, WIDTH))
            self.head.weight.copy_(torch.eye(WORDS, WIDTH))
            self.head.weight[0, -1] = 1.0

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.node(self.embed(input_ids)))


PROMPTS = torch.tensor([[1, 2], [2, 3], [3, 4], [4, 5]])
OTHER = torch.tensor([[5, 4, 3], [1, 1, 2]])
PLANTED = torch.eye(WIDTH)[-1]
IDLE = torch.eye(WIDTH)[-2]


def scores(**options):
    directions = {"planted": 2 * PLANTED, "idle": IDLE}
    return steering_scores(
        Planted(), "node", directions, PROMPTS, OTHER, lambda logits: logits[:, 0], **options
    )


def test_by_hand():
    found = scores(strengths=(1.0, 0.5))
    points = {(point.name, point.strength): point for point in found.points}
    assert (found.clean, found.norm) == (0, 3)
    # What is added has the length strength * 3 and goes to the logit of word 0 as it is.
    assert points["planted", 0.5].effect == pytest.approx(1.5)
    assert points["planted", 1.0].effect == pytest.approx(3)
    assert points["idle", 1.0].effect == 0 and points["idle", 1.0].cost == pytest.approx(0)
    # Every word of the other text but none is 0: logits 3 for it, 0 for five, one of them raised.
    clean = math.log(math.exp(3) + 5)
    steered = math.log(2 * math.exp(3) + 4)
    expected = steered - clean - 3 * math.exp(0) / math.exp(clean)
    assert points["planted", 1.0].cost == pytest.approx(expected, rel=1e-5)
    assert [point.strength for point in found.points[:2]] == [0.5, 1.0]
    assert [point.name for point in found.points[-2:]] == [FLOOR] * 2


def test_the_planted_direction_beats_the_floor_at_equal_cost():
    found = scores(random_directions=5)
    cost = 0.2
    assert found.effect_at("planted", cost) > 3 * max(0.05, found.effect_at(FLOOR, cost))
    assert found.effect_at("planted", 0) == 0
    assert scores().to_json() == scores().to_json() != scores(seed=1).to_json()


def test_effects_between_two_strengths_are_interpolated():
    points = [SteeringPoint("a", s, e, c) for s, e, c in ((1, 2.0, 1.0), (2, 6.0, 3.0), (3, 1, 9))]
    found = SteeringScores(tuple(points), 0.0, 1.0)
    expected = {0.5: 1.0, 1.0: 2.0, 2.0: 4.0, 3.0: 6.0, 100.0: 6.0}
    assert {cost: found.effect_at("a", cost) for cost in expected} == expected
    assert found.rows()[0] == ("a", "1", "+2.0000", "1.0000")
    with pytest.raises(InvalidValue, match="give one of a"):
        found.effect_at("b", 1.0)


def test_padding_costs_nothing():
    ids = torch.tensor([[5, 4, 3, 0], [1, 1, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    args = (Planted(), "node", {"planted": PLANTED}, {"input_ids": PROMPTS})
    effect = probability_of([0])
    padded = steering_scores(*args, {"input_ids": ids, "attention_mask": mask}, effect)
    plain = steering_scores(*args, {"input_ids": OTHER}, effect)
    assert [p.cost for p in padded.points] == pytest.approx([p.cost for p in plain.points])
    assert padded.points[-1 - len(plain.points) // 2].effect > 0


def test_the_latent_and_the_supervised_direction_are_both_found():
    """A signed latent that holds the concept at its negative pole is turned."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = 0.1 * torch.randn(60, WIDTH, generator=draw) + 4 * y[:, None] * PLANTED
    sae = SparseAutoencoder(WIDTH, WIDTH, AbsTopK(k=2), subtract_bias=False).eval()
    with torch.no_grad():
        sae.W_dec.copy_(-torch.eye(WIDTH))
        sae.W_enc.copy_(-torch.eye(WIDTH))
    found = concept_latent(sae, x, y)
    assert found.latent == WIDTH - 1 and torch.equal(found.direction, PLANTED)
    supervised = DifferenceInMeans().fit(x, y)
    both = {"best latent": found.direction, "difference in means": supervised}
    table = steering_scores(Planted(), "node", both, PROMPTS, OTHER, probability_of([0]))
    for name in both:
        assert table.effect_at(name, 1.0) > 0.3 > table.effect_at(FLOOR, 1.0)


def test_errors():
    model = Planted()
    for directions, options, text in (
        ({}, {}, "give at least one"),
        ({FLOOR: PLANTED}, {}, "called 'random'"),
        ({"zero": torch.zeros(WIDTH)}, {}, "'zero' has a norm of 0"),
        ({"a": PLANTED}, {"strengths": (0.0,)}, r"strengths=\(0.0,\)"),
        ({"a": PLANTED}, {"random_directions": 0}, "random_directions=0"),
        ({"a": torch.ones(3)}, {}, "the direction 3"),
    ):
        with pytest.raises(InvalidValue, match=text):
            steering_scores(
                model, "node", directions, PROMPTS, OTHER, probability_of([0]), **options
            )
    with pytest.raises(UnknownName, match="hook point"):
        steering_scores(model, "nod", {"a": PLANTED}, PROMPTS, OTHER, probability_of([0]))
    with pytest.raises(InvalidValue, match="has no logits"):
        steering_scores(
            nn.Sequential(model.embed, nn.Flatten(1), nn.Unflatten(1, (2, 2, 4))), "0",
            {"a": PLANTED}, PROMPTS, PROMPTS, probability_of([0]),
            logits=lambda out: out.flatten(1),
        )  # fmt: skip
    assert not model.node._forward_hooks
