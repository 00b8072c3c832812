"""Autoencoders with sparse codes: the module, its training, its files, its place in a model."""

from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.auxiliary import Auxiliary, AuxK
from sparsecraft.model.sae.auxiliary_zipf import AuxZipf
from sparsecraft.model.sae.end_to_end import fine_tune
from sparsecraft.model.sae.end_to_end_settings import EndToEndTraining
from sparsecraft.model.sae.fitting import train_together
from sparsecraft.model.sae.report import SAEReport
from sparsecraft.model.sae.resampling import Resampling
from sparsecraft.model.sae.training_settings import SAETraining

__all__ = [
    "AuxK",
    "AuxZipf",
    "Auxiliary",
    "EndToEndTraining",
    "Resampling",
    "SAEReport",
    "SAETraining",
    "SparseAutoencoder",
    "fine_tune",
    "train_together",
]
