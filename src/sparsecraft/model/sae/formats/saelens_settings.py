"""What the settings of SAELens mean, over its releases, with nothing guessed.

Releases before 6 have `hook_point` or `hook_name` at the top level, booleans for normalisation, and
`activation_fn(_str)` with `activation_fn_kwargs` beside the architecture; release 6 has `metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.model.sae.autoencoder import RowNorm
from sparsecraft.model.sae.formats.inference_form import Rule
from sparsecraft.model.sae.origin import positions_of

RULES: dict[str, Rule] = {
    "standard": "relu",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_OVER_BATCHES = ("batchtopk", "matryoshka_batchtopk")
_ROW_NORMS: dict[str, RowNorm] = {"constant_norm_rescale": "unit", "layer_norm": "layer"}
_SCALED = "expected_average_only_in"
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_METADATA = (
    "model_name", "hook_name", "model_class_name", "hook_head_index",
    "model_from_pretrained_kwargs", "prepend_bos", "exclude_special_tokens", "neuronpedia_id",
    "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version", "hook_name_out", "hook_head_index_out", "hf_hook_name",
    "hf_hook_name_out",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The meaning of one `cfg.json`.

    Args:
        architecture: As SAELens names it; of a TopK in a "standard" file, "topk".
        rule: How a code is made.
        values: The settings, renamed to release 6, metadata apart.
        metadata: Where the activations came from.
    """

    architecture: str
    rule: Rule
    values: Mapping[str, Any]
    metadata: Mapping[str, Any]

    @property
    def transcoder(self) -> bool:
        """Whether another tensor is reconstructed."""
        return self.architecture.endswith("transcoder")

    @property
    def skip(self) -> bool:
        """Whether there is a linear map beside the code."""
        return self.architecture.endswith("skip_transcoder")

    @property
    def subtract_bias(self) -> bool:
        """Whether b_dec is subtracted from the input."""
        return not self.transcoder and bool(self.values.get("apply_b_dec_to_input", True))

    @property
    def rescaled(self) -> bool:
        """Whether a selection ranks values times decoder norms that are still in W_dec."""
        if self.trains_over_batches:
            return bool(self.values.get("rescale_acts_by_decoder_norm", True))
        return self.rule in ("topk", "abstopk") and bool(
            self.values.get("rescale_acts_by_decoder_norm", False)
        )

    @property
    def trains_over_batches(self) -> bool:
        """Whether this is a checkpoint in the middle of a training over batches."""
        return self.architecture in _OVER_BATCHES

    @property
    def trained_over_batches(self) -> bool:
        """Whether thresholds stand for a selection over batches."""
        return self.trains_over_batches or self._trained("training_architecture") in _OVER_BATCHES

    @property
    def k(self) -> float | None:
        """Entries that a row keeps, on average where the selection is over batches."""
        details = self._trained("training_architecture_details") or {}
        found = self.values.get("k", details.get("k"))
        return None if found is None else float(found)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Latents of nested dictionaries, the last of them all."""
        details = self._trained("training_architecture_details") or {}
        widths = self.values.get("matryoshka_widths", details.get("matryoshka_widths")) or ()
        return tuple(sorted({*map(int, widths), int(self.values["d_sae"])})) if widths else ()

    @property
    def row_norm(self) -> RowNorm:
        """What is done to each row."""
        return _ROW_NORMS.get(self.values["normalize_activations"], "none")

    @property
    def row_scale(self) -> float:
        """What normalised rows are multiplied by: sqrt(d_in) where their norm becomes that."""
        return float(self.values["d_in"]) ** 0.5 if self.row_norm == "unit" else 1.0

    @property
    def scaled(self) -> bool:
        """Whether inputs are to be multiplied by one scalar."""
        return bool(self.values["normalize_activations"] == _SCALED)

    @property
    def finetuned(self) -> bool:
        """Whether scales were fine-tuned on top of the codes."""
        return bool(self.values.get("finetuning_scaling_factor"))

    @property
    def info(self) -> dict[str, Any]:
        """Where the activations came from, under our names, and the metadata as they are."""
        kept = {key: value for key, value in self.metadata.items() if value is not None}
        names = {
            "model": "model_name",
            "hook": "hook_name",
            "hook_out": "hook_name_out",
            "context": "context_size",
            "prepend_bos": "prepend_bos",
            "dataset": "dataset_path",
        }
        found = {ours: kept[theirs] for ours, theirs in names.items() if theirs in kept}
        first, _ = positions_of(kept.get("seqpos_slice"))
        if first > 0:
            found["skip_first"] = first
        if isinstance(kept.get("exclude_special_tokens"), list):
            found["special_ids"] = kept["exclude_special_tokens"]
        return {**found, "saelens": {"architecture": self.architecture, "metadata": kept}}

    def whole_k(self) -> int:
        """Returns k of a selection in each row.

        Raises:
            InvalidValue: If it is missing or not a whole number.
        """
        if self.k is None or not self.k.is_integer():
            raise InvalidValue(f"its settings give k={self.k}, and a TopK needs a whole number")
        return int(self.k)

    def _trained(self, name: str) -> Any:
        return self.metadata.get(name)


def settings_of(raw: Mapping[str, Any]) -> Settings:
    """Returns the meaning of a `cfg.json`.

    Raises:
        UnknownName: For an architecture that is not known.
        InvalidValue: For an option that has no equal here.
    """
    values = {_RENAMED.get(key, key): value for key, value in raw.items()}
    metadata = dict(values.pop("metadata", None) or {})
    metadata = {**{key: values[key] for key in _METADATA if key in values}, **metadata}
    architecture = str(values.get("architecture") or "standard")
    if architecture not in RULES:
        raise UnknownName("architecture of SAELens", architecture, RULES)
    architecture = _with_function(architecture, values)
    values["normalize_activations"] = _normalisation(values.get("normalize_activations"))
    settings = Settings(architecture, RULES[architecture], values, metadata)
    if settings.transcoder and settings.row_norm != "none":
        raise InvalidValue(
            "its transcoder normalises rows of the input and does not undo that on the output; "
            "sparsecraft undoes it, so it has no such autoencoder"
        )
    return settings


def _with_function(architecture: str, values: dict[str, Any]) -> str:
    """Returns the architecture that the activation function of an older release makes it."""
    function = str(values.get("activation_fn") or "relu").lower()
    known = {"standard": ("relu", "topk"), "topk": ("relu", "topk")}
    if function not in known.get(architecture, ("relu",)):
        raise InvalidValue(
            f"its settings combine the architecture {architecture!r} with the activation "
            f"{function!r}, which has no equal here; a ReLU in its place would give other codes"
        )
    arguments = values.get("activation_fn_kwargs") or {}
    if function == "topk" or (architecture == "topk" and "k" in arguments):
        if arguments.get("k") is None and values.get("k") is None:
            raise InvalidValue("its settings say topk without k (activation_fn_kwargs)")
        values["k"] = arguments.get("k", values.get("k"))
        return "topk"
    return architecture


def _normalisation(given: Any) -> str:
    """Returns the normalisation, of all releases' values.

    Raises:
        InvalidValue: If it is not known, or cannot be folded.
    """
    name = {None: "none", False: "none", True: _SCALED}.get(given, given)
    if name in ("none", _SCALED, *_ROW_NORMS):
        return str(name)
    hint = (
        "fold it there before saving (fold_activation_whitening)"
        if name == "covariance_whitening"
        else f"known are none, {_SCALED}, {', '.join(_ROW_NORMS)}"
    )
    raise InvalidValue(f"its settings say normalize_activations: {name!r}; {hint}")
