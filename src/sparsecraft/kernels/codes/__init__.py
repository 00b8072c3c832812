"""Operations on sparse codes: selection from pre-activations, decoding, and their gradients."""

from sparsecraft.kernels.codes.encoder import encode_rows, pre_activations, refined_rows
from sparsecraft.kernels.codes.products import decode, selected_pre_activations
from sparsecraft.kernels.codes.selection import select_columns, select_rows, select_whole

__all__ = [
    "decode",
    "encode_rows",
    "pre_activations",
    "refined_rows",
    "select_columns",
    "select_rows",
    "select_whole",
    "selected_pre_activations",
]
