"""Top-k activations: what they keep, what trains, where they are put, that they are saved."""

import copy

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests.models import ARCHITECTURES, batches_for, tiny_cnn, tiny_gpt2, tiny_mlp, tiny_opt
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sparsecraft.core.errors import CheckpointError, InvalidValue, NoMatch, UnknownName
from sparsecraft.lab.claims.source_bytes import byte_model
from sparsecraft.model.activation_sparsity import ActivationMonitor
from sparsecraft.model.checkpoints import load, save
from sparsecraft.model.topk_mlp import TopKActivation, TopKMLP, apply_topk, replace_activations


def test_each_token_keeps_its_own_largest_and_of_equal_ones_the_first():
    x = torch.tensor([[[1.0, 5.0, 3.0, -9.0], [2.0, 2.0, 2.0, 2.0], [-1.0, 0.5, -2.0, -0.0]]])
    found = TopKActivation(nn.ReLU(), k=2)(x)
    assert found.tolist() == [[[0.0, 5.0, 3.0, 0.0], [2.0, 2.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]]]


@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_laws(k, seed, dtype):
    """At most k non-zeros; k of all is ReLU; units may be permuted; dropped units do not train."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 12, generator=draws).to(dtype).requires_grad_()
    layer = TopKActivation(nn.ReLU(), k=k)
    kept = layer(x)
    assert int((kept != 0).sum(-1).max()) <= k
    assert torch.equal(kept[kept != 0], x[kept != 0])
    assert torch.equal(TopKActivation(nn.ReLU(), k=12)(x), x.relu())
    assert torch.equal(layer(kept), kept)
    kept.sum().backward()
    assert torch.equal(x.grad, (kept != 0).to(dtype))
    if dtype == torch.float32:  # without ties
        order = torch.randperm(12, generator=draws)
        assert torch.equal(layer(x[:, order]), kept[:, order])


def test_other_activations_keep_the_largest_magnitudes():
    x = torch.tensor([[-3.0, 0.1, 2.0]])
    assert TopKActivation(nn.Tanh(), k=1)(x).nonzero().tolist() == [[0, 0]]
    fraction = TopKActivation(nn.ReLU(), fraction=0.5)
    assert int((fraction(torch.ones(1, 7)) != 0).sum()) == 4


def test_a_layer_of_ones_own():
    layer = TopKMLP(4, 8, k=2, bias=False)
    assert sorted(layer.state_dict()) == ["first.weight", "second.weight"]
    plain = TopKMLP(4, 8, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.hidden(x).topk(2).values.sum(), layer.hidden(x).topk(2).values.sum())
    assert not torch.equal(plain(x), layer(x))
    with pytest.raises(InvalidValue, match="k=9 exceeds the 8 entries"):
        TopKMLP(4, 8, k=9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_saved_and_loaded_with_it(name, tmp_path):
    model = ARCHITECTURES[name]()
    keys = list(model.state_dict())
    (batch,) = batches_for(model, count=1)
    report = apply_topk(model, k=5)
    assert list(model.state_dict()) == keys
    assert {row[1:3] for row in report.layers} == {(5, 128 if name == "gpt2" else 64)}
    assert report.label == "trained with top-k"
    assert report.notes == () if name == "opt" else "was replaced by relu" in report.notes[0]
    layers = ActivationMonitor(model).measure([batch]).layers
    assert max(layer.quantiles[2] for layer in layers) == 5
    save(model, tmp_path / "saved", form="augmented")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved")(**batch)[0], model(**batch)[0])


def test_a_plain_form_would_lose_it_and_is_refused(tmp_path):
    model = tiny_opt()
    apply_topk(model, fraction=0.25)
    with pytest.raises(CheckpointError, match=r'top-k activation, which .*form="augmented"'):
        save(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_all_but_the_kept_units_are_out_of_the_training():
    model = tiny_opt(seed=1)
    apply_topk(model, k=3)
    (batch,) = batches_for(model, count=1, rows=1)
    batch = {key: value[:, :2] for key, value in batch.items()}
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradient = model.model.decoder.layers[1].fc1.weight.grad
    trained = int((gradient.abs().sum(1) > 0).sum())
    assert 0 < trained <= 2 * 3


def test_checkpointed_copied_and_compiled_it_computes_the_same():
    layer = TopKMLP(6, 24, k=4)
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = layer(x)
    (plain,) = torch.autograd.grad(expected.sum(), x)
    (again,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    assert torch.equal(plain, again)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(torch.compile(layer, backend="eager")(x), expected)


def test_ranks_train_it_as_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        layer, x = TopKMLP(6, 24, k=4), torch.ones(2, 6)
        layer(x).sum().backward()
        alone = layer.first.weight.grad.clone()
        layer.zero_grad()
        DistributedDataParallel(layer)(x).sum().backward()
        assert torch.equal(layer.first.weight.grad, alone)
    finally:
        dist.destroy_process_group()


def test_bad_settings_leave_the_model_alone():
    model = tiny_gpt2()
    before = str(model)
    for options, message in (
        ({"k": 0}, "k=0"),
        ({"k": 129}, "k=129 exceeds the 128 entries of the activation of transformer.h.0.mlp"),
        ({"k": 1.5}, "k=1.5"),
        ({"k": 3, "fraction": 0.5}, "both"),
        ({}, "neither"),
    ):
        with pytest.raises(InvalidValue, match=message):
            apply_topk(model, **options)
    with pytest.raises(UnknownName, match=r"'rellu'\. Did you mean 'relu'"):
        apply_topk(model, k=2, replace_activation="rellu")
    assert str(model) == before
    apply_topk(model, k=2)
    with pytest.raises(InvalidValue, match="has top-k already: k=2"):
        apply_topk(model, k=4)


def test_what_cannot_have_it_is_named():
    with pytest.raises(NoMatch, match=r"blocks\.0: left dense, its activation is a function"):
        apply_topk(byte_model(1, 32, 0), k=2)
    with pytest.raises(NoMatch, match="belongs to no MLP"):
        apply_topk(tiny_cnn(), k=2)
    half = tiny_opt()
    del half.model.decoder.layers[0].activation_fn
    half.model.decoder.layers[0].activation_fn = torch.relu
    report = apply_topk(half, k=2)
    assert [row[0] for row in report.layers] == ["model.decoder.layers.1"]
    assert "model.decoder.layers.0: left dense" in report.notes[0]


def test_targets_and_a_network_without_blocks():
    model = tiny_opt()
    assert [row[0] for row in apply_topk(model, k=2, targets="*.1").layers] == [
        "model.decoder.layers.1"
    ]
    net = tiny_mlp()
    apply_topk(net, fraction=0.25, replace_activation=None)
    assert int((net[:2](torch.randn(9, 12)) != 0).sum(-1).max()) <= 4


def test_post_hoc_is_said():
    report = apply_topk(tiny_opt(), k=2, post_hoc=True)
    assert report.label == "top-k post hoc"
    assert report.to_json()["label"] == "top-k post hoc"
    assert "not trained with it" in report.notes[-1]


def test_replaced_activations_keep_everything_else():
    model = tiny_gpt2()
    before = replace_activations(model, "relu")
    assert list(before) == ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"]
    assert model.transformer.h[0].mlp.act(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert replace_activations(tiny_opt(), "relu") == {}
    assert replace_activations(model, None) == {}
