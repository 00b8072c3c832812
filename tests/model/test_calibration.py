"""Statistics are gathered block by block, with the blocks before pruned already."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic, NonFinite
from sparsecraft.core.statistics import Hessian, InputNorm
from sparsecraft.model.calibration import stages
from sparsecraft.model.targets import find_targets


class Block(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.up = nn.Linear(width, width)

    def forward(self, hidden_states, scale=1.0, past_key_values=None):
        mixed = torch.tanh(self.q(hidden_states) * self.k(hidden_states)) * scale
        return hidden_states + self.up(mixed)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 3)

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(2, 5, 6, generator=generator)} for _ in range(n)]


def by_hand(inputs):
    """sqrt((1/n) sum over sequences and tokens of x^2)."""
    stacked = torch.cat([x.flatten(0, 1) for x in inputs])
    return (stacked.square().sum(0) / sum(len(x) for x in inputs)).sqrt()


def test_the_second_block_sees_what_the_pruned_first_one_gives():
    model, data = Net(), batches()
    targets = find_targets(model)
    with torch.no_grad():
        for stage in stages(model, targets, (InputNorm,), data):
            if stage.name == "blocks.0":
                expected = by_hand([b["x"] for b in data])
                torch.testing.assert_close(stage.values["blocks.0.q"][InputNorm], expected)
                model.blocks[0].up.weight.zero_()
                model.blocks[0].q.bias.add_(1)
            else:
                fed_on = [model.blocks[0](b["x"], scale=0.5) for b in data]
                torch.testing.assert_close(stage.values["blocks.1.q"][InputNorm], by_hand(fed_on))


def test_layers_with_one_input_share_one_statistic():
    model = Net()
    stage = next(iter(stages(model, find_targets(model), (Hessian,), batches())))
    assert stage.values["blocks.0.q"][Hessian] is stage.values["blocks.0.k"][Hessian]
    assert stage.values["blocks.0.q"][Hessian] is not stage.values["blocks.0.up"][Hessian]


def test_padding_does_not_count():
    model, data = Net(), batches(1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    short = [{**data[0], "attention_mask": mask}]
    stage = next(iter(stages(model, find_targets(model), (InputNorm,), short)))
    x = data[0]["x"]
    expected = (torch.cat([x[0, :3], x[1]]).square().sum(0) / 2).sqrt()
    torch.testing.assert_close(stage.values["blocks.0.q"][InputNorm], expected)


def test_a_network_without_blocks_is_walked_layer_by_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    wrapped = Wrapped(model)
    data = [{"x": torch.randn(7, 4)}]
    seen = []
    with torch.no_grad():
        for stage in stages(wrapped, find_targets(wrapped), (InputNorm,), data):
            seen.append(stage.name)
            if stage.name == "inner.0":
                model[0].weight.zero_()
                model[0].bias.fill_(2.0)
    assert seen == ["inner.0", "inner.2"]
    torch.testing.assert_close(stage.values["inner.2"][InputNorm], torch.full((4,), 2.0))


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_convolutions_see_their_patches():
    conv = Wrapped(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2)))
    x = torch.randn(2, 2, 6, 6)
    stage = next(iter(stages(conv, find_targets(conv), (Hessian,), [{"x": x}])))
    columns = torch.nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2)
    # A matrix's columns are kernel positions, each with all channels.
    columns = columns.view(2, 9, 2, 9).transpose(2, 3).flatten(2)
    expected = sum(c.T @ c for c in columns) * 2 / 2
    torch.testing.assert_close(stage.values["inner.0"][Hessian], expected)


def test_a_convolutions_matrix_times_its_patches_is_what_it_computes():
    conv = Wrapped(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False)))
    x = torch.randn(1, 2, 4, 4)
    found = find_targets(conv)
    norms = next(iter(stages(conv, found, (InputNorm,), [{"x": x}]))).values["inner.0"][InputNorm]
    columns = torch.nn.functional.unfold(x, 3, padding=1)[0].view(2, 9, 16).transpose(0, 1)
    patches = columns.flatten(0, 1)  # (kernel positions * channels, places)
    torch.testing.assert_close(norms, patches.square().sum(1).sqrt())
    matrix = found[0].matrix(conv.inner[0].weight.detach())
    torch.testing.assert_close(matrix @ patches, conv.inner[0](x).flatten(2)[0])


def test_grouped_convolutions_are_refused_with_the_way_out():
    conv = Wrapped(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))
    data = [{"x": torch.randn(1, 4, 6, 6)}]
    with pytest.raises(InvalidValue, match="groups=1"):
        list(stages(conv, find_targets(conv), (InputNorm,), data))


def test_the_mode_of_the_model_is_restored_and_its_weights_untouched():
    model = Net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    list(stages(model, find_targets(model), (InputNorm,), batches()))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_data_and_bad_data():
    model = Net()
    with pytest.raises(MissingStatistic, match="--calibration"):
        list(stages(model, find_targets(model), (InputNorm,), []))
    bad = batches()
    bad[1]["x"][0, 0, 0] = float("nan")
    with pytest.raises(NonFinite, match=r"blocks\.0\.q"):
        list(stages(model, find_targets(model), (InputNorm,), bad))


def test_progress_names_every_block():
    seen = []
    model = Net()
    report = lambda name, done, total: seen.append((name, done, total))  # noqa: E731
    list(stages(model, find_targets(model, "blocks.*"), (InputNorm,), batches(), report))
    assert seen == [("blocks.0", 0, 2), ("blocks.1", 1, 2), ("blocks.1", 2, 2)]
