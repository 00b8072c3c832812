"""What an evaluation found: every figure with its definition, as a table and as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sparsecraft.domains.interpretability.behaviour import Behaviour
from sparsecraft.domains.interpretability.latent_statistics import Alikeness


@dataclass(frozen=True, kw_only=True)
class SAEEvaluation:
    """What was found of an autoencoder.

    Args:
        tokens: Activations that were looked at.
        latents: Of the dictionary.
        fvu: Fraction of variance unexplained.
        squared_error: Mean of ||x - x_hat||^2.
        relative_error: Mean of ||x - x_hat||^2 / ||x||^2.
        cosine: Mean cosine of an activation and its reconstruction.
        shrinkage: E ||x_hat||^2 / E <x, x_hat>; below 1 reconstructions are too short.
        norm_ratio: E ||x_hat|| / E ||x||.
        l0: Mean number of codes that are not zero, of either sign.
        l1: Mean sum of their magnitudes.
        alive: Share of latents that fired on these tokens.
        denser_than_1_percent: Share of latents that fire on more than 1 % of tokens.
        denser_than_10_percent: On more than 10 %.
        fires_in_a_row: How often a latent fires in a context in which it fires, mean over the
            alive; None without a text.
        densities: Histogram: log10 of the lower edge of each bin, and the latents in it.
        decoder: Largest |cosine| between decoder directions.
        encoder: Largest |cosine| between encoder directions.
        decoder_norms: Smallest and largest norm of a decoder row.
        behaviour: What is left of the model's behaviour; None without a model.
        notes: What the reader must know.
    """

    tokens: int
    latents: int
    fvu: float
    squared_error: float
    relative_error: float
    cosine: float
    shrinkage: float
    norm_ratio: float
    l0: float
    l1: float
    alive: float
    denser_than_1_percent: float
    denser_than_10_percent: float
    fires_in_a_row: float | None
    densities: dict[str, list[float]]
    decoder: Alikeness
    encoder: Alikeness
    decoder_norms: tuple[float, float]
    behaviour: Behaviour | None
    notes: tuple[str, ...]

    @property
    def explained_variance(self) -> float:
        """1 - FVU."""
        return 1 - self.fvu

    def rows(self) -> list[tuple[str, str, str]]:
        """Returns the table: measure, value, what it says."""
        tokens = f"{self.tokens:,} tokens"
        found = [
            ("FVU", f"{self.fvu:.4f}", f"variance unexplained; the mean gives 1; {tokens}"),
            ("cosine", f"{self.cosine:.4f}", "of activation and reconstruction, mean"),
            ("squared error", f"{self.squared_error:.4g}", "mean of ||x - x_hat||^2"),
            ("relative error", f"{self.relative_error:.4f}", "mean of ||x - x_hat||^2 / ||x||^2"),
            ("shrinkage", f"{self.shrinkage:.4f}", "E ||x_hat||^2 / E <x, x_hat>; 1 is none"),
            ("norm ratio", f"{self.norm_ratio:.4f}", "E ||x_hat|| / E ||x||"),
            ("L0", f"{self.l0:.2f}", f"latents not zero in a token, of {self.latents:,}"),
            ("L1", f"{self.l1:.4g}", "sum of their magnitudes"),
            ("alive", f"{self.alive:.1%}", f"latents that fired in {tokens}"),
            ("denser than 1 %", f"{self.denser_than_1_percent:.2%}", "of latents"),
            ("denser than 10 %", f"{self.denser_than_10_percent:.2%}", "of latents"),
            ("decoder alikeness", *_alike(self.decoder)),
            ("encoder alikeness", *_alike(self.encoder)),
        ]
        if self.fires_in_a_row is not None:
            found.append(
                ("fires again", f"{self.fires_in_a_row:.2f}", "times in a context where it fires")
            )
        return [*found, *_behaviour_rows(self.behaviour)]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values; a share that does not exist is None."""
        found = asdict(self) | {"explained_variance": self.explained_variance}
        found["behaviour"] = None if self.behaviour is None else self.behaviour.to_json()
        return _plain(found)


def _alike(found: Alikeness) -> tuple[str, str]:
    drawn = found.latents < found.among
    of = f"{found.latents:,} drawn from {found.among:,}" if drawn else f"all {found.among:,}"
    text = f"|cosine| with the nearest other, mean of {of}; largest {found.largest:.3f}"
    return f"{found.mean:.3f}", text


def _behaviour_rows(found: Behaviour | None) -> list[tuple[str, str, str]]:
    if found is None:
        return []
    rows = []
    if found.loss is not None:
        loss = found.loss
        text = f"{loss.clean:.3f} clean, {loss.reconstructed:.3f} reconstructed, "
        rows = [
            ("loss recovered", _percent(loss.over_zero), f"{text}{loss.zero:.3f} zero (nats)"),
            ("over the mean", _percent(loss.over_mean), f"{loss.mean:.3f} with mean ablation"),
        ]
    kl = found.divergence
    what = "predictions" if found.kind == "next token" else "similarities of texts"
    text = f"of {what}: {kl.reconstructed:.4f} nats, {kl.zero:.4f} zero, {kl.mean:.4f} mean"
    return [
        *rows,
        ("KL recovered", _percent(kl.over_zero), text),
        ("KL over the mean", _percent(kl.over_mean), "with mean ablation as 0"),
    ]


def _percent(share: float) -> str:
    return "not defined" if math.isnan(share) else f"{share:.2%}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
