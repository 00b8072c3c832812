"""Receptive fields: what the atoms of a dictionary of image patches look like to V1's physiologist.

Rentzeperis et al. (2023) ask which shapes sparse coding finds under different penalties. Here atoms
are fitted by Gabor functions, their tuning is measured with gratings, they are sorted into classes,
and drawn. The paper's analysis is not in its public code, so definitions and levels are stated
here, where they are used.
"""

from sparsecraft.domains.receptive_fields.classes import (
    CLASSES,
    ReceptiveFields,
    analyse,
    radial_share,
)
from sparsecraft.domains.receptive_fields.gabor import GaborFits, fit_gabors
from sparsecraft.domains.receptive_fields.gratings import Tuning, grating_tuning
from sparsecraft.domains.receptive_fields.picture import dictionary_picture, write_page

__all__ = [
    "CLASSES",
    "GaborFits",
    "ReceptiveFields",
    "Tuning",
    "analyse",
    "dictionary_picture",
    "fit_gabors",
    "grating_tuning",
    "radial_share",
    "write_page",
]
