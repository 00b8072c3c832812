"""The host of InTraining: clock, masks, own parameters, exports, resuming, and what it refuses."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tests.models import tiny_gpt2, tiny_vit
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core.catalog import MethodInfo, Paper, Taxonomy
from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingStatistic, NonFinite
from sparsecraft.core.kinds import InTraining, WeightMethod
from sparsecraft.core.patterns import NM
from sparsecraft.core.seeds import generator
from sparsecraft.methods.weights.magnitude import Magnitude

TAXONOMY = Taxonomy(
    of="weights", when="during training", start_to_end="dense to sparse", mask="dynamic",
    criterion="magnitude", granularity=("unstructured",), allocation="any",
    budget="hard per layer", needs=("data",), cost="none", runtime="storage",
)  # fmt: skip


def described(cls):
    """Gives a class what registering gives, without putting it into the catalog."""
    cls.info = MethodInfo(cls.__name__.lower(), cls, Paper("Nobody", 2026), TAXONOMY)
    return cls


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class Held(InTraining, WeightMethod):
    """The largest weights, for ever."""

    def start(self):
        return Magnitude(sparsity=1 - self.density)


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class Regrown(Held):
    """Every second step the largest dense gradients outside the mask replace the smallest."""

    dense_gradients = True
    seen = []  # noqa: RUF012 - what the hook was given, for the tests

    def due(self, clock):
        return clock.done % 2 == 0 and clock.done < clock.total

    def update_masks(self, weights, gradients, layers, clock):
        type(self).seen.append({n: g.clone() for n, g in gradients.items()})
        found = {}
        for name, layer in layers.items():
            mask = layer.mask.clone().flatten()
            kept = weights[name].abs().flatten().masked_fill(~mask, torch.inf)
            grown = gradients[name].abs().flatten().masked_fill(mask, -1)
            mask[kept.argmin()], mask[grown.argmax()] = False, True
            found[name] = mask.view(layer.shape)
        return found


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(InTraining):
    """Half of every weight times a trained scale for each output; exported at 1:2."""

    masked_weights = "live"

    def own_parameters(self, weights, layers):
        return {n: {"scale": torch.ones(w.shape[0], 1)} for n, w in weights.items()}

    def forward(self, weight, layer, clock):
        return weight * layer.parameters["scale"] * 0.5

    def after_step(self, weight, layer, clock):
        layer.state["steps"] = torch.tensor(clock.done)
        return weight

    def final_masks(self, weights, layers, clock):
        return {n: NM(1, 2).tensor_mask(w.abs()) for n, w in weights.items()}


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(InTraining):
    """Squared distance to the teacher's logits."""

    masked_weights = "live"
    captures = ("logits", "teacher")

    def loss(self, captured, weights, clock):
        return (captured["logits"] - captured["teacher"]).square().mean()


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def batches(count, start=0):
    for step in range(start, start + count):
        draw = generator(2, "data", step)
        yield torch.randn(16, 6, generator=draw), torch.randint(4, (16,), generator=draw)


def train(model, optimizer, sparsifier, count, start=0):
    model.train()
    for x, y in batches(count, start):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + sparsifier.loss()).backward()
        optimizer.step()


def test_frozen_weights_stay_zero_and_the_model_is_ordinary_in_the_end():
    model = net()
    sparsifier = Sparsifier(model, Held(sparsity=0.75), total_steps=5)
    optimizer = sgd(model, weight_decay=0.1)
    sparsifier.attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    for _ in range(5):
        train(model, optimizer, sparsifier, 1, sparsifier.step)
        sparsifier.mask.verify(dict(model.named_parameters()))
    report = sparsifier.finalize()
    assert report.model is model and report.form == "plain" and not report.notes
    assert report.asked == report.sparsity == 0.75 and report.steps == (5, 5)
    assert model.state_dict().keys() == net().state_dict().keys()
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    x, y = next(batches(1))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()  # the hooks are gone: weights are free, steps beyond the total too
    with pytest.raises(InvalidValue, match="not zero"):
        report.mask.verify(dict(model.named_parameters()))


@pytest.mark.parametrize("parts", [1, 4])
def test_the_clock_counts_optimiser_steps_and_dense_gradients_are_those_of_the_batch(parts):
    model, reference = net(), net()
    Regrown.seen.clear()
    sparsifier = Sparsifier(model, Regrown(sparsity=0.5), total_steps=6)
    optimizer = sgd(model, momentum=0.0)
    sparsifier.attach(optimizer)
    for x, y in batches(2):
        reference.load_state_dict(model.state_dict())
        optimizer.zero_grad()
        for some, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(some), labels) / parts).backward()
        optimizer.step()
    assert sparsifier.step == 2 and len(Regrown.seen) == 1
    reference.zero_grad()
    F.cross_entropy(reference(x), y).backward()
    for name in ("0", "2"):
        expected = reference.get_parameter(f"{name}.weight").grad
        torch.testing.assert_close(Regrown.seen[0][name], expected, rtol=1e-5, atol=1e-7)
    assert [event.dense_gradient for event in sparsifier.history] == [False, True]


def test_grown_weights_start_at_zero_without_moments_and_the_count_stays():
    model = net()
    sparsifier = Sparsifier(model, Regrown(sparsity=0.5), total_steps=20)
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    kept = sparsifier.mask.kept
    for _ in range(3):
        old = sparsifier.mask
        train(model, optimizer, sparsifier, 2, sparsifier.step)
        new = sparsifier.mask
        assert new.kept == kept and new != old
        for name, keep in new.items():
            parameter = model.get_parameter(name)
            grown = keep & ~old[name]
            assert grown.any() and (parameter[grown] == 0).all()
            assert (optimizer.state[parameter]["momentum_buffer"][grown] == 0).all()
        new.verify(dict(model.named_parameters()))
    report = sparsifier.finalize()
    assert 0.5 < report.itop < 1 and report.always_active["0"] < 0.5
    assert "finalized after 6 of 20 steps" in report.notes[0]


def test_a_transform_keeps_keys_and_raw_values_and_exports_the_effective_ones():
    model = net()
    raw = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 6)
    plain = model(x)
    sparsifier = Sparsifier(model, Scaled(), total_steps=4)
    halved = net()
    for name in ("0", "2"):
        halved.get_parameter(f"{name}.weight").data.mul_(0.5)
    assert torch.equal(model(x), halved(x)) and not torch.equal(model(x), plain)
    assert all(torch.equal(value, raw[key]) for key, value in model.state_dict().items())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))

    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    train(model, optimizer, sparsifier, 4)
    scales = [p.detach().clone() for p in sparsifier.parameters()]
    assert len(scales) == 2 and all((scale != 1).any() for scale in scales)
    exported = sparsifier.export_state_dict()
    before = copy.deepcopy(model.state_dict())
    with sparsifier.exported() as finished:
        inside = finished(x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    weight = (before["0.weight"] * scales[0] * 0.5).view(8, 3, 2)
    expected = weight * (before["0.weight"].view(8, 3, 2).abs().argmax(-1)[..., None]
                         == torch.arange(2))  # fmt: skip
    assert torch.equal(exported["0.weight"], expected.view(8, 6))
    report = sparsifier.finalize()
    assert torch.equal(model(x), inside)
    assert all(torch.equal(value, exported[key]) for key, value in model.state_dict().items())
    assert report.sparsity == 0.5
    report.mask.verify(dict(model.named_parameters()))


def test_own_parameters_follow_the_users_rate_or_the_users_optimiser():
    moved = []
    for given in (False, True):
        model = net()
        sparsifier = Sparsifier(model, Scaled(), total_steps=3)
        own = list(sparsifier.parameters())
        optimizer = torch.optim.SGD([*model.parameters(), *(own if given else [])], lr=0.1)
        sparsifier.attach(optimizer)
        train(model, optimizer, sparsifier, 3)
        moved.append([p.detach().clone() for p in own])
    for mine, theirs in zip(*moved, strict=True):
        assert (mine != 1).any()
        torch.testing.assert_close(mine, theirs)


def test_fused_and_stacked_weights_are_seen_in_their_parts():
    model = tiny_gpt2()
    sparsifier = Sparsifier(model, Scaled(), targets="*.c_attn", total_steps=2)
    assert [t.name.rpartition(".")[2] for t in sparsifier.targets][:3] == [
        "c_attn[q]", "c_attn[k]", "c_attn[v]",
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    ids = torch.randint(3, 60, (2, 12))
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    report = sparsifier.finalize()
    weight = model.get_parameter("transformer.h.0.attn.c_attn.weight")  # (inputs, outputs)
    assert ((weight.T.reshape(-1, 2) != 0).sum(1) <= 1).all()
    assert report.sparsity == 0.5


def test_attention_modules_that_read_a_weight_without_calling_its_layer():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    reference = copy.deepcopy(model)
    sparsifier = Sparsifier(model, Scaled(), targets="*out_proj", total_steps=1)
    reference.self_attn.out_proj.weight.data.mul_(0.5)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(model(x), reference(x))
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    (model(x).square().mean() + sparsifier.loss()).backward()
    optimizer.step()
    sparsifier.finalize()


def test_a_teacher_is_the_model_as_it_was():
    model = net()
    sparsifier = Sparsifier(model, Taught(), total_steps=5)
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    with pytest.raises(MissingStatistic, match="forward pass of this step"):
        sparsifier.loss()
    train(model, optimizer, sparsifier, 1)
    x, _ = next(batches(1))
    now = model(x)
    expected = (now - net()(x)).square().mean()
    torch.testing.assert_close(sparsifier.loss(), expected)
    assert expected > 0


def test_a_teacher_with_another_vocabulary_is_refused():
    model = net()
    other = nn.Sequential(nn.Linear(6, 5))
    sparsifier = Sparsifier(model, Taught(), teacher=other, total_steps=5)
    model.train()
    model(torch.randn(16, 6))
    with pytest.raises(InvalidValue, match=r"logits \(16, 5\), the student \(16, 4\)"):
        sparsifier.loss()


@pytest.mark.parametrize("method", [Regrown(sparsity=0.5), Scaled()], ids=["frozen", "live"])
def test_saved_and_resumed_equals_uninterrupted(method):
    def begin():
        model = net()
        sparsifier = Sparsifier(model, method, total_steps=8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, sparsifier, optimizer

    model, sparsifier, optimizer = begin()
    sparsifier.attach(optimizer)
    train(model, optimizer, sparsifier, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(model, optimizer, sparsifier, 3, 5)

    for early in (True, False):
        again, resumed, other = begin()
        if early:
            resumed.load_state_dict(saved[2])
        resumed.attach(other)
        again.load_state_dict(saved[0])
        other.load_state_dict(copy.deepcopy(saved[1]))
        if not early:
            resumed.load_state_dict(saved[2])
        assert resumed.step == 5
        train(again, other, resumed, 3, 5)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
        assert resumed.mask == sparsifier.mask
        mine, theirs = list(resumed.parameters()), list(sparsifier.parameters())
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert [e.to_json() for e in resumed.history] == [e.to_json() for e in sparsifier.history]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": Held(sparsity=0.25)}, "another method"),
        ({"total_steps": 9}, "another total steps: 8, here 9"),
        ({"seed": 1}, "another seed"),
        ({"targets": "0"}, "another targets"),
    ],
)
def test_a_state_of_another_training_is_refused_and_nothing_is_changed(change, message):
    state = Sparsifier(net(), Held(sparsity=0.5), total_steps=8).state_dict()
    settings = {"method": Held(sparsity=0.5), "total_steps": 8, **change}
    other = Sparsifier(net(), **settings)
    before = other.mask
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)
    assert other.mask == before and other.step == 0


def test_a_state_that_is_none_is_refused():
    with pytest.raises(CheckpointError, match="not the state of a Sparsifier"):
        Sparsifier(net(), Held(), total_steps=8).load_state_dict({"format": "other"})


def test_a_step_beyond_the_total_is_refused_before_anything_changes():
    model = net()
    sparsifier = Sparsifier(model, Held(), total_steps=2)
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    train(model, optimizer, sparsifier, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValue, match="step 3 is beyond total_steps=2"):
        train(model, optimizer, sparsifier, 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_loss_that_is_not_a_number_leaves_everything_as_it_was():
    model = net()
    sparsifier = Sparsifier(model, Regrown(sparsity=0.5), total_steps=9)
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    train(model, optimizer, sparsifier, 1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    (model(torch.full((2, 6), torch.nan)).sum()).backward()
    with pytest.raises(NonFinite, match="gradient of step 2"):
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], before[1]["state"], rtol=0, atol=0)
    assert sparsifier.step == 1 and sparsifier.mask.kept == 40


def test_finalize_refuses_broken_weights_and_a_second_time():
    model = net()
    sparsifier = Sparsifier(model, Held(), total_steps=2)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(NonFinite, match="0: the trained weight"):
        sparsifier.finalize()
    with torch.no_grad():
        model[0].weight[0, 0] = 1.0
        sparsifier.mask.apply_(dict(model.named_parameters()))
    sparsifier.finalize()
    with pytest.raises(InvalidValue, match="finalized already"):
        sparsifier.finalize()


def test_other_optimisers_are_refused():
    model = net()
    sparsifier = Sparsifier(model, Held(), total_steps=2)
    with pytest.raises(InvalidValue, match="not trained by this optimiser"):
        sparsifier.attach(sgd(net()))
    with pytest.raises(InvalidValue, match="attach\\(\\) got a Linear"):
        sparsifier.attach(nn.Linear(2, 2))
    sparsifier.attach(sgd(model))
    with pytest.raises(InvalidValue, match="attached or finalized already"):
        sparsifier.attach(sgd(model))


def test_the_methods_own_optimiser_is_demanded():
    @described
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Picky(Held):
        """Held, by AdamW only."""

        optimizer_type = torch.optim.AdamW

    model = net()
    sparsifier = Sparsifier(model, Picky(), total_steps=2)
    with pytest.raises(InvalidValue, match="picky needs the optimiser AdamW, not SGD"):
        sparsifier.attach(sgd(model))
    sparsifier.attach(torch.optim.AdamW(model.parameters()))


def test_a_closure_is_refused():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    Sparsifier(model, Held(), total_steps=2).attach(optimizer)
    with pytest.raises(InvalidValue, match="stepped with a closure"):
        optimizer.step(lambda: model(torch.ones(1, 6)).sum())


def test_a_second_sparsifier_on_the_same_tensors_is_refused():
    model = net()
    first = Sparsifier(model, Held(), targets="0", total_steps=2)
    Sparsifier(model, Held(), targets="2", total_steps=2)  # other tensors are free
    with pytest.raises(InvalidValue, match=r"0\.weight is under another Sparsifier \(held\)"):
        Sparsifier(model, Held(), total_steps=2)
    Sparsifier(copy.deepcopy(model), Held(), total_steps=2)  # a copy is free
    first.finalize()
    Sparsifier(model, Held(), targets="0", total_steps=2)


def test_tied_weights_are_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 4))
    model[2].weight = model[0].weight
    with pytest.raises(InvalidValue, match=r"0\.weight is tied to 2\.weight"):
        Sparsifier(model, Held(), total_steps=2)
    Sparsifier(model, Held(), targets="3", total_steps=2)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_total_steps_is_checked(steps):
    with pytest.raises(InvalidValue, match="total_steps"):
        Sparsifier(net(), Held(), total_steps=steps)


def test_methods_of_other_kinds_are_refused():
    with pytest.raises(InvalidValue, match="wanda is of the kind Layerwise"):
        Sparsifier(net(), "wanda", total_steps=2)


def test_a_weight_that_nobody_computes_with_is_reported():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 4)

        def forward(self, x):
            return F.linear(x, self.inner.weight)

    model = Reads()
    optimizer = sgd(model)
    Sparsifier(model, Scaled(), total_steps=2).attach(optimizer)
    model(torch.ones(1, 6)).sum().backward()
    with pytest.raises(InvalidValue, match=r"inner\.weight trains, but its module was never"):
        optimizer.step()


@pytest.mark.parametrize("method", ["rigl", "sr_ste"])
def test_a_compiled_model_trains_like_a_plain_one(method):
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        options = {"pattern": "1:2"} if method == "sr_ste" else {"every": 1}
        sparsifier = Sparsifier(model, method, total_steps=4, **options)
        optimizer = sgd(model)
        sparsifier.attach(optimizer)
        torch._dynamo.reset()  # code compiled for another model would be taken up without hooks
        used = torch.compile(model, backend="eager") if compiled else model
        train(used, optimizer, sparsifier, 4)
        ends.append(sparsifier.finalize().model.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)


def test_vision_transformer_in_bfloat16():
    model = tiny_vit().to(torch.bfloat16)
    sparsifier = Sparsifier(model, Regrown(sparsity=0.5), total_steps=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    model.train()
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 16, 16).bfloat16()).logits.square().mean().backward()
        optimizer.step()
        sparsifier.mask.verify(dict(model.named_parameters()))
    assert sparsifier.finalize().sparsity == pytest.approx(0.5, abs=1e-3)
