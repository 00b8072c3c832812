"""Absorption on a dictionary in which it was planted."""

import pytest
import torch

from sparsecraft import SparseAutoencoder
from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.absorption import absorption, first_letters
from sparsecraft.methods.codes.topk import TopK

WIDTH = 6


def dictionary(absorbing):
    """Latent 0: begins with s; 1: with t; 2: the word snake, which carries the letter or not."""
    d = torch.zeros(4, WIDTH)
    d[0, 0], d[1, 1], d[3, 5] = 1, 1, 1
    d[2, 0], d[2, 2] = (1.0 if absorbing else 0.0), 1.0
    encoder = d.clone()
    if absorbing:
        # Silent on snakes, whose own latent has the letter.
        encoder[0, 2], encoder[2, 0] = -2.0, 0.0
    sae = SparseAutoencoder(WIDTH, 4, TopK(k=4), subtract_bias=False).eval()
    with torch.no_grad():
        sae.W_dec.copy_(d)
        sae.W_enc.copy_(encoder.T)
    return sae


def words():
    """Snakes are a quarter of the words with s."""
    labels = ["s", "t"] * 60
    snake = torch.arange(120) % 8 == 0
    x = torch.zeros(120, WIDTH)
    x[::2, 0], x[1::2, 1], x[snake, 2] = 1, 1, 1
    noise = torch.randn(120, generator=torch.Generator().manual_seed(0))
    x[:, 5] = noise.abs() * 0.01
    return (x[:64], x[64:]), (labels[:64], labels[64:]), snake[64:]


def test_planted_absorption_is_found():
    x, labels, snake = words()
    found = absorption(dictionary(absorbing=True), x, labels, most_latents=1)
    s, t = found.classes
    assert (s.value, s.latents, s.rows) == ("s", (0,), 28)
    assert s.absorbed == pytest.approx(float(snake[::2].double().mean()))
    assert s.absorbing == {2: int(snake.sum())} and t.absorbed == 0
    assert found.absorbed == pytest.approx(s.absorbed / 2)
    assert found.rows()[0][:2] == ("s", "0")


def test_a_second_latent_is_a_split_if_the_probe_may_take_it():
    x, labels, _ = words()
    found = absorption(dictionary(absorbing=True), x, labels)
    assert found.classes[0].split == 2 and set(found.classes[0].latents) == {0, 2}
    assert found.classes[0].f1 == 1 and found.classes[0].absorbed == 0


def test_without_absorption_none_is_found():
    x, labels, _ = words()
    found = absorption(dictionary(absorbing=False), x, labels)
    assert found.absorbed == 0 and found.split == 1 and found.left_out == ()


def test_rare_classes_are_left_out_by_name():
    x, labels, _ = words()
    changed = (["q", *labels[0][1:]], labels[1])
    assert absorption(dictionary(absorbing=False), x, changed).left_out == ("q",)


def test_rows_of_no_class_are_no_class():
    x, labels, _ = words()
    other, both = torch.arange(120) % 3 == 0, [*labels[0], *labels[1]]
    mixed = [None if each else label for label, each in zip(both, other, strict=True)]
    found = absorption(dictionary(absorbing=False), x, (mixed[:64], mixed[64:]))
    assert [each.value for each in found.classes] == ["s", "t"] and found.left_out == ()


def test_a_latent_absorbs_only_if_it_brings_enough_of_the_activations_own_projection():
    """The latent of the word brings a part, the error of the reconstruction has the rest."""
    x, labels, snake = words()
    sae = dictionary(absorbing=True)
    for part, expected in ((0.6, True), (0.2, False)):
        with torch.no_grad():
            sae.W_enc[:, 2] = 0
            sae.W_enc[2, 2] = part
            sae.W_dec[2] = torch.tensor([1.0, 0, 0, 0, 0, 0])
        found = absorption(sae, x, labels, most_latents=1).classes[0]
        assert found.absorbed == (float(snake[::2].double().mean()) if expected else 0)


def test_errors():
    x, labels, _ = words()
    sae = dictionary(absorbing=False)
    with pytest.raises(InvalidValue, match="63 classes for 64 activations"):
        absorption(sae, x, (labels[0][1:], labels[1]))
    with pytest.raises(InvalidValue, match="at least two are needed"):
        absorption(sae, x, (["s"] * 64, ["s"] * 56))


def test_first_letters():
    assert first_letters(["Ärger", "", "Zoo", "\u0120the"]) == [
        None, None, "z", None,
    ]  # fmt: skip
