"""Nodes, sufficiency, necessity and tables of edits, on a model that can be computed by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.domains.interpretability.control import (
    CEILING,
    FLOOR,
    EditScore,
    agreement_at_weight,
    compare_edits,
    evaluate_approximation,
    logit_difference,
)
from sparsecraft.domains.interpretability.editing import Edit
from sparsecraft.domains.interpretability.nodes import (
    Node,
    NodeOutputs,
    activations,
    outputs,
    run,
)


class Copying(nn.Module):
    """Says what the last token says: its node is the logits themselves, and a column of noise."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.node = nn.Identity()
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(3, 4) * 2)

    def forward(self, tokens):
        return self.node(self.embed(tokens))[..., :3]


TOKENS = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]])
NODE = Node("node")


def test_a_node_is_read_and_written_where_it_is():
    model = Copying()
    (x,) = activations(model, [NODE], TOKENS, batch=3)
    assert x.argmax(1).tolist() == [1, 2, 0, 2] and x.shape == (4, 4)
    assert run(model, TOKENS, {NODE: x.roll(1, 0)}).argmax(1).tolist() == [2, 1, 2, 0]
    assert run(model, TOKENS).argmax(1).tolist() == [1, 2, 0, 2]
    first, columns = Node("node", position=0), Node("node", columns=(1, 3))
    values = activations(model, [first, columns], TOKENS)
    assert values[0].argmax(1).tolist() == [0, 1, 2, 0] and values[1].shape == (4, 2)
    changed = run(model, TOKENS, {columns: torch.full((4, 2), 9.0)})
    assert changed[:, 0].tolist() == x[:, 0].tolist() and bool((changed[:, 1:] == 9).all())
    own = Node("node", position=torch.tensor([0, 1, 0, 1]))
    assert activations(model, [own], TOKENS, batch=3)[0].argmax(1).tolist() == [0, 2, 2, 2]


def test_errors_of_nodes():
    model = Copying()
    with pytest.raises(UnknownName, match="node"):
        activations(model, [Node("nod")], TOKENS)
    with pytest.raises(InvalidValue, match=r"the node holds \(4, 4\)"):
        run(model, TOKENS, {NODE: torch.zeros(4, 3)})
    with pytest.raises(InvalidValue, match=r"columns=\(2, 9\)"):
        activations(model, [Node("node", columns=(2, 9))], TOKENS)
    with pytest.raises(InvalidValue, match="no prompts"):
        run(model, TOKENS[:0])
    with pytest.raises(InvalidValue, match="position=None"):
        activations(nn.Sequential(nn.Linear(2, 2)), [Node("0")], torch.ones(3, 2))


def approximation(reconstruction):
    model = Copying()
    (x,) = activations(model, [NODE], TOKENS)
    metric = logit_difference(TOKENS[:, 1], TOKENS[:, 0])
    return evaluate_approximation(outputs(model, NODE, TOKENS), metric, x, reconstruction(x))


def test_perfect_and_empty_reconstructions():
    perfect = approximation(lambda x: x)
    assert (perfect.sufficiency, perfect.necessity) == pytest.approx((1, 1))
    mean = approximation(lambda x: x.mean(0).expand_as(x))
    assert (mean.sufficiency, mean.necessity) == pytest.approx((0, 0), abs=1e-6)
    half = approximation(lambda x: (x + x.mean(0)) / 2)
    assert (half.sufficiency, half.necessity) == pytest.approx((0.5, 0.5))


def test_a_node_that_does_not_matter_is_an_error():
    model = Copying()
    node = Node("node", columns=(3, 4))
    (x,) = activations(model, [node], TOKENS)
    metric = logit_difference(TOKENS[:, 1], TOKENS[:, 0])
    with pytest.raises(InvalidValue, match="does not use this node"):
        evaluate_approximation(outputs(model, node, TOKENS), metric, x, x)
    with pytest.raises(InvalidValue, match="must be of one shape"):
        evaluate_approximation(outputs(model, node, TOKENS), metric, x, x[:2])


def edit_of(edited, k=1):
    places = torch.zeros(len(edited), k, dtype=torch.int64)
    return Edit(edited, places, places.clone(), torch.full((len(edited),), 0.25))


def test_every_table_has_its_ceiling_and_its_floor():
    model = Copying()
    (x,) = activations(model, [NODE], TOKENS)
    target = x.roll(1, 0)
    half = torch.cat([target[:2], x[2:]])
    table = compare_edits(
        outputs(model, NODE, TOKENS), x, target, (target, torch.ones(4)), {"half": edit_of(half)}
    )
    assert [score.name for score in table.scores] == [CEILING, "half", FLOOR]
    assert table[CEILING].agreement == 1 and table[CEILING].distance == 0
    assert table["half"].agreement == 0.5 and table["half"].rescaled == 0.5
    assert (table["half"].changed, table["half"].weight) == (2, 0.25)
    assert table[FLOOR].agreement == 0 and table[FLOOR].rescaled == 0 and table[FLOOR].weight == 0
    assert table.rows()[1][:4] == ("half", "2", "0.500", "0.500")
    assert [row["name"] for row in table.to_json()] == [CEILING, "half", FLOOR]


def test_changed_is_the_number_that_changed_where_the_edit_says_it():
    model = Copying()
    (x,) = activations(model, [NODE], TOKENS)
    fewer = replace(edit_of(x, k=3), changed=torch.tensor([1, 2, 2, 2]))
    table = compare_edits(outputs(model, NODE, TOKENS), x, x + 1, (x, torch.ones(4)), {"f": fewer})
    assert table["f"].changed == 1.75 and table.rows()[1][1] == "1.75"


def test_the_gradient_of_a_metric_at_a_node():
    """Batches, positions and columns: the gradient of each row is that of the whole."""
    model = Copying()
    metric = lambda logits: logits.square().sum(1) + logits[:, 0]  # noqa: E731
    last = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for node, slope in (
        (NODE, lambda x: (2 * x + last) * torch.tensor([1.0, 1.0, 1.0, 0.0])),
        (Node("node", position=0), torch.zeros_like),
        (Node("node", columns=(1, 3)), lambda x: 2 * x),
    ):
        (x,) = activations(model, [node], TOKENS)
        found = NodeOutputs(model, node, TOKENS, batch=3).gradient(metric, x)
        torch.testing.assert_close(found, slope(x))


def test_attribution_distance():
    model = Copying()
    (x,) = activations(model, [NODE], TOKENS)
    gradient = torch.zeros_like(x)
    gradient[:, 0] = 2.0
    table = compare_edits(
        outputs(model, NODE, TOKENS), x, x + 1, (x, torch.ones(4)), {}, gradient=gradient
    )
    assert table[CEILING].attribution == 2.0


def score(agreement, weight):
    return EditScore("", 2, agreement, agreement, weight, 0.0, 0.0)


def test_agreement_at_equal_weight_is_interpolated():
    sizes = [score(0.4, 0.2), score(0.8, 0.6)]
    floor = score(0.0, 0.0)
    assert agreement_at_weight(sizes, floor, 0.1) == pytest.approx(0.2)
    assert agreement_at_weight(sizes, floor, 0.2) == pytest.approx(0.4)
    assert agreement_at_weight(sizes, floor, 0.4) == pytest.approx(0.6)
    assert agreement_at_weight(sizes, floor, 0.9) == pytest.approx(0.8)
