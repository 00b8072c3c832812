"""Turns a decoder's residual stream so that chosen matrices get orthogonal columns.

A gate that drops inputs by |x_j| times the norm of column j is exact only where the columns are
orthogonal. With W = U S V^T, W V = U S has orthogonal columns; an RMS norm without weight commutes
with the rotation V, so every block may work in a basis of its own: that of its keys before the
attention, that of its gate before the MLP, with a square matrix on the residual shortcuts between
them. The function of the model stays as it was.

Departures: the mean of the embeddings is not subtracted (the official code does, which is right
for LayerNorm and changes the function here). Stacked experts share one rotation, of all their
gates together, so that no single expert's columns become orthogonal. The last block's identity is
not multiplied with.

Reference:
    Chen et al., 2025, arXiv 2505.19427, section 3.3; Ashkboos et al., 2024, arXiv 2401.15024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.module_calls import Batch
from sparsecraft.model.recording import logits
from sparsecraft.model.residual_stream import Stream, Sublayer
from sparsecraft.model.rotated_block import (
    orthogonal_layers,
    restore_block,
    rotate_block,
    rotated_blocks,
    shortcuts,
)
from sparsecraft.model.rotation_report import RotationReport, off_diagonal
from sparsecraft.model.rotation_requirements import check_rotatable, check_unpruned, example_ids
from sparsecraft.model.stream_search import find_stream
from sparsecraft.model.tied_weights import Tie, tie, untie
from sparsecraft.model.units import evaluating

Progress = Callable[[str, int, int], None]
# By how much logits may move, relative to the largest, before something was misunderstood.
_TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-3,
    torch.bfloat16: 0.25,
    torch.float16: 0.05,
}


@dataclass(eq=False)
class Rotation:
    """A model that was rotated, and how to take it back.

    Args:
        model: The model.
        report: What was done and what it costs.
    """

    model: nn.Module
    report: RotationReport
    _originals: dict[str, Tensor] | None = field(default=None, repr=False)
    _cut: tuple[Tie, ...] = field(default=(), repr=False)

    @property
    def orthogonal(self) -> frozenset[str]:
        """Names of the layers whose columns are orthogonal."""
        return orthogonal_layers(self.model)

    @torch.no_grad()
    def undo(self) -> None:
        """Gives the model its weights, ties and classes back, bit for bit.

        Raises:
            InvalidValue: If it was undone already, or made with undoable=False.
        """
        if self._originals is None:
            raise InvalidValue(
                "this rotation cannot be undone: it was undone already, or made with "
                "undoable=False, which keeps no copy of the weights. Load the model again."
            )
        _restore(self.model, self._originals, self._cut)
        self._originals = None


@torch.no_grad()
def rotate(
    model: nn.Module,
    *,
    example_input: Batch | None = None,
    undoable: bool = True,
    progress: Progress | None = None,
) -> Rotation:
    """Rotates a decoder in place so that its keys' and gates' matrices get orthogonal columns.

    Args:
        model: A pre-norm decoder with RMS norms and a linear head, such as Llama, Mistral, Qwen2,
            Qwen3 or Mixtral; found by structure, not by name.
        example_input: Keyword arguments of its forward with (1, tokens) input ids, two tokens or
            more, to find its structure with; by default 16 token ids.
        undoable: Whether to keep the original weights, a second copy in memory. Without it a
            rotation that is broken off leaves a model that has to be loaded again.
        progress: Called with (block, done, total).

    Returns:
        The report, the names of the layers with orthogonal columns, and `undo`.

    Raises:
        InvalidValue: If the model is rotated, quantised or pruned already, or is no pre-norm
            decoder with RMS norms; the message says what stands in the way. The model is then as
            it was.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2)).eval()
        >>> rotation = rotate(model)
        >>> sorted(rotation.orthogonal)
        ['model.layers.0.mlp.gate_proj', 'model.layers.0.self_attn.k_proj']
        >>> rotation.undo()
    """
    check_rotatable(model)
    batch = example_ids(model) if example_input is None else dict(example_input)
    stream = find_stream(model, batch)
    check_unpruned(model, stream)
    before = _logits(model, batch)
    rotating = _Rotating(model, stream, undoable=undoable)
    try:
        rotating.run(progress)
    except BaseException:
        # Half of a model in another basis computes nothing.
        _restore(model, rotating.originals, rotating.cut)
        raise
    after = _logits(model, batch)
    report = rotating.report(float((after - before).abs().max()), float(before.abs().max()))
    rotation = Rotation(model, report, rotating.originals if undoable else None, rotating.cut)
    _accept(rotation, before.dtype)
    return rotation


def _restore(model: nn.Module, originals: Mapping[str, Tensor], cut: Sequence[Tie]) -> None:
    for block in rotated_blocks(model).values():
        restore_block(block)
    parameters = dict(model.named_parameters())
    for name, values in originals.items():
        parameters[name].copy_(values)
    tie(model, cut)


def _accept(rotation: Rotation, dtype: torch.dtype) -> None:
    """Raises, and takes the rotation back, if the model computes something else than before."""
    report = rotation.report
    if report.difference <= _TOLERANCE[dtype] * max(report.scale, 1.0):
        return
    if rotation._originals is None:
        left = "Load the model again; undoable=False kept no copy of its weights"
    else:
        rotation.undo()
        left = "The model is as it was"
    raise InvalidValue(
        f"rotating {type(rotation.model).__name__} moved its logits by {report.difference:.3g}, "
        f"where the largest is {report.scale:.3g}: it computes something beside a pre-norm "
        f"decoder. {left}. Use the method without the rotation (transform=False, --no-rotation)."
    )


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    with evaluating(model):
        return logits(model(**batch)).clone()


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


class _Rotating:
    """One rotation under way: what was there before, and how orthogonal what came out is."""

    def __init__(self, model: nn.Module, stream: Stream, *, undoable: bool) -> None:
        self.model, self.stream, self.undoable = model, stream, undoable
        self.cut = untie(model, [*stream.embeddings, *stream.heads])
        self.parameters = dict(model.named_parameters())
        self.originals: dict[str, Tensor] = {}
        self.off_diagonal: dict[str, float] = {}

    def run(self, progress: Progress | None) -> None:
        """Folds the norms' weights, turns every matrix and puts the shortcuts in place."""
        blocks = self.stream.blocks
        entering = self._basis(blocks[0][1])
        for name in self.stream.embeddings:
            self._write(name, _double(self.parameters[name]) @ entering)
        for index, (name, attention, mlp) in enumerate(blocks):
            if progress is not None:
                progress(name, index, len(blocks))
            middle = self._basis(mlp)
            last = index + 1 == len(blocks)
            leaving = middle if last else self._basis(blocks[index + 1][1])
            self._turn(attention, entering, middle)
            self._turn(mlp, middle, leaving)
            self._carry(name, attention, mlp, entering.T @ middle, middle.T @ leaving, last=last)
            entering = leaving
        self._end(entering)
        if progress is not None:
            progress(blocks[-1][0], len(blocks), len(blocks))

    def report(self, difference: float, scale: float) -> RotationReport:
        """Returns what was done."""
        untied = sum(self.parameters[head].numel() for _, head in self.cut)
        return RotationReport(
            width=self.stream.width,
            blocks=len(self.stream.blocks),
            parameters=sum(parameter.numel() for parameter in self.parameters.values()) - untied,
            embeddings=sum(self.parameters[name].numel() for name in self.stream.embeddings),
            shortcuts=sum(s.weight.numel() for s in shortcuts(self.model)),
            untied=untied,
            bytes_each=self.parameters[self.stream.heads[0]].element_size(),
            off_diagonal=self.off_diagonal,
            difference=difference,
            scale=scale,
            experts=tuple(m.name for _, _, m in self.stream.blocks if m.orthogonal is None),
        )

    def _basis(self, sublayer: Sublayer) -> Tensor:
        """Returns V (width, width) of the pivot after the norm's weight is folded into it."""
        pivot = sublayer.pivot
        return right_basis(pivot.matrix(self._folded(sublayer, pivot.parameter)))

    def _folded(self, sublayer: Sublayer, name: str) -> Tensor:
        norm = self.parameters[f"{sublayer.norm}.{sublayer.gain.parameter}"]
        weight = _double(self.parameters[name])
        return weight * sublayer.gain.of(norm).to(weight)

    def _turn(self, sublayer: Sublayer, reads: Tensor, writes: Tensor) -> None:
        """Lets a sub-layer read the stream in one basis and write to it in another."""
        for name in sublayer.readers:
            self._write(name, self._folded(sublayer, name) @ reads)
        for name in sublayer.writers:
            self._write(name, writes.T @ _double(self.parameters[name]))
        for name in sublayer.biases:
            self._write(name, _double(self.parameters[name]) @ writes)
        norm = f"{sublayer.norm}.{sublayer.gain.parameter}"
        self._write(norm, torch.full_like(self.parameters[norm], sublayer.gain.neutral))
        if sublayer.orthogonal is not None:
            turned = self.parameters[sublayer.pivot.parameter]
            self.off_diagonal[sublayer.orthogonal] = off_diagonal(turned)

    def _carry(
        self,
        name: str,
        attention: Sublayer,
        mlp: Sublayer,
        beside_attention: Tensor,
        beside_mlp: Tensor,
        *,
        last: bool,
    ) -> None:
        """Puts the shortcuts into a block; after the last one the basis does not change."""
        members = (attention.norm, attention.name, mlp.norm, mlp.name)
        inside = [member.removeprefix(f"{name}.") for member in members]
        orthogonal = [
            s.orthogonal.removeprefix(f"{name}.") for s in (attention, mlp) if s.orthogonal
        ]
        plain = self.model.get_submodule(name)
        block = rotate_block(plain, inside, orthogonal, mlp_shortcut=not last)
        block.attention_shortcut.weight.copy_(beside_attention.T)
        if block.mlp_shortcut is not None:
            block.mlp_shortcut.weight.copy_(beside_mlp.T)

    def _end(self, basis: Tensor) -> None:
        """Folds the last norm into the heads and lets them read the last basis."""
        norm = f"{self.stream.norm}.{self.stream.gain.parameter}"
        gain = self.stream.gain.of(self.parameters[norm])
        for name in self.stream.heads:
            weight = _double(self.parameters[name])
            self._write(name, (weight * gain.to(weight)) @ basis)
        self._write(norm, torch.full_like(self.parameters[norm], self.stream.gain.neutral))

    def _write(self, name: str, values: Tensor) -> None:
        parameter = self.parameters[name]
        if self.undoable:
            self.originals.setdefault(name, parameter.detach().clone())
        parameter.copy_(values)


def right_basis(matrix: Tensor) -> Tensor:
    """Returns V (inputs, inputs) of the singular value decomposition U S V^T.

    Args:
        matrix: (outputs, inputs). With fewer outputs than inputs, as of grouped keys, V is made
            whole, and the columns of matrix @ V beyond the outputs are zero.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    return torch.linalg.svd(matrix, full_matrices=wide).Vh.mT.contiguous()
