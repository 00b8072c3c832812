"""sparse_ift: sizes, FLOPs, what is left out, and what is refused."""

import copy
import json

import pytest
import torch
from tests.models import tiny_cnn, tiny_llama, tiny_mlp
from torch import nn

from sparsecraft.core.errors import BudgetError, InvalidValue, NoMatch, UnknownName
from sparsecraft.core.mask import Mask, count
from sparsecraft.methods.weights.sparse_ift import (
    DopedLayer,
    FactorizedLayer,
    IsoFlopReport,
    ParallelLayer,
    sparse_ift,
)
from sparsecraft.methods.weights.sparse_ift.parallel import parallelize
from sparsecraft.methods.weights.sparse_ift.scope import find_scope
from sparsecraft.model.flops import count_flops
from sparsecraft.model.sparsifier import Sparsifier

FAMILIES = ("wide", "parallel", "factorized", "doped")
X = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """A stem, a residual block, one with a strided shortcut, and a head."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        c = lambda i, o, k, s: nn.Sequential(  # noqa: E731
            nn.Conv2d(i, o, k, stride=s, padding=k // 2, bias=False), nn.BatchNorm2d(o)
        )
        self.stem = c(3, width, 3, 1)
        self.first, self.second = c(width, width, 3, 1), c(width, width, 3, 1)
        self.third, self.fourth = c(width, 2 * width, 3, 2), c(2 * width, 2 * width, 3, 1)
        self.shortcut = c(width, 2 * width, 1, 2)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        x = (self.shortcut(x) + self.fourth(self.third(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def masked_flops(model, report, x):
    """Counts with real masks of rounded counts, not with densities."""
    parameters = dict(model.named_parameters())
    masks = {}
    for name, density in report.densities.items():
        keep = torch.zeros(parameters[name].numel(), dtype=torch.bool)
        keep[: count(keep.numel(), density)] = True
        masks[name] = keep.view(parameters[name].shape)
    return count_flops(model, x, mask=Mask(masks))


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("family", FAMILIES)
def test_real_masks_cost_what_the_dense_model_costs(family, sparsity):
    model = Residual(16)
    larger, report = sparse_ift(model, family, sparsity=sparsity, example_input=X)
    assert report.budget == count_flops(model, X)
    assert masked_flops(larger, report, X) == pytest.approx(report.budget, rel=2e-3)
    assert report.flops == pytest.approx(report.budget, rel=1e-3)
    assert abs(report.error) <= 1e-3
    assert report.kernel_flops == count_flops(larger, X) > report.budget
    assert larger(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert {"stem.0", "head"} <= report.skipped.keys()
    assert "shortcut.0" not in report.skipped


@pytest.mark.parametrize("family", FAMILIES)
def test_sparsity_zero_gives_the_dense_model(family):
    model, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    larger, report = sparse_ift(model, family, sparsity=0, example_input=X)
    assert torch.equal(larger(x), model(x))
    assert larger is not model
    assert (report.targets, report.sparsity, report.flops) == ((), 0.0, report.budget)


def test_wide_grows_residual_streams_together():
    larger, report = sparse_ift(Residual(), "wide", sparsity=0.75, example_input=X)
    shapes = {name: tuple(p.shape) for name, p in larger.named_parameters() if p.dim() == 4}
    assert shapes == {
        "stem.0.weight": (16, 3, 3, 3),
        "first.0.weight": (16, 16, 3, 3),
        "second.0.weight": (16, 16, 3, 3),
        "third.0.weight": (32, 16, 3, 3),
        "fourth.0.weight": (32, 32, 3, 3),
        "shortcut.0.weight": (32, 16, 1, 1),
    }
    assert larger.head.weight.shape == (5, 32)
    assert (larger.head.in_features, larger.stem[1].num_features) == (32, 16)
    assert set(report.sizes.values()) == {(8, 16), (16, 32)}
    assert len(report.targets) == 5


def test_wide_has_exact_sizes_and_solves_the_boundary_by_hand():
    mlp = nn.Sequential(
        nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    larger, report = sparse_ift(mlp, "wide", sparsity=0.75, example_input=torch.zeros(1, 10))
    # 2 (160 + 256 + 64) = 2 (320 + 1024 d + 128)
    assert report.budget == 960
    assert 1 - report.sparsity == pytest.approx((480 - 448) / 1024, rel=1e-2)
    assert report.error_as_asked == pytest.approx(2 * (448 + 256) / 960 - 1)
    unmatched = sparse_ift(
        mlp, "wide", sparsity=0.75, example_input=torch.zeros(1, 10), match_flops=False
    )[1]
    assert unmatched.sparsity == 0.75
    assert unmatched.flops == unmatched.flops_as_asked == 2 * (448 + 256)
    assert larger[2].weight.shape == (32, 32)


def test_a_base_width_keeps_the_proportion_of_the_stages():
    _, each = sparse_ift(Residual(32), "wide", sparsity=0.5, example_input=X)
    _, base = sparse_ift(Residual(32), "wide", sparsity=0.5, example_input=X, base_width=32)
    assert set(each.sizes.values()) == {(32, 45), (64, 90)}
    assert set(base.sizes.values()) == {(32, 45), (64, 90)}
    _, other = sparse_ift(Residual(32), "wide", sparsity=0.5, example_input=X, base_width=8)
    assert set(other.sizes.values()) == {(32, 44), (64, 88)}


def test_wide_normalisations_start_anew():
    larger, _ = sparse_ift(Residual(), "wide", sparsity=0.75, example_input=X)
    for norm in (m for m in larger.modules() if isinstance(m, nn.BatchNorm2d)):
        assert torch.equal(norm.weight, torch.ones(norm.num_features))
        assert torch.equal(norm.running_var, torch.ones(norm.num_features))
        assert torch.equal(norm.bias, torch.zeros(norm.num_features))


def test_a_transformer_keeps_its_residual_width():
    ids = {"input_ids": torch.ones(1, 8, dtype=torch.long)}
    larger, report = sparse_ift(tiny_llama(), "wide", sparsity=0.75, example_input=ids)
    layer = larger.model.layers[0]
    assert layer.mlp.up_proj.weight.shape == (128, 32)
    assert layer.self_attn.o_proj.weight.shape == (32, 64)
    assert abs(report.error) <= 1e-3
    assert any("one side only" in note for note in report.notes)
    assert any("config" in note for note in report.notes)
    assert "lm_head" in report.skipped


def test_parallel_moves_the_normalisation_into_the_branches():
    larger, report = sparse_ift(tiny_cnn(), "parallel", sparsity=0.75, example_input=X)
    layer = larger[3]
    assert isinstance(layer, ParallelLayer)
    assert isinstance(larger[4], nn.Identity)
    assert [type(each[1]) for each in layer.branches] == [nn.BatchNorm2d] * 4
    weights = [each[0].weight for each in layer.branches]
    assert not torch.equal(weights[0], weights[1])
    assert report.targets == tuple(f"3.branches.{j}.0.weight" for j in range(4))
    assert report.sparsity == pytest.approx(0.75, abs=1e-3)


def test_parallel_without_normalisation_sums_activations():
    mlp = tiny_mlp()
    larger, _ = sparse_ift(mlp, "parallel", sparsity=0.5, example_input=torch.zeros(1, 12))
    layer, x = larger[2], torch.randn(3, 16)
    by_hand = sum(torch.relu(each[0](x)) for each in layer.branches)
    assert torch.allclose(layer(x), by_hand)
    assert isinstance(larger[3], nn.Identity)


def test_one_parallel_branch_is_the_model_itself():
    model, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    larger = copy.deepcopy(model)
    parallelize(larger, find_scope(larger, X, whole=True), 1, X)
    assert torch.equal(larger(x), model(x))


def test_factorized_can_leave_v_dense():
    options = {"sparsity": 0.75, "example_input": X, "sparse_factors": "U"}
    larger, report = sparse_ift(tiny_cnn(), "factorized", **options)
    assert report.targets == ("3.U.weight",)
    assert larger[3].U.weight.shape[0] == -(-9 * 8 * 16 // (0.25 * 72 + 16))  # rounded up: 34
    assert abs(report.error) <= 1e-3
    _, both = sparse_ift(tiny_cnn(), "factorized", sparsity=0.75, example_input=X)
    assert both.targets == ("3.U.weight", "3.V.weight")
    assert both.sizes == {"3": (0, 53)}  # 1152 / (0.25 * 88) = 52.4


def test_doped_never_masks_the_low_rank_term():
    larger, report = sparse_ift(tiny_cnn(), "doped", sparsity=0.75, example_input=X)
    assert isinstance(larger[3], DopedLayer)
    assert larger[3].rank == 9  # 0.75 * 1152 / 88 = 9.8
    assert report.targets == ("3.W.weight",)
    assert report.sparsity < 0.75  # rounded down, so that W may keep a little more


def test_wide_factorized_is_a_dense_control():
    larger, report = sparse_ift(Residual(), "wide_factorized", sparsity=0.75, example_input=X)
    assert isinstance(larger.first[0], FactorizedLayer)
    assert larger.first[0].U.weight.shape == (4, 16, 3, 3)  # ceil(576 / 160)
    assert (report.targets, report.sparsity) == ((), 0.0)
    assert report.flops == report.kernel_flops
    assert any("dense control" in note for note in report.notes)


def test_weights_follow_the_seed_and_the_rule():
    def drawn(**options):
        options = {"sparsity": 0.75, "example_input": X, **options}
        return sparse_ift(Residual(64), "wide", **options)[0].fourth[0].weight

    assert torch.equal(drawn(seed=1), drawn(seed=1))
    assert not torch.equal(drawn(seed=1), drawn(seed=2))
    assert drawn().std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    report = sparse_ift(Residual(64), "wide", sparsity=0.75, example_input=X)[1]
    fan_in = 9 * 256 * report.densities["fourth.0.weight"]
    found = drawn(initial="sparse_fan_in").std().item()
    assert found == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)


def test_the_callers_model_and_random_state_are_untouched():
    model = Residual()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for family in ("wide", "parallel", "factorized", "doped"):
        sparse_ift(model, family, sparsity=0.5, example_input=X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_erk_densities_meet_the_budget_too():
    _, report = sparse_ift(Residual(16), "wide", sparsity=0.75, example_input=X, allocation="erk")
    assert abs(report.error) <= 1e-3
    assert len(set(report.densities.values())) > 1


def test_the_report_goes_through_json_and_tells_all():
    _, report = sparse_ift(Residual(), "wide", sparsity=0.75, example_input=X)
    again = IsoFlopReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    text = str(report)
    for part in ("0.75 asked", f"{report.budget:,} dense", "8 -> 16", "head: not transformed"):
        assert part in text
    every = 100
    expected = (3 * report.flops * every + 2 * report.flops + report.kernel_flops) / (every + 1)
    assert report.training_step_flops(every) == pytest.approx(expected)


def test_the_options_are_those_of_a_sparsifier():
    larger, report = sparse_ift(Residual(16), "wide", sparsity=0.75, example_input=X)
    sparsifier = Sparsifier(larger, "static", targets=list(report.targets), total_steps=2,
                            source="random", sparsity=report.sparsity)  # fmt: skip
    assert set(sparsifier.mask) == set(report.targets)
    rigl = Sparsifier(
        sparse_ift(Residual(16), "wide", sparsity=0.75, example_input=X)[0],
        "rigl",
        **report.options,
        total_steps=100,
    )
    for name, density in rigl.mask.densities.items():
        assert density == pytest.approx(report.densities[name], abs=2e-3)
    assert count_flops(larger, X, mask=rigl.mask) == pytest.approx(report.budget, rel=2e-3)


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x))).mean((2, 3)))


class Unfollowed(nn.Module):
    """Group normalisation ties all channels, so that no width can be followed."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.a(x))
        x = self.norm(x + self.c(self.b(x).relu()))
        return self.head(self.norm(self.d(x)))


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_convolutions_are_refused_by_name(family):
    with pytest.raises(InvalidValue, match=r"depthwise convolutions \['b'\].*skip"):
        sparse_ift(Depthwise(), family, sparsity=0.5, example_input=X)


def test_a_skipped_grouped_convolution_does_no_harm():
    options = {"sparsity": 0.5, "example_input": X, "skip": ("stem", "head", "b")}
    larger, report = sparse_ift(Depthwise(), "factorized", **options)
    assert isinstance(larger.c, FactorizedLayer)
    assert report.skipped["b"] == "skip='b'"


def test_layers_that_cannot_be_followed_are_named():
    x = torch.zeros(1, 4)
    with pytest.raises(InvalidValue, match=r"widths of \['d'\] cannot be followed.*Add them to sk"):
        sparse_ift(Unfollowed(), "wide", sparsity=0.5, example_input=x)
    options = {"sparsity": 0.5, "example_input": x, "skip": ("stem", "head", "d")}
    larger, report = sparse_ift(Unfollowed(), "wide", **options)
    assert larger.b.weight.shape == (11, 8)
    assert abs(report.error) < 1e-3


def test_a_sum_of_plain_layers_is_refused():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.c(self.b(self.a(x).relu()).relu())

    with pytest.raises(InvalidValue, match=r"\['b'\]: no batch normalisation.*single layer"):
        sparse_ift(Functional(), "parallel", sparsity=0.5, example_input=torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, InvalidValue, r"in \[0, 1\)"),
        ({"sparsity": -0.1}, InvalidValue, r"in \[0, 1\)"),
        ({"family": "parallel", "sparsity": 0.6}, InvalidValue, "Give 0.5 for 2"),
        ({"family": "broad"}, UnknownName, "Unknown family 'broad'"),
        ({"allocation": "given"}, UnknownName, "uniform"),
        ({"family": "factorized", "middle": "gelu"}, UnknownName, "Unknown middle"),
        ({"initial": "zeros"}, UnknownName, "Unknown initial weights"),
        ({"skip": "head"}, InvalidValue, r"give a tuple such as \('head',\)"),
        ({"skip": ("stem", "haed")}, NoMatch, "haed"),
        ({"skip": ("*",)}, NoMatch, "no layer of Residual is left"),
        ({"example_input": torch.zeros(1, 7)}, InvalidValue, "does not run on the example input"),
    ],
)
def test_bad_settings(options, error, message):
    options = {"family": "wide", "example_input": X, "sparsity": 0.5, **options}
    with pytest.raises(error, match=message):
        sparse_ift(Residual(), options.pop("family"), **options)


def test_a_layer_without_weights_and_a_budget_out_of_reach():
    x = torch.zeros(1, 4)
    thin = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(BudgetError, match="stay dense alone cost"):
        sparse_ift(thin, "wide", sparsity=0.9, example_input=x)
    with pytest.raises(BudgetError, match=r"\['2.W'\]: not a single weight would be left"):
        sparse_ift(thin, "doped", sparsity=0.9, example_input=x, match_flops=False)


def test_other_kinds_of_layer_are_refused():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    with pytest.raises(InvalidValue, match=r"1 is a ConvTranspose2d.*Add '1' to skip"):
        sparse_ift(model, "doped", sparsity=0.5, example_input=X)
