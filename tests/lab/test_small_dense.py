"""The narrower dense control: as many parameters as asked, in any architecture with units."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import BudgetError, InvalidValue, NoMatch
from sparsecraft.lab.small_dense import small_dense
from sparsecraft.lab.tasks.networks import Perceptron, small_resnet, small_vit


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


PIXELS = {"pixel_values": torch.linspace(-1, 1, 128).view(2, 1, 8, 8)}
LARGE = {"pixel_values": torch.linspace(-1, 1, 2 * 32 * 32).view(2, 1, 32, 32)}
WORDS = {"input_ids": torch.arange(16).view(2, 8)}


@pytest.mark.parametrize(
    ("build", "example", "density"),
    [
        (lambda: Perceptron(64, 256, 256, 10), PIXELS, 0.1),
        (lambda: Perceptron(64, 256, 256, 10), PIXELS, 0.5),
        (lambda: small_vit(pixels=8, patch=2, channels=1, classes=10), PIXELS, 0.5),
        (lambda: small_vit(pixels=8, patch=2, channels=1, classes=10), PIXELS, 0.3),
        (lambda: small_resnet(channels=1, classes=5), LARGE, 0.2),
        (llama, WORDS, 0.6),
    ],
    ids=["mlp 0.1", "mlp 0.5", "vit 0.5", "vit 0.3", "resnet 0.2", "llama 0.6"],
)
def test_the_number_of_parameters_is_met_within_one_percent(build, example, density):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = round(density * parameters(model))
    found = small_dense(model, wanted, example)
    assert parameters(found.model) == found.parameters
    assert found.wanted == wanted
    assert abs(found.residual) < 0.01
    assert found.residual == pytest.approx(found.parameters / wanted - 1)
    found.model(**example)  # it runs
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_widths_go_by_the_root_of_the_density():
    model = nn.Sequential(
        nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400)
    )
    # Inputs and outputs stay: with hidden width w there are 800 w + w^2 weights.
    wanted = 801 * 100 + 100 * 101 + 400
    found = small_dense(model, wanted)
    assert found.widths == {"0": (100, 400), "2": (100, 400)}
    assert found.residual == 0


def test_a_handful_of_parameters_is_counted_right():
    # 8 k + k + 4 k + 4 = 13 k + 4 parameters: 199 with 15 units, 212 with 16.
    wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    assert small_dense(wide, 199).parameters == 199
    assert small_dense(wide, 205).parameters == 199
    assert small_dense(wide, 206).parameters == 212
    whole = small_dense(wide, 13 * 64 + 4)
    assert whole.widths == {"0": (64, 64)}
    assert torch.equal(whole.model[0].weight, wide[0].weight)


def test_the_seed_chooses_the_units_and_they_keep_their_weights():
    wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    one, again, other = (small_dense(wide, 199, seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(one[0].weight, again[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    rows = {tuple(row.tolist()) for row in wide[0].weight}
    assert all(tuple(row.tolist()) in rows for row in one[0].weight)


def test_what_cannot_be_is_said():
    wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    with pytest.raises(BudgetError, match=r"cannot be cut to 10 parameters: .* 17 are left"):
        small_dense(wide, 10)
    with pytest.raises(InvalidValue, match="of 837 parameters cannot be made of one that has 836"):
        small_dense(wide, 837)
    with pytest.raises(NoMatch):
        small_dense(nn.Sequential(nn.Linear(8, 8)), 30)
