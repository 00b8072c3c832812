"""The catalog: every method by name, with its paper and its place in the handbook's taxonomy.

Files in `sparsecraft.methods` and `sparsecraft.domains` register into it; they are imported when a
name is first asked for, so that importing the library stays cheap. Methods from outside come in by
a file ("./mine.py:Mine") or by the entry point group "sparsecraft.methods".
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from sparsecraft.core.allocation import Allocation, parse_allocation
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Method
from sparsecraft.core.patterns import Pattern, parse_pattern

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "of": (
        "weights", "activations", "codes", "updates", "inputs", "attention", "embeddings",
        "samples",
    ),
    "when": ("before training", "during training", "after training", "at inference"),
    "start_to_end": ("dense to dense", "dense to sparse", "sparse to sparse", "sparse to dense"),
    "mask": ("static", "dynamic", "shrinking", "input-dependent", "none"),
    "criterion": (
        "random", "magnitude", "gradient", "second order", "activation-aware", "probabilistic",
        "learned", "optimisation-based", "search", "none",
    ),
    "granularity": (
        "unstructured", "N:M", "block", "channel", "head", "neuron", "layer", "group", "token",
        "expert",
    ),
    "allocation": ("uniform", "any", "global", "learned", "per row", "none"),
    "budget": ("hard per layer", "hard global", "soft", "none"),
    "runtime": ("none", "storage", "FLOPs", "wall-clock"),
}  # fmt: skip
NEEDS = ("data", "labels", "gradients", "retraining", "pretrained model", "dense weights")


@dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Args:
        authors: As cited, "Sun et al.".
        year: Of the first version.
        arxiv: arXiv id, or None for work that has none.
        number: The paper's number among the 34 that sparsecraft reproduces, if it is one.
        title: Its title.
    """

    authors: str
    year: int
    arxiv: str | None = None
    number: int | None = None
    title: str = ""

    def __str__(self) -> str:
        where = f", arXiv {self.arxiv}" if self.arxiv else ""
        return f"{self.authors}, {self.year}{where}"


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """The handbook's questions, answered; every method answers all of them.

    Reference:
        Liu, Wang, 2023, arXiv 2302.02596.
    """

    of: str
    when: str
    start_to_end: str
    mask: str
    criterion: str
    granularity: tuple[str, ...]
    allocation: str
    budget: str
    needs: tuple[str, ...]
    cost: str
    runtime: str

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            given = getattr(self, name)
            for each in given if isinstance(given, tuple) else (given,):
                if each not in allowed:
                    raise UnknownName(f"taxonomy {name}", str(each), allowed)
        for need in self.needs:
            if need not in NEEDS:
                raise UnknownName("taxonomy need", need, NEEDS)


@dataclass(frozen=True)
class MethodInfo:
    """One entry of the catalog."""

    name: str
    cls: type[Method]
    paper: Paper
    taxonomy: Taxonomy

    @property
    def kind(self) -> str:
        """Layerwise, ModelWide, InTraining, Gate, Recipe or Evaluation."""
        return next(
            c.__name__
            for c in self.cls.__mro__
            if c.__module__.startswith("sparsecraft.core.kinds.")
        )

    @property
    def summary(self) -> str:
        """The first line of the method's docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]

    @property
    def options(self) -> dict[str, dataclasses.Field[Any]]:
        """The method's settings by name."""
        return {f.name: f for f in dataclasses.fields(self.cls)}


_REGISTRY: dict[str, MethodInfo] = {}


def method(
    name: str, *, paper: Paper, taxonomy: Taxonomy
) -> Callable[[type[Method]], type[Method]]:
    """Registers the decorated class under a name.

    Raises:
        InvalidValue: If the name is taken by another class, or the class has no docstring.
    """

    def register(cls: type[Method]) -> type[Method]:
        taken = _REGISTRY.get(name)
        if taken is not None and _address(taken.cls) != _address(cls):
            raise InvalidValue(f"method {name!r} is registered already, by {taken.cls.__module__}")
        if not (cls.__doc__ or "").strip():
            raise InvalidValue(f"method {name!r} needs a docstring: it is its page in the catalog")
        cls.info = MethodInfo(name, cls, paper, taxonomy)
        _REGISTRY[name] = cls.info
        return cls

    return register


def names() -> list[str]:
    """Returns the names of all methods, sorted."""
    _load_all()
    return sorted(_REGISTRY)


def get(name: str) -> MethodInfo:
    """Returns the entry of a method.

    Args:
        name: A registered name, or "path/to/file.py:Class" for one's own.

    Raises:
        UnknownName: With the nearest names.
        InvalidValue: If the file or its class cannot be used.
    """
    if ".py:" in name:
        return _from_file(name)
    _load_all()
    if name not in _REGISTRY:
        raise UnknownName("method", name, _REGISTRY)
    return _REGISTRY[name]


def select(**wanted: Any) -> list[MethodInfo]:
    """Returns the methods whose taxonomy has these values, for example `of="weights"`.

    A value matches a tuple field if it is one of its members; `needs_data=False` style questions
    are asked as `without="data"`.

    Raises:
        UnknownName: For a field or a value that the taxonomy does not have.
    """
    without = wanted.pop("without", None)
    for name, value in wanted.items():
        if name not in ALLOWED and name != "needs":
            raise UnknownName("taxonomy field", name, [*ALLOWED, "needs", "without"])
        if name in ALLOWED and value not in ALLOWED[name]:
            raise UnknownName(f"taxonomy {name}", str(value), ALLOWED[name])
    found = [_REGISTRY[name] for name in names()]
    return [
        info
        for info in found
        if without not in info.taxonomy.needs
        and all(_has(getattr(info.taxonomy, field), value) for field, value in wanted.items())
    ]


def build(name: str | Method, **options: Any) -> Method:
    """Returns the method of this name with these options.

    Patterns and allocations may be given by their short texts.

    Raises:
        UnknownName: For an unknown method or option.
        InvalidValue: If options are given beside a method that is built already.

    Example:
        >>> build("magnitude", sparsity=0.6).density
        0.4
    """
    if isinstance(name, Method):
        if options:
            raise InvalidValue(
                f"{type(name).__name__} is built already: "
                f"set {sorted(options)} there, not beside it"
            )
        return name
    info = get(name)
    for option in options:
        if option not in info.options:
            raise UnknownName(f"option of {info.name}", option, info.options)
    return info.cls(**{key: _convert(info, key, value) for key, value in options.items()})


def describe(chosen: Method) -> dict[str, Any]:
    """Returns the method's name and settings as plain values that `restore` reads."""
    settings = {f.name: _plain(getattr(chosen, f.name)) for f in dataclasses.fields(chosen)}
    return {"method": chosen.info.name, **settings}


def restore(settings: Mapping[str, Any]) -> Method:
    """Returns the method that `describe` described."""
    options = dict(settings)
    return build(options.pop("method"), **options)


def _plain(value: Any) -> Any:
    if isinstance(value, Pattern):
        return str(value)
    if isinstance(value, Allocation):
        from sparsecraft.core.allocation import ALLOCATIONS

        name = next((k for k, cls in ALLOCATIONS.items() if type(value) is cls), None)
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
        if name and value == ALLOCATIONS[name]():
            return name
        return {"name": name or "given", **fields}
    if isinstance(value, Method):
        return describe(value)
    return value


def _convert(info: MethodInfo, key: str, value: Any) -> Any:
    """Returns an option in the type its field asks for, from text where it comes from outside."""
    hint = get_type_hints(info.cls, localns={"MethodInfo": MethodInfo})[key]
    kinds = get_args(hint) or (hint,)
    if hint is Pattern:
        return parse_pattern(value)
    if hint is Allocation:
        return _allocation(value)
    if value is None:
        return None
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in (hint, *kinds)):
        return tuple(value)
    if any(isinstance(kind, type) and issubclass(kind, Method) for kind in kinds):
        return restore(value) if isinstance(value, Mapping) else build(value)
    return _scalar(info, key, value, kinds) if isinstance(value, str) else value


def _allocation(value: Any) -> Allocation:
    if isinstance(value, Mapping):
        from sparsecraft.core.allocation import ALLOCATIONS, Given

        fields = {key: each for key, each in value.items() if key != "name"}
        known: dict[str, type[Allocation]] = {**ALLOCATIONS, "given": Given}
        if value.get("name") not in known:
            raise UnknownName("allocation", str(value.get("name")), known)
        return known[value["name"]](**fields)
    return parse_allocation(value)


def _scalar(info: MethodInfo, key: str, text: str, kinds: tuple[Any, ...]) -> Any:
    if bool in kinds and text.lower() in ("true", "false", "yes", "no"):
        return text.lower() in ("true", "yes")
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if {bool, int, float} & set(kinds) and str not in kinds:
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise InvalidValue(f"{info.name}: {key}={text!r} is not a {wanted}")
    return text


def _address(cls: type) -> tuple[str, str]:
    """Returns what stays the same when a module is imported again."""
    return cls.__module__, cls.__qualname__


def _has(value: Any, wanted: str) -> bool:
    return wanted in value if isinstance(value, tuple) else value == wanted


@cache
def _load_all() -> None:
    for name in ("sparsecraft.methods", "sparsecraft.domains"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    for point in entry_points(group="sparsecraft.methods"):
        _adopt(point.load(), f"entry point {point.name!r}")


def _from_file(text: str) -> MethodInfo:
    _load_all()
    path_text, _, name = text.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise InvalidValue(f"method {text!r}: there is no file {path}")
    module_name = f"sparsecraft_user_{path.stem}_{abs(hash(str(path))):x}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise InvalidValue(f"method {text!r}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    cls = getattr(sys.modules[module_name], name, None)
    if cls is None:
        found = [k for k, v in vars(sys.modules[module_name]).items() if inspect.isclass(v)]
        raise UnknownName(f"class in {path.name}", name, found)
    return _adopt(cls, text)


def _adopt(cls: Any, where: str) -> MethodInfo:
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise InvalidValue(f"{where} is not a sparsecraft Method (Layerwise, ModelWide, ...)")
    if "info" not in vars(cls):
        raise InvalidValue(f"{where}: its class lacks @method(name, paper=..., taxonomy=...)")
    if inspect.isabstract(cls):
        raise InvalidValue(f"{where}: {cls.__name__} leaves {sorted(cls.__abstractmethods__)} open")
    return cls.info
