"""How the native library comes to a machine, and what happens where it cannot."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsecraft.kernels.linear import Bitmask, ByInput, Dense, library, native_status
from sparsecraft.kernels.linear.library import CACHE_VARIABLE, ISA_VARIABLE, machine_isas

pytestmark = pytest.mark.usefixtures("fresh")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


def product_is_right():
    weight = torch.tensor([[0.0, 5.0], [7.0, 0.0]])
    return Bitmask.pack(weight).multiply(torch.tensor([[1.0, 2.0]])).tolist() == [[10.0, 7.0]]


@needs_compiler
def test_compiled_once_then_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "new"))
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    first = native_status()
    assert first["reason"].startswith("compiled with")
    assert first["path"].startswith(str(tmp_path))
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".so"]
    library.forget()
    again = native_status()
    assert (again["reason"], again["path"]) == ("from the cache", first["path"])
    monkeypatch.setenv("PATH", "")
    library.forget()
    assert native_status()["reason"] == "from the cache; no compiler here"
    assert product_is_right()


def test_without_a_compiler_the_reason_is_told_and_products_are_right(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    status = native_status()
    assert not status["available"]
    assert "neither g++, clang++ nor c++ is on the PATH" in status["reason"]
    assert product_is_right()


def test_a_compiler_that_is_named_and_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX=no-such-compiler is not found" in native_status()["reason"]


def test_a_compiler_that_fails(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'linear.cpp:1: error: no luck' >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(broken))
    status = native_status()
    assert not status["available"]
    assert status["reason"] == f"{broken} failed with code 3: linear.cpp:1: error: no luck"
    assert list((tmp_path / "cache").iterdir()) == []
    assert product_is_right()


@needs_compiler
def test_a_damaged_library_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    name = Path(native_status()["path"]).name
    library.forget()
    (tmp_path / name).write_bytes(b"\x7fELF")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert native_status()["reason"].startswith("compiled with")
    assert product_is_right()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_of_the_process(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    status = native_status()
    assert status["available"]
    assert not status["path"].startswith(str(tmp_path / "file"))


@pytest.mark.parametrize("name", machine_isas())
@needs_compiler
def test_each_instruction_set_can_be_forced(name, monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, name)
    assert native_status()["isa"] == name
    assert product_is_right()


def test_none_is_obeyed(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "none")
    assert native_status()["reason"] == "SPARSECRAFT_ISA=none"
    assert library.load() is None
    assert product_is_right()


def test_instruction_sets_that_are_unknown_or_not_here(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(ValueError, match=r"unknown 'sse9'; known: avx512, avx2, portable, none"):
        native_status()
    monkeypatch.setattr(library, "_cpu_features", lambda: frozenset({"fma"}))
    monkeypatch.setenv(ISA_VARIABLE, "avx2")
    library.forget()
    with pytest.raises(ValueError, match=r"=avx2, but this machine can run portable only"):
        native_status()


def test_the_best_instruction_set_is_chosen(monkeypatch):
    features = frozenset().union(*library.ISAS.values())
    monkeypatch.setattr(library, "_cpu_features", lambda: features)
    assert machine_isas() == ["avx512", "avx2", "portable"]
    monkeypatch.setattr(library, "_cpu_features", lambda: features - {"avx512bw"})
    assert machine_isas() == ["avx2", "portable"]


FORKED = """
import os, sys, torch
from sparsecraft.kernels.linear import Dense
torch.set_num_threads(3)
weight, x = torch.randn(512, 512), torch.randn(1, 512)
packed = Dense.pack(weight)
wanted = packed.multiply(x)
torch.mm(weight, weight)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(packed.multiply(x), wanted) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_products_run_in_a_forked_child():
    done = subprocess.run([sys.executable, "-c", FORKED], check=False, timeout=60)
    assert done.returncode == 0


class Rows(torch.utils.data.Dataset):
    """Rows that a worker multiplies."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        weight = torch.eye(300)
        x = torch.full((1, 300), float(index))
        gated = ByInput.pack(weight).multiply(x)
        return torch.equal(gated, x) and torch.equal(Dense.pack(weight).multiply(x), x)


def test_products_run_in_the_workers_of_a_data_loader():
    assert all(bool(batch) for batch in torch.utils.data.DataLoader(Rows(), num_workers=2))
