"""What the latents of a dictionary mean, and how well they serve: evaluation and pages."""

from sparsecraft.domains.interpretability.evaluation import SAEEvaluation, evaluate

__all__ = ["SAEEvaluation", "evaluate"]
