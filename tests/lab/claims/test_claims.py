"""Every claim: its smoke run, its grid and its full-scale methods; and what claims are built of."""

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.kinds import Method
from sparsecraft.core.mask import Mask
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims import claim_numbers, load_claim, reproduce
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.evidence.table import Row

pytest.importorskip("sklearn")

from sparsecraft.lab.claims import c03_random_pruning as c03
from sparsecraft.lab.claims import c04_random_search as c04
from sparsecraft.lab.claims import c13_essential_sparsity as c13
from sparsecraft.lab.claims import digits, packages


@pytest.mark.slow
@pytest.mark.parametrize("number", claim_numbers())
def test_smoke_runs_and_is_reproducible(number, tmp_path, monkeypatch):
    if number in (8, 13):
        pytest.importorskip("transformers")
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path / "cache"))
    first = reproduce(number, "smoke", out=tmp_path / "first", progress=False)
    again = reproduce(number, "smoke", out=tmp_path / "again", progress=False)
    assert first["line"] == f"{number:02d} smoke: no verdict"
    assert first["rows"]
    assert first["rows"] == again["rows"]


@pytest.mark.parametrize("number", claim_numbers())
def test_full_scale_methods_can_be_built(number):
    for settings in load_claim(number).full_scale.methods:
        assert isinstance(catalog.restore(settings), Method)


@pytest.mark.parametrize(("claim", "derived"), [(c03, set()), (c04, set()), (c13, {"omp"})])
@pytest.mark.parametrize("budget", ["small", "full"])
def test_the_grid_has_every_stated_arm_and_no_cell_twice(claim, derived, budget):
    cells = list(claim._grid(budget, 0))
    arms = [cell.arm for cell in cells]
    assert len(set(arms)) == len(arms)
    for contrast in claim.STATED:
        assert contrast.terms.keys() <= {*arms, *derived}


@pytest.mark.parametrize("claim", [c03, c04, c13])
def test_full_contains_small(claim):
    def keys(budget):
        return {(c.arm, str(sorted(c.settings.items()))) for c in claim._grid(budget, 0)}

    assert keys("small") <= keys("full")


def test_the_parts_of_digits_are_disjoint_and_the_test_part_is_fixed():
    first, second = digits.load_digits(0), digits.load_digits(1)
    parts = (first.train, first.validation, first.test)
    assert [len(part.labels) for part in parts] == [500, 300, 997]
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.train.images, second.train.images)
    everything = torch.cat([part.images.flatten(1) for part in parts])
    from sklearn import datasets

    original = torch.tensor(datasets.load_digits().data, dtype=torch.float32) / 16
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, original.tolist()))


def test_arms_of_a_width_share_their_initial_weights():
    data = digits.load_digits(0)
    dense, none = c03._network(c03._cell("dense", 4, 0), data)
    assert none is None
    for scheme in ("erk", "uniform", "snip shuffled"):
        sparse, mask = c03._network(c03._cell(scheme, 4, 0), data)
        assert mask.density == pytest.approx(0.1, abs=0.005)
        for name, weight in dense.state_dict().items():
            assert torch.equal(weight, sparse.state_dict()[name])


def test_the_shuffled_arm_keeps_the_layer_densities_of_snip():
    data = digits.load_digits(0)
    _, snip = c03._network(c03._cell("snip", 8, 0), data)
    _, shuffled = c03._network(c03._cell("snip shuffled", 8, 0), data)
    assert shuffled.densities == snip.densities
    assert shuffled != snip


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_the_small_dense_network_has_as_many_weights(width):
    first, second = digits.equal_widths(width, 2 * width, 0.1)
    small = digits.prunable(digits.convolutional(first, second, 0))
    large = digits.prunable(digits.convolutional(width, 2 * width, 0))
    assert small == pytest.approx(0.1 * large, rel=0.02)


def test_digits_training_holds_the_mask_and_learns():
    data = digits.load_digits(0)
    cell = c03._cell("erk", 8, 0)
    model, mask = c03._network(cell, data)
    untrained = digits.accuracy(model, data.validation)
    digits.train(model, data.train, mask, seed=0, rate=0.1, epochs=6)
    mask.verify(dict(model.named_parameters()))
    assert digits.accuracy(model, data.validation) > untrained + 0.2


def test_the_rate_is_chosen_on_validation():
    found = c03.measure(c03._cell("dense", 4, 0, epochs=1, rates=(1e-6, 0.1)))
    assert found["learning rate"] == 0.1


def curve_rows(scores, metric):
    return [Row(c13.arm("omp", s), 0, metric, value) for s, value in scores.items()]


def test_slopes_are_those_of_the_test_around_the_bend_of_validation():
    validation = {0.0: 0.9, 0.3: 0.9, 0.6: 0.9, 0.9: 0.3}
    test = {0.0: 0.8, 0.3: 0.8, 0.6: 0.74, 0.9: 0.44}
    rows = curve_rows(validation, "validation accuracy") + curve_rows(test, "accuracy")
    rows.append(Row(c13.arm("omp shuffled", 0.3), 0, "accuracy", 0.0))
    found = {row.metric: row.value for row in c13.bends(rows)}
    assert found["bend"] == 0.6
    assert found["slope before"] == pytest.approx(0.1)
    assert found["slope after"] == pytest.approx(1.0)
    assert found[c13.EXCESS] == pytest.approx(0.7)
    assert found["knee"] == pytest.approx(0.6 + 0.3 * 0.009 / 0.6)


def test_a_curve_that_only_rises_has_no_steep_slope():
    rising = {0.0: 0.6, 0.3: 0.64, 0.6: 0.66, 0.9: 0.66}
    rows = curve_rows(rising, "validation accuracy") + curve_rows(rising, "accuracy")
    found = {row.metric: row.value for row in c13.bends(rows)}
    assert found["slope before"] < 0
    assert found[c13.EXCESS] <= 1e-9


def tiny_classifier(seed=0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    return packages.Classifier(transformers.LlamaModel(config), seed)


def tiny_part():
    draw = generator(0, "tiny")
    windows = torch.randint(20, (40, 6), generator=draw)
    return packages.Part(windows, torch.randint(len(packages.PACKAGES), (40,), generator=draw))


def test_fine_tuning_holds_the_mask_and_lets_it_go():
    model, data = tiny_classifier(), tiny_part()
    mask = c13._mask("omp", Cell("a", 0, {"sparsity": 0.5}), model)
    assert all(name.startswith("body.layers.") for name in mask)
    assert mask.density == 0.5
    tuning = packages.Tuning(steps=6, batch=8)
    packages.fine_tune(model, data, mask, tuning, seed=0, branch="final")
    mask.verify(dict(model.named_parameters()))
    packages.fine_tune(model, data, None, tuning, seed=0, branch="final")
    with pytest.raises(ValueError, match="not zero"):
        mask.verify(dict(model.named_parameters()))


def test_fine_tuning_is_fixed_by_seed_and_branch():
    outcomes = []
    for seed, branch in [(0, "a"), (0, "a"), (0, "b"), (1, "a")]:
        model = tiny_classifier(seed=0)
        tuning = packages.Tuning(steps=4, batch=8)
        packages.fine_tune(model, tiny_part(), None, tuning, seed=seed, branch=branch)
        outcomes.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(outcomes[0], outcomes[1])
    for other in outcomes[2:]:
        assert not torch.equal(outcomes[0], other)


@pytest.mark.parametrize("method", ["random erk", "omp shuffled", "layer-wise", "2:4"])
def test_making_a_mask_leaves_the_model_as_it_is(method):
    model = tiny_classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = c13._mask(method, Cell("a", 3, {"sparsity": 0.5}), model)
    assert isinstance(mask, Mask)
    assert mask.density == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_windows_of_packages_are_disjoint_and_balanced(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path))
    from sparsecraft.lab.tasks import load_task

    data = packages.load_packages(load_task("stdlib-lm", steps=1, files=40), (3, 1, 2))
    sizes = {"train": 3, "validation": 1, "test": 2}
    seen = {}
    for name, runs in sizes.items():
        part = getattr(data, name)
        assert part.windows.shape == (8 * runs * packages.RUN, packages.TOKENS)
        assert torch.bincount(part.labels).tolist() == [runs * packages.RUN] * 8
        for row, label in zip(part.windows.tolist(), part.labels.tolist(), strict=True):
            assert (label, tuple(row)) not in seen
            seen[label, tuple(row)] = name
    assert len(seen) == 8 * 6 * packages.RUN
