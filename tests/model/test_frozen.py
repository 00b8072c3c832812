"""Masked weights stay exactly zero, and the survivors train as if the mask were in the forward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask
from sparsecraft.core.seeds import generator
from sparsecraft.model.frozen import hold_mask

OPTIMISERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adam with l2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.9),
}


class Product(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight):
        return weight * self.keep


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def some_mask(model, density=0.4):
    return Mask(
        {
            name: torch.rand(p.shape, generator=generator(1, name)) < density
            for name, p in model.named_parameters()
            if p.dim() == 2
        }
    )


def train(model, optimizer, steps=25, clip=None):
    data = generator(2, "data")
    for _ in range(steps):
        x, y = torch.randn(16, 6, generator=data), torch.randint(3, (16,), generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_survivors_train_as_with_a_mask_in_the_forward(name, clip):
    held, reference = net(), net()
    mask = some_mask(held)
    optimizer = OPTIMISERS[name](held.parameters())
    hold_mask(held, mask, optimizer)
    train(held, optimizer, clip=clip)

    for key, keep in mask.items():
        parametrize.register_parametrization(
            reference.get_submodule(key.split(".")[0]), "weight", Product(keep)
        )
    train(reference, OPTIMISERS[name](reference.parameters()), clip=clip)

    for key, keep in mask.items():
        weight = held.get_parameter(key)
        assert (weight[~keep] == 0).all()
        expected = reference.get_submodule(key.split(".")[0]).weight
        torch.testing.assert_close(weight[keep], expected[keep], rtol=1e-5, atol=1e-7)
    for key in ("0.bias", "2.bias"):
        torch.testing.assert_close(
            held.get_parameter(key), reference.get_parameter(key), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("name", OPTIMISERS)
def test_moments_from_a_dense_phase_cannot_revive_a_weight(name):
    model = net()
    optimizer = OPTIMISERS[name](model.parameters())
    train(model, optimizer)
    mask = some_mask(model)
    hold_mask(model, mask, optimizer)
    train(model, optimizer, steps=3)
    mask.verify(dict(model.named_parameters()))
    for key, keep in mask.items():
        for value in optimizer.state[model.get_parameter(key)].values():
            if value.shape == keep.shape:
                assert (value[~keep] == 0).all()


def test_a_loaded_optimiser_state_is_cleared():
    model = net()
    optimizer = OPTIMISERS["momentum"](model.parameters())
    train(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    mask = some_mask(model)
    hold_mask(model, mask, optimizer)
    optimizer.load_state_dict(state)
    train(model, optimizer, steps=1)
    mask.verify(dict(model.named_parameters()))
    for key, keep in mask.items():
        momentum = optimizer.state[model.get_parameter(key)]["momentum_buffer"]
        assert (momentum[~keep] == 0).all()
        assert (momentum[keep] != 0).any()


def test_gradients_set_by_hand_are_masked():
    model = net()
    optimizer = OPTIMISERS["momentum"](model.parameters())
    mask = some_mask(model)
    hold_mask(model, mask, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    mask.verify(dict(model.named_parameters()))
    for name, keep in mask.items():
        assert torch.equal(model.get_parameter(name).grad, keep.float())


def test_a_closure_is_masked_too():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    mask = some_mask(model)
    hold_mask(model, mask, optimizer)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        mask.verify({name: model.get_parameter(name).grad for name in mask})
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    mask.verify(dict(model.named_parameters()))
    assert losses[-1] < losses[0]


def test_remove_lets_go():
    model = net()
    optimizer = OPTIMISERS["momentum"](model.parameters())
    mask = some_mask(model)
    with hold_mask(model, mask, optimizer) as held:
        train(model, optimizer, steps=2)
        mask.verify(dict(model.named_parameters()))
    held.remove()
    train(model, optimizer, steps=2)
    with pytest.raises(InvalidValue, match="not zero"):
        mask.verify(dict(model.named_parameters()))


def test_another_optimiser_is_refused():
    model, other = net(), net()
    mask = some_mask(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValue, match="not trained by this optimiser"):
        hold_mask(model, mask, OPTIMISERS["adamw"](other.parameters()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_mask_of_another_model_is_refused():
    model = net()
    with pytest.raises(InvalidValue, match="not in the model"):
        hold_mask(
            model,
            Mask({"3.weight": torch.ones(3, 8, dtype=torch.bool)}),
            OPTIMISERS["adamw"](model.parameters()),
        )
