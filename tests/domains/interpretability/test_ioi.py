"""Prompts whose attributes are known, the counterfactuals, and the decoder that learns them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.domains.interpretability import ioi, ioi_model


def test_prompts_read_as_they_are_labelled():
    made = ioi.prompts(40, seed=0)
    for row in range(40):
        words = made.text(row).split()
        io, s = ioi.NAMES[made.io[row]], ioi.NAMES[made.s[row]]
        assert words.count(io) == 1 and words.count(s) == 2
        assert (words.index(io) < words.index(s)) == bool(made.io_first[row])
        assert len(words) == ioi.LENGTH
    assert made.io_first.sum() == 20


@given(st.integers(0, 50), st.sampled_from(ioi.ATTRIBUTES))
def test_exactly_one_attribute_is_changed(seed, attribute):
    base, other = ioi.halves(seed)
    before = ioi.prompts(30, seed, base)
    after = ioi.changed(before, attribute, seed, other)
    for name in ioi.ATTRIBUTES:
        same = before.attributes[name] == after.attributes[name]
        assert bool(same.all()) if name != attribute else not bool(same.any())
    assert torch.equal(before.setting, after.setting)
    new = after.tokens[before.tokens != after.tokens]
    if attribute != "io_first":
        assert bool(torch.isin(new, other).all())
    assert torch.equal(torch.cat([base, other]).sort().values, torch.arange(len(ioi.NAMES)))


def test_the_same_seed_gives_the_same_prompts_and_another_label_others():
    assert torch.equal(ioi.prompts(20, 1).tokens, ioi.prompts(20, 1).tokens)
    assert not torch.equal(ioi.prompts(20, 1).tokens, ioi.prompts(20, 1, label="test").tokens)
    assert torch.equal(ioi.prompts(20, 1).rows(torch.tensor([3])).io, ioi.prompts(20, 1).io[3:4])


def test_errors():
    with pytest.raises(InvalidValue, match="even count"):
        ioi.prompts(3, 0)
    with pytest.raises(InvalidValue, match="at least two names"):
        ioi.prompts(4, 0, torch.tensor([1]))
    with pytest.raises(UnknownName, match="Did you mean 'io'"):
        ioi.changed(ioi.prompts(4, 0), "iob", 0)
    with pytest.raises(InvalidValue, match="at least 3"):
        ioi.changed(ioi.prompts(4, 0), "io", 0, torch.tensor([1, 2]))


def test_a_small_decoder_learns_a_small_version():
    names = torch.arange(4)
    model = ioi_model.IOIModel(ioi_model.ModelSize(layers=2, width=32, heads=2), seed=0)
    tested = ioi.prompts(200, 5, names, "test")
    before = ioi_model.accuracy(model, tested)
    ioi_model.train(model, seed=0, steps=120, batch=64, rate=3e-3, names=names)
    after = ioi_model.accuracy(model, tested)
    assert before < 0.5 < 0.8 < after


def test_the_seed_alone_makes_the_model():
    first, second = (ioi_model.IOIModel(ioi_model.ModelSize(), seed=4) for _ in range(2))
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = ioi_model.IOIModel(ioi_model.ModelSize(), seed=5)
    assert not torch.equal(first.words.weight, other.words.weight)
