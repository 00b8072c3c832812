"""Whitening and patches: variances, places, and images that cannot be used."""

import math

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite, SparsityError
from sparsecraft.methods.codes.sparse_coding import (
    Whitening,
    patches,
    read_van_hateren,
    standardise,
)


def images(count=3, height=24, width=32):
    stream = torch.Generator().manual_seed(0)
    smooth = torch.randn(count, height, width, generator=stream, dtype=torch.float64)
    return [standardise(each.cumsum(0).cumsum(1)) for each in smooth]


def test_images_have_the_variance_that_was_asked_on_average():
    whitening = Whitening(variance=0.2).fit(images())
    variances = torch.stack([whitening(each).var(correction=0) for each in images()])
    assert float(variances.mean()) == pytest.approx(0.2)
    assert len(set(variances.tolist())) == 3


def test_one_wave_is_scaled_by_the_filter_at_its_frequency():
    x = torch.arange(32, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 5 * x / 32).expand(32, 32)
    found = Whitening(scale=1.0)(wave)
    gain = 5 * math.exp(-((5 / (0.4 * 32)) ** 4))
    assert torch.allclose(found, gain * wave, atol=1e-10)


def test_whitening_keeps_its_factor_for_other_images():
    whitening = Whitening().fit(images())
    assert Whitening(**whitening.to_json()) == whitening
    assert torch.equal(whitening(images()[0]), Whitening(scale=whitening.scale)(images()[0]))


def test_patches_have_no_mean_and_come_from_everywhere():
    numbered = [torch.arange(30.0).view(5, 6) + 100 * i for i in range(2)]
    found = patches(numbered, 2, 400, centre=False)
    assert sorted({int(each) // 100 for each in found[:, 0]}) == [0, 1]
    corners = {int(each) % 100 for each in found[:, 0]}
    assert corners == {6 * row + column for row in range(4) for column in range(5)}
    assert torch.equal(found[:, 1] - found[:, 0], torch.ones(400))
    assert torch.equal(found[:, 2] - found[:, 0], torch.full((400,), 6.0))
    assert float(patches(numbered, 2, 50).sum(1).abs().max()) < 1e-4


def test_a_seed_gives_the_same_places():
    assert torch.equal(patches(images(), 8, 20, seed=1), patches(images(), 8, 20, seed=1))
    assert not torch.equal(patches(images(), 8, 20, seed=1), patches(images(), 8, 20, seed=2))


def test_van_haterens_files_are_big_endian(tmp_path):
    pixels = np.zeros((1024, 1536), dtype=">u2")
    pixels[2, 3] = 258
    pixels.tofile(tmp_path / "imk00001.imc")
    found = read_van_hateren(tmp_path / "imk00001.imc")
    assert found.shape == (1024, 1536)
    assert float(found[2, 3]) == 258.0
    (tmp_path / "short.imc").write_bytes(b"\x00" * 10)
    with pytest.raises(CheckpointError, match="5 numbers of 16 bits"):
        read_van_hateren(tmp_path / "short.imc")
    with pytest.raises(CheckpointError, match="could not read"):
        read_van_hateren(tmp_path / "none.imc")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: standardise(torch.ones(4, 4)), InvalidValue, "one grey value everywhere"),
        (lambda: standardise(torch.ones(3, 4, 4)), InvalidValue, "give a grey one"),
        (lambda: standardise(torch.full((2, 2), math.nan)), NonFinite, "NaN or infinite"),
        (lambda: Whitening()(torch.rand(4, 4)), SparsityError, "call fit(images) first"),
        (lambda: Whitening().fit([]), InvalidValue, "no image was given"),
        (lambda: Whitening().fit([torch.zeros(4, 4)]), InvalidValue, "the images are flat"),
        (lambda: Whitening(cutoff=0), InvalidValue, "cutoff=0 is not allowed"),
        (lambda: patches([], 2, 1), InvalidValue, "0 images, size=2 and count=1"),
        (lambda: patches([torch.rand(4, 9)], 5, 1), InvalidValue, "(4, 9) has no patch of 5 by 5"),
    ],
)
def test_what_cannot_be_used(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
