"""Channels by BatchNorm: groups, masks, removal for good, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft.core.errors import InvalidValue, NoMatch, NonFinite, UnknownName
from sparsecraft.model.channel_choice import channel_mask
from sparsecraft.model.channels import channel_groups, from_scratch, prune_channels, unit_masks
from sparsecraft.model.compaction import compact
from sparsecraft.model.flops import count_flops

IMAGE = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).sin().view(2, 3, 8, 8)


class Network(nn.Module):
    """Depthwise, residual, two readers of one layer, and a linear layer after flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depth_norm = nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.right, self.right_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.hidden_norm = nn.Linear(6 * 4, 10), nn.BatchNorm1d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.depth_norm(self.depth(x)))
        x = F.relu(self.left_norm(self.left(x)) + self.right_norm(self.right(x)))
        x = F.adaptive_max_pool2d(x, 2).flatten(1)
        return self.head(F.relu(self.hidden_norm(self.hidden(x))))


def randomized(model, seed=0):
    torch.manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.3, 1.3)
                if name.endswith(("bias", "running_mean")):
                    tensor.sub_(0.8)
    return model


def network():
    return randomized(Network())


def bits(text):
    return torch.tensor([letter == "1" for letter in text])


MASKS = {
    "norm": bits("11010110"),
    "depth_norm": bits("11010110"),
    "left_norm": bits("011011"),
    "right_norm": bits("011011"),
    "hidden_norm": bits("1010101010"),
}


def silenced(model, masks, shift=True):
    """Returns a copy in which the scales of the channels to remove are zero, and their shifts."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep in masks.items():
            norm = model.get_submodule(name)
            norm.weight[~keep] = 0
            if shift:
                norm.bias[~keep] = 0
    return model


def test_groups_name_the_normalisations_that_share_channels():
    groups = {group.name: group.norms for group in channel_groups(network(), IMAGE)}
    assert groups == {
        "stem": ("norm", "depth_norm"),
        "left": ("left_norm", "right_norm"),
        "hidden": ("hidden_norm",),
    }


def test_removal_is_exact_where_scale_and_shift_are_zero():
    model = network()
    smaller, index_map = prune_channels(model, MASKS, example_input=IMAGE)
    with torch.no_grad():
        expected, found = silenced(model, MASKS)(IMAGE), smaller(IMAGE)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert (smaller.depth.groups, smaller.depth.in_channels) == (5, 5)
    assert smaller.left.weight.shape == (4, 5, 1, 1)  # the two readers of one layer
    assert smaller.right.weight.shape == (4, 5, 3, 3)
    assert smaller.hidden.weight.shape == (5, 4 * 4)
    positions = [4 * channel + place for channel in (1, 2, 4, 5) for place in range(4)]
    assert index_map["hidden.weight"][1].tolist() == positions
    assert index_map["hidden.weight"][0].tolist() == [0, 2, 4, 6, 8]
    assert count_flops(smaller.float(), IMAGE.float()) < 0.6 * count_flops(
        network().float(), IMAGE.float()
    )


def test_the_index_map_makes_the_same_shapes_again():
    smaller, index_map = prune_channels(network(), MASKS, example_input=IMAGE)
    again, second = compact(network(), index_map.keep, IMAGE)
    shapes = {name: tensor.shape for name, tensor in smaller.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert second.keys() == index_map.keys()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again.eval()(IMAGE), smaller.eval()(IMAGE))


def test_masks_by_the_name_of_the_scale_and_layers_left_out():
    smaller, _ = prune_channels(
        network(), {"hidden_norm.weight": MASKS["hidden_norm"]}, example_input=IMAGE
    )
    assert (smaller.hidden.out_features, smaller.stem.out_channels) == (5, 8)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_a_transformers_resnet_keeps_its_outputs(layer_type):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[12, 20], depths=[2, 2],
        layer_type=layer_type, num_labels=4,
    )  # fmt: skip
    model = randomized(transformers.ResNetForImageClassification(config))
    images = {"pixel_values": torch.rand(2, 3, 32, 32, dtype=torch.float64)}
    masks = channel_mask(model, "quantile", sparsity=0.4, example_input=images)
    assert 0.2 < 1 - masks.density < 0.6
    sparse = silenced(model, masks)
    smaller, index_map = prune_channels(sparse, masks, example_input=images)
    with torch.no_grad():
        expected, found = sparse(**images).logits, smaller(**images).logits
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert index_map.report.parameters_after < 0.75 * index_map.report.parameters_before
    several = [group for group in channel_groups(model, images) if len(group.norms) > 1]
    assert several  # the shortcuts tie normalisations
    for group in several:
        assert len({tuple(masks[name].tolist()) for name in group.norms}) == 1


def test_the_digits_network():
    digits = pytest.importorskip("sparsecraft.lab.claims.digits")
    model = randomized(digits.convolutional(12, 24, seed=0))
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    masks = channel_mask(model, sparsity=0.5, example_input=images)
    assert masks.numel == 60 and masks.kept == 30
    sparse = silenced(model, masks)
    smaller, _ = prune_channels(sparse, masks, example_input=images)
    torch.testing.assert_close(smaller(images), sparse(images), atol=1e-10, rtol=0)


def test_ties_by_vote_and_by_intersection():
    model = network()
    masks = {"left_norm": bits("001011"), "right_norm": bits("101001")}
    groups = channel_groups(model, IMAGE)
    voted = unit_masks(model, masks, groups, tie="vote")["left"]
    assert "".join(str(int(keep)) for keep in voted) == "001001"
    common = unit_masks(model, masks, groups, tie="intersection")["left"]
    assert "".join(str(int(keep)) for keep in common) == "101011"
    # One that is left out keeps everything, and a vote then removes nothing.
    alone = unit_masks(model, {"left_norm": bits("001011")}, groups, tie="vote")["left"]
    assert bool(alone.all())


def test_a_normalisation_may_span_several_groups_or_several_places_of_one():
    class Joined(nn.Module):
        """Two branches side by side under one BatchNorm, and one behind the flatten."""

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
            self.norm, self.conv = nn.BatchNorm2d(9), nn.Conv2d(9, 3, 1)
            self.flat_norm, self.head = nn.BatchNorm1d(3 * 4), nn.Linear(3 * 4, 2)

        def forward(self, x):
            x = F.relu(self.norm(torch.cat([self.one(x), self.two(x)], 1)))
            x = F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).flatten(1)
            return self.head(self.flat_norm(x))

    model = randomized(Joined())
    masks = {"norm": bits("101101011"), "flat_norm": bits("111100001111")}
    sparse = silenced(model, masks)
    smaller, _ = prune_channels(sparse, masks, example_input=IMAGE)
    torch.testing.assert_close(smaller(IMAGE), sparse(IMAGE), atol=1e-10, rtol=0)
    sizes = (smaller.one.out_channels, smaller.two.out_channels, smaller.conv.out_channels)
    assert sizes == (3, 3, 2)
    with pytest.raises(InvalidValue, match="share channels"):
        prune_channels(model, {"flat_norm": bits("111100011111")}, example_input=IMAGE)
    chosen = channel_mask(model, sparsity=0.4, example_input=IMAGE)["flat_norm"].view(3, 4)
    assert bool((chosen.all(1) | ~chosen.any(1)).all())  # all places of a channel alike


def test_scores_choose_the_channels():
    model = network()
    with torch.no_grad():
        model.hidden_norm.weight.copy_(torch.arange(10, 0, -1))
        model.hidden.weight.copy_(torch.arange(1.0, 11.0)[:, None] * torch.ones(10, 24))
    by_scale = channel_mask(model, "ratio", sparsity=0.5, example_input=IMAGE)["hidden_norm"]
    by_filter = channel_mask(
        model, "ratio", sparsity=0.5, score="filter norm", example_input=IMAGE
    )["hidden_norm"]
    assert torch.equal(by_scale, torch.arange(10) < 5)
    assert torch.equal(by_filter, torch.arange(10) >= 5)
    draws = [
        channel_mask(model, sparsity=0.5, score="random", seed=seed, example_input=IMAGE)
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_a_filter_norm_needs_a_filter():
    class Lone(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = (
                nn.Conv2d(1, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            return self.two(self.norm(F.relu(self.one(x))))

    with pytest.raises(InvalidValue, match="Use score='scale'"):
        channel_mask(Lone(), score="filter norm")
    with pytest.raises(UnknownName, match="filter norm"):
        channel_mask(Lone(), score="filter")


def test_masks_that_do_not_fit_are_refused():
    def prune(masks):
        prune_channels(network(), masks, example_input=IMAGE)

    with pytest.raises(InvalidValue, match=r"norm: the mask is torch.bool of shape \(3,\)"):
        prune({"norm": bits("101")})
    with pytest.raises(InvalidValue, match="True for each channel that is kept"):
        prune({"norm": torch.ones(8, dtype=torch.uint8)})
    with pytest.raises(UnknownName, match="Did you mean 'left_norm'"):
        prune({"left_nrm": bits("101010")})
    with pytest.raises(UnknownName, match="BatchNorm layer 'stem'"):
        prune({"stem": bits("10101010")})
    with pytest.raises(InvalidValue, match="removes all 10"):
        prune({"hidden_norm": bits("0" * 10)})
    with pytest.raises(InvalidValue, match=r"left_norm and right_norm share .* 2 places"):
        prune({"left_norm": bits("111100"), "right_norm": bits("110110")})
    with pytest.raises(InvalidValue, match="tie='vote'"):
        prune({"left_norm": bits("111100")})


def test_a_layer_without_scale_and_a_layer_at_the_output_are_refused():
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4),
    ).double()  # fmt: skip
    with pytest.raises(InvalidValue, match="affine=False"):
        prune_channels(plain, {"1": bits("1010")}, example_input=IMAGE)
    with pytest.raises(InvalidValue, match=r"5: 2 of the channels .* reach the model's output"):
        prune_channels(plain, {"5": bits("1010")}, example_input=IMAGE)
    assert list(channel_mask(plain, example_input=IMAGE)) == ["3"]
    with pytest.raises(NoMatch, match="1 such BatchNorm"):
        channel_groups(
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))
        )


def test_scales_that_are_not_finite_are_refused():
    model = network()
    with torch.no_grad():
        model.norm.weight[2] = float("inf")
    with pytest.raises(NonFinite, match="norm: the scale"):
        channel_mask(model, example_input=IMAGE)


def test_from_scratch_keeps_shapes_only_and_the_random_state():
    smaller, _ = prune_channels(network(), MASKS, example_input=IMAGE)
    torch.manual_seed(5)
    one, other = from_scratch(smaller, 1), from_scratch(smaller, 1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    for (name, mine), same, old in zip(
        one.state_dict().items(),
        other.state_dict().values(),
        smaller.state_dict().values(),
        strict=True,
    ):
        assert mine.shape == old.shape and torch.equal(mine, same), name
    assert not torch.equal(one.stem.weight, smaller.stem.weight)
    assert bool((one.norm.weight == 1).all())

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with pytest.raises(InvalidValue, match="cannot start anew"):
        from_scratch(Own())
