"""Prunes a bfloat16 Llama of 3.2 GiB with 1 GiB of private memory, killed half-way and resumed.

A directory of 24 layers in ordinary shards of 2 GiB is written, then `sparsecraft prune --method
wanda` runs on it in a process whose private memory is limited (RLIMIT_DATA). When half of the
blocks are done it is killed (SIGKILL); the same command is given again and goes on. In the end
every row of every pruned matrix is counted, what was kept is compared with the source bit for bit,
and so is every tensor that was not to be touched.

Run: python benchmarks/stream_large.py --dir DIR [--quick] [--limit 1GiB] [--threads 2]
It needs 7 GiB of disk in --dir, and removes what it wrote unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsecraft.model.memory import format_bytes, parse_bytes
from sparsecraft.model.streaming.raw_files import bytes_of
from sparsecraft.model.streaming.shards import INDEX, Shards

ASKED = 2**30
SHARD = 2 * 2**30
CHUNK = 4 * 2**20
WINDOWS, WINDOW = 8, 256
VOCABULARY = 32000


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields name and shape of every tensor, in the order of a saved model."""
        yield "lm_head.weight", (VOCABULARY, self.hidden)
        yield "model.embed_tokens.weight", (VOCABULARY, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (self.hidden,)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{prefix}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
            for part in "koqv":
                yield f"{prefix}.self_attn.{part}_proj.weight", (self.hidden, self.hidden)
        yield "model.norm.weight", (self.hidden,)


FULL = Shape(hidden=2304, inner=6400, layers=24, heads=18)
QUICK = Shape(hidden=512, inner=1408, layers=6, heads=8)


def generate(folder: Path, shape: Shape, shard: int) -> None:
    """Writes a model directory with random weights, with a few megabytes of memory."""
    folder.mkdir(parents=True)
    groups = _groups(shape, shard)
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    draws = torch.Generator().manual_seed(0)
    for name, tensors in zip(names, groups, strict=True):
        _write_shard(folder / name, tensors, draws)
    weight_map = {t: name for name, group in zip(names, groups, strict=True) for t, _ in group}
    total = sum(_bytes(size) for group in groups for _, size in group)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    _write_tokenizer(folder)


def _groups(shape: Shape, shard: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in shape.tensors():
        if groups[-1] and filled + _bytes(size) > shard:
            groups.append([])
            filled = 0
        groups[-1].append((name, size))
        filled += _bytes(size)
    return groups


def _write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], draws: object) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors:
        stop = offset + _bytes(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, size in tensors:
            left = _bytes(size) // 2
            while left:
                count = min(left, CHUNK)
                if len(size) == 1:
                    values = torch.ones(count)
                else:
                    values = torch.randn(count, generator=draws) * 0.02  # type: ignore[call-overload]
                file.write(bytes_of(values.bfloat16()))
                left -= count


def _write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer whose tokens are the bytes of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(str(folder))


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": 2048,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }


def _bytes(size: tuple[int, ...]) -> int:
    return 2 * torch.Size(size).numel()


@dataclass(frozen=True)
class Ended:
    """How a run of the command ended."""

    code: int
    output: str
    seconds: float
    private: int


def prune(source: Path, out: Path, limit: int, threads: int, kill_at: int | None = None) -> Ended:
    """Runs the command under a limit of private memory; kills it when so many blocks are done."""
    command = [sys.executable, "-m", "sparsecraft", "prune", source, "--method", "wanda"]
    command += ["--sparsity", "0.5", "--calibration", Path(__file__), "--window", WINDOW]
    command += ["--max-tokens", WINDOWS * WINDOW, "--out", out, "--stream", "always"]
    # OpenBLAS, which numpy and scipy bring and nothing here uses, takes private memory a thread.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    environment["HF_HUB_OFFLINE"] = "1"
    start = time.perf_counter()
    with (source.parent / "output.txt").open("w+") as said:
        process = subprocess.Popen(
            [str(each) for each in command],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
        most = 0
        while process.poll() is None:
            most = max(most, _private(process.pid))
            if kill_at is not None and _blocks_done(out) >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.05)
        said.seek(0)
        return Ended(process.returncode, said.read(), time.perf_counter() - start, most)


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) for line in lines if line.startswith("VmData")]
    return 1024 * found[0] if found else 0


def _blocks_done(out: Path) -> int:
    try:
        journal = json.loads((out.parent / f".{out.name}.part" / "journal.json").read_text())
    except OSError:
        return 0
    return journal["progress"]["done"]


def verify(source: Path, out: Path) -> tuple[int, int]:
    """Returns (pruned matrices, untouched tensors) after comparing every tensor, or stops."""
    dense, sparse = Shards.of(source), Shards.of(out)
    if dense.digests != sparse.digests or list(dense.entries) != list(sparse.entries):
        raise SystemExit("the shards differ in names, keys, types or headers")
    pruned = untouched = 0
    for name, entry in dense.entries.items():
        before = torch.empty(entry.shape, dtype=entry.dtype)
        after = torch.empty_like(before)
        dense.read(name, before)
        sparse.read(name, after)
        if ".layers." in name and len(entry.shape) == 2:
            zeros = (after == 0).sum(1)
            # A weight that was zero already may be among those that were kept.
            if int((zeros - entry.shape[1] // 2).abs().max()) > int((before == 0).sum(1).max()):
                raise SystemExit(f"{name}: rows with {zeros.min()} to {zeros.max()} zeros")
            if not torch.equal(after, torch.where(after == 0, 0, before)):
                raise SystemExit(f"{name}: a weight that was kept has changed")
            pruned += 1
        else:
            if not torch.equal(before.view(torch.int16), after.view(torch.int16)):
                raise SystemExit(f"{name} was not to be touched, and has changed")
            untouched += 1
    return pruned, untouched


def main() -> None:
    """Writes the model, prunes it twice half, verifies, and says whether the bound was met."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--dir", type=Path, required=True, help="where there is room for 7 GiB")
    options.add_argument("--limit", type=parse_bytes, default=ASKED, help="of private memory")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--quick", action="store_true", help="a model of 90 MiB")
    options.add_argument("--keep", action="store_true", help="leave the two models there")
    chosen = options.parse_args()
    shape, shard = (QUICK, SHARD // 40) if chosen.quick else (FULL, SHARD)
    source, out = chosen.dir / "dense", chosen.dir / "sparse"
    needed = 2 * sum(_bytes(size) for _, size in shape.tensors()) + 2**28
    chosen.dir.mkdir(parents=True, exist_ok=True)
    if not source.exists() and shutil.disk_usage(chosen.dir).free < needed:
        raise SystemExit(f"{chosen.dir} has not the {format_bytes(needed)} of room that it takes")
    if not source.exists():
        start = time.perf_counter()
        generate(source, shape, shard)
        print(f"wrote {source} in {time.perf_counter() - start:.0f} s")
    report(source, out, shape, chosen.limit, chosen.threads)
    if not chosen.keep:
        shutil.rmtree(source)
        shutil.rmtree(out)


def report(source: Path, out: Path, shape: Shape, limit: int, threads: int) -> None:
    """Prunes with a kill in the middle, verifies, and prints the table."""
    first = prune(source, out, limit, threads, kill_at=shape.layers // 2)
    if first.code != -signal.SIGKILL:
        raise SystemExit(f"the first run ended by itself, with {first.code}:\n{first.output}")
    if out.exists():
        raise SystemExit("a killed run left something under the final name")
    second = prune(source, out, limit, threads)
    if second.code != 0:
        raise SystemExit(f"the second run failed with {second.code}:\n{second.output}")
    print(second.output)
    matrices, untouched = verify(source, out)
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    record = json.loads((out / "sparsecraft_config.json").read_text())["pruning"]
    most = max(first.private, second.private)
    print(f"model                 {format_bytes(weights)}, {shape.layers} layers, bfloat16")
    print(f"limit                 {format_bytes(limit)} of private memory (RLIMIT_DATA)")
    print(f"killed                after block {shape.layers // 2}, {first.seconds:.0f} s")
    print(f"resumed               at block {record['resumed_at']}, {second.seconds:.0f} s more")
    print(f"private memory        {format_bytes(most)} at most, seen every 0.05 s")
    print(f"physical memory       {format_bytes(record['peak_bytes'] or 0)} at most (VmHWM)")
    print(f"verified              {matrices} matrices row by row, {untouched} tensors untouched")
    met = "met" if limit <= ASKED and weights >= 3.2 * 2**30 * 0.99 else "not tried"
    print(f"asked: a model of 3.2 GiB within 1 GiB, killed and resumed: {met}")


if __name__ == "__main__":
    main()
