"""What the latents of a dictionary mean, and how well they serve: evaluation and pages."""

from sparsecraft.domains.interpretability.evaluation import evaluate
from sparsecraft.domains.interpretability.sae_evaluation import SAEEvaluation

__all__ = ["SAEEvaluation", "evaluate"]
