"""Compaction: the smaller model computes what the masked one computes, in every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import ARCHITECTURES, batches_for
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.compaction import compact
from sparsecraft.model.unit_symbols import tensors_in
from sparsecraft.model.units import apply_units, find_units, run

# Family to: number of groups, and whether its config can say that half of all is gone. Mixtral's
# experts are chosen by a gather that is not followed: only its heads are units.
FAMILIES = {
    "bert": (4, False),
    "llama": (4, True),
    "mistral": (4, True),
    "qwen2": (4, False),
    "qwen3": (4, True),
    "gpt2": (4, False),
    "opt": (4, False),
    "gpt-neox": (4, False),
    "mixtral": (2, True),
    "vit": (4, False),
    "resnet basic": (6, False),
    "resnet bottleneck": (9, False),
}


def tiny_resnet(layer_type: str) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=6, hidden_sizes=[8, 12], depths=[2, 1], layer_type=layer_type
    )
    torch.manual_seed(0)
    return ResNetForImageClassification(config).eval()


def build(family: str) -> nn.Module:
    pytest.importorskip("transformers")
    resnet = family.removeprefix("resnet ")
    model = tiny_resnet(resnet) if resnet != family else ARCHITECTURES[family]()
    with torch.no_grad():  # so that no bias and no norm is trivially zero or one
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.linspace(0.05, 0.3, len(tensor)))
    return model


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    if not hasattr(model.config, "image_size") and hasattr(model.config, "num_channels"):
        return {"pixel_values": torch.rand(2, 3, 32, 32)}
    return batches_for(model)[0]


def some(size: int, kept: int) -> torch.Tensor:
    keep = torch.zeros(size, dtype=torch.bool)
    keep[torch.randperm(size)[:kept]] = True
    return keep


@pytest.mark.parametrize("family", FAMILIES)
def test_compact_equals_masked(family):
    model = build(family)
    example = inputs(model)
    groups = find_units(model, example)
    assert len(groups) == FAMILIES[family][0]
    keep = {group.name: some(group.size, group.size // 2) for group in groups}
    smaller, index_map = compact(model, keep, groups=groups)
    masked = build(family)
    apply_units(masked, keep, groups)
    with torch.no_grad():
        expected, given_ = (tensors_in(run(each, example)) for each in (masked, smaller))
    for one, other in zip(expected, given_, strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-5)
    report = index_map.report
    assert report.plain is FAMILIES[family][1]
    assert report.parameters_after == sum(p.numel() for p in smaller.parameters())
    assert (
        report.parameters_after < (0.95 if family == "mixtral" else 0.75) * report.parameters_before
    )
    old, new = model.state_dict(), smaller.state_dict()
    assert list(old) == list(new)
    for name, axes in index_map.items():
        selected = old[name]
        for axis, index in axes.items():
            selected = selected.index_select(axis, index)
        assert torch.equal(selected, new[name])


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_all_ones_is_the_parent(family):
    model = build(family)
    example = inputs(model)
    groups = find_units(model, example)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    smaller, index_map = compact(model, keep, example, groups=groups)
    assert index_map.report.parameters_after == index_map.report.parameters_before
    assert index_map.report.plain
    for (name, one), other in zip(
        model.state_dict().items(), smaller.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "opt", "gpt-neox", "vit"])
def test_a_plain_model_loads_anywhere(family, tmp_path):
    model = build(family)
    example = inputs(model)
    groups = find_units(model, example, kinds=["neurons"])
    keep = {group.name: some(group.size, 5) for group in groups}
    smaller, index_map = compact(model, keep, example, groups=groups)
    assert index_map.report.plain, index_map.report.why_not_plain
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.to_dict().keys() == model.config.to_dict().keys()
    with torch.no_grad():
        one, other = tensors_in(run(smaller, example))[0], tensors_in(run(again, example))[0]
    torch.testing.assert_close(other, one)


def test_layers_of_different_width_are_not_plain():
    model = build("bert")
    example = inputs(model)
    groups = find_units(model, example, kinds=["neurons"])
    keep = {group.name: some(group.size, 5 + i) for i, group in enumerate(groups)}
    _, index_map = compact(model, keep, example, groups=groups)
    assert not index_map.report.plain
    assert "different numbers of neurons" in index_map.report.why_not_plain
    assert model.config.intermediate_size == 64


def test_ties_stay_ties():
    model = build("gpt2")
    groups = find_units(model, kinds=["neurons"])
    smaller, _ = compact(model, {g.name: some(g.size, 9) for g in groups}, groups=groups)
    assert smaller.lm_head.weight is smaller.transformer.wte.weight


class Convolutions(nn.Module):
    """BatchNorm, a residual, a depthwise layer and a linear layer after flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(nn.functional.max_pool2d(self.depthwise(x), 2).flatten(1))


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=15)
def test_convolutions_for_any_mask(tied, inner, seed):
    torch.manual_seed(seed)
    model, example = Convolutions().eval(), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        model.norm.running_mean.uniform_(-0.2, 0.2)
        model.norm.bias.uniform_(-0.5, 0.5)
    keep = {"stem": some(8, tied), "inner": some(6, inner)}
    smaller, _ = compact(model, keep, example, tolerance=1e-5)
    assert (smaller.depthwise.groups, smaller.depthwise.in_channels) == (tied, tied)
    assert smaller.depthwise.out_channels == 2 * tied and smaller.head.in_features == 8 * tied
    assert smaller.norm.num_features == smaller.stem.out_channels == tied
    # In training the batch statistics of the kept channels are the same as well.
    masked = Convolutions().train()
    masked.load_state_dict(model.state_dict())
    apply_units(masked, keep, find_units(model, example))
    torch.testing.assert_close(smaller.train()(example), masked(example), atol=1e-5, rtol=1e-4)


def test_an_mlp_against_hand_cut_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    keep = torch.tensor([False, True, True, False])
    smaller, index_map = compact(model, {"0": keep})
    assert torch.equal(smaller[0].weight, model[0].weight[1:3])
    assert torch.equal(smaller[0].bias, model[0].bias[1:3])
    assert torch.equal(smaller[2].weight, model[2].weight[:, 1:3])
    assert torch.equal(smaller[2].bias, model[2].bias)
    assert (smaller[0].out_features, smaller[2].in_features) == (2, 2)
    assert index_map.report.kept == {"0": (2, 4)} and not index_map.report.plain
    assert model[0].weight.shape == (4, 3)


def test_a_wrong_group_is_caught_by_the_proof():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    first, second = find_units(model)
    keep, example = {"0": torch.tensor([True, True, False, False])}, torch.rand(5, 3)
    crossed = dataclasses.replace(first, slices=(*first.slices[:-1], second.slices[-1]))
    with pytest.raises(InvalidValue, match="does not run"):
        compact(model, keep, example, groups=[crossed])

    class Biased(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / self[0].out_features

    with pytest.raises(InvalidValue, match="differs from the masked one"):
        compact(Biased(*model), keep, example, groups=[first])


def test_what_cannot_be_cut_is_caught_without_an_example_as_well():
    class Shuffled(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self[0](x)
            halves = x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:])
            return self[1](halves.transpose(1, 2).reshape(x.shape))

    torch.manual_seed(0)
    model = Shuffled(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1))
    (group,) = find_units(model)
    keep = torch.arange(group.size) % 2 == 0
    with pytest.raises(InvalidValue, match="differs from the masked one"):
        compact(model, {group.name: keep})


def test_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 3)).bfloat16()
    keep = {"0": torch.arange(12) % 3 == 0}
    smaller, _ = compact(model, keep, torch.rand(4, 8).bfloat16())
    assert smaller[0].weight.dtype == torch.bfloat16 and smaller[0].out_features == 4
