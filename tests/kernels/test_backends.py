import os
import subprocess
import sys

import pytest
import torch

from sparsecraft.kernels import backends
from sparsecraft.kernels.backends import choose, describe, use_backend


def test_importing_the_kernels_does_not_import_numba():
    code = (
        "import sys, sparsecraft.kernels.selection, sparsecraft.kernels.nm;"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_context_manager_is_stronger_than_the_environment(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "torch")
    x = torch.zeros(3)
    assert choose([x]) == "torch"
    assert describe()["reason"] == backends.VARIABLE
    with use_backend("numba"):
        assert choose([x]) == "numba"
        assert describe()["reason"] == "use_backend"
        with use_backend("torch"):
            assert choose([x]) == "torch"
        assert choose([x]) == "numba"
    assert choose([x]) == "torch"


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match=r"'cuda'.*numba, torch"), use_backend("cuda"):
        pass
    monkeypatch.setenv(backends.VARIABLE, "Numba")
    with pytest.raises(ValueError, match=r"SPARSECRAFT_BACKEND.*'Numba'.*numba, torch"):
        choose([torch.zeros(1)])


def test_forced_numba_refuses_what_it_cannot_run():
    with use_backend("numba"), pytest.raises(ValueError, match=r"int64 tensor on cpu"):
        choose([torch.zeros(2), torch.zeros(2, dtype=torch.int64)])
    with use_backend("numba"), pytest.raises(ValueError, match=r"on meta"):
        choose([torch.zeros(2, device="meta")])


def test_without_being_forced_unfit_tensors_go_to_torch():
    assert choose([torch.zeros(2)]) == "numba"
    assert choose([torch.zeros(2), torch.zeros(2, device="meta")]) == "torch"


def test_without_numba_torch_runs_and_says_why(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('not here')")
    code = (
        "import torch; from sparsecraft.kernels.backends import *;"
        "from sparsecraft.kernels.selection import keep_largest;"
        "assert keep_largest([torch.tensor([1., 2.])], 1)[0].tolist() == [False, True];"
        "d = describe(); assert d['backend'] == 'torch' and d['numba'] is None, d;"
        "assert 'not installed' in d['reason'];"
        "\ntry:\n  use_backend('numba').__enter__()\nexcept ValueError as e:\n"
        "  assert 'sparsecraft[fast]' in str(e)\nelse:\n  raise SystemExit(1)"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_describe_names_numba_and_the_threads():
    import numba

    assert describe() == {
        "backend": "numba",
        "reason": "fastest available",
        "numba": numba.__version__,
        "threads": torch.get_num_threads(),
    }


def test_a_function_without_a_file_is_compiled_without_a_cache():
    from sparsecraft.kernels.compiled import compiled

    space = {}
    exec("def double(x):\n    return 2 * x", space)
    assert compiled(space["double"])(21) == 42
