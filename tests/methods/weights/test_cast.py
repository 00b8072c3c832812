"""CAST: dense forward, scales, renewal of masks, the pull's strength, what the end removes."""

import pytest
import torch
from tests.models import tiny_gpt2
from torch import nn

from sparsecraft.core.adams import residue
from sparsecraft.core.catalog import build, describe, restore
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.patterns import NM
from sparsecraft.lab.claims.source_bytes import byte_model
from sparsecraft.methods.weights.cast import CAST, scaled
from sparsecraft.model.adams import AdamS
from sparsecraft.model.sparsifier import Sparsifier


def block(inputs, width):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, inputs))


class Blocks(nn.Module):
    """Two residual blocks and a head."""

    def __init__(self, width=16, inputs=8):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(block(inputs, width) for _ in range(2))
            self.head = nn.Linear(inputs, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def batch(step):
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(32, 8, generator=draw)
    return x, (x[:, :3].argmax(1))


def trained(total=300, rate=0.02, steps=None, model=None, **options):
    """Returns the sparsifier of a training, and the model."""
    model = Blocks() if model is None else model
    sparsifier = Sparsifier(model, "cast", total_steps=total, **options)
    optimizer = AdamS(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.99 * step / total)
    sparsifier.attach(optimizer)
    model.train()
    for step in range(total if steps is None else steps):
        x, labels = batch(step)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), labels) + sparsifier.loss()).backward()
        optimizer.step()
        schedule.step()
    return sparsifier, model


def shown(sparsifier):
    return {name: weight.detach() for name, weight in sparsifier.weights().items()}


def masks(sparsifier):
    return {name: layer.mask for name, layer in sparsifier.layers.items()}


@pytest.fixture(scope="module")
def long():
    """A finished training: what was remarked, residue, outputs before and after, the report."""
    sparsifier, model = trained(total=250)
    x, _ = batch(1000)
    weights = shown(sparsifier)
    remarks = list(sparsifier.method.remarks(weights, sparsifier.layers, sparsifier.clock))
    left, before = residue(weights, masks(sparsifier)), model(x).detach()
    report = sparsifier.finalize()
    return remarks, left, before, report.model(x).detach(), report


def test_masked_weights_collapse_before_the_end_and_the_outputs_hardly_change(long):
    remarks, left, before, after, _ = long
    assert left < 0.01
    assert not remarks
    assert (after - before).norm() < 0.02 * before.norm()


def test_the_finished_model_is_plain_and_two_of_four(long):
    *_, report = long
    assert report.form == "plain"
    assert report.sparsity == 0.5
    for name, mask in report.mask.items():
        assert (mask.view(-1, 4).sum(1) == 2).all()
        assert ((report.model.get_parameter(name).view(-1, 4) != 0).sum(1) <= 2).all()


def test_the_forward_is_dense_until_the_end():
    sparsifier, model = trained(steps=3)
    x, _ = batch(0)
    with torch.no_grad():
        for layer in sparsifier.layers.values():
            layer.parameters["scale"].fill_(1.0)
        dense = Blocks()
        dense.load_state_dict(model.state_dict())
        assert torch.equal(model(x), dense(x))
    assert sparsifier.history[-1].densities == dict.fromkeys(sparsifier.layers, 1.0)


def test_scales_train_and_are_folded_into_what_is_exported():
    sparsifier, model = trained(total=20)
    raw = {name: weight.clone() for name, weight in shown(sparsifier).items()}
    scales = {n: la.parameters["scale"].detach().clone() for n, la in sparsifier.layers.items()}
    keep = masks(sparsifier)
    exported = sparsifier.export_state_dict()
    sparsifier.finalize()
    for name, scale in scales.items():
        assert not torch.equal(scale, torch.ones_like(scale))
        expected = scaled(raw[name], scale) * keep[name]
        assert torch.equal(exported[f"{name}.weight"], expected)
        assert torch.equal(model.state_dict()[f"{name}.weight"], expected)


def test_without_scales_there_are_no_own_parameters():
    sparsifier = Sparsifier(Blocks(), "cast", total_steps=2, scale_groups=0)
    assert list(sparsifier.parameters()) == []


def test_scales_of_a_convolution_run_over_its_inputs():
    weight, scale = torch.ones(2, 4, 3, 3), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = scaled(weight, scale)
    assert found[:, :, 1, 2].tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_masks_are_renewed_at_the_start_of_each_tenth_step_and_not_after_the_last():
    method = CAST()
    due = [clock.done for clock in (Clock(s, 40) for s in range(40)) if method.due(clock)]
    assert due == [10, 20, 30]
    assert not any(CAST(mask_every=0).due(Clock(s, 40)) for s in range(40))


def test_the_mask_in_force_at_step_ten_is_of_the_weights_after_step_nine():
    sparsifier, _ = trained(steps=10)
    expected = {n: NM().mask(w.abs()) for n, w in shown(sparsifier).items()}
    assert all(torch.equal(masks(sparsifier)[n], mask) for n, mask in expected.items())


def test_the_strength_is_the_mean_gradient_of_the_first_step_over_all_layers():
    sparsifier, model = trained(steps=1, total=4)
    model.zero_grad()
    fresh = Blocks()
    x, labels = batch(0)
    nn.functional.cross_entropy(fresh(x), labels).backward()  # the teacher's part is 0 at the start
    gradients = torch.cat(
        [p.grad.flatten() for n, p in fresh.named_parameters() if "weight" in n and "blocks" in n]
    )
    pull = sparsifier.method.pull(sparsifier.layers, Clock(2, 4))
    assert pull.strength == pytest.approx(float(gradients.abs().mean()), rel=1e-5)
    assert pull.share == 0.5


def test_a_given_strength_is_on_the_scale_of_the_papers_loss():
    layers = {"a": TrainedLayer("a", (4, 4))}
    assert CAST(lam=0.2, distillation=0.5).pull(layers, Clock(0, 4)).strength == 0.4
    assert CAST(lam=0.2, distillation=0.0).pull(layers, Clock(0, 4)).strength == 0.2
    assert CAST(lam=0.2, share=0.25).pull(layers, Clock(0, 4)).share == 0.25


def test_the_teacher_is_the_model_from_before_the_training():
    sparsifier, model = trained(steps=5)
    x, _ = batch(50)
    model(x)
    found = sparsifier.loss().item()
    student, teacher = model(x), Blocks()(x)
    divergence = nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert found == pytest.approx(0.5 * divergence.item(), rel=1e-4)


def test_without_distillation_there_is_no_teacher():
    sparsifier, model = trained(steps=1, distillation=0.0)
    model(batch(0)[0])
    assert float(sparsifier.loss()) == 0
    assert CAST(distillation=0.0).captures == ()


def test_hidden_states_may_be_taught_too():
    sparsifier, model = trained(steps=4, hidden=0.5)
    model(batch(0)[0])
    with_hidden = sparsifier.loss().item()
    assert with_hidden > 0
    assert CAST(hidden=0.5).captures == ("logits", "teacher", "hidden")
    assert CAST(hidden=0.5, distillation=0.0).captures == ("logits", "teacher", "hidden")


def test_attention_maps_may_be_taught():
    model = byte_model(1, 32, 0, context=8)
    sparsifier = Sparsifier(model, "cast", total_steps=1, attention=2.0, distillation=0.0)
    ids = torch.arange(16).view(2, 8)
    model(ids)
    assert sparsifier.loss().item() == 0
    with torch.no_grad():
        model.blocks[0].q.weight.mul_(3)
    model(ids)
    sparsifier.loss().backward()
    assert model.blocks[0].q.weight.grad.abs().sum() > 0
    assert model.blocks[0].v.weight.grad is None  # maps do not depend on values


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.5}, {"form": "added"}, {"decoupled": False}, {"selective": False},
        {"scale_groups": 4}, {"pattern": "unstructured", "sparsity": 0.75},
    ],
)  # fmt: skip
def test_every_ablation_trains_and_is_described(options):
    method = build("cast", **options)
    assert restore(describe(method)) == method
    sparsifier, _ = trained(total=4, **options)
    assert sparsifier.finalize().sparsity == method.density == 0.5 or options.get("sparsity")


def test_a_short_training_is_remarked_upon():
    sparsifier, _ = trained(total=20, rate=1e-4)
    remarks = list(
        sparsifier.method.remarks(shown(sparsifier), sparsifier.layers, sparsifier.clock)
    )
    assert len(remarks) == 1
    assert "of the mean magnitude of kept ones" in remarks[0]
    assert "Train longer" in remarks[0]


def test_fused_and_transposed_weights():
    model = tiny_gpt2()
    ids = torch.arange(12).view(2, 6)
    sparsifier = Sparsifier(model, "cast", total_steps=2)
    optimizer = AdamS(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        (model(input_ids=ids, labels=ids).loss + sparsifier.loss()).backward()
        optimizer.step()
    assert len(optimizer._keep) < len(sparsifier.layers)  # query, key and value lie in one
    report = sparsifier.finalize()
    assert report.sparsity == 0.5
    fused = next(mask for name, mask in report.mask.items() if "c_attn" in name)
    assert (fused.T.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": "large"}, 'give a number or "auto"'),
        ({"lam": -1.0}, "lambda is at least 0"),
        ({"share": 2.0}, "goes from 0 to 1"),
        ({"form": "l2"}, "is not one of 'mixed'"),
        ({"scale_groups": -1}, "scale_groups=-1"),
        ({"mask_every": -1}, "mask_every=-1"),
        ({"distillation": 1.0}, "the task's loss has the rest"),
        ({"temperature": 0.0}, "more than 0"),
        ({"hidden": -1.0}, "hidden=-1.0"),
        ({"attention": -1.0}, "attention=-1.0"),
        ({"sparsity": 0.9}, "contradicts the pattern 2:4"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(InvalidValue, match=message):
        CAST(**options)


def test_inputs_that_the_groups_do_not_divide():
    with pytest.raises(InvalidValue, match="scale_groups=3 needs a multiple of 3 inputs"):
        Sparsifier(Blocks(), "cast", total_steps=2, scale_groups=3)
    with pytest.raises(InvalidValue, match=r"blocks\.0\.2: 2:4 needs a multiple of 4 inputs"):
        Sparsifier(Blocks(width=10), "cast", total_steps=2)


def test_another_vocabulary_of_the_teacher():
    other = Blocks()
    other.head = nn.Linear(8, 5)
    model = Blocks()
    sparsifier = Sparsifier(model, "cast", total_steps=2, teacher=other)
    model(batch(0)[0])
    with pytest.raises(InvalidValue, match="same vocabulary"):
        sparsifier.loss()
