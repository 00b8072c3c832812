"""Sparse coding against the authors' code, in float64: thresholds, codes, dictionaries, patches.

Their `hard` and `half` leave out the 1/2, their CEL0 takes lambda itself; `paper_penalty` says so
once. Dictionaries are those after the last update, before columns are normalised again. Their
patches come from NumPy's older generator, so that only the places' contents are compared.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.solvers import Stopping, ista
from sparsecraft.methods.codes.sparse_coding import (
    DictionaryLearning,
    Whitening,
    as_in_paper,
    paper_penalty,
    standardise,
)

ARRAYS = {
    name: torch.from_numpy(array)
    for name, array in np.load(Path(__file__).parent / "beyond_l1.npz").items()
}
METHODS = {"soft": ("soft", 0.05), "hard": ("hard1", 0.002), "half": ("half", 0.03),
           "cel0": ("CEL0", 0.03)}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_thresholds(name):
    for i, step in enumerate(ARRAYS["lr"].tolist()):
        for j, strength in enumerate(ARRAYS["lmda"].tolist()):
            found = paper_penalty(name, strength).prox(ARRAYS["u"], step)
            assert torch.allclose(found, ARRAYS[f"prox_{name}"][i, j], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_codes_after_200_steps(name):
    official, strength = METHODS[name]
    found = ista(
        ARRAYS["code_X"],
        ARRAYS["code_Phi"].T,
        paper_penalty(name, strength),
        step=0.05,
        stopping=Stopping(tolerance=1e-300, max_steps=200),
    )
    expected = ARRAYS[f"code_{official}_r200"]
    assert torch.allclose(found.codes, expected, rtol=0, atol=1e-9)
    assert torch.equal(found.codes != 0, expected != 0)


@pytest.mark.parametrize(("name", "rates"), [*((n, "const") for n in METHODS), ("cel0", "decay")])
def test_six_batches_of_dictionary_learning(name, rates):
    official, strength = METHODS[name]
    learner = DictionaryLearning(
        penalty=paper_penalty(name, strength),
        start=ARRAYS["dl_Phi0"].T,
        **{**as_in_paper(name, 54), "batch_size": 20, "decay": rates == "decay"},
    )
    learner.partial_fit(ARRAYS["dl_X"])
    prefix = f"dl_{official}_{rates}"
    assert torch.allclose(learner._dictionary.T, ARRAYS[f"{prefix}_Phi"], rtol=0, atol=1e-7)
    assert torch.allclose(learner.activity_, ARRAYS[f"{prefix}_freq"], rtol=0, atol=1e-7)
    assert learner.errors_ == pytest.approx(ARRAYS[f"{prefix}_err"].tolist(), abs=1e-7)
    active = ARRAYS[f"{prefix}_nactive"].double().mean()
    assert learner.report_.active == pytest.approx(float(active), abs=1e-9)


def test_preprocessing():
    raw = ARRAYS["pre_img"].unbind(2)
    scaled = [standardise(image) for image in raw]
    whitening = Whitening().fit(scaled)
    for found, expected in zip(scaled, ARRAYS["pre_scaled"].unbind(2), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    whitened = [whitening(image) for image in scaled]
    for found, expected in zip(whitened, ARRAYS["pre_whitened"].unbind(2), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_patches_are_places_of_the_whitened_images_without_their_mean():
    scaled = [standardise(image) for image in ARRAYS["pre_img"].unbind(2)]
    whitening = Whitening().fit(scaled)
    places = torch.cat([whitening(image).unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
                        for image in scaled])  # fmt: skip
    places = places - places.mean(1, keepdim=True)
    nearest = (ARRAYS["pre_patches"][:, None] - places).abs().amax(2).amin(1)
    assert float(nearest.max()) < 1e-10
