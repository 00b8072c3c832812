"""Gradients of the model's loss at a hook: right numbers, and a clear word where there are none."""

import pytest
import torch
import torch.nn.functional as F
from tests.models import tiny_bert, tiny_gpt2, tiny_llama
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.activation_store import ActivationStore

TOKENS = torch.randint(3, 64, (6, 10), generator=torch.Generator().manual_seed(0))
HOOK = "blocks.0.hook_resid_post"


def of_whole_model(model, block, tokens, special):
    """Returns activations and gradients by autograd through the whole model."""
    seen = []

    def keep(module, args, output):
        output.retain_grad()
        seen.append(output)

    with block.register_forward_hook(keep):
        logits = model(input_ids=tokens).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    losses[~torch.isin(tokens[:, 1:].flatten(), torch.tensor(special))].sum().backward()
    model.zero_grad()
    return seen[0].detach().flatten(0, 1), seen[0].grad.flatten(0, 1)


@pytest.mark.parametrize("special", [[], [3, 4, 5, 6, 7, 8]])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_they_are_those_of_the_summed_next_token_loss(make, special):
    model = make()
    store = ActivationStore(
        model, at=HOOK, tokens=TOKENS, gradients=True, skip_special=special, batch_size=4
    )
    blocks = model.model.layers if make is tiny_llama else model.transformer.h
    x, gradient = of_whole_model(model, blocks[0], TOKENS, special)
    kept = ~torch.isin(TOKENS.flatten(), torch.tensor(special))
    found = store.rows(torch.arange(len(store)))
    torch.testing.assert_close(found.x, x[kept])
    torch.testing.assert_close(found.gradient, gradient[kept], atol=1e-6, rtol=1e-4)
    assert len(store) == int(kept.sum())


def test_with_a_target_they_are_those_of_the_target(tmp_path):
    model = tiny_llama()
    at, to = "model.layers.0.mlp.input", "model.layers.0.mlp.output"
    options = {"tokens": TOKENS, "gradients": True, "skip_special": []}
    store = ActivationStore(model, at=at, to=to, path=tmp_path / "store", **options)
    y, gradient = of_whole_model(model, model.model.layers[0].mlp, TOKENS, [])
    found = store.rows(torch.arange(60))
    torch.testing.assert_close(found.target, y)
    torch.testing.assert_close(found.gradient, gradient, atol=1e-6, rtol=1e-4)
    assert store.info["gradient_place"] == "model.layers.0.mlp.output"
    plain = ActivationStore(model, at=at, **options).rows(torch.arange(60))
    torch.testing.assert_close(found.x, plain.x)
    assert not torch.allclose(found.gradient, plain.gradient, atol=1e-3)


def test_batch_size_does_not_change_them():
    model = tiny_llama()
    one, six = (
        ActivationStore(model, at=HOOK, tokens=TOKENS, gradients=True, batch_size=n) for n in (1, 6)
    )
    index = torch.arange(60)
    torch.testing.assert_close(one.rows(index).gradient, six.rows(index).gradient)


def test_the_model_is_left_as_it_was():
    model = tiny_llama()
    model.train()
    model.lm_head.weight.requires_grad_(False)
    ActivationStore(model, at=HOOK, tokens=TOKENS, gradients=True)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["lm_head.weight"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_several_places_get_theirs_in_one_pass():
    model = tiny_llama()
    names = [HOOK, "blocks.1.hook_resid_post"]
    stores = ActivationStore.harvest_many(model, at=names, tokens=TOKENS, gradients=True)
    for number, name in enumerate(names):
        x, gradient = of_whole_model(model, model.model.layers[number], TOKENS, [])
        found = stores[name].rows(torch.arange(60))
        torch.testing.assert_close(found.x, x)
        torch.testing.assert_close(found.gradient, gradient, atol=1e-6, rtol=1e-4)


def test_an_own_loss_on_an_own_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    batches, labels = [torch.randn(7, 4)], torch.randint(3, (7,))

    def loss(output, batch):
        assert batch["inputs"].shape == (7, 4)
        return F.cross_entropy(output, labels, reduction="sum")

    store = ActivationStore(model, at="0", batches=batches, gradients=True, loss=loss)
    with torch.no_grad():
        error = model(batches[0]).softmax(1) - F.one_hot(labels, 3)
        expected = error @ model[1].weight
    torch.testing.assert_close(store.rows(torch.arange(7)).gradient, expected)


def test_under_no_grad_it_says_so():
    message = r"gradients=True was asked for under torch\.no_grad"
    with torch.no_grad(), pytest.raises(InvalidValue, match=message):
        ActivationStore(tiny_llama(), at=HOOK, tokens=TOKENS, gradients=True)
    with torch.inference_mode(), pytest.raises(InvalidValue, match="inference_mode"):
        ActivationStore(tiny_llama(), at=HOOK, tokens=TOKENS, gradients=True)


def test_an_encoder_needs_a_loss():
    with pytest.raises(InvalidValue, match=r"BertModel is no causal language model.*loss="):
        ActivationStore(tiny_bert(), at="encoder.layer.0", tokens=TOKENS, gradients=True)


class Closed(nn.Module):
    """Runs its second layer without gradients."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.first(x)
        with torch.no_grad():
            return self.second(x)


def harvest(model, loss, **options):
    return ActivationStore(
        model, batches=[torch.ones(5, 4)], gradients=True, loss=loss, **{"at": "0", **options}
    )


def test_a_model_that_runs_without_gradients_is_told_apart():
    with pytest.raises(InvalidValue, match="runs under no_grad, detaches"):
        harvest(Closed(), lambda output, batch: output.sum(), at="first")


def test_a_loss_must_be_one_number():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InvalidValue, match="one number"):
        harvest(model, lambda output, batch: output)


def test_gradients_that_are_all_zero_are_an_error():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InvalidValue, match=r"all gradients at 0\.output are zero"):
        harvest(model, lambda output, batch: (output * 0).sum())


def test_gradients_that_are_not_finite_name_their_contexts():
    model = nn.Sequential(nn.Linear(4, 4))
    batches = [torch.ones(5, 4)]
    scale = torch.ones(5, 1)
    scale[3] = float("nan")

    def loss(output, batch):
        return (output * scale).sum()

    with pytest.raises(NonFinite, match=r"gradients at 0\.output: context 3, positions \[0\]"):
        harvest(model, loss)
    store = ActivationStore(
        model, at="0", batches=batches, gradients=True, loss=loss, skip_non_finite=True
    )
    assert len(store) == 4 and store.report.non_finite == 1
