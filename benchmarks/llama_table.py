"""The table of `bench_llama` in Markdown, and its answer in one sentence."""

from __future__ import annotations

import json
from typing import Any


def answer(rows: list[dict[str, Any]]) -> str:
    """Returns the sentence for the README's first screen."""
    sparse = [row for row in rows if row["sparse"] and row["beyond_int8"]]
    faster = [row for row in sparse if "faster" in row["beyond_int8"]]
    if faster:
        listed = "; ".join(
            f"{row['arm']} ({', '.join(row['beyond_int8'])}; perplexity {row['change'][0]:+.1%})"
            for row in faster
        )
        return f"faster than dense int8: {listed}"
    others = "; ".join(f"{row['arm']} ({', '.join(row['beyond_int8'])})" for row in sparse)
    tail = f"; not dominated all the same: {others}" if others else ""
    return f"on this machine nothing sparse beats int8{tail}"


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| arm | setting | perplexity | every gate in use | against dense, % | KL | tokens/s "
        "| x torch float32 | x best dense of its type | MB of layers | layers compute with "
        "| against dense int8 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        estimate, low, high = (100 * value for value in row["change"])
        rate = row["tokens_per_second"]
        beside = row["over_best_dense"]
        words = row["beyond_int8"]
        cells = [
            row["arm"], json.dumps(row["setting"]) if row["setting"] else "",
            f"{row['perplexity']:.3f}",
            f"{row['all_zeros_used']:.3f}" if row["kind"] == "gate" else "",
            f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]",
            f"{max(row['kl'], 0):.4f}",
            f"{rate['median']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]",
            f"{row['over_torch_float32']:.2f}", "" if beside is None else f"{beside:.2f}",
            f"{row['megabytes']:.1f}", row["computes"],
            "" if words is None else ", ".join(words) or "dominated",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
