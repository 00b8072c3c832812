"""Makes `sae_formats.zip` with the real libraries, and lets them read what sparsecraft writes.

Three steps, the first and the last in an environment with sae-lens 6.54.12, eai-sparsify 1.3.3 and
dictionary-learning 0.1.0, the second in that of sparsecraft:

    python sae_formats.py make sae_formats.zip --openai model.py   # model.py: see below
    python sae_formats.py write FOLDER
    python sae_formats.py check FOLDER

`model.py` is `sparse_autoencoder/model.py` of github.com/openai/sparse_autoencoder, which is no
package. Each case of the archive is a folder with the files that the library wrote, and
`golden.npz`: x, codes and outputs that the library computed from those very files, read back.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import io
import json
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

D_IN, D_SAE, ROWS = 6, 16, 12
CALIBRATED = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("make", "write", "check"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--openai", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step == "make":
        make(arguments.path, arguments.openai)
    else:
        {"write": write, "check": check}[arguments.step](arguments.path)


# ------------------------------------------------------------------ make, with the libraries


def make(path: Path, openai: Path) -> None:
    stand_in_for_unused_imports()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        saelens_cases(root)
        sparsify_cases(root)
        dictionary_learning_cases(root)
        openai_cases(root, openai)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(root.rglob("*")):
                if file.is_file():
                    packed.write(file, file.relative_to(root))
    path.write_bytes(archive.getvalue())
    print(f"{path}: {len(archive.getvalue())} bytes")


def stand_in_for_unused_imports() -> None:
    """Stands in for packages that the libraries import and that no file format needs."""
    unused = {
        "natsort": {"natsorted": sorted},
        "schedulefree": {"ScheduleFreeWrapper": object},
        "nnsight": {"LanguageModel": object},
        "zstandard": {},
    }
    for name, members in unused.items():
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__dict__.update(members)
            sys.modules[name] = module


def inputs(seed: int, width: int = D_IN) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(ROWS, width, generator=stream) + 0.3


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Fills every floating parameter; thresholds above zero, decoder rows of no special norm."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=stream) * 0.5
            parameter.copy_(0.1 + 0.4 * values.abs() if name == "threshold" else values)


def keep(root: Path, case: str, x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor) -> None:
    arrays = {"x": x, "codes": codes, "out": out}
    np.savez(root / case / "golden.npz", **{k: v.detach().numpy() for k, v in arrays.items()})


def saelens_cases(root: Path) -> None:
    from sae_lens.saes import (
        abstopk_sae,
        batchtopk_sae,
        gated_sae,
        jumprelu_sae,
        matryoshka_batchtopk_sae,
        standard_sae,
        topk_sae,
        transcoder,
    )
    from sae_lens.saes.sae import SAE, SAEMetadata

    hooks = SAEMetadata(model_name="gpt2", hook_name="blocks.3.hook_resid_post", context_size=64)
    across = SAEMetadata(
        model_name="gpt2",
        hook_name="blocks.3.ln2.hook_normalized",
        hook_name_out="blocks.3.hook_mlp_out",
    )
    size = {"d_in": D_IN, "d_sae": D_SAE, "metadata": hooks}
    wide = {**size, "d_out": 5, "apply_b_dec_to_input": False, "metadata": across}
    plain = {
        "standard": standard_sae.StandardSAE(standard_sae.StandardSAEConfig(**size)),
        "standard_no_subtraction": standard_sae.StandardSAE(
            standard_sae.StandardSAEConfig(**size, apply_b_dec_to_input=False)
        ),
        "standard_layer_norm": standard_sae.StandardSAE(
            standard_sae.StandardSAEConfig(**size, normalize_activations="layer_norm")
        ),
        "standard_constant_norm": standard_sae.StandardSAE(
            standard_sae.StandardSAEConfig(**size, normalize_activations="constant_norm_rescale")
        ),
        "gated": gated_sae.GatedSAE(gated_sae.GatedSAEConfig(**size)),
        "jumprelu": jumprelu_sae.JumpReLUSAE(jumprelu_sae.JumpReLUSAEConfig(**size)),
        "topk": topk_sae.TopKSAE(topk_sae.TopKSAEConfig(**size, k=4)),
        "topk_rescaled": topk_sae.TopKSAE(
            topk_sae.TopKSAEConfig(**size, k=4, rescale_acts_by_decoder_norm=True)
        ),
        "abstopk_rescaled": abstopk_sae.AbsTopKSAE(
            abstopk_sae.AbsTopKSAEConfig(**size, k=4, rescale_acts_by_decoder_norm=True)
        ),
        "transcoder": transcoder.Transcoder(transcoder.TranscoderConfig(**wide)),
        "skip_transcoder": transcoder.SkipTranscoder(transcoder.SkipTranscoderConfig(**wide)),
        "jumprelu_transcoder": transcoder.JumpReLUTranscoder(
            transcoder.JumpReLUTranscoderConfig(**wide)
        ),
        "jumprelu_skip_transcoder": transcoder.JumpReLUSkipTranscoder(
            transcoder.JumpReLUSkipTranscoderConfig(**wide)
        ),
    }
    trained = {
        "batchtopk": batchtopk_sae.BatchTopKTrainingSAE(
            batchtopk_sae.BatchTopKTrainingSAEConfig(**size, k=4)
        ),
        "matryoshka": matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE(
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig(
                **size, k=4, matryoshka_widths=[4, 8, D_SAE]
            )
        ),
    }
    for seed, (name, sae) in enumerate({**plain, **trained}.items()):
        folder = root / f"saelens_{name}"
        randomise(sae, seed)
        if name in trained:
            sae.topk_threshold.fill_(CALIBRATED)
            sae.save_inference_model(folder)
        else:
            sae.save_model(folder)
        again = SAE.load_from_disk(folder)
        x = inputs(100 + seed)
        keep(root, folder.name, x, again.encode(x), again(x))


def sparsify_cases(root: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    cases = {
        "topk": {},
        "transcoder": {"transcode": True},
        "skip_transcoder": {"transcode": True, "skip_connection": True},
        "multi_topk": {"multi_topk": True},
    }
    for seed, (name, options) in enumerate(cases.items()):
        folder = root / f"sparsify_{name}" / "layers.3"
        sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=4, **options))
        randomise(sae, 40 + seed)
        sae.save_to_disk(folder)
        again, x = SparseCoder.load_from_disk(folder), inputs(140 + seed)
        found = again.encode(x)
        codes = torch.zeros(ROWS, D_SAE).scatter_(1, found.top_indices, found.top_acts)
        # With multi_topk, forward returns what 4 k latents give, which only its loss is made of.
        out = again.decode(found.top_acts, found.top_indices)
        out = out if again.W_skip is None else out + x @ again.W_skip.mT
        assert name == "multi_topk" or torch.equal(out, again(x).sae_out)
        keep(root, f"sparsify_{name}", x, codes, out)


def dictionary_learning_cases(root: Path) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
    from dictionary_learning.utils import load_dictionary

    over = {"k": 4}
    made = {
        "AutoEncoder": dictionary.AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(D_IN, D_SAE, **over),
        "BatchTopKSAE": batch_top_k.BatchTopKSAE(D_IN, D_SAE, **over),
        "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(
            D_IN, D_SAE, group_sizes=[4, 4, 8], **over
        ),
    }
    for seed, (name, sae) in enumerate(made.items()):
        folder = root / f"dictionary_learning_{name}"
        folder.mkdir(parents=True)
        randomise(sae, 60 + seed)
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            sae.threshold.fill_(CALIBRATED)
        trainer = {
            "dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3,
            "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_3",
            **(over if hasattr(sae, "k") else {}),
        }  # fmt: skip
        torch.save(sae.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(
            json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}})
        )
        again, x = load_dictionary(str(folder), "cpu")[0], inputs(160 + seed)
        if name == "AutoEncoder":
            # Their default makes the decoder unit after loading; the file's own codes are asked.
            again = dictionary.AutoEncoder.from_pretrained(
                folder / "ae.pt", normalize_decoder=False
            )
        keep(root, folder.name, x, again.encode(x), again(x))


def openai_cases(root: Path, source: Path) -> None:
    spec = importlib.util.spec_from_file_location("openai_model", source)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    cases = {"relu": (torch.nn.ReLU(), False), "topk": (model.TopK(4), True)}
    for seed, (name, (activation, normalize)) in enumerate(cases.items()):
        folder = root / f"openai_{name}"
        folder.mkdir(parents=True)
        sae = model.Autoencoder(D_SAE, D_IN, activation=activation, normalize=normalize)
        randomise(sae, 80 + seed)
        # Newer torch adds the activation's own entries a second time; the published files have
        # them once, and their code refuses more.
        twice = ("activation.k", "activation.postact_fn")
        state = {key: value for key, value in sae.state_dict().items() if key not in twice}
        torch.save(state, folder / "autoencoder.pt")
        again = model.Autoencoder.from_state_dict(torch.load(folder / "autoencoder.pt"))
        x = inputs(180 + seed)
        _, codes, out = again(x)
        keep(root, folder.name, x, codes, out)


# ------------------------------------------------------------------ write, with sparsecraft


def ours() -> dict[str, object]:
    """Autoencoders of ours, by name: every rule and every fold."""
    from sparsecraft.core import catalog
    from sparsecraft.model.sae import SparseAutoencoder

    def one(seed: int, method: str, options: dict, **how: object) -> SparseAutoencoder:
        sae = SparseAutoencoder(D_IN, D_SAE, catalog.build(method, **options), **how)
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in sae.state_dict().items():
                values = torch.randn(tensor.shape, generator=stream) * 0.5
                if name == "own_threshold":
                    tensor.copy_(0.1 + 0.3 * values.abs())
                elif name == "own_log_threshold":
                    tensor.copy_((0.1 + 0.3 * values.abs()).log())
                elif name == "b_enc" and method == "gba":
                    tensor.copy_(-values.abs())
                elif name.startswith("own_") and method != "gated_sae":
                    continue
                elif tensor.is_floating_point():
                    tensor.copy_(values)
        sae.info = {"model": "gpt2", "hook": "blocks.3.hook_resid_post", "context": 64}
        return sae.eval()

    k = {"k": 4}
    return {
        "relu": one(1, "relu_sae", {}),
        "relu_no_subtraction": one(2, "relu_sae", {}, subtract_bias=False),
        "relu_layer": one(3, "relu_sae", {}, row_norm="layer"),
        "relu_unit": one(4, "relu_sae", {}, row_norm="unit"),
        "gated": one(5, "gated_sae", {}),
        "gated_no_subtraction": one(6, "gated_sae", {}, subtract_bias=False),
        "jumprelu": one(7, "jumprelu", {}),
        "topk": one(8, "topk_sae", k),
        "abstopk": one(9, "abstopk", k),
        "batch_topk": one(10, "batch_topk", k),
        "matryoshka": one(11, "batch_topk", k, prefixes=(4, D_SAE)),
        "feature_choice": one(12, "feature_choice", k),
        "gba": one(13, "gba", {"groups": 2}, tied=True),
        "gradient_topk": one(14, "gradient_topk", k),
        "transcoder": one(15, "jumprelu", {}, d_out=5, skip=True),
        "topk_transcoder": one(16, "topk_sae", k, d_out=D_IN, skip=True),
    }


def write(folder: Path) -> None:
    from sparsecraft.core.errors import InvalidValue

    for name, sae in ours().items():
        x = inputs(200)
        for form in ("saelens", "sparsify", "dictionary_learning"):
            place = folder / form / name
            try:
                sae.save_pretrained(place, format=form, overwrite=True)
            except InvalidValue as error:
                print(f"{form:20} {name:20} refused: {error}")
                continue
            with torch.no_grad():
                keep(folder / form, name, x, sae.encode(x), sae(x))


# ------------------------------------------------------------------ check, with the libraries


def check(folder: Path) -> None:
    stand_in_for_unused_imports()
    from dictionary_learning.utils import load_dictionary
    from sae_lens.saes.sae import SAE
    from sparsify import SparseCoder

    def sparsify(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        sae = SparseCoder.load_from_disk(path)
        return lambda x: sae(x).sae_out

    readers: dict[str, Callable[[Path], Callable[[torch.Tensor], torch.Tensor]]] = {
        "saelens": SAE.load_from_disk,
        "sparsify": sparsify,
        "dictionary_learning": lambda path: load_dictionary(str(path), "cpu")[0],
    }
    worst = 0.0
    for form, read in readers.items():
        for case in sorted((folder / form).iterdir()):
            golden = np.load(case / "golden.npz")
            with torch.no_grad():
                found = read(case)(torch.from_numpy(golden["x"])).numpy()
            error = float(np.abs(found - golden["out"]).max())
            worst = max(worst, error)
            print(f"{form:20} {case.name:20} largest difference {error:.1e}")
    print(f"largest of all {worst:.1e}: {'within' if worst < 1e-5 else 'BEYOND'} 1e-5")


if __name__ == "__main__":
    main()
