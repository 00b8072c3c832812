import pytest
import torch

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.kinds import GateSite


@pytest.mark.parametrize(
    ("features", "sparsity", "kept"),
    [(10, 0.0, 10), (10, 0.65, 3), (4096, 0.65, 1433), (7, 0.5, 3)],
)
def test_what_a_token_keeps_is_truncated_as_the_papers_do(features, sparsity, kept):
    assert GateSite("site", features, sparsity).keep() == kept


def test_a_token_must_keep_something():
    with pytest.raises(InvalidValue, match=r"site: sparsity 0\.9 of 4 entries keeps none.*0\.75"):
        GateSite("site", 4, 0.9).keep()


def test_the_threshold_leaves_the_asked_share_of_the_values():
    values = torch.tensor([[1.0, -4.0], [2.0, 3.0]])
    assert GateSite("site", 2, 0.5, values=values).threshold() == 2.0
    norms = torch.tensor([10.0, 1.0])
    assert GateSite("site", 2, 0.5, values=values).threshold(norms) == 4.0


def test_a_threshold_needs_data():
    with pytest.raises(MissingStatistic, match="site: a threshold is chosen on data"):
        GateSite("site", 2, 0.5).threshold()


def test_the_largest_sparsity_keeps_one_entry_whatever_the_width():
    kept = {n: GateSite("site", n, GateSite("site", n, 0.0).most()).keep() for n in range(1, 6000)}
    assert set(kept.values()) == {1}
