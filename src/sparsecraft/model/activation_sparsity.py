"""How many neurons of a model's MLPs fire: by layer, by neuron, by token, and over a training.

Li et al. (2022) find that few entries of the activation of a trained transformer's MLPs are not
zero, fewer in wider models, though half of them are at first. `ActivationMonitor` counts them
exactly: non-zeros after the activation and before any dropout, padding left out, in integers that
are saved with a training.

GELU and SiLU are never exactly zero. The report says so where such a layer is counted, and offers
the share above a threshold instead. The FLOPs it gives save the second product alone: the first
must be computed to know which neurons fire.

Reference:
    Li et al., 2022, arXiv 2210.06313, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingStatistic
from sparsecraft.model.activation_counts import Counts
from sparsecraft.model.activation_report import ActivityReport, LayerActivity, never_zero
from sparsecraft.model.gate_hooks import installed
from sparsecraft.model.mlp_sites import MLPSite, find_mlp_sites
from sparsecraft.model.taps import expert_hidden
from sparsecraft.model.units import evaluating

_FORMAT = "sparsecraft activation monitor"
_MASKS = ("attention_mask", "decoder_attention_mask")


@dataclass(frozen=True)
class Moment:
    """The shares of non-zeros at one step of a training, by site."""

    step: int
    nonzero: Mapping[str, float]


class ActivationMonitor:
    """Counts which neurons fire in the forward passes of a model while it is attached.

    Args:
        model: Any module; it computes as before.
        targets: Globs over MLPs or modules; None takes every MLP, see `find_mlp_sites`.
        threshold: What an entry's magnitude must exceed; 0 counts exact non-zeros.

    Raises:
        NoMatch: If the model has no such activation.
        InvalidValue: If the threshold is negative.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        ...     _ = net[0].bias.zero_()
        >>> with ActivationMonitor(net) as monitor:
        ...     _ = net(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
        >>> layer = monitor.report().layers[0]
        >>> layer.nonzero, layer.frequencies.tolist(), layer.quantiles
        (0.6666666666666666, [1.0, 0.5, 0.5], (2, 2, 2))
    """

    def __init__(
        self,
        model: nn.Module,
        targets: str | Sequence[str] | None = None,
        *,
        threshold: float = 0.0,
    ) -> None:
        if not threshold >= 0:
            raise InvalidValue(f"threshold={threshold} is not allowed: give at least 0")
        self.model, self.threshold = model, float(threshold)
        self.sites = find_mlp_sites(model, targets)
        self.counts = {site.name: Counts() for site in self.sites}
        self.curve: list[Moment] = []
        self._masks: dict[str, Tensor] = {}
        self._notes: dict[str, None] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> ActivationMonitor:
        """Begins to count; does nothing where it counts already."""
        if self._handles:
            return self
        modules = dict(self.model.named_modules(remove_duplicate=False))
        self._handles.append(self.model.register_forward_pre_hook(self._enter, with_kwargs=True))
        experts: dict[str, list[MLPSite]] = {}
        for site in self.sites:
            module = modules[site.module]
            if site.where == "experts":
                experts.setdefault(site.module, []).append(site)
            elif site.where == "output":
                self._handles.append(module.register_forward_hook(self._output(site)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._input(site)))
        for name, sites in experts.items():
            self._handles.append(modules[name].register_forward_pre_hook(self._routed(sites)))
        return self

    def detach(self) -> None:
        """Stops counting; what was counted stays."""
        while self._handles:
            self._handles.pop().remove()
        self._masks = {}

    def __enter__(self) -> ActivationMonitor:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def reset(self) -> None:
        """Forgets the counts; the curve stays."""
        self.counts = {site.name: Counts() for site in self.sites}

    def record(self, step: int) -> Moment:
        """Adds the shares counted since the last record to the curve, and counts anew.

        Args:
            step: Of the training, beyond that of the last record.

        Raises:
            InvalidValue: If the step is not.
            MissingStatistic: If nothing was counted since.
        """
        if self.curve and step <= self.curve[-1].step:
            raise InvalidValue(f"step {step} is not after {self.curve[-1].step}, the last one")
        shares = {layer.site.name: layer.nonzero for layer in self.report().layers}
        self.curve.append(Moment(step, shares))
        self.reset()
        return self.curve[-1]

    @torch.no_grad()
    def measure(self, batches: Iterable[Mapping[str, Any]]) -> ActivityReport:
        """Returns the report of batches that it runs in evaluation mode, without gradients.

        Args:
            batches: Keyword arguments of the model's forward; `labels` are left out.
        """
        attached = bool(self._handles)
        self.reset()
        try:
            self.attach()
            with evaluating(self.model):
                for batch in batches:
                    self.model(**{key: value for key, value in batch.items() if key != "labels"})
        finally:
            if not attached:
                self.detach()
        return self.report()

    def report(self) -> ActivityReport:
        """Returns what was counted, summed over all processes that train together.

        Raises:
            MissingStatistic: If no token was counted.
        """
        totals = {name: counts.over_ranks() for name, counts in self.counts.items()}
        layers = [LayerActivity.of(s, totals[s.name]) for s in self.sites if totals[s.name].tokens]
        if not layers:
            raise MissingStatistic(
                "the monitor has counted no token: attach it, run the model, then ask. "
                + " ".join(self._notes)
            )
        unseen = [site.name for site in self.sites if not totals[site.name].tokens]
        notes = [*self._notes, *(f"{name}: no token reached it" for name in unseen)]
        notes += never_zero(layers, self.threshold, self._gated())
        return ActivityReport(tuple(layers), self.threshold, tuple(notes))

    def state_dict(self) -> dict[str, Any]:
        """Returns counts and curve, to go on with later."""
        return {
            "format": _FORMAT,
            "threshold": self.threshold,
            "counts": {name: counts.state_dict() for name, counts in self.counts.items()},
            "curve": [{"step": each.step, "nonzero": dict(each.nonzero)} for each in self.curve],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up counts and curve; nothing is changed where they do not fit.

        Raises:
            CheckpointError: Naming what differs.
        """
        if state.get("format") != _FORMAT:
            raise CheckpointError("this is not the state_dict() of an ActivationMonitor")
        if state["threshold"] != self.threshold or set(state["counts"]) != set(self.counts):
            raise CheckpointError(
                f"the state counts {sorted(state['counts'])[:3]} above {state['threshold']:g}, "
                f"this monitor {sorted(self.counts)[:3]} above {self.threshold:g}: give it the "
                "same model, targets and threshold"
            )
        self.counts = {n: Counts.from_state(each, n) for n, each in state["counts"].items()}
        self.curve = [Moment(each["step"], dict(each["nonzero"])) for each in state["curve"]]

    def _enter(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        given = {name: kwargs.get(name) for name in _MASKS}
        self._masks = {n: m.bool() for n, m in given.items() if m is not None and m.dim() == 2}

    def _output(self, site: MLPSite) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._see(site, output, module)

        return hook

    def _input(self, site: MLPSite) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self.model.training and self._drops(site):
                self._note(
                    f"{site.name}: counted in evaluation mode only, because dropout, which makes "
                    "zeros of its own, lies between its activation and the next matrix"
                )
            else:
                self._see(site, inputs[0], module)

        return hook

    def _routed(self, sites: Sequence[MLPSite]) -> Callable[[Any, Any], None]:
        """Computes each expert's activation once more, of the tokens that are routed to it."""

        @torch.no_grad()
        def hook(module: Any, inputs: Any) -> None:
            hidden, chosen = inputs[0].flatten(0, -2), inputs[1].flatten(0, -2)
            valid = self._valid(sites[0], hidden)
            for site in sites:
                mine = (chosen == site.expert).any(-1)
                tokens = hidden[mine if valid is None else mine & valid]
                offered = len(hidden) if valid is None else int(valid.sum())
                self.counts[site.name].passed_by += offered - len(tokens)
                if len(tokens) and site.expert is not None:
                    first = site.first[0].rpartition(".")[2]
                    values = expert_hidden(module, first, site.expert, tokens)
                    self.counts[site.name].add(values, self.threshold, site.name)

        return hook

    def _see(self, site: MLPSite, x: Tensor, module: nn.Module) -> None:
        x = x.detach()
        if x.dim() == 4:  # (n, channels, height, width): a token is a position
            tokens = x.movedim(1, -1).flatten(0, -2)
            valid = None
        else:
            tokens = x.reshape(-1, x.shape[-1])
            valid = self._valid(site, x)
        tokens = tokens if valid is None else tokens[valid]
        if len(tokens):
            self.counts[site.name].add(tokens, self.threshold, site.name)

    def _valid(self, site: MLPSite, x: Tensor) -> Tensor | None:
        """Returns (tokens,) which tokens of x are no padding; None if all are, or none is known."""
        mask = self._mask_of(site)
        if mask is None or bool(mask.all()):
            return None
        tokens = x.shape[:-1].numel()
        length = x.shape[1] if x.dim() == 3 else tokens // len(mask)
        # In generation the mask also covers tokens of earlier passes, which are not in x.
        mask = mask[:, -length:]
        if mask.numel() != tokens or (x.dim() == 3 and x.shape[0] != len(mask)):
            self._note(
                f"{site.name}: padding is counted, because the attention mask {tuple(mask.shape)} "
                f"does not fit its activation {tuple(x.shape)}"
            )
            return None
        return mask.flatten()

    def _mask_of(self, site: MLPSite) -> Tensor | None:
        two = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        decoder = two and "decoder" in site.name.split(".")
        return self._masks.get(_MASKS[1] if decoder else _MASKS[0])

    def _drops(self, site: MLPSite) -> bool:
        scope = self.model.get_submodule(site.name) if site.second else self.model
        return any(isinstance(each, nn.Dropout) and each.p > 0 for each in scope.modules())

    def _gated(self) -> set[str]:
        """Returns the sites whose activation has a gate on it."""
        gates = installed(self.model)
        return {site.name for site in self.sites if {site.activation, site.second} & set(gates)}

    def _note(self, text: str) -> None:
        self._notes[text] = None
