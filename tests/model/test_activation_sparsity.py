"""The monitor's counts against counts by hand, what it leaves out, and that it goes on."""

import copy

import pytest
import torch
from tests.models import (
    ARCHITECTURES,
    Blocks,
    batches_for,
    tiny_cnn,
    tiny_llama,
    tiny_mixtral,
    tiny_mlp,
    tiny_opt,
)
from torch import nn

from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingStatistic, NonFinite
from sparsecraft.lab.claims.source_bytes import byte_model
from sparsecraft.model.activation_counts import Counts
from sparsecraft.model.activation_sparsity import ActivationMonitor
from sparsecraft.model.gating import gate


def identity_mlp(features=3):
    """Returns a network whose activation is relu(x)."""
    net = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(features))
        net[0].bias.zero_()
    return net


def test_counts_by_hand():
    with ActivationMonitor(net := identity_mlp()) as monitor:
        net(torch.tensor([[1.0, -1.0, 0.0], [2.0, 3.0, -0.0], [-1.0, -1.0, -1.0], [1e-30, 1, 0]]))
    layer = monitor.report().layers[0]
    assert layer.tokens == 4
    assert layer.nonzero == 5 / 12
    assert layer.frequencies.tolist() == [0.75, 0.5, 0.0]
    assert layer.dead == 1
    assert layer.quantiles == (0, 1, 2)
    assert monitor.counts["1"].histogram.tolist() == [1, 1, 2, 0]
    assert layer.flops is None


def test_minus_zero_and_half_precision_are_no_non_zeros():
    counts = Counts()
    counts.add(torch.tensor([[0.0, -0.0, 6e-8, -6e-8]], dtype=torch.float16), 0.0, "here")
    assert counts.fires.tolist() == [0, 0, 1, 1]
    assert counts.fires.dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with (
        ActivationMonitor(net := identity_mlp()),
        pytest.raises(NonFinite, match="activation of 1"),
    ):
        net(torch.tensor([[bad, 1.0, 1.0]]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shares_equal_a_direct_count_in_every_architecture(name):
    """With a threshold, so that smooth activations have a share that is not one."""
    model, seen = ARCHITECTURES[name](), {}
    monitor = ActivationMonitor(model, threshold=0.05)
    watched = {s.module for s in monitor.sites if s.where == "output"}
    for module in watched:
        model.get_submodule(module).register_forward_hook(
            lambda _, __, out, module=module: seen.setdefault(module, []).append(out)
        )
    report = monitor.measure(batches_for(model))
    assert len(report.layers) == len(monitor.sites)
    for layer in report.layers:
        assert layer.nonzero < 1
        if layer.site.where == "output":
            assert layer.nonzero > 0
            values = torch.cat([v.flatten(0, -2) for v in seen[layer.site.module]])
            assert layer.nonzero == (values.abs() > 0.05).sum().item() / values.numel()
            assert layer.tokens == len(values)
    assert report.notes == ("counted are entries of magnitude above 0.05, not exact non-zeros",)


@pytest.mark.parametrize("make", [tiny_opt, tiny_llama])
def test_padding_is_left_out(make):
    """Of OPT too, whose blocks flatten the tokens."""
    model = make()
    (batch,) = batches_for(model, count=1)
    batch["attention_mask"][0, :5] = 0
    monitor = ActivationMonitor(model, threshold=0.01)
    report = monitor.measure([batch])
    assert [layer.tokens for layer in report.layers] == [31, 31]
    alone = {key: value[1:] for key, value in batch.items()}
    cut = {key: value[:1, 5:] for key, value in batch.items()}
    if make is tiny_llama:  # whose positions are relative, so that padding changes nothing else
        other = monitor.measure([alone, cut])
        same = zip(report.layers, other.layers, strict=True)
        assert all(a.nonzero == pytest.approx(b.nonzero, abs=1e-3) for a, b in same)


def test_in_generation_the_mask_of_the_last_tokens_counts():
    model = tiny_llama()
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with ActivationMonitor(model) as monitor:
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
    # 10 prompt tokens that are no padding, then two passes of one new token a row.
    assert [layer.tokens for layer in monitor.report().layers] == [14, 14]


def test_a_mask_that_does_not_fit_is_said():
    model = Blocks()
    with ActivationMonitor(model) as monitor:
        model.forward = lambda x, attention_mask: Blocks.forward(model, x)
        model(torch.randn(2, 3, 16), attention_mask=torch.tensor([[1, 1], [1, 0]]))
    assert any("padding is counted" in note for note in monitor.report().notes)


def test_experts_count_their_own_tokens_and_flops():
    model = tiny_mixtral(hidden_act="relu")
    (batch,) = batches_for(model, count=1)
    batch["attention_mask"][0, :6] = 0
    report = ActivationMonitor(model).measure([batch])
    first = [layer for layer in report.layers if ".0." in layer.site.name]
    assert sum(layer.tokens for layer in first) == 2 * 30
    assert sum(layer.reach for layer in first) == pytest.approx(2)
    # Two layers, two experts a token: 2 * 2 * (2 matrices) * 2 * 32 * 64.
    assert report.flops["first"] == pytest.approx(2 * 2 * 2 * 2 * 32 * 64)
    assert report.flops["second dense"] == report.flops["first"] / 2
    assert 0 < report.flops["second"] < report.flops["second dense"]


def test_flops_save_the_second_product_alone():
    model = Blocks()
    report = ActivationMonitor(model).measure([{"x": torch.randn(4, 5, 16)}])
    layer = report.layers[0]
    assert layer.flops == {
        "first": 2 * 16 * 24,
        "second": 2 * 16 * 24 * layer.nonzero,
        "second dense": 2 * 16 * 24,
    }
    assert report.flops["first"] == 2 * 2 * 16 * 24


def test_half_of_the_entries_fire_at_first_and_none_of_relu_is_remarked():
    report = ActivationMonitor(tiny_opt()).measure(batches_for(tiny_opt()))
    assert report.nonzero == pytest.approx(0.5, abs=0.05)
    assert report.notes == ()
    assert "| model.decoder.layers.0 | ReLU | 4" in report.table()
    assert report.to_json()["layers"][0]["neurons"] == 64


def test_smooth_activations_are_remarked():
    report = ActivationMonitor(tiny_llama()).measure(batches_for(tiny_llama()))
    (note,) = report.notes
    assert note.startswith("SiLUActivation is never exactly zero")
    assert "threshold=0.01" in note
    functions = ActivationMonitor(byte_model(1, 32, 0))
    (note,) = functions.measure([{"input_ids": torch.arange(20)[None]}]).notes
    assert "no entry of blocks.0 was zero" in note


def test_gates_make_exact_zeros_that_are_not_remarked():
    model = tiny_llama()
    gate(model, "topk_mlp", k=8)
    report = ActivationMonitor(model).measure(batches_for(model))
    assert report.nonzero == 8 / 64
    assert report.notes == ()


def test_dropout_makes_no_zeros():
    """A module is seen before dropout; behind a function it is seen in evaluation mode only."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            return x + self.down(self.drop(torch.relu(self.up(x))))

    model = nn.Sequential(Functional(), Functional()).train()
    monitor = ActivationMonitor(model)
    with monitor:
        model(torch.randn(50, 8))
        with pytest.raises(MissingStatistic, match="evaluation mode only"):
            monitor.report()
    assert monitor.measure([{"input": torch.randn(50, 8)}]).nonzero > 0.3
    assert model.training
    module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.9), nn.Linear(32, 8)).train()
    with ActivationMonitor(module) as monitor:
        module(torch.randn(50, 8))
    assert monitor.report().nonzero > 0.3


def test_channels_of_convolutions_are_neurons_and_positions_tokens():
    report = ActivationMonitor(tiny_cnn()).measure([{"input": torch.randn(2, 3, 8, 8)}])
    assert [(layer.neurons, layer.tokens) for layer in report.layers] == [(8, 128), (16, 32)]


def test_the_curve_counts_anew_at_every_record():
    monitor = ActivationMonitor(net := identity_mlp()).attach()
    net(torch.ones(2, 3))
    monitor.record(0)
    net(-torch.ones(2, 3))
    monitor.record(10)
    assert [(m.step, m.nonzero) for m in monitor.curve] == [(0, {"1": 1.0}), (10, {"1": 0.0})]
    with pytest.raises(InvalidValue, match="step 10 is not after 10"):
        monitor.record(10)
    with pytest.raises(MissingStatistic, match="counted no token"):
        monitor.record(11)
    monitor.detach()
    net(torch.ones(2, 3))
    assert monitor.counts["1"].tokens == 0


def test_a_saved_monitor_goes_on():
    model = tiny_mlp()
    first, second = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
    whole, part, rest = ActivationMonitor(model), ActivationMonitor(model), ActivationMonitor(model)
    with whole:
        model(first)
        whole.record(1)
        model(first)
        model(second)
    with part:
        model(first)
        part.record(1)
        model(first)
    rest.load_state_dict(copy.deepcopy(part.state_dict()))
    with rest:
        model(second)
    assert rest.curve == whole.curve
    for name, counts in whole.counts.items():
        assert torch.equal(rest.counts[name].fires, counts.fires)
        assert torch.equal(rest.counts[name].histogram, counts.histogram)


def test_states_that_do_not_fit_are_refused():
    monitor = ActivationMonitor(tiny_mlp())
    with pytest.raises(CheckpointError, match=r"not the state_dict\(\) of an ActivationMonitor"):
        monitor.load_state_dict({})
    with pytest.raises(CheckpointError, match="same model, targets and threshold"):
        monitor.load_state_dict(ActivationMonitor(tiny_mlp(), threshold=0.5).state_dict())
    monitor.measure([{"input": torch.ones(2, 12)}])
    state = monitor.state_dict()
    state["counts"]["1"]["fires"] += 1
    with pytest.raises(CheckpointError, match="contradict each other"):
        monitor.load_state_dict(state)


def test_one_activation_of_layers_of_other_widths_is_refused():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 3), relu, nn.Linear(3, 4), relu)
    with (
        ActivationMonitor(net),
        pytest.raises(InvalidValue, match="an activation module of its own"),
    ):
        net(torch.ones(1, 2))


def test_a_negative_threshold_and_an_empty_monitor_are_refused():
    with pytest.raises(InvalidValue, match="threshold=-1"):
        ActivationMonitor(tiny_mlp(), threshold=-1)
    with pytest.raises(MissingStatistic, match="attach it, run the model, then ask"):
        ActivationMonitor(tiny_mlp()).report()


def test_the_model_computes_as_before_and_keeps_its_keys():
    model = tiny_opt()
    (batch,) = batches_for(model, count=1)
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model(**batch).logits
        with ActivationMonitor(model) as monitor:
            monitor.attach()
            during = model(**batch).logits
    assert torch.equal(before, during)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_encoder_and_a_decoder_have_masks_of_their_own():
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 1}
    config = transformers.T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    mask, other = torch.ones_like(ids), torch.ones_like(ids)
    mask[0, 5:], other[1, :3] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}
    monitor = ActivationMonitor(model)
    assert [layer.tokens for layer in monitor.measure([batch]).layers] == [12, 14]
    batch["decoder_attention_mask"] = other
    assert [layer.tokens for layer in monitor.measure([batch]).layers] == [12, 11]


def test_torchs_own_encoder_leaves_its_fused_path_to_be_counted():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    report = ActivationMonitor(encoder).measure([{"src": torch.randn(4, 9, 8)}])
    assert [each.tokens for each in report.layers] == [36, 36]
    assert report.nonzero == pytest.approx(0.5, abs=0.15)


def test_a_mixer_has_two_mlps_in_a_block():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            mlp = lambda n: nn.Sequential(nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, n))  # noqa: E731
            self.tokens, self.channels = mlp(9), mlp(16)

        def forward(self, x):
            x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
            return x + self.channels(x)

    model = nn.Sequential(Mixer(), Mixer())
    report = ActivationMonitor(model).measure([{"input": torch.randn(4, 9, 16)}])
    found = [(each.site.name, each.tokens, each.neurons) for each in report.layers]
    assert found[:2] == [("0.tokens", 64, 18), ("0.channels", 36, 32)]
