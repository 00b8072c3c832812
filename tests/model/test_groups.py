import itertools

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, NoMatch, UnknownName
from sparsecraft.core.group_envelope import GroupEnvelope
from sparsecraft.core.seeds import generator
from sparsecraft.model.group_builders import GROUP_KINDS, find_groups, remove_zero_groups
from sparsecraft.model.group_slices import AxisSlice, LabelledSlice
from sparsecraft.model.groups import GroupFamily, axis_family, check_disjoint


class Residual(nn.Module):
    """A stem, two convolutional branches that are added to it, and a head."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(6, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                activation(),
                nn.Conv2d(8, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x.relu().mean((2, 3)))


def drawn(model, seed=0):
    """Fills every tensor with numbers that are not those of a fresh model."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(generator=generator(seed, name))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model.eval()


def mlp(*widths, activation=nn.ReLU):
    layers = []
    for one, other in itertools.pairwise(widths):
        layers += [nn.Linear(one, other), activation()]
    return drawn(nn.Sequential(*layers[:-1]))


def by_hand(family, parameters, number):
    """Returns all entries of a group in one vector, picked entry by entry."""
    chosen = torch.zeros(family.size, dtype=torch.bool)
    chosen[number] = True
    return torch.cat([parameters[name][keep] for name, keep in family.entries(chosen).items()])


MODELS = {"neuron": lambda: mlp(5, 8, 3), "branch": lambda: drawn(Residual())}


@pytest.mark.parametrize("kind", GROUP_KINDS)
def test_norms_products_and_scalings_are_those_of_the_entries(kind):
    model = MODELS.get(kind, lambda: drawn(Residual()))()
    options = {"layers": "branches.?"} if kind == "branch" else {}
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    others = {
        name: torch.randn(p.shape, generator=generator(1, name)) for name, p in parameters.items()
    }
    for family in find_groups(model, kind, **options):
        norms, inner = family.norms(parameters), family.inner(parameters, others)
        factors = torch.rand(family.size, generator=generator(2, family.name), dtype=torch.float64)
        before = {name: p.clone() for name, p in parameters.items()}
        picked = [0, family.size // 2, family.size - 1]
        groups = {n: by_hand(family, parameters, n) for n in picked}
        family.scale_(parameters, factors)
        family.add_(parameters, others, 2 * factors)
        for number, group in groups.items():
            other = by_hand(family, others, number)
            assert family.sizes[number] == group.numel()
            assert float(norms[number]) == pytest.approx(float(group.norm()), rel=1e-5)
            assert float(inner[number]) == pytest.approx(float(group @ other), rel=1e-4, abs=1e-5)
            expected = factors[number] * (group + 2 * other)
            assert torch.allclose(by_hand(family, parameters, number), expected.float(), atol=1e-5)
        outside = family.entries(torch.ones(family.size, dtype=torch.bool))
        for name, p in parameters.items():
            rest = ~outside[name] if name in outside else torch.ones_like(p, dtype=torch.bool)
            assert torch.equal(p[rest], before[name][rest])


def test_what_belongs_to_a_neuron():
    model = drawn(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))
    (alone,) = find_groups(model, "neuron")
    assert set(alone.parameters) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert alone.sizes.tolist() == [5 + 1 + 2] * 8
    (whole,) = find_groups(model, "neuron", outgoing=True)
    assert whole.sizes.tolist() == [8 + 3] * 8
    assert set(whole.parameters) == {*alone.parameters, "3.weight"}


def test_what_belongs_to_a_filter_follows_the_residual():
    families = {family.name: family for family in find_groups(drawn(Residual()), "filter")}
    assert {name: family.size for name, family in families.items()} == {
        "stem.0": 6, "branches.0.0": 8, "branches.1.0": 8,
    }  # fmt: skip
    assert families["branches.0.0"].sizes.tolist() == [6 * 9 + 1 + 2] * 8
    tied = families["stem.0"]  # the stem's filter, and that of both branches, each with BatchNorm
    assert tied.sizes.tolist() == [9 + 2 + 2 * (8 * 9 + 2)] * 6


def test_the_other_kinds_by_their_counts():
    model = drawn(Residual())
    counts = {kind: [f.size for f in find_groups(model, kind)] for kind in
              ("channel", "kernel", "filter_shape", "unstructured")}  # fmt: skip
    assert counts["channel"] == [1, 6, 8, 6, 8, 6]
    assert counts["kernel"] == [6, 48, 48, 48, 48]
    assert counts["filter_shape"] == [9, 54, 72, 54, 72]
    assert counts["unstructured"] == [54, 432, 432, 432, 432, 18]
    (branches,) = find_groups(model, "branch", layers="branches.?")
    of_one = sum(p.numel() for p in model.branches[0].parameters())
    assert branches.sizes.tolist() == [of_one, of_one]


def test_some_layers_only():
    assert [f.name for f in find_groups(mlp(5, 8, 6, 3), "neuron", layers="2")] == ["2"]
    assert [f.name for f in find_groups(mlp(5, 8, 6, 3), "channel", layers="0")] == ["0"]


def test_labels_make_groups_of_any_entries_over_several_parameters():
    labels = {"a": torch.tensor([0, 1, 0]), "b": torch.tensor([[1, 2]])}
    family = GroupFamily.from_labels("mine", labels)
    values = {"a": torch.tensor([3.0, 1.0, 4.0]), "b": torch.tensor([[1.0, 2.0]])}
    assert family.sizes.tolist() == [2, 2, 1]
    assert family.norms(values).tolist() == pytest.approx([5.0, 2**0.5, 2.0])
    family.scale_(values, torch.tensor([1.0, 0.0, 0.5]))
    assert values["a"].tolist() == [3.0, 0.0, 4.0] and values["b"].tolist() == [[0.0, 1.0]]
    assert family.active(values).tolist() == [True, False, True]


def test_a_float32_norm_of_many_entries_keeps_its_digits():
    values = {"w": torch.full((2, 100_003), 0.1)}
    family = axis_family("w", [AxisSlice("w", (0,))], {"w": (2, 100_003)})
    expected = float(values["w"][0, 0]) * 100_003**0.5
    assert family.norms(values).tolist() == pytest.approx([expected] * 2, rel=1e-12)


def test_the_prox_of_groups_over_tensors_is_that_of_the_joined_matrix():
    model = mlp(5, 8, 3)
    (family,) = find_groups(model, "neuron", outgoing=True)
    parameters = dict(model.named_parameters())
    joined = torch.cat([model[0].weight, model[0].bias[:, None], model[2].weight.T], 1).detach()
    penalty = GroupEnvelope(k=3)
    expected = penalty.prox(joined.clone(), 0.4)
    family.scale_(parameters, penalty.factors(family.norms(parameters), 0.4))
    assert torch.allclose(model[0].weight, expected[:, :5])
    assert torch.allclose(model[0].bias, expected[:, 5])
    assert torch.allclose(model[2].weight, expected[:, 6:].T)


@pytest.mark.parametrize(
    ("model", "kind", "shape"),
    [
        (lambda: mlp(5, 8, 6, 3), "neuron", (4, 5)),
        (lambda: mlp(5, 8, 3, activation=nn.GELU), "neuron", (4, 5)),
        (lambda: drawn(Residual()), "filter", (2, 1, 9, 9)),
    ],
)
def test_without_its_zero_groups_the_model_computes_the_same(model, kind, shape):
    model = model()
    families = find_groups(model, kind)
    parameters = dict(model.named_parameters())
    for family in families:
        family.scale_(parameters, (torch.arange(family.size) % 3 != 0).float())
    x = torch.randn(shape, generator=generator(3))
    smaller, index_map = remove_zero_groups(model, families, x)
    assert torch.allclose(smaller(x), model(x), rtol=1e-4, atol=1e-5)
    assert index_map.report.parameters_after < index_map.report.parameters_before
    kept = {family.name: int((torch.arange(family.size) % 3 != 0).sum()) for family in families}
    assert {name: after for name, (after, _) in index_map.report.kept.items()} == kept


def test_a_layer_of_zero_groups_keeps_one():
    model = mlp(5, 8, 3)
    families = find_groups(model)
    families[0].scale_(dict(model.named_parameters()), torch.zeros(8))
    smaller, _ = remove_zero_groups(model, families)
    assert smaller[0].out_features == 1
    x = torch.randn(2, 5)
    assert torch.equal(smaller(x), model(x))


def test_zero_groups_that_put_out_a_constant_are_not_removed():
    model = mlp(5, 8, 3, activation=nn.Sigmoid)
    parameters, half = dict(model.named_parameters()), (torch.arange(8) < 4).float()
    families = find_groups(model)
    families[0].scale_(parameters, half)
    with pytest.raises(InvalidValue, match=r"does not put out zero.*outgoing=True"):
        remove_zero_groups(model, families)
    with_columns = find_groups(model, outgoing=True)
    with_columns[0].scale_(parameters, half)
    assert remove_zero_groups(model, with_columns)[0][0].out_features == 4


def test_only_units_can_be_removed():
    model = mlp(5, 8, 3)
    with pytest.raises(InvalidValue, match=r"not units of the model.*'neuron' or 'filter'"):
        remove_zero_groups(model, find_groups(model, "channel"))


def test_sequences_and_half_precision_need_no_example():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head((x + self.net(x)).mean(1))

    for dtype in (torch.float32, torch.bfloat16):
        (family,) = find_groups(Sequences().to(dtype))
        assert (family.name, family.size) == ("net.0", 10)


def test_overlapping_groups_are_refused():
    with pytest.raises(InvalidValue, match=r"groups overlap.*2\.weight.*outgoing=False"):
        find_groups(mlp(5, 8, 6, 3), "neuron", outgoing=True)
    rows, columns = AxisSlice("w", (0,)), AxisSlice("w", (1,))
    families = [axis_family(name, [each], {"w": (3, 4)}) for name, each in
                (("rows", rows), ("columns", columns))]  # fmt: skip
    with pytest.raises(InvalidValue, match="12 entries of w are in two groups of columns and rows"):
        check_disjoint(families)
    with pytest.raises(InvalidValue, match="groups overlap"):
        GroupFamily("both", 4, (rows, columns), {"w": (3, 4)})


def test_groups_that_do_not_cover_are_refused():
    with pytest.raises(InvalidValue, match=r"2 of 3 entries are in no group.*label -1.*cover"):
        GroupFamily.from_labels("mine", {"a": torch.tensor([0, -1, -1])})
    with pytest.raises(InvalidValue, match=r"1 of 3 groups own no entries.*number 1"):
        GroupFamily.from_labels("mine", {"a": torch.tensor([0, 2, 2])})
    with pytest.raises(InvalidValue, match=r"labels are torch.float32"):
        GroupFamily.from_labels("mine", {"a": torch.tensor([0.0, 1.0])})


def test_slices_that_do_not_fit_are_refused():
    for bad in (AxisSlice("w", (2,)), AxisSlice("w", (0, 0)), AxisSlice("w", (1, 0))):
        with pytest.raises(InvalidValue, match=r"axes .* do not fit its shape \(4, 6\)"):
            GroupFamily("f", 4, (bad,), {"w": (4, 6)})
    with pytest.raises(InvalidValue, match="groups of 4 entries from 0 to 8 do not fit axis 0"):
        GroupFamily("f", 2, (AxisSlice("w", (0,), width=4, groups=2),), {"w": (4, 6)})
    with pytest.raises(InvalidValue, match="groups up to number 3, but the family has 2"):
        GroupFamily("f", 2, (AxisSlice("w", (0,)),), {"w": (4, 6)})
    with pytest.raises(InvalidValue, match="needs a parameter"):
        GroupFamily("f", 2, (), {})


def test_groups_of_a_model_that_was_changed_are_refused():
    model = mlp(5, 8, 3)
    (family,) = find_groups(model)
    family.scale_(dict(model.named_parameters()), (torch.arange(8) < 3).float())
    smaller, _ = remove_zero_groups(model, [family])
    with pytest.raises(InvalidValue, match=r"0.weight has shape \(3, 5\), not \(8, 5\) any more"):
        family.norms(dict(smaller.named_parameters()))
    with pytest.raises(InvalidValue, match="is gone"):
        family.norms({})


def test_unknown_and_absent_kinds():
    model = mlp(5, 8, 3)
    with pytest.raises(UnknownName, match=r"'neurons'.*Did you mean 'neuron'"):
        find_groups(model, "neurons")
    with pytest.raises(NoMatch, match="no groups of kind 'kernel'"):
        find_groups(model, "kernel")
    with pytest.raises(NoMatch, match=r"has no blocks.*layers='layer"):
        find_groups(model, "branch")
    with pytest.raises(InvalidValue, match="'kernel' have no outgoing columns"):
        find_groups(model, "kernel", outgoing=True)


def test_slices_with_offset_and_width():
    slices = AxisSlice("w", (0,), offset=1, width=2, groups=2)
    w = torch.arange(6.0)[:, None]
    assert slices.sums(slices.part(w)).tolist() == [3.0, 7.0]
    spread = slices.spread(torch.tensor([5.0, 6.0]), slices.part(w))
    assert spread.tolist() == [[5.0], [5.0], [6.0], [6.0]]
    assert LabelledSlice("w", torch.zeros(6, 1, dtype=torch.int64), 1).count((6, 1)) == 1
