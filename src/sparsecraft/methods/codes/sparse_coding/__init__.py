"""Sparse coding with any penalty: codes of rows, dictionaries learned from them, and patches.

Olshausen and Field's model writes a patch of an image as a sparse sum of learned atoms.
Rentzeperis et al. (2023) compare the thresholds by which the codes are found: soft (L1), hard (L0),
half (L_1/2) and CEL0, a continuous exact relaxation of L0. Beyond their code, any penalty of
`sparsecraft.core.penalties` can be used here, steps may have momentum and their length may follow
from the dictionary, codes may come from neurons that compete (LCA), and rows stop one by one; the
settings of the paper's own runs are `as_in_paper`.
"""

from sparsecraft.methods.codes.sparse_coding.coder import SparseCoder
from sparsecraft.methods.codes.sparse_coding.dictionary import DictionaryLearning
from sparsecraft.methods.codes.sparse_coding.estimator import NotFitted
from sparsecraft.methods.codes.sparse_coding.first import as_in_paper, paper_penalty
from sparsecraft.methods.codes.sparse_coding.method import SparseCoding
from sparsecraft.methods.codes.sparse_coding.preprocessing import (
    Whitening,
    patches,
    read_van_hateren,
    standardise,
)

__all__ = [
    "DictionaryLearning",
    "NotFitted",
    "SparseCoder",
    "SparseCoding",
    "Whitening",
    "as_in_paper",
    "paper_penalty",
    "patches",
    "read_van_hateren",
    "standardise",
]
