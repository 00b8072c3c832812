"""The native library: one C++ source, compiled on first use for the machine at hand, and kept.

It is a plain shared library that knows nothing of PyTorch, so that it compiles in seconds. Which
instructions it may use is decided before compiling, so each choice is a library of its own in the
cache of the user; its name holds the hash of the source, of the compiler and of the flags.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsecraft.kernels.linear.signatures import declare

SOURCE = Path(__file__).with_name("native") / "linear.cpp"
ISA_VARIABLE = "SPARSECRAFT_ISA"
CACHE_VARIABLE = "SPARSECRAFT_NATIVE_CACHE"
# Each needs all features of its list, under the names of /proc/cpuinfo.
ISAS = {
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma", "f16c", "bmi2"),
    "avx2": ("avx2", "fma", "f16c", "bmi1", "bmi2"),
    "portable": (),
}
# Used by the AVX-512 code where the machine has them: expansion of 16 and 8 bits, products of 8
# bits, products of bfloat16.
EXTRAS = {
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
}
FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-w"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
SECONDS = 300


@dataclass(frozen=True)
class Native:
    """A library that was loaded, or the reason why there is none.

    Args:
        isa: The instruction set it was compiled for.
        features: What it uses beyond that.
        library: What was loaded, or None.
        path: Its file, or None.
        reason: How it came here, or why it is missing.
    """

    isa: str
    features: tuple[str, ...] = ()
    library: ctypes.CDLL | None = None
    path: Path | None = None
    reason: str = ""


def load() -> ctypes.CDLL | None:
    """Returns the library for this machine, compiled now if it is not in the cache, or None.

    It is looked for once in a process; see `forget`.

    Raises:
        ValueError: If `SPARSECRAFT_ISA` names no instruction set, or one that is not here.
    """
    return _native().library


def native_status() -> dict[str, object]:
    """Returns what native products run on, and why; compiles if that has not been done.

    Returns:
        `available`, `isa`, `features`, `path`, `reason` and `threads`.

    Raises:
        ValueError: As `load` does.
    """
    found = _native()
    return {
        "available": found.library is not None,
        "isa": found.isa,
        "features": list(found.features),
        "path": None if found.path is None else str(found.path),
        "reason": found.reason,
        "threads": torch.get_num_threads(),
    }


def machine_isas() -> list[str]:
    """Returns the instruction sets that this machine can run, best first.

    Example:
        >>> machine_isas()[-1]
        'portable'
    """
    features = _cpu_features()
    return [name for name, needed in ISAS.items() if features.issuperset(needed)]


def forget() -> None:
    """Makes the next product read the environment's variables, and look for the library, anew."""
    _native.cache_clear()


@functools.cache
def _native() -> Native:
    forced = os.environ.get(ISA_VARIABLE, "")
    if forced == "none":
        return Native("none", reason=f"{ISA_VARIABLE}=none")
    isa = _checked_isa(forced)
    extras = tuple(name for name in EXTRAS if isa == "avx512" and name in _cpu_features())
    compiler = _compiler()
    try:
        folder = _cache_folder(os.environ.get(CACHE_VARIABLE, ""))
        path, reason = _built(folder, isa, extras, compiler)
        return Native(isa, extras, _opened(path), path, reason)
    except (OSError, subprocess.SubprocessError) as error:
        return Native(isa, extras, reason=_short(error))


def _checked_isa(forced: str) -> str:
    usable = machine_isas()
    if not forced:
        return usable[0]
    if forced not in ISAS:
        raise ValueError(f"{ISA_VARIABLE}: unknown {forced!r}; known: {', '.join(ISAS)}, none.")
    if forced not in usable:
        raise ValueError(
            f"{ISA_VARIABLE}={forced}, but this machine can run {', '.join(usable)} only."
        )
    return forced


@functools.cache
def _cpu_features() -> frozenset[str]:
    """Returns the features that the system says the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(flags.partition(":")[2].split())


def _compiler() -> str | None:
    """Returns the first compiler found: what CXX names, g++, clang++ or c++."""
    wanted = os.environ.get("CXX")
    names = (wanted,) if wanted else ("g++", "clang++", "c++")
    return next((found for found in map(shutil.which, names) if found), None)


def _cache_folder(cache: str) -> Path:
    """Returns a folder of the user for libraries; one of this process where it cannot be made."""
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(cache).expanduser() if cache else Path(root) / "sparsecraft" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    return _own_folder()


@functools.cache
def _own_folder() -> Path:
    # A fixed name in a folder that all may write to could hold somebody else's library.
    return Path(tempfile.mkdtemp(prefix="sparsecraft-native-"))


def _built(
    folder: Path, isa: str, extras: tuple[str, ...], compiler: str | None
) -> tuple[Path, str]:
    """Returns the path of the library, compiled if it is not there, and how it came there.

    Raises:
        FileNotFoundError: If there is neither a library nor a compiler.
    """
    flags = (*FLAGS, *_isa_flags(isa, extras))
    source = hashlib.sha256(SOURCE.read_bytes() + repr(flags).encode()).hexdigest()[:16]
    stem = f"linear-{platform.machine()}-{isa}-{source}"
    if compiler is None:
        kept = sorted(folder.glob(f"{stem}-*.so"))
        if kept:
            return kept[0], "from the cache; no compiler here"
        wanted = os.environ.get("CXX")
        raise FileNotFoundError(
            f"no C++ compiler: CXX={wanted} is not found"
            if wanted
            else "no C++ compiler: neither g++, clang++ nor c++ is on the PATH, and CXX is not set"
        )
    path = folder / f"{stem}-{_compiler_key(compiler)}.so"
    if path.exists() and _opens(path):
        return path, "from the cache"
    _compile(compiler, flags, path)
    return path, f"compiled with {compiler}"


def _compiler_key(compiler: str) -> str:
    file = Path(compiler).resolve()
    stat = file.stat()
    return hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:8]


def _isa_flags(isa: str, extras: tuple[str, ...]) -> tuple[str, ...]:
    names = {"bmi1": "bmi"}
    flags = [f"-m{names.get(name, name)}" for name in ISAS[isa]]
    flags += [f"-m{EXTRAS[name]}" for name in extras]
    if isa == "avx512":
        flags.append("-mprefer-vector-width=512")
    return tuple(flags)


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compiles to a temporary name and renames, so that no process sees half a library.

    Raises:
        OSError: If the compiler fails; the message holds its first error.
    """
    handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
    os.close(handle)
    links = ("-ldl",) if platform.system() == "Linux" else ()
    command = [compiler, *flags, str(SOURCE), "-o", temporary, *links]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            lines = done.stderr.splitlines()
            said = next((line for line in lines if "error" in line), " ".join(lines[-1:]))
            raise OSError(f"{compiler} failed with code {done.returncode}: {said}")
        Path(temporary).chmod(0o755)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _opens(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    declare(library)
    return library


def _short(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
