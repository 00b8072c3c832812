"""Iterative pruning, soups, distances, calibration and learning rates against ZIB-IOL/SMS."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparsecraft.core.mask import Mask
from sparsecraft.core.retraining import KINDS, RetrainSchedule
from sparsecraft.lab.measures import (
    angle,
    barycentre_distances,
    distance,
    expected_calibration_error,
    maximum_calibration_error,
    pairwise,
    worst_class_accuracy,
)
from sparsecraft.methods.weights.soups import SparseModelSoup, greedy_soup, soup

ARRAYS = np.load(Path(__file__).with_name("sparse_model_soups.npz"))
WEIGHTS = ("c.weight", "f.weight")
COUNTER = "bn.num_batches_tracked"


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


def stored(prefix):
    """Returns a state dict of the official file, with our names; the masks are left out."""
    found = {
        name.removeprefix(prefix).removesuffix("_orig"): tensor(name)
        for name in ARRAYS.files
        if name.startswith(prefix) and not name.endswith("_mask")
    }
    return {name: found[name] for name in sorted(found)}


def masks(prefix):
    return Mask({name: tensor(f"{prefix}{name}_mask").bool() for name in WEIGHTS})


CANDIDATES = [stored(f"soup_cand{i}__") for i in range(3)]
MASKS = [masks(f"soup_cand{i}__") for i in range(3)]


class Net(nn.Module):
    """The net of the official run."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(2, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.f = nn.Linear(20, 7)
        self.double()


class Perturbing:
    """Adds the stored perturbation of the phase to what is kept, in place of a retraining."""

    def __init__(self):
        self.phase = 0

    def __call__(self, model, mask=None, *, branch, **settings):
        self.phase += 1
        with torch.no_grad():
            for name in WEIGHTS:
                change = tensor(f"imp_perturb_{name[0]}_phase{self.phase}")
                model.get_parameter(name).add_(change * mask[name])


@pytest.mark.parametrize(("official", "scope"), [("global", "global"), ("uniform", "layer")])
def test_masks_of_three_phases(official, scope):
    model = Net()
    with torch.no_grad():
        model.c.weight.copy_(tensor("imp_c_weight"))
        model.f.weight.copy_(tensor("imp_f_weight"))
    recipe = SparseModelSoup(sparsity=0.9, phases=3, models=1, scope=scope)
    outcome = recipe.run(model, Perturbing())
    for phase in outcome.phases:
        for name in WEIGHTS:
            theirs = tensor(f"imp_{official}_mask_{name[0]}_phase{phase.number}").bool()
            assert torch.equal(phase.mask[name], theirs), (phase.number, name)
        nominal = ARRAYS[f"imp_{official}_sparsity_phase{phase.number}"]
        assert 1 - recipe.schedule.density(phase.number) == pytest.approx(float(nominal), abs=1e-12)


@pytest.mark.parametrize(("name", "weights"), [("uniform", None), ("w532", (0.5, 0.3, 0.2))])
def test_averages(name, weights):
    ours = soup(CANDIDATES, weights, MASKS)
    theirs = stored(f"soup_{name}__")
    if name == "w532":  # the plain average of the official code leaves the masking to the caller
        theirs = {k: v * MASKS[0][k] if k in MASKS[0] else v for k, v in theirs.items()}
    else:  # the official weight of each is a third in float32, so that they do not add up to 1
        total = 3 * float(np.float32(1 / 3))
        theirs = {k: v / total for k, v in theirs.items()}
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {COUNTER}:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-12, msg=key)
    # The official counter is a fraction; ours stays an integer.
    assert ours[COUNTER].dtype == torch.int64
    assert int(ours[COUNTER]) == 11 == round(float(theirs[COUNTER]))


def test_a_soup_has_the_zeros_of_its_candidates():
    ours = soup(CANDIDATES, masks=MASKS)
    for name in WEIGHTS:
        assert torch.equal(ours[name] != 0, MASKS[0][name])


def test_greedy_choice():
    target = tensor("greedy_target_fbias")
    found = greedy_soup(CANDIDATES, lambda s: -float((s["f.bias"] - target).norm()), masks=MASKS)
    np.testing.assert_allclose(found.scores, ARRAYS["greedy_scores_candidates"], atol=1e-12)
    assert list(found.chosen) == ARRAYS["greedy_selected"].tolist()
    torch.testing.assert_close(found.state["f.bias"], tensor("greedy_f_bias"), rtol=0, atol=1e-12)


def test_distances_angles_and_barycentre():
    # The official functions compute in float32, without the counter.
    states = [
        {k: v * m[k] if k in m else v for k, v in state.items() if k != COUNTER}
        for state, m in zip(CANDIDATES, MASKS, strict=True)
    ]
    for (a, b), ours in pairwise(states, distance).items():
        assert ours == pytest.approx(float(ARRAYS[f"metric_l2_{a}{b}"]), abs=1e-6)
    for (a, b), ours in pairwise(states, angle).items():
        assert ours == pytest.approx(float(ARRAYS[f"metric_angle_{a}{b}"]), abs=1e-6)
    ours = barycentre_distances(states)
    assert max(ours) == pytest.approx(float(ARRAYS["metric_max_barycentre"]), abs=1e-6)
    assert min(ours) == pytest.approx(float(ARRAYS["metric_min_barycentre"]), abs=1e-6)


def test_calibration_and_the_worst_class():
    logits, labels = tensor("cal_logits"), tensor("cal_targets")
    for ours, theirs in (
        (expected_calibration_error(logits, labels), "cal_l1"),
        (maximum_calibration_error(logits, labels), "cal_max"),
        (worst_class_accuracy(logits, labels), "worst_class_acc"),
    ):
        assert ours == pytest.approx(float(ARRAYS[theirs]), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rates(kind):
    theirs = ARRAYS[f"sched_{kind}"]
    schedule = RetrainSchedule(
        kind=kind,
        steps=20,
        history=tuple(ARRAYS["sched_pretrain_lr"]),
        norm_drop=0.35,
        pruned_fraction=0.5,
    )
    ours = np.array([schedule.rate(step) for step in range(20)])
    if kind in ("FT", "LRW"):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
        return
    # The official schedulers hold the first rate for one step more; ours go on at once, to the
    # same end, over as many steps.
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-9, atol=1e-12)
    tolerance = 0.02 if kind == "CLR" else 1e-9  # the official cosine overshoots by 0.8 %
    np.testing.assert_allclose(ours[2:-1], theirs[3:], rtol=tolerance, atol=1e-12)
