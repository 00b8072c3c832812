"""Measurements by script: no test depends on a clock."""

from __future__ import annotations

from sparsecraft.model.runtime.timing import Timing


def scripted(*fastest, calls=None, factor=2.0):
    """Returns a `measure` that finds the named candidates faster than all others, first best.

    A name is "format dtype", or "format dtype@rows" for one number of rows only. What was asked for
    is appended to `calls`.
    """

    def measure(contenders, inputs, *, baseline, cold, seconds):
        rows = inputs[0].shape[0]
        for contender in contenders.values():
            contender.rehearse(inputs[0])
            contender.run(inputs[0])
        if calls is not None:
            calls.append({"rows": rows, "names": list(contenders), "cold": cold})
        order = [name.partition("@")[0] for name in fastest if name.endswith(f"@{rows}")]
        order += [name for name in fastest if "@" not in name]
        times = dict.fromkeys(contenders, 0.001)
        for rank, name in enumerate(reversed(order), 1):
            if name in times:
                times[name] = 1e-3 / factor**rank
        return {name: Timing((seconds_,) * 5) for name, seconds_ in times.items()}

    return measure
