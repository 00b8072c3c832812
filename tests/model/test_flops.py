import pytest
import torch
from tests.models import tiny_llama
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.mask import Mask
from sparsecraft.model.flops import count_flops, profile_flops
from sparsecraft.model.pruning import prune


def test_linear_and_convolution_by_hand():
    assert count_flops(nn.Linear(8, 4), torch.zeros(3, 8)) == 2 * 3 * 8 * 4
    conv = nn.Conv2d(3, 5, 3, padding=1, groups=1)
    assert count_flops(conv, torch.zeros(2, 3, 7, 7)) == 2 * 2 * 7 * 7 * 5 * 3 * 9


def test_llama_by_hand():
    model = tiny_llama(num_hidden_layers=1, num_key_value_heads=4)
    width, hidden, vocabulary, tokens = 32, 64, 64, 10
    matrices = 4 * width * width + 3 * width * hidden + width * vocabulary
    attention = 2 * 2 * tokens * tokens * width  # scores and their weighted sum, all pairs
    ids = torch.ones(1, tokens, dtype=torch.long)
    found = count_flops(model, {"input_ids": ids})
    assert found == 2 * tokens * matrices + attention


def test_each_masked_layer_counts_by_its_density():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.zeros(1, 4)
    keep = torch.zeros(8, 4, dtype=torch.bool)
    keep[:2] = True
    mask = Mask({"0.weight": keep})
    assert count_flops(model, x) == 2 * (32 + 16)
    assert count_flops(model, x, mask=mask) == 2 * (8 + 16)


def test_two_masked_parameters_of_one_module_share_their_mean_density():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.a @ self.b

    mask = Mask({"a": torch.ones(4, 4).bool(), "b": torch.zeros(4, 4).bool()})
    assert count_flops(Pair(), torch.zeros(1, 4)) == 64
    assert count_flops(Pair(), torch.zeros(1, 4), mask=mask) == 32


def test_half_of_every_block_leaves_attention_and_head_whole():
    model = tiny_llama()
    inputs = {"input_ids": torch.ones(1, 10, dtype=torch.long)}
    dense = count_flops(model, inputs)
    report = prune(model, "magnitude", sparsity=0.5)
    saved = dense - count_flops(model, inputs, mask=report.mask)
    assert saved == 2 * 10 * (report.mask.numel - report.mask.kept)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train(training)
    count_flops(model, torch.zeros(1, 4))
    assert model.training is training
    assert model[1].training is training


def test_densities_in_place_of_a_mask():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.zeros(1, 4)
    assert count_flops(model, x, densities={"0.weight": 0.25}) == 2 * (8 + 16)
    profile = profile_flops(model, (x,))
    assert profile.modules["0"] == 64 and profile.modules["2"] == 32
    assert profile.effective({"0.weight": 0.25, "2.weight": 0.5}) == 2 * (8 + 8)
    assert profile.effective({}) == profile.total == 96


def test_unknown_densities_and_two_answers_are_refused():
    model, x = nn.Sequential(nn.Linear(4, 8)), torch.zeros(1, 4)
    with pytest.raises(UnknownName, match=r"Unknown parameter '0.wieght'. Did you mean '0.weight'"):
        count_flops(model, x, densities={"0.wieght": 0.5})
    with pytest.raises(InvalidValue, match="give one of them"):
        count_flops(model, x, mask=Mask({}), densities={})
