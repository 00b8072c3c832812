"""Tasks by name; a task's module is imported only when the task is asked for."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.tasks.base import Task

TASKS: dict[str, str] = {
    "causal-text": "text:CausalText",
    "cifar10-resnet": "image_files:Cifar10ResNet",
    "digits-mlp": "digits:DigitsMLP",
    "digits-vit": "digits:DigitsViT",
    "docs-retrieval": "docs_retrieval:DocsRetrieval",
    "embedding-text": "text:EmbeddingText",
    "fashion-mnist-mlp": "image_files:FashionMLP",
    "fashion-mnist-resnet": "image_files:FashionResNet",
    "patches-resnet": "patches:PatchesResNet",
    "stdlib-llama": "stdlib_llama:StdlibLlama",
    "stdlib-lm": "stdlib_lm:StdlibLanguageModel",
    "stories260k": "stories:Stories260k",
    "wikitext2-lm": "wikitext:wikitext2",
}
"""Name to "module:class" (or function) inside this package."""


def task_names() -> list[str]:
    """Returns the names that `load_task` knows, sorted."""
    return sorted(TASKS)


def load_task(name: str, **options: Any) -> Task:
    """Returns the task of this name.

    Args:
        name: One of `task_names()`.
        options: The task's own settings.

    Raises:
        UnknownName: If there is no such task; the message names the nearest.
        InvalidValue: If an option is unknown to the task.
    """
    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    module, _, attribute = TASKS[name].partition(":")
    make = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
    parameters = inspect.signature(make).parameters
    unknown = [option for option in options if option not in parameters]
    if unknown:
        raise InvalidValue(
            f"Task {name!r} has no option {unknown[0]!r}. Its options: "
            f"{', '.join(parameters) or 'none'}."
        )
    required = [key for key, value in parameters.items() if value.default is value.empty]
    missing = [key for key in required if key not in options]
    if missing:
        raise InvalidValue(f"Task {name!r} needs the option {missing[0]!r}.")
    return make(**options)
