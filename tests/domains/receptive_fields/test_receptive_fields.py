"""Receptive fields: Gabor functions found again, tuning in closed form, classes, pictures."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.domains.receptive_fields import (
    analyse,
    dictionary_picture,
    fit_gabors,
    grating_tuning,
    radial_share,
    write_page,
)
from sparsecraft.domains.receptive_fields.fields import as_fields, positions

SHAPE = (12, 10)


def gabors(count=20, shape=SHAPE, seed=0):
    """Gabor functions with random parameters, and these."""
    stream = torch.Generator().manual_seed(seed)
    draw = torch.rand(8, count, generator=stream, dtype=torch.float64)
    angle, frequency = draw[0] * math.pi, 0.1 + 0.25 * draw[1]
    x0, y0 = 4 * (draw[2] - 0.5), 4 * (draw[3] - 0.5)
    wide, high, phase, amplitude = 1 + draw[4], 1 + draw[5], 6.28 * draw[6], 0.5 + draw[7]
    x, y = positions(shape)
    dx, dy = x - x0[:, None], y - y0[:, None]
    across = dx * angle.cos()[:, None] + dy * angle.sin()[:, None]
    along = dy * angle.cos()[:, None] - dx * angle.sin()[:, None]
    envelope = (-(across / wide[:, None]).square() / 2 - (along / high[:, None]).square() / 2).exp()
    wave = (2 * math.pi * frequency[:, None] * across + phase[:, None]).cos()
    return amplitude[:, None] * envelope * wave, angle, frequency, torch.stack([wide, high], 1)


def test_gabor_functions_are_found_again():
    atoms, angle, frequency, width = gabors()
    fits = fit_gabors(atoms, SHAPE)
    assert float(fits.explained.min()) > 0.9999
    assert torch.allclose(fits.functions, atoms, atol=1e-3)
    turn = (fits.orientation - angle).remainder(math.pi)
    assert float(torch.minimum(turn, math.pi - turn).median()) < 1e-6
    assert float((fits.frequency - frequency).abs().median()) < 1e-6
    assert torch.allclose(fits.cycles, fits.width * fits.frequency[:, None])
    assert float((fits.width - width).abs().median()) < 1e-6


def rebuilt(fits, shape):
    """The functions that centre, orientation, frequency, phase, amplitude and width stand for."""
    x, y = positions(shape)
    angle = fits.orientation[:, None]
    dx, dy = x - fits.centre[:, :1], y - fits.centre[:, 1:]
    across, along = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    wide, high = fits.width[:, :1], fits.width[:, 1:]
    envelope = (-(across / wide).square() / 2 - (along / high).square() / 2).exp()
    wave = (2 * math.pi * fits.frequency[:, None] * across + fits.phase[:, None]).cos()
    return fits.amplitude[:, None] * envelope * wave


def test_amplitude_and_phase_make_the_function():
    atoms, *_ = gabors(count=40)
    fits = fit_gabors(5 * atoms, SHAPE)
    assert bool(((fits.orientation >= 0) & (fits.orientation < math.pi)).all())
    assert torch.allclose(rebuilt(fits, SHAPE), 5 * atoms, rtol=0, atol=1e-2)


@pytest.mark.parametrize("turned", [-1e-17, -0.4, math.pi + 0.3, -7.0, 3 * math.pi - 0.2, 0.6])
def test_an_orientation_brought_to_half_a_turn_keeps_the_function(turned):
    from sparsecraft.domains.receptive_fields.gabor import _fits, _Grid

    grid = _Grid(*positions(SHAPE), longest=12.0)
    p = torch.tensor([[0.3, -0.2, turned, 0.2, 0.4, 0.6, 0.8, -0.5]], dtype=torch.float64)
    function = grid.functions(p)
    fits = _fits(p, function / function.norm(), grid, torch.ones(1, 1, dtype=torch.float64))
    assert 0 <= float(fits.orientation) < math.pi
    assert torch.allclose(rebuilt(fits, SHAPE), function, atol=1e-12)


def test_noise_is_no_gabor():
    noise = torch.randn(20, 120, generator=torch.Generator().manual_seed(1))
    fits = fit_gabors(noise, SHAPE)
    assert float(fits.explained.median()) < 0.4
    assert float(fits.explained.max()) < 0.6


def test_the_derivatives_are_those_of_the_function():
    from sparsecraft.domains.receptive_fields.gabor import _Grid

    grid = _Grid(*positions((5, 5)), longest=5.0)
    p = torch.tensor([0.3, -0.2, 0.7, 0.2, 0.4, 0.6, 1.0, -0.5], dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(grid.functions, p)
    assert torch.allclose(grid.jacobian(p), expected, atol=1e-12)


def test_a_patch_of_grating_is_sharply_tuned_to_its_own_orientation_and_frequency():
    x, y = positions((16, 16))
    window = (-(x.square() + y.square()) / 18).exp()
    for degrees in (0, 30, 90, 135):
        angle = math.radians(degrees)
        wave = (2 * math.pi * 0.25 * (x * math.cos(angle) + y * math.sin(angle))).cos()
        tuning = grating_tuning((window * wave)[None])
        assert math.degrees(float(tuning.preferred[0])) == pytest.approx(degrees)
        assert float(tuning.frequency[0]) == pytest.approx(0.25, rel=0.1)
        assert float(tuning.circular_variance[0]) < 0.35
        assert float(tuning.selectivity[0]) > 0.9
        assert math.degrees(float(tuning.half_width[0])) < 15


def test_a_round_spot_has_no_orientation():
    x, y = positions((11, 11))
    spot = (-(x.square() + y.square()) / 8).exp()
    tuning = grating_tuning(spot[None])
    assert float(tuning.circular_variance[0]) > 0.95
    assert float(tuning.selectivity[0]) < 0.1
    assert float(tuning.half_width[0]) == pytest.approx(math.pi / 2)
    assert float(radial_share(spot[None])[0]) > 0.95


def test_tuning_by_its_definitions():
    atoms, *_ = gabors(count=3)
    tuning = grating_tuning(atoms, SHAPE)
    for i in range(3):
        response = tuning.response[i]
        turned = sum(r * np.exp(2j * t) for r, t in zip(response.tolist(),
                                                        tuning.orientations.tolist(),
                                                        strict=True))  # fmt: skip
        assert float(tuning.circular_variance[i]) == pytest.approx(
            1 - abs(turned) / float(response.sum())
        )
        best = int(response.argmax())
        across = float(response[(best + 18) % 36])
        peak = float(response[best])
        assert float(tuning.selectivity[i]) == pytest.approx((peak - across) / (peak + across))


def test_each_class_by_an_example():
    x, y = positions((12, 12))
    radius = x.square() + y.square()
    corner = ((x > 0) & (y.abs() < 1) | (y > 0) & (x.abs() < 1)).double()
    stream = torch.Generator().manual_seed(0)
    atoms = torch.stack(
        [
            gabors(count=1, shape=(12, 12))[0][0],
            (2 * math.pi * 0.2 * x).cos(),
            (-radius / 4).exp() - 0.2 * (-radius / 18).exp(),
            corner * torch.randn(144, generator=stream, dtype=torch.float64),
            torch.full((144,), 0.1, dtype=torch.float64),
        ]
    )
    found = analyse(atoms)
    assert found.classes == ("Gabor-like", "grating-like", "centre-surround", "complex", "silent")
    assert found.counts() == dict.fromkeys(found.classes, 1)
    summary = found.summary()
    assert summary["Gabor share"] >= 0.4
    assert summary["complex share"] == pytest.approx(0.2)
    assert "1 Gabor-like, 1 grating-like, 1 centre-surround" in str(found)


def test_a_dictionary_of_nothing_is_silent():
    found = analyse(torch.zeros(2, 16))
    assert found.summary() == {"Gabor share": 0.0, "silent share": 1.0}
    assert str(found) == "2 silent"


def decoded(png):
    """The grey values of an 8-bit PNG without filters."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 0)
    start = png.index(b"IDAT")
    size = struct.unpack(">I", png[start - 4 : start])[0]
    data = png[start + 4 : start + 4 + size]
    assert struct.unpack(">I", png[start + 4 + size : start + 8 + size])[0] == zlib.crc32(
        png[start : start + 4 + size]
    )
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_a_picture_has_every_atom_in_its_place():
    atoms = torch.tensor([[1.0, -1.0, 0.0, 0.5], [2.0, 2.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    grey = decoded(dictionary_picture(atoms, columns=2, zoom=2))
    assert grey.shape == (2 * 5 + 1, 2 * 5 + 1)
    assert grey[1:5:2, 1:5:2].tolist() == [[255, 1], [128, 192]]
    assert grey[1:5:2, 6:10:2].tolist() == [[255, 255], [1, 128]]
    assert (grey[6:10, 1:5] == 128).all()
    assert (grey[0] == 255).all()
    assert (grey[6:10, 6:10] == 255).all()


def test_pillow_reads_the_picture():
    import io

    from PIL import Image

    png = dictionary_picture(gabors()[0], SHAPE)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), decoded(png))


def test_a_page_stands_alone_and_names_the_classes(tmp_path):
    atoms, *_ = gabors(count=6)
    write_page(tmp_path / "a.html", atoms, analyse(atoms, SHAPE), title="A <b>", shape=SHAPE)
    text = (tmp_path / "a.html").read_text()
    assert "A &lt;b&gt;" in text
    assert "Gabor-like: " in text
    assert "median circular variance" in text
    assert "http" not in text
    write_page(tmp_path / "b.html", atoms, shape=SHAPE)
    assert "All 6 atoms" in (tmp_path / "b.html").read_text()
    with pytest.raises(InvalidValue, match="6 atoms were analysed, but 5 are drawn"):
        write_page(tmp_path / "c.html", atoms[:5], analyse(atoms, SHAPE), shape=SHAPE)
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: as_fields(torch.ones(2, 15)), InvalidValue, "15 pixels are no square"),
        (lambda: as_fields(torch.ones(2, 15), (4, 4)), InvalidValue, "has 16 pixels, the atoms 15"),
        (lambda: as_fields(torch.ones(16)), InvalidValue, "give (n, pixels)"),
        (lambda: as_fields(np.full((1, 4), np.inf)), NonFinite, "NaN or infinite"),
        (lambda: analyse(torch.ones(1, 16), level=1.0), InvalidValue, "level=1.0 is not allowed"),
        (lambda: grating_tuning(torch.ones(1, 16), orientations=7), InvalidValue, "an even number"),
        (lambda: dictionary_picture(torch.ones(1, 16), zoom=0), InvalidValue, "zoom=0"),
    ],
)
def test_what_cannot_be_analysed(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
