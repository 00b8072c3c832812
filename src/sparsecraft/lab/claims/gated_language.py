"""A small Llama on Python source, and how far gates move its loss and the output of its blocks.

The decoder has RMS norms, gated MLPs and grouped-query attention, as the models that gates are made
for, and reads single bytes. Windows of training files calibrate, those of other files validate and
test. A seed draws initial weights and the order of the training windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from sparsecraft.core.greedy_allocation import block_error
from sparsecraft.lab.measures.perplexity import score_windows
from sparsecraft.lab.tasks.language import CausalTask
from sparsecraft.lab.tasks.stdlib_lm import stdlib_texts
from sparsecraft.lab.tasks.trained_language import LanguageSettings, TrainedCausalTask
from sparsecraft.lab.tasks.training import Fit
from sparsecraft.model.block_calls import Call, record_calls
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.gating import sparsity_report
from sparsecraft.model.targets import find_targets

# The bytes and the token between files.
VOCABULARY = 257
CONTEXT = 128
CALIBRATION_TOKENS = 2048
BLOCK_WINDOWS = 64


@lru_cache(maxsize=2)
def load_language(
    seed: int, *, files: int, steps: int, width: int, layers: int, rate: float
) -> CausalTask:
    """Returns the task with its model, trained for this seed and cached on disk.

    Args:
        seed: Of the training.
        files: How many source files are used.
        steps: Of training, of 16 windows each.
        width: Of the model.
        layers: Of the model.
        rate: Learning rate at its peak.
    """
    size = LanguageSettings(
        vocabulary=VOCABULARY,
        context=CONTEXT,
        hidden=width,
        intermediate=11 * width // 4,
        layers=layers,
        heads=4,
    )
    return TrainedCausalTask(
        name="source-bytes-llama",
        about=f"{files} source files of the Python standard library, read as bytes.",
        texts=stdlib_texts(files),
        size=size,
        schedule=Fit(steps=steps, batch_size=16, learning_rate=rate, seed=seed),
    )


def losses(model: nn.Module, task: CausalTask) -> dict[str, float]:
    """Returns the cross-entropy of a byte on test and validation windows, in nats."""
    return {
        "loss": float(score_windows(model, task.windows["test"]).losses.mean()),
        "validation loss": float(score_windows(model, task.windows["validation"]).losses.mean()),
    }


def dropped(model: nn.Module, windows: Tensor) -> float:
    """Returns the share of the products of the blocks' matrices that the gates save.

    Tokens that are spared at the beginning of a window are left out, as in decoding.

    Args:
        model: A gated model.
        windows: (windows, tokens) to measure on.
    """
    report = sparsity_report(model, [{"input_ids": part} for part in windows.split(8)])
    saved = sum((row.achieved or 0.0) * row.numel for row in report.rows)
    return saved / find_targets(model).numel


@dataclass(frozen=True)
class BlockTrace:
    """What each block of a model reads and gives on some windows, without gates.

    Args:
        steps: Block, how it was called, what it read and what it gave.
    """

    steps: Sequence[tuple[nn.Module, Call, Tensor, Tensor]]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, windows: Tensor) -> BlockTrace:
        """Returns the trace of these windows, eight at a time."""
        (blocks,) = find_blocks(model).values()
        steps = []
        for batch in windows.split(8):
            calls = record_calls(model, list(blocks), {"input_ids": batch})
            hidden = calls[0].hidden
            for block, call in zip(blocks, calls, strict=True):
                given = call.run(block, hidden)
                steps.append((block, call, hidden, given))
                hidden = given
        return cls(steps)

    @torch.no_grad()
    def error(self) -> float:
        """Returns the mean error of a block's output under the gates of now, on dense inputs."""
        found = [
            block_error(given, call.run(block, hidden)) for block, call, hidden, given in self.steps
        ]
        return sum(found) / len(found)
