"""Transcoders: another tensor is reconstructed than is read, also where both are equally wide."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SAETraining, SparseAutoencoder
from sparsecraft.model.sae.objective import objective
from sparsecraft.model.sae.rectified import rectified
from sparsecraft.model.sae.trainer import Trainer

WIDTH = 12
TRAINING = SAETraining(steps=300, batch=128, learning_rate=1e-2)


def transcoder(**options):
    return SparseAutoencoder(
        WIDTH, 48, options.pop("activation", TopK(k=6)), transcoder=True, **options
    )


def pairs(count=2000):
    """Inputs about (3, ...), and what an MLP makes of them, much larger and about (-100, ...)."""
    stream = generator(0, "pairs")
    x = torch.randn(count, WIDTH, generator=stream) + 3
    first = torch.randn(WIDTH, 24, generator=stream) / 4
    second = torch.randn(24, WIDTH, generator=stream)
    return x, 10 * (x @ first).relu() @ second - 100


def test_it_begins_with_its_own_encoder_and_the_bias_as_output():
    sae, (x, _) = transcoder(), pairs(20)
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(48))
    assert not sae.W_dec.any() and not sae.subtract_bias
    with torch.no_grad():
        sae.b_dec.fill_(7.0)
    assert torch.equal(sae(x), torch.full((20, WIDTH), 7.0))
    torch.testing.assert_close(sae.encode(x).sum(1), (x @ sae.W_enc).topk(6).values.sum(1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (False, True)),
        ({"skip": True}, (True, False)),
        ({"skip": True, "transcoder": False}, (False, True)),
        ({"d_out": 5}, (True, False)),
        ({"transcoder": True, "subtract_bias": True}, (True, True)),
    ],
)
def test_it_is_implied_by_widths_and_skip(options, expected):
    sae = SparseAutoencoder(WIDTH, 48, TopK(k=3), **options)
    assert (sae.transcoder, sae.subtract_bias) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_out": 5, "transcoder": False}, "12 entries .* reconstructed 5.*transcoder=False out"),
        ({"d_out": 5, "subtract_bias": True}, r"takes b_dec \(5 entries\) .* read \(12\)"),
        ({"transcoder": True, "tied": True}, "tied=True compares what is read with what is writ"),
        ({"transcoder": True, "unroll": 3}, "unroll=3 compares what is read with what is writ"),
    ],
)
def test_options_that_contradict_it_are_refused(options, message):
    with pytest.raises(InvalidValue, match=message):
        SparseAutoencoder(WIDTH, 48, TopK(k=3), **options)


def test_one_of_equal_widths_learns_a_target_of_another_place_and_size():
    x, target = pairs()
    sae = transcoder(skip=True).fit(ActivationStore.from_tensor(x, target=target), TRAINING)
    assert sae.report.fvu < 0.1
    norm = float(target.norm(dim=1).mean())
    assert sae.report.target_scale == pytest.approx(WIDTH**0.5 / norm, rel=0.02)
    assert sae.report.scale > 10 * sae.report.target_scale
    assert sae.score(x, target) == pytest.approx(1 - sae.report.fvu, abs=0.02)


def test_its_decoder_is_free_unless_it_has_rows_to_keep():
    x, target = pairs(200)
    store = ActivationStore.from_tensor(x, target=target)
    short = {"steps": 3, "batch": 32}
    sae = transcoder().fit(store, SAETraining(**short))
    norms = sae.W_dec.detach().norm(dim=1) * sae.report.target_scale
    assert float(norms.max()) < 0.1
    with pytest.raises(InvalidValue, match=r"decoder='unit' .* begins with zeros"):
        transcoder().fit(store, SAETraining(decoder="unit", **short))


def test_targets_and_transcoders_go_together():
    x, target = pairs(50)
    store, training = ActivationStore.from_tensor(x, target=target), SAETraining(steps=1, batch=8)
    plain = SparseAutoencoder(WIDTH, 48, TopK(k=3))
    with pytest.raises(InvalidValue, match=r"come with targets .* make it with transcoder=True"):
        plain.fit(store, training)
    with pytest.raises(InvalidValue, match=r"this is a transcoder.*targets \(to=\.\.\."):
        transcoder().fit(x, training)
    with pytest.raises(InvalidValue, match="this is a transcoder"):
        objective(transcoder(), x)
    with pytest.raises(InvalidValue, match="come with targets"):
        objective(plain, x, target=target)


def test_the_score_is_of_the_target():
    x, target = pairs(50)
    sae = transcoder()
    with torch.no_grad():
        sae.b_dec.copy_(target.mean(0))
    store = ActivationStore.from_tensor(x, target=target)
    assert sae.score(store) == pytest.approx(0, abs=1e-5)
    assert sae.score(x, target) == pytest.approx(0, abs=1e-5)
    assert sae.score(x[None].numpy(), target[None].numpy()) == pytest.approx(0, abs=1e-5)
    with pytest.raises(InvalidValue, match="this is a transcoder"):
        sae.score(x)
    with pytest.raises(InvalidValue, match=r"target has the shape \(49, 12\) and the rows \(50"):
        sae.score(x, target[:49])
    with pytest.raises(InvalidValue, match="a store has its own targets"):
        sae.score(store, target)
    plain = SparseAutoencoder(WIDTH, 48, TopK(k=3))
    with pytest.raises(InvalidValue, match="come with targets"):
        plain.score(store)
    assert plain.score(ActivationStore.from_tensor(x)) == pytest.approx(plain.score(x), abs=1e-6)


@pytest.mark.parametrize("d_out", [WIDTH, 5])
def test_gradients_choose_by_what_directions_do_to_the_target(d_out):
    x, _ = pairs(40)
    stream = generator(1, "gradient")
    target, gradient = (torch.randn(40, d_out, generator=stream) for _ in range(2))
    sae = transcoder(activation=GradientTopK(k=4, normalize_grad=False, beta=3.0), d_out=d_out)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(48, d_out, generator=stream))
    u = (x @ sae.W_enc + sae.b_enc).relu()
    scores = u * (1 + 3 * (gradient @ sae.W_dec.T).abs())
    kept = torch.zeros_like(u).scatter(1, scores.topk(4).indices, 1.0) * u
    torch.testing.assert_close(sae.encode(x, gradient=gradient), kept)
    # In units of the training: the gradient of t y is that of y divided by t.
    trainer = Trainer(sae, SAETraining(steps=10, batch=8))
    store = ActivationStore.from_tensor(x, gradient=gradient, target=100 * target)
    trainer.begin(store)
    found = trainer._objective(store.rows(torch.arange(40)), 0)
    torch.testing.assert_close(found.gradient, gradient / trainer.scaling.targets)
    assert trainer.scaling.inputs > 5 * trainer.scaling.targets


@pytest.mark.parametrize("mode", ["sum", "product"])
def test_selection_by_gradient_trains_from_a_decoder_of_zeros(mode):
    x, target = pairs(400)
    gradient = torch.randn(400, WIDTH, generator=generator(2, "gradient"))
    sae = transcoder(activation=GradientTopK(k=6, mode=mode))
    sae.fit(
        ActivationStore.from_tensor(x, gradient=gradient, target=target),
        SAETraining(steps=5, batch=64, learning_rate=1e-2),
    )
    assert bool(sae.W_dec.any())


def test_a_gradient_that_would_be_ignored_is_refused():
    sae, (x, _) = SparseAutoencoder(WIDTH, 48, TopK(k=3)), pairs(5)
    for encode in (sae.encode, sae.sparse_encode):
        with pytest.raises(InvalidValue, match="TopK makes its code without the gradient"):
            encode(x, gradient=x)


def test_the_mirrored_copy_of_one_is_one():
    sae, (x, _) = transcoder(activation=AbsTopK(k=3)), pairs(5)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(48, WIDTH, generator=generator(3, "rows")))
        sae.b_dec.fill_(1.0)
    mirror = rectified(sae)
    assert mirror.transcoder and not mirror.subtract_bias
    torch.testing.assert_close(mirror(x), sae(x))
