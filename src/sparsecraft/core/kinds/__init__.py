"""The kinds of method: what a method says, so that its host can do the rest.

A method is a frozen description. Hooks, devices, ranks, files and progress belong to the host in
`sparsecraft.model`; a method sees tensors and the few things named here. Weights are always shown
as matrices (outputs, inputs), by target name.
"""

from sparsecraft.core.kinds.activation import (
    Activation,
    CodeStep,
    Elementwise,
    Own,
    Selecting,
    Side,
)
from sparsecraft.core.kinds.base import DEFAULT_SPARSITY, Batch, Method, Pruned, WeightMethod
from sparsecraft.core.kinds.evaluation import Evaluation
from sparsecraft.core.kinds.gate import Gate, GateSite
from sparsecraft.core.kinds.in_training import Clock, InTraining, Layers, Tensors, TrainedLayer
from sparsecraft.core.kinds.layerwise import Layer, Layerwise, Role
from sparsecraft.core.kinds.model_wide import ModelContext, ModelWide
from sparsecraft.core.kinds.recipe import Recipe, Train

__all__ = [
    "DEFAULT_SPARSITY",
    "Activation",
    "Batch",
    "Clock",
    "CodeStep",
    "Elementwise",
    "Evaluation",
    "Gate",
    "GateSite",
    "InTraining",
    "Layer",
    "Layers",
    "Layerwise",
    "Method",
    "ModelContext",
    "ModelWide",
    "Own",
    "Pruned",
    "Recipe",
    "Role",
    "Selecting",
    "Side",
    "Tensors",
    "Train",
    "TrainedLayer",
    "WeightMethod",
]
