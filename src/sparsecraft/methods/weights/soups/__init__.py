"""Sparse model soups: averages of retrained copies of one pruned model.

Averages of networks that were pruned apart are no longer sparse. Zimmer et al. (2023) retrain *one*
pruned network several times, with different seeds or hyperparameters; the copies share their zeros
and mostly lie in one basin, so that their average is as sparse as they are and better than they are
on average. In iterative pruning every cycle starts from the soup before.

Departures: the official code averages the step counters of batch normalisation to fractions, here
they are rounded; it puts the whole model into training mode to gather statistics, here only the
normalisations; it takes the mask of the last candidate unseen, here all must be equal. Seeds are
derived for each phase, so that no phase repeats the order of the one before.

Reference:
    Zimmer, Spiegel, Pokutta, 2023, arXiv 2306.16788.
"""

from sparsecraft.methods.weights.soups.averaging import GreedySoup, greedy_soup, soup, union_soup
from sparsecraft.methods.weights.soups.baselines import PredictionEnsemble, imp_average, reprune
from sparsecraft.methods.weights.soups.outcome import Candidate, Phase, SoupOutcome
from sparsecraft.methods.weights.soups.recipe import SparseModelSoup

__all__ = [
    "Candidate",
    "GreedySoup",
    "Phase",
    "PredictionEnsemble",
    "SoupOutcome",
    "SparseModelSoup",
    "greedy_soup",
    "imp_average",
    "reprune",
    "soup",
    "union_soup",
]
