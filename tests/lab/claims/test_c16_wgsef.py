import pytest
import torch

pytest.importorskip("sklearn")

from sparsecraft.lab.claims import c16_wgsef as c16
from sparsecraft.lab.claims.cells import Cell


def test_the_grid_has_every_stated_arm_and_full_contains_small():
    small, full = ({(c.arm, str(c.settings)) for c in c16._grid(b, 0)} for b in ("small", "full"))
    arms = {name for name, _ in small}
    assert len(arms) == len(list(c16._grid("small", 0)))
    assert small <= full
    for contrast in c16.STATED:
        assert contrast.terms.keys() <= arms


def test_every_arm_tries_as_many_settings_and_the_one_strength_is_among_them():
    assert {len(cell.settings["tried"]) for cell in c16._grid("full", 0)} == {6}
    assert c16.ONE_STRENGTH in c16.STRENGTHS["wgsef"]


@pytest.mark.parametrize("at_random", [False, True])
def test_the_controls_keep_exactly_k_neurons(at_random):
    model = c16.perceptron(c16.HIDDEN, 3)
    before = model[0].weight.detach().clone()
    c16._cut(model, 16, 3, at_random=at_random)
    assert c16._neurons(model) == 16
    kept = (model[0].weight != 0).any(1)
    assert torch.equal(model[0].weight[kept], before[kept])
    assert ((model[2].weight != 0).any(0) == kept).all()


def test_large_networks_of_a_seed_start_alike():
    one, other = c16.perceptron(128, 5), c16.perceptron(128, 5)
    assert torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].weight, c16.perceptron(128, 6)[0].weight)


def test_a_short_training_ends_at_k_in_every_arm():
    data = c16._flat(c16.digits.load_digits(100))
    for cell in c16._grid("full", 100):
        if cell.settings["k"] == 16:
            short = Cell(cell.arm, 100, {**cell.settings, "epochs": 1})
            found = c16._train(short, data, cell.settings["tried"][0])
            assert found["neurons after the cut"] == 16
