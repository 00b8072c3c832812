"""Autoencoders with sparse codes: the module, its training, its files, its place in a model."""

from sparsecraft.model.sae.autoencoder import SparseAutoencoder

__all__ = ["SparseAutoencoder"]
