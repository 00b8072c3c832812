"""Places in a model whose activations can be read and replaced, by name.

A name is a module's path, which means its output (`encoder.layer.3.output`, `model.layers.5`); a
path with `.input` or `.output` behind it; or a name of TransformerLens (`blocks.5.hook_resid_post`)
for the transformers whose parts are known here. Names of TransformerLens stand for the tensors of
that library, but heads stay joined: `attn.hook_z` is (batch, tokens, heads * width).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.model.blocks import find_blocks

Kind = Literal["output", "input"]
Edit = Callable[[Tensor], Tensor | None]
_MIDDLE = "hook_resid_mid"

_GATED = {
    "hook_attn_out": "self_attn.output",
    "attn.hook_q": "self_attn.q_proj.output",
    "attn.hook_k": "self_attn.k_proj.output",
    "attn.hook_v": "self_attn.v_proj.output",
    "attn.hook_z": "self_attn.o_proj.input",
    _MIDDLE: "post_attention_layernorm.input",
    "mlp.hook_pre": "mlp.gate_proj.output",
    "mlp.hook_pre_linear": "mlp.up_proj.output",
    "mlp.hook_post": "mlp.down_proj.input",
    "hook_mlp_out": "mlp.output",
}
_FAMILIES: dict[str, dict[str, str]] = {
    # Recognised by a module of the block; the first that is there decides.
    "pre_feedforward_layernorm": {  # Gemma 2 and 3 normalise what both halves give, too
        **_GATED,
        "hook_attn_out": "post_attention_layernorm.output",
        _MIDDLE: "pre_feedforward_layernorm.input",
        "hook_mlp_out": "post_feedforward_layernorm.output",
    },
    "self_attn.o_proj": _GATED,  # Llama, Mistral, Qwen, Gemma, Mixtral
    "attn.c_proj": {  # GPT-2
        "hook_attn_out": "attn.output",
        "attn.hook_z": "attn.c_proj.input",
        _MIDDLE: "ln_2.input",
        "mlp.hook_pre": "mlp.c_fc.output",
        "mlp.hook_post": "mlp.c_proj.input",
        "hook_mlp_out": "mlp.output",
    },
    "attention.dense": {  # GPT-NeoX
        "hook_attn_out": "attention.output",
        "attn.hook_z": "attention.dense.input",
        _MIDDLE: "post_attention_layernorm.input",
        "mlp.hook_pre": "mlp.dense_h_to_4h.output",
        "mlp.hook_post": "mlp.dense_4h_to_h.input",
        "hook_mlp_out": "mlp.output",
    },
    "attention.output.dense": {  # BERT: a norm after each sum, and residual names before it
        "hook_attn_out": "attention.output.dense.output",
        "attn.hook_q": "attention.self.query.output",
        "attn.hook_k": "attention.self.key.output",
        "attn.hook_v": "attention.self.value.output",
        "attn.hook_z": "attention.output.dense.input",
        _MIDDLE: "attention.output.LayerNorm.input",
        "mlp.hook_pre": "intermediate.dense.output",
        "mlp.hook_post": "output.dense.input",
        "hook_mlp_out": "output.dense.output",
        "hook_resid_post": "output.LayerNorm.input",
        "hook_normalized_resid_post": "output.LayerNorm.output",
    },
    "self_attn.out_proj": {  # OPT
        "hook_attn_out": "self_attn.output",
        "attn.hook_q": "self_attn.q_proj.output",
        "attn.hook_k": "self_attn.k_proj.output",
        "attn.hook_v": "self_attn.v_proj.output",
        "attn.hook_z": "self_attn.out_proj.input",
        _MIDDLE: "final_layer_norm.input",
        "mlp.hook_pre": "fc1.output",
        "mlp.hook_post": "fc2.input",
        "hook_mlp_out": "fc2.output",
    },
}
_ALWAYS = {"hook_resid_pre": "input", "hook_resid_post": "output"}
_LENS_NAME = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class HookPoint:
    """A tensor in a model: what a module gives, or what it reads first.

    Args:
        name: As it was asked for.
        path: The module's own name.
        module: The module.
        kind: "output" or "input".
        only_reader: Whether nothing else reads the tensor, so that it can be replaced here. The
            middle of a block with a norm before each half goes past the norm, too.
    """

    name: str
    path: str
    module: nn.Module
    kind: Kind
    only_reader: bool = True

    @property
    def place(self) -> str:
        """The place under its plainest name: two names of one tensor have one place."""
        return f"{self.path}.{self.kind}"

    def watch(self, look: Callable[[Tensor], None]) -> RemovableHandle:
        """Returns a handle; until it is removed, `look` gets the tensor in each forward pass."""
        return self._attach(look)

    def replace(self, edit: Edit) -> RemovableHandle:
        """Returns a handle; until it is removed, the tensor passes `edit` in each forward pass.

        Args:
            edit: Gets the tensor; what it returns takes its place, None leaves it.

        Raises:
            InvalidValue: If other parts of the model read the tensor past this place.
        """
        if not self.only_reader:
            raise InvalidValue(
                f"{self.name} can be read, but neither replaced nor differentiated: the residual "
                "stream goes past it. Take hook_resid_pre, hook_resid_post or hook_attn_out."
            )
        return self._attach(edit)

    def _attach(self, edit: Edit) -> RemovableHandle:
        if self.kind == "output":
            return self.module.register_forward_hook(
                lambda module, args, output: self._edited_output(output, edit)
            )
        return self.module.register_forward_pre_hook(
            lambda module, args, kwargs: self._edited_input(args, kwargs, edit), with_kwargs=True
        )

    def _edited_output(self, output: Any, edit: Edit) -> Any:
        if isinstance(output, Tensor):
            return edit(output)
        if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
            new = edit(output[0])
            return None if new is None else type(output)([new, *output[1:]])
        hidden = getattr(output, "last_hidden_state", None)
        if isinstance(hidden, Tensor):
            new = edit(hidden)
            if new is not None:
                output["last_hidden_state"] = new
            return None
        raise InvalidValue(
            f"{self.name}: {type(self.module).__name__} gives {type(output).__name__}, no tensor "
            "and no tuple that begins with one: name a module inside it"
        )

    def _edited_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], edit: Edit) -> Any:
        if args and isinstance(args[0], Tensor):
            new = edit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        for name, value in kwargs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                new = edit(value)
                return None if new is None else (args, {**kwargs, name: new})
        raise InvalidValue(
            f"{self.name}: {type(self.module).__name__} is called without a floating tensor: name "
            "another module's output"
        )


def hook_point(model: nn.Module, name: str) -> HookPoint:
    """Returns the place of this name in the model.

    Args:
        model: Any module.
        name: A module's path, with `.input` or `.output` behind it or without, or a name of
            TransformerLens. The prefix of a model with a head (`bert.`, `model.`) may be left out.

    Raises:
        UnknownName: If there is no such place; the message has the closest names.
        InvalidValue: If it is a name of TransformerLens for a tensor that this model does not have.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> hook_point(model, "1.input").place
        '1.input'
    """
    modules = dict(model.named_modules())
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    for full in (name, f"{prefix}.{name}"):
        found = _by_path(modules, name, full)
        if found is not None:
            return found
    lens = dict(_lens_names(model))
    if name in lens and (found := _by_path(modules, name, lens[name])) is not None:
        middle = name.endswith(_MIDDLE) and not found.path.endswith("output.LayerNorm")
        return replace(found, only_reader=not middle)
    if _LENS_NAME.fullmatch(name) and _known_tail(name) and _same_block(name, lens):
        index = name.split(".")[1]
        own = ", ".join(other for other in lens if other.startswith(f"blocks.{index}."))
        raise InvalidValue(
            f"{name} is not to be had: in {type(model).__name__} no tensor of one module is this. "
            f"There are {own}, and every module's path."
        )
    raise UnknownName("hook point", name, [*(path for path in modules if path), *lens])


def lens_names(model: nn.Module) -> dict[str, str]:
    """Returns TransformerLens' name of each place that has one, by `HookPoint.place`.

    Example:
        >>> lens_names(nn.Linear(2, 3))
        {}
    """
    modules = dict(model.named_modules())
    found = ((name, _by_path(modules, name, full)) for name, full in _lens_names(model))
    return {point.place: name for name, point in found if point is not None}


def _by_path(modules: dict[str, nn.Module], name: str, full: str) -> HookPoint | None:
    """Returns the place of a path; a module that is called `output` goes before the suffix."""
    if full in modules and full:
        return HookPoint(name, full, modules[full], "output")
    stem, _, kind = full.rpartition(".")
    if stem in modules and stem and kind in ("input", "output"):
        return HookPoint(name, stem, modules[stem], "input" if kind == "input" else "output")
    return None


def _lens_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields TransformerLens' names for the tensors of this model, with our own names."""
    lists = find_blocks(model)
    if len(lists) != 1:  # an encoder and a decoder have no common numbers
        return
    ((path, blocks),) = lists.items()
    for number, block in enumerate(blocks):
        inside = dict(block.named_modules())
        family = next((names for mark, names in _FAMILIES.items() if mark in inside), {})
        for tail, place in {**_ALWAYS, **family}.items():
            module = place.rpartition(".")[0]
            parallel = tail == _MIDDLE and _has_no_middle(block)
            if module in inside and not parallel:
                yield f"blocks.{number}.{tail}", f"{path}.{number}.{place}"


def _has_no_middle(block: nn.Module) -> bool:
    """Returns whether both halves read the same residual (GPT-NeoX), or a norm follows (OPT)."""
    return bool(getattr(block, "use_parallel_residual", False)) or (
        getattr(block, "do_layer_norm_before", True) is False
    )


def _known_tail(name: str) -> bool:
    tails = {tail for names in _FAMILIES.values() for tail in names}
    return name.split(".", 2)[2] in tails


def _same_block(name: str, lens: dict[str, str]) -> bool:
    index = name.split(".")[1]
    return any(other.startswith(f"blocks.{index}.") for other in lens)
