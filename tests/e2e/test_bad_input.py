"""Every mistake a user can make gets one line that says what to do, and spoils nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tests.command import refused, run
from tests.models import save_directory, tiny_llama

TEXT = "the cat sat on a mat . " * 200


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return save_directory(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(directory, tmp_path) -> Path:
    """A copy of the model directory that the test may damage."""
    return Path(shutil.copytree(directory, tmp_path / "model"))


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("sparsity", ["1", "1.5", "-0.1", "150%", "nan"])
def test_sparsity_outside_its_range(capsys, directory, tmp_path, sparsity):
    out = tmp_path / "out"
    message = refused(capsys, "prune", directory, f"--sparsity={sparsity}", "--out", out)
    assert "fraction of zeros, in [0, 1)" in message
    assert not out.exists()


def test_percentage_without_the_sign(capsys, directory, tmp_path):
    message = refused(capsys, "prune", directory, "--sparsity", "60", "--out", tmp_path / "out")
    assert "For 60 % write 0.6" in message


def test_n_of_m_that_does_not_divide_a_layer(capsys, tmp_path):
    odd = save_directory(tiny_llama(intermediate_size=66), tmp_path / "odd")
    message = refused(capsys, "prune", odd, "--pattern", "2:4", "--out", tmp_path / "out")
    assert "model.layers.0.mlp.down_proj" in message
    assert "multiple of 4 inputs, but the layer has 66" in message


def test_sparsity_that_contradicts_n_of_m(capsys, directory, tmp_path):
    out = tmp_path / "out"
    message = refused(
        capsys, "prune", directory, "--pattern", "2:4", "--sparsity", "0.6", "--out", out
    )
    assert "2:4, which implies 0.5" in message


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["--method", "wandaa"], "'wanda'"),
        (["--method", "magnitud"], "'magnitude'"),
        (["--pattern", "unstructurd"], "'unstructured'"),
        (["--method", "random", "--option", "bernouli=yes"], "'bernoulli'"),
        (["--method", "random", "--option", "allocation=er+"], "'er"),
        (["--sparsty", "0.5"], "--sparsity"),
    ],
)
def test_unknown_names_get_the_nearest(capsys, directory, tmp_path, arguments, nearest):
    message = refused(capsys, "prune", directory, *arguments, "--out", tmp_path / "out")
    assert "Did you mean" in message
    assert nearest in message


def test_targets_that_match_nothing(capsys, directory, tmp_path):
    message = refused(capsys, "prune", directory, "--targets", "*.mlq.*", "--out", tmp_path / "out")
    assert "'*.mlq.*' match no layer" in message
    assert "mlp" in message


def test_targets_that_take_everything_away(capsys, directory, tmp_path):
    message = refused(capsys, "prune", directory, "--targets", "!*", "--out", tmp_path / "out")
    assert "nothing to prune" in message


def test_directory_that_is_not_there(capsys, tmp_path):
    message = refused(capsys, "prune", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "there is no directory" in message


def test_directory_without_weights(capsys, copy, tmp_path):
    (copy / "model.safetensors").unlink()
    assert "holds no weights" in refused(capsys, "prune", copy, "--out", tmp_path / "out")


def test_directory_with_a_pickle_only(capsys, copy, tmp_path):
    (copy / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), copy / "pytorch_model.bin")
    out = tmp_path / "out"
    message = refused(capsys, "prune", copy, "--out", out)
    assert "can run any code" in message
    assert "--allow-pickle" in message
    assert run(capsys, "prune", copy, "--allow-pickle", "--out", out).code == 0
    assert (out / "model.safetensors").is_file()


def test_truncated_safetensors(capsys, copy, tmp_path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(capsys, "prune", copy, "--out", tmp_path / "out")
    assert "model.safetensors is cut off" in message


def test_weights_that_are_not_finite(capsys, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    broken = save_directory(model, tmp_path / "broken")
    message = refused(capsys, "prune", broken, "--out", tmp_path / "out")
    assert "model.layers.1.mlp.up_proj.weight has NaN or infinite weights" in message


def test_activations_that_are_not_finite(capsys, text, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("inf"))
    broken = save_directory(model, tmp_path / "broken")
    message = refused(
        capsys, "prune", broken, "--method", "wanda", "--calibration", text,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "NaN or infinite values during calibration" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "the cat"])
def test_calibration_text_that_is_too_short(capsys, directory, tmp_path, content):
    text = tmp_path / "short.txt"
    text.write_text(content)
    message = refused(
        capsys, "prune", directory, "--method", "wanda", "--calibration", text,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert f"has {len(content)} characters" in message
    assert "give at least" in message


def test_calibration_that_is_no_text(capsys, directory, tmp_path):
    arguments = ["prune", directory, "--method", "wanda", "--out", tmp_path / "out"]
    weights = directory / "model.safetensors"
    assert "not a UTF-8 text" in refused(capsys, *arguments, "--calibration", weights)
    assert "cannot be read" in refused(capsys, *arguments, "--calibration", tmp_path / "none.txt")


def test_calibration_missing_or_needless(capsys, directory, text, tmp_path):
    arguments = ["prune", directory, "--out", tmp_path / "out"]
    assert "--calibration FILE" in refused(capsys, *arguments, "--method", "wanda")
    assert "has no effect" in refused(capsys, *arguments, "--calibration", text)


def test_output_that_exists_is_kept_unless_overwrite(capsys, directory, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    message = refused(capsys, "prune", directory, "--out", out)
    assert "is kept" in message
    assert "--overwrite" in message
    assert (out / "precious.txt").read_text() == "mine"
    assert run(capsys, "prune", directory, "--out", out, "--overwrite").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not (out / "precious.txt").exists()


def test_output_that_is_the_model_itself_is_kept(capsys, copy):
    before = (copy / "model.safetensors").read_bytes()
    assert "is kept" in refused(capsys, "prune", copy, "--out", copy)
    assert (copy / "model.safetensors").read_bytes() == before


def test_no_output(capsys, directory):
    assert "--out DIR is needed" in refused(capsys, "prune", directory)


def test_full_disk_leaves_the_old_model_whole(capsys, directory, tmp_path):
    out = tmp_path / "out"
    assert run(capsys, "prune", directory, "--out", out).code == 0
    before = _contents(out)
    # A file-size limit fails a write just as a full disk does, and needs no disk of one's own.
    script = """
        import resource, sys
        from sparsecraft.cli.main import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(main(sys.argv[1:]))
    """
    command = ["prune", directory, "--sparsity", "0.9", "--out", out, "--overwrite"]
    done = _python(script, *command)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: could not write")
    assert "What was there before is unchanged" in last
    assert _contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_kill_at_any_write_leaves_a_whole_model(capsys, directory, tmp_path):
    old, new, states = tmp_path / "old", tmp_path / "new", tmp_path / "states"
    assert run(capsys, "prune", directory, "--out", old).code == 0
    assert run(capsys, "prune", directory, "--sparsity", "0.9", "--out", new).code == 0
    script = """
        import os, shutil, signal, sys
        from pathlib import Path
        from sparsecraft.cli.main import main

        old, states, *command = sys.argv[1:]
        writes = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
        seen = 0

        def die_at(n, work):
            def hook(event, args):
                global seen
                path = os.fspath(args[0]) if args and isinstance(args[0], (str, Path)) else ""
                opens = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
                if (event in writes or opens) and path.startswith(work):
                    seen += 1
                    if seen == n:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(hook)

        main([*command, "--out", states + "/warm"])  # so that the children need not import again
        for n in range(1, 200):
            work = f"{states}/{n}"
            shutil.copytree(old, work + "/out")
            child = os.fork()
            if child == 0:
                die_at(n, work)
                os._exit(main([*command, "--out", work + "/out", "--overwrite"]))
            if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                break
    """
    done = _python(script, old, states, "prune", directory, "--sparsity", "0.9")
    assert done.returncode == 0, done.stderr
    allowed = [_weights(old), _weights(new)]
    steps = sorted((p for p in states.iterdir() if p.name != "warm"), key=lambda p: int(p.name))
    assert len(steps) > 5
    for step in steps:
        assert _weights(step / "out") in allowed, step
    assert _weights(steps[-1] / "out") == _weights(new)
    assert [path.name for path in steps[-1].iterdir()] == ["out"]


def _python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _weights(directory: Path) -> tuple[bytes, bytes] | None:
    """The two files that must fit together, or None where one is missing."""
    names = ("model.safetensors", "config.json")
    if not all((directory / name).is_file() for name in names):
        return None
    return tuple((directory / name).read_bytes() for name in names)
