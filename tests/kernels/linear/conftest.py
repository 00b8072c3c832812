import shutil

import pytest

from sparsecraft.kernels.linear import library
from sparsecraft.kernels.linear.library import ISA_VARIABLE, machine_isas


@pytest.fixture
def fresh():
    """The library is looked for anew, and again after the test."""
    library.forget()
    yield
    library.forget()


@pytest.fixture(params=[*machine_isas(), "none"])
def isa(request, monkeypatch):
    """Every instruction set that this machine can run, and no native code at all."""
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    library.forget()
    wanted = request.param != "none" and bool(shutil.which("g++") or shutil.which("clang++"))
    assert library.native_status()["available"] == wanted, library.native_status()
    yield request.param
    library.forget()
