"""One contender of bench_sae in a process of its own, told over a pipe when to take a step.

It runs in the interpreter that has the contender's package; only one process works at a time. What
packages print goes to standard error, so that answers stay readable.

Run by bench_sae: PYTHON sae_contenders.py CONTENDER
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch

from straightforward_sae import DenseStep, DenseTopK, synthetic

BATCHES = 3
Step = Callable[[torch.Tensor], object]


def plain(d: int, latents: int, k: int, batch: int) -> Step:
    """Dense products and autograd."""
    return DenseStep(DenseTopK(d, latents, k), 1e-4)


def gemm(d: int, latents: int, k: int, batch: int, dtype: torch.dtype = torch.float32) -> Step:
    """The encoder's product alone: what is left of a step if everything else were free."""
    weight = torch.randn(latents, d).to(dtype)
    out = torch.empty(batch, latents, dtype=dtype)
    return lambda x: torch.mm(x.to(dtype), weight.T, out=out)


def gemm_bfloat16(d: int, latents: int, k: int, batch: int) -> Step:
    """The same in bfloat16."""
    return gemm(d, latents, k, batch, torch.bfloat16)


def ours(d: int, latents: int, k: int, batch: int, precision: str = "float32") -> Step:
    """A step of `SparseAutoencoder.fit`."""
    from sparsecraft.methods.codes.topk import TopK
    from sparsecraft.model.activation_store import ActivationBatch, ActivationStore
    from sparsecraft.model.sae import SAETraining, SparseAutoencoder
    from sparsecraft.model.sae.trainer import Trainer

    sae = SparseAutoencoder(d, latents, TopK(k=k))
    trainer = Trainer(sae, SAETraining(steps=10**6, batch=batch, precision=precision))
    trainer.begin(ActivationStore.from_tensor(synthetic(batch, d)))
    index = torch.arange(batch)
    return lambda x: trainer.step(ActivationBatch(x, None, None, index))


def ours_bfloat16(d: int, latents: int, k: int, batch: int) -> Step:
    """The same with a bfloat16 encoder."""
    return ours(d, latents, k, batch, "bfloat16")


def saelens(d: int, latents: int, k: int, batch: int) -> Step:
    """A step of SAELens' trainer; dense activations, its default."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=latents, k=k))
    settings = SAETrainerConfig(
        total_training_samples=10**6 * batch, train_batch_size_samples=batch, lr_end=3e-5
    )
    trainer = SAETrainer(settings, sae, iter(()))

    def step(x: torch.Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(d: int, latents: int, k: int, batch: int) -> Step:
    """A step of dictionary_learning's TopK trainer, after the first, which finds the bias."""
    # Its buffers of activations read models through nnsight; the trainer does not.
    if "nnsight" not in sys.modules and importlib.util.find_spec("nnsight") is None:
        sys.modules["nnsight"] = types.ModuleType("nnsight")
        sys.modules["nnsight"].LanguageModel = None  # type: ignore[attr-defined]
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6, activation_dim=d, dict_size=latents, k=k, layer=0, lm_name="", device="cpu"
    )
    return lambda x: trainer.update(1, x)


def sparsify(d: int, latents: int, k: int, batch: int) -> Step:
    """A step as in sparsify's trainer with Adam, written out, for that one reads a whole model."""
    coder = _sparse_coder()(d, _sparse_config()(num_latents=latents, k=k))
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4)
    silent = torch.zeros(latents, dtype=torch.long)

    def step(x: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=silent > 10_000_000)
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        fired = torch.zeros(latents, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        silent.add_(len(x))
        silent[fired] = 0

    return step


def _sparse_coder() -> type:
    """Returns sparsify's SparseCoder, also where what its trainer needs is not installed."""
    try:
        from sparsify import SparseCoder
    except ImportError:
        for name in [name for name in sys.modules if name.split(".")[0] == "sparsify"]:
            del sys.modules[name]
        # The module of the coder needs this one function, to sort the names of folders.
        sorting = sys.modules.setdefault("natsort", types.ModuleType("natsort"))
        sorting.natsorted = sorted  # type: ignore[attr-defined]
        package = types.ModuleType("sparsify")
        package.__path__ = [str(Path(entry) / "sparsify") for entry in sys.path]
        sys.modules["sparsify"] = package
        from sparsify.sparse_coder import SparseCoder
    return SparseCoder


def _sparse_config() -> type:
    from sparsify.config import SparseCoderConfig

    return SparseCoderConfig


CONTENDERS = {
    "plain": plain,
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "ours": ours,
    "ours_bfloat16": ours_bfloat16,
    "gemm": gemm,
    "gemm_bfloat16": gemm_bfloat16,
}


def memory(name: str) -> int:
    """Returns a line of the process's memory account in bytes: VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"this system does not tell {name}")


def _answer(out: int, **fields: object) -> None:
    os.write(out, (json.dumps(fields) + "\n").encode())


def main() -> None:
    """Makes the contender at the first line of input, takes a step at each further one."""
    out = os.dup(1)
    os.dup2(2, 1)
    told = json.loads(sys.stdin.readline())
    torch.set_num_threads(told["threads"])
    sizes = {name: told[name] for name in ("d", "latents", "k", "batch")}
    batches = [synthetic(sizes["batch"], sizes["d"], seed) for seed in range(BATCHES)]
    make = CONTENDERS[sys.argv[1]]
    make(4, 8, 2, 4)(synthetic(4, 4))  # imports and compiles what is needed late
    idle = memory("VmRSS")
    step = make(**sizes)
    _answer(out, ready=True)
    for turn, _ in enumerate(sys.stdin):
        cpu, wall = time.process_time(), time.perf_counter()
        step(batches[turn % BATCHES])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        _answer(out, cpu=cpu, wall=wall, peak=memory("VmHWM") - idle)


if __name__ == "__main__":
    main()
