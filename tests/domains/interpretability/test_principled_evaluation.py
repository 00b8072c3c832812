"""Paper 34 as one method of the catalog."""

import pytest
import torch

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.domains.interpretability.control import logit_difference
from sparsecraft.domains.interpretability.nodes import Node, outputs
from sparsecraft.domains.interpretability.principled_evaluation import PrincipledEvaluation
from sparsecraft.methods.codes.topk import TopK

COLOURS, SIZES = 4, 2


def batch(seed, rows=80):
    """Rows are the sum of a vector for the colour and one for the size, and a little noise."""
    draw = torch.Generator().manual_seed(seed)
    colour, size = torch.arange(rows) % COLOURS, (torch.arange(rows) // COLOURS) % SIZES
    new = (colour + 1) % COLOURS
    noise = 0.01 * torch.randn(rows, COLOURS + SIZES, generator=draw)
    vectors = torch.eye(COLOURS + SIZES)
    size_part = vectors[COLOURS + size]
    return {
        "x": 2 * vectors[colour] + size_part + noise,
        "x_changed": 2 * vectors[new] + size_part + noise,
        "attributes": {"colour": colour, "size": size},
        "changed": {"colour": new, "size": size},
    }


def spoken(part):
    """Says the colour."""
    right = part["attributes"]["colour"]
    says = lambda values: (part["x"] if values is None else values)[:, :COLOURS]  # noqa: E731
    metric = logit_difference(right, (right + 1) % COLOURS)
    return {**part, "outputs": says, "metric": metric}


def perfect():
    """One latent for every value."""
    sae = SparseAutoencoder(6, 6, TopK(k=2), subtract_bias=False).eval()
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(6))
        sae.W_enc.copy_(torch.eye(6))
    return sae


def test_a_perfect_dictionary():
    found = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), spoken(batch(1))])
    assert found["best F1 of a value, mean"] == 1
    assert found["agreement, supervised"] == found["agreement, 1 out and 1 in"] == 1
    assert found["agreement, no edit"] == 0
    for name in ("sufficiency", "necessity"):
        assert found[f"{name}, autoencoder"] == pytest.approx(1, abs=0.05)
        assert found[f"{name}, supervised"] == pytest.approx(1, abs=0.05)


def test_without_a_model_there_are_distances():
    found = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), batch(1)])
    assert found["distance, no edit"] == pytest.approx(8**0.5, rel=1e-4)
    assert found["distance, 2 greedy"] < 0.1 and found["distance, supervised"] < 0.1
    assert not any(name.startswith(("agreement", "sufficiency")) for name in found)


def test_errors():
    measure = PrincipledEvaluation(sizes=(1,)).measure
    with pytest.raises(InvalidValue, match="1 batches were given"):
        measure(perfect(), [batch(0)])
    with pytest.raises(InvalidValue, match="a batch lacks 'x_changed'"):
        measure(perfect(), [batch(0), {"x": batch(0)["x"]}])
    with pytest.raises(InvalidValue, match="exactly one attribute"):
        same = {**batch(1), "changed": batch(1)["attributes"]}
        measure(perfect(), [batch(0), same])
    with pytest.raises(UnknownName, match="'shape'"):
        PrincipledEvaluation(attribute="shape").measure(perfect(), [batch(0), batch(1)])
    with pytest.raises(InvalidValue, match="a SparseAutoencoder is evaluated"):
        measure(torch.nn.Linear(2, 2), [batch(0), batch(1)])
    with pytest.raises(InvalidValue, match="sizes"):
        PrincipledEvaluation(sizes=())
    with pytest.raises(UnknownName, match="kind of codes"):
        PrincipledEvaluation(codes="median")
    with pytest.raises(InvalidValue, match="max_conjunctions=0"):
        PrincipledEvaluation(max_conjunctions=0)


def test_another_scale_is_measured_and_noted_first():
    scaled = perfect()
    scaled.info["mean_norm"] = 1.0
    found = PrincipledEvaluation(sizes=(1,)).measure(scaled, [batch(0), spoken(batch(1))])
    assert "scaled otherwise" in found.notes[0]
    assert found.rows()[0] == ("NOTE", found.notes[0])
    assert found["agreement, 1 out and 1 in"] == 1
    right = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), spoken(batch(1))])
    assert not any("scaled" in note for note in right.notes)


def test_every_value_has_its_latent_and_every_score_its_floor():
    found = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), spoken(batch(1))])
    assert [each.latent for each in found.latents] == list(range(COLOURS + SIZES))
    assert found["cosine of a value's best latent and its code, mean"] > 0.8
    assert (
        found["latents with F1 of at least 0.5"]
        > found["latents with F1 of at least 0.5, labels shuffled"]
    )
    assert "latents with conjunction F1 of at least 0.5" in found


class Saying(torch.nn.Module):
    """Says the colour of its input, which passes a node."""

    def __init__(self):
        super().__init__()
        self.node = torch.nn.Identity()

    def forward(self, x):
        return self.node(x)[:, :COLOURS] ** 2


def test_with_a_model_there_are_attribution_distances_and_rescaled_agreements():
    part = spoken(batch(1))
    says = outputs(Saying(), Node("node", position=None), part["x"])
    given = {**part, "outputs": says}
    found = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), given])
    assert found["rescaled, supervised"] == 1 and found["rescaled, no edit"] == 0
    # d (x_right^2 - x_wrong^2): the gradient is 2 x there, about 4 and 0, and the edit moves 2.
    assert found["attribution distance, no edit"] == pytest.approx(8, rel=0.02)
    assert found["attribution distance, 1 out and 1 in"] < 0.5
    plain = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), part])
    assert any("no attribution distance" in note for note in plain.notes)
    taken = {**part, "gradient": says.gradient(part["metric"], part["x"])}
    again = PrincipledEvaluation(sizes=(1,)).measure(perfect(), [batch(0), taken])
    assert again["attribution distance, no edit"] == found["attribution distance, no edit"]
