"""AdamS: bound to a Sparsifier, exact on resuming, precise in 16 bits, and never silently Adam."""

import copy

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock
from sparsecraft.model.adams import AdamS
from sparsecraft.model.sparsifier import Sparsifier

TARGET = "layer"


class Small(nn.Module):
    """A targeted layer and a head."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.to(dtype)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)))


def prepared(total=8, dtype=torch.float32, method="cast", rate=0.01, **options):
    """Returns model, sparsifier and optimiser of a training."""
    model = Small(dtype)
    sparsifier = Sparsifier(model, method, total_steps=total, targets=TARGET, **options)
    optimizer = AdamS(model.parameters(), lr=rate)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def train(model, sparsifier, optimizer, steps):
    """Takes these steps on batches that depend on the step."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(6, 8, generator=draw).to(model.head.weight.dtype)
        labels = torch.randint(3, (6,), generator=draw)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), labels) + sparsifier.loss()).backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["cast", "ast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_bit_equal(method, dtype):
    options = {"method": method, "dtype": dtype, "mask_every": 3}
    through = prepared(**options)
    train(*through, range(8))
    first = prepared(**options)
    train(*first, range(4))
    saved = copy.deepcopy([each.state_dict() for each in first])
    second = prepared(**options)
    for each, state in zip(second, saved, strict=True):
        each.load_state_dict(state)
    train(*second, range(4, 8))
    for name, value in through[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert through[1].mask == second[1].mask
    for a, b in zip(through[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert second[2].state[second[0].layer.weight]["mean"].dtype == torch.float32


def test_sixteen_bits_are_stepped_on_a_precise_copy():
    model, sparsifier, optimizer = prepared(100, torch.bfloat16, rate=1e-5)
    start = model.layer.weight.detach().clone()
    train(model, sparsifier, optimizer, range(1))
    large = start.abs() > 0.1
    assert torch.equal(model.layer.weight[large], start[large])  # one step is below the resolution
    precise = optimizer.state[model.layer.weight]["master"]
    assert precise.dtype == torch.float32
    assert not torch.equal(precise, start.float())
    train(model, sparsifier, optimizer, range(1, 100))
    assert not torch.equal(model.layer.weight[large], start[large])  # but many are not
    assert torch.equal(precise.bfloat16(), model.layer.weight)


def test_whoever_wrote_to_a_parameter_is_right():
    model, sparsifier, optimizer = prepared(3, torch.bfloat16)
    train(model, sparsifier, optimizer, range(1))
    with torch.no_grad():
        model.head.weight[0] = 7
    train(model, sparsifier, optimizer, range(1, 2))
    assert model.head.weight[0].min() > 6


def test_parameters_without_a_mask_get_plain_adam():
    model, sparsifier, optimizer = prepared(4)
    twin = nn.Linear(8, 3)
    twin.load_state_dict(model.head.state_dict())
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    for step in range(4):
        train(model, sparsifier, optimizer, [step])
        for mine, theirs in zip(twin.parameters(), model.head.parameters(), strict=True):
            mine.grad = theirs.grad.clone()
        adam.step()
    torch.testing.assert_close(twin.weight, model.head.weight)
    assert optimizer._keep.keys() == {model.layer.weight}


def test_the_first_step_has_no_pull():
    weights = []
    for lam in (0.0, 50.0):
        model, sparsifier, optimizer = prepared(10, lam=lam)
        train(model, sparsifier, optimizer, range(1))
        weights.append(model.layer.weight.detach().clone())
    assert torch.equal(*weights)


def test_it_takes_up_new_masks_without_being_told():
    model, sparsifier, optimizer = prepared(6, mask_every=2)
    for step in range(6):
        train(model, sparsifier, optimizer, [step])
        optimizer._refresh(sparsifier)
        assert torch.equal(optimizer._keep[model.layer.weight], sparsifier.mask["layer.weight"])


def test_a_step_before_attaching_is_an_error():
    model = Small()
    optimizer = AdamS(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    before = model.layer.weight.detach().clone()
    with pytest.raises(InvalidValue, match=r"AdamS has no masks: call sparsifier\.attach"):
        optimizer.step()
    assert torch.equal(model.layer.weight, before)


def test_a_copy_is_bound_to_nothing():
    model, sparsifier, optimizer = prepared(4)
    train(model, sparsifier, optimizer, range(2))
    copied = copy.deepcopy(optimizer)
    with pytest.raises(InvalidValue, match="no masks"):
        copied.step()


def test_a_step_beyond_the_total_is_an_error():
    model, sparsifier, optimizer = prepared(2)
    train(model, sparsifier, optimizer, range(2))
    with pytest.raises(InvalidValue, match="beyond total_steps=2"):
        train(model, sparsifier, optimizer, range(2, 3))
    sparsifier.finalize()
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(InvalidValue, match="step 2 lies outside the 2 steps"):
        optimizer.step()


@pytest.mark.parametrize("method", ["cast", "ast"])
def test_the_methods_refuse_another_optimiser(method):
    model = Small()
    sparsifier = Sparsifier(model, method, total_steps=2, targets=TARGET)
    with pytest.raises(InvalidValue, match="needs the optimiser AdamS, not AdamW"):
        sparsifier.attach(torch.optim.AdamW(model.parameters()))


def test_a_method_without_a_pull_is_an_error():
    model = Small()
    sparsifier = Sparsifier(model, "static", sparsity=0.5, total_steps=2, targets=TARGET)
    with pytest.raises(InvalidValue, match="AdamS would be plain Adam"):
        sparsifier.attach(AdamS(model.parameters()))


def test_a_target_without_mask_is_an_error():
    model, sparsifier, _ = prepared(2)
    sparsifier.layers[TARGET].mask = None
    with pytest.raises(InvalidValue, match="layer has no mask"):
        AdamS(model.parameters()).bind(sparsifier)


def test_a_mask_of_another_shape_is_an_error():
    class Flattened:
        method = type("Method", (), {"pull": None, "info": None})
        layers = {}  # noqa: RUF012
        mask = {"weight": torch.ones(4, 8, dtype=torch.bool)}  # noqa: RUF012
        model = nn.Linear(4, 8, bias=False)

    Flattened.layers = {"weight": type("Layer", (), {"mask": Flattened.mask["weight"]})}
    with pytest.raises(InvalidValue, match=r"shape \(4, 8\), the parameter \(8, 4\)"):
        AdamS(Flattened.model.parameters()).bind(Flattened)


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}]
)
def test_constants_out_of_range(settings):
    with pytest.raises(InvalidValue, match=f"AdamS\\({next(iter(settings))}="):
        AdamS([nn.Parameter(torch.zeros(1))], **settings)


def test_sparse_gradients_are_an_error():
    model, sparsifier, _ = prepared(2)
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = AdamS([*model.parameters(), *table.parameters()])
    optimizer.bind(sparsifier)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InvalidValue, match="no sparse gradients"):
        optimizer.step()


def test_a_closure_is_called():
    model, sparsifier, _ = prepared(2)
    optimizer = AdamS(model.parameters())
    optimizer.bind(sparsifier)

    def closure():
        loss = model(torch.ones(1, 8)).square().sum()
        loss.backward()
        return loss.item()

    before = model.head.bias.detach().clone()
    assert optimizer.step(closure) > 0
    assert not torch.equal(model.head.bias, before)


def test_decoupled_weight_decay():
    model, sparsifier, _ = prepared(2)
    optimizer = AdamS(model.parameters(), lr=0.1, weight_decay=0.5)
    optimizer.bind(sparsifier)
    start = model.head.weight.detach().clone()
    model.head.weight.grad = torch.zeros_like(start)
    optimizer.step()
    torch.testing.assert_close(model.head.weight.detach(), 0.95 * start)
    assert sparsifier.clock == Clock(0, 2, 0.01)
