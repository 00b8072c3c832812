"""What a classifier is worth beyond its accuracy: pure functions of logits, labels and tensors.

Papers 03 and 17 claim that sparse networks are better calibrated, know better what they have not
seen, and withstand disturbed inputs; here each of these is one number, higher or lower as it says.
"""

from sparsecraft.lab.measures.calibration import (
    brier_score,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
)
from sparsecraft.lab.measures.corruptions import CORRUPTIONS, corrupt, fgsm
from sparsecraft.lab.measures.detection import out_of_distribution_auc, roc_auc
from sparsecraft.lab.measures.diagnostics import (
    angle,
    barrier,
    barycentre_distances,
    distance,
    pairwise,
)
from sparsecraft.lab.measures.per_class import class_accuracies, worst_class_accuracy
from sparsecraft.lab.measures.robustness import Robustness, evaluate_robustness

__all__ = [
    "CORRUPTIONS",
    "Robustness",
    "angle",
    "barrier",
    "barycentre_distances",
    "brier_score",
    "class_accuracies",
    "corrupt",
    "distance",
    "evaluate_robustness",
    "expected_calibration_error",
    "fgsm",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "out_of_distribution_auc",
    "pairwise",
    "roc_auc",
    "worst_class_accuracy",
]
