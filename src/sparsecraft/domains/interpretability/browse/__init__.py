"""A page on which the latents of a dictionary can be read, searched and compared."""

from sparsecraft.domains.interpretability.browse.page import browse

__all__ = ["browse"]
