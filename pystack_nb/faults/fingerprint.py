"""Which campaign this is: what its results depend on, as JSON values that can be compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.faults import bits


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd


_PLAIN = int | float | complex | str | bytes | None | torch.dtype | torch.device
_BUILTIN = (
    BuiltinFunctionType
    | ClassMethodDescriptorType
    | MethodDescriptorType
    | MethodWrapperType
    | WrapperDescriptorType
)
# What is told of things that functions take from around them, where these may change.
_SHALLOW = _PLAIN | FunctionType | _BUILTIN
# In classes: they differ from one process to another, or say nothing.
_OF_PYTHON = GetSetDescriptorType | MemberDescriptorType
_LIBRARIES = {*sys.stdlib_module_names, "numpy", "pandas", "pystack_nb", "torch"} - {"__main__"}


def of_model(model: torch.nn.Module) -> dict[str, str]:
    """Give hashes of a model.

    Returns
    -------
    dict
        ``structure`` (modules, by name and class), ``attributes`` (their plain values, forward
        hooks and instances' own forwards) and ``weights`` (stored bits, of buffers, too).
    """
    lines = [
        f"{name}|{type(module).__module__}.{type(module).__qualname__}|{module.extra_repr()}"
        f"|{module.training}"
        for name, module in model.named_modules()
    ]
    return {
        "structure": _digest(lines),
        "attributes": _digest(_attributes(model)),
        "weights": of_values([(k, v) for k, v in sorted(model.state_dict().items())]),
    }


def _attributes(model: torch.nn.Module) -> Iterable[bytes | str]:
    # Shallowly: hooks collect outputs, count, and know their modules.
    teller = _Teller(deep=False)
    for name, module in model.named_modules():
        own = module.__dict__
        plain = {k: v for k, v in own.items() if isinstance(v, _PLAIN | tuple)}
        hooks = [*own["_forward_pre_hooks"].values(), *own["_forward_hooks"].values()]
        hooks += [own["forward"]] if "forward" in own else []
        yield f"{name}|{teller.tell(plain)}|{[_hook(x, teller) for x in hooks]}"


def _hook(hook: Any, teller: _Teller) -> str:
    # A protection's: what it guards by, but not what it has counted.
    guards = [x for group in getattr(hook, "groups", ()) for x in group]
    limits = [{k: v for k, v in vars(x).items() if k.startswith("_")} for x in guards]
    kinds = [type(x).__qualname__ for x in guards]
    return f"{teller.tell(hook)} {kinds} {teller.tell(limits)}"


def of_table(table: pd.DataFrame) -> str:
    """Give a hash of a table's text."""
    return _digest([table.astype(str).to_csv(index=False)])


def of_values(value: Any) -> str:
    """Give a hash of tensors by their stored bits, in any nesting of tuples and lists."""
    return _digest(_pieces(value))


def of_device(device: torch.device) -> dict[str, Any]:
    """Give what decides roundings on a device: of a GPU also its name and whether it uses TF32."""
    if device.type != "cuda":
        return {"type": device.type}
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
    }


def of_versions() -> dict[str, str]:
    """Give the versions of what computes the results."""
    found = {}
    for name in ("pystack-nb", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def describe(thing: Any) -> str:
    """Say what an error model, a metric or a function is, alike in each process.

    A function is told by its name and a hash of its code, of the values that it was made with
    (defaults and closure) and of what it takes from its module, also within inner functions; an
    object by its class, the code of that and of its bases, and what it holds.  Their ``repr``
    holds an address.  What a library defines is told by its name.
    """
    return _Teller().tell(thing)


class _Teller:
    """Describes things, which may hold each other.

    Parameters
    ----------
    deep : bool
        Whether functions and objects are told by what they hold besides plain values.
    """

    def __init__(self, *, deep: bool = True) -> None:
        self._deep = deep
        self._open: list[Any] = []
        self._told: dict[int, tuple[Any, str]] = {}
        self._ways: list[tuple[Any, Callable[[Any], str]]] = [
            (torch.nn.Module, self._module),
            (torch.Tensor, lambda x: f"Tensor#{of_values(x)[:12]}"),
            (np.ndarray, lambda x: f"ndarray#{_digest([str(x.dtype), str(x.tolist())])[:12]}"),
            (functools.partial, lambda x: f"partial{self.tell((x.func, x.args, x.keywords))}"),
            (Mapping, lambda x: f"{{{', '.join(sorted(map(self.tell, x.items())))}}}"),
            (set | frozenset, lambda x: f"{{{', '.join(sorted(map(self.tell, x)))}}}"),
            (tuple | list, lambda x: f"({', '.join(map(self.tell, x))})"),
            (MethodType, lambda x: f"{self.tell(x.__func__)} of {self.tell(x.__self__)}"),
            (FunctionType, self._function),
            (_BUILTIN, self._builtin),
            (ModuleType, lambda x: f"module {x.__name__}"),
            (type, self._class),
            (object, self._object),
        ]

    def tell(self, thing: Any) -> str:
        if isinstance(thing, _PLAIN):
            return repr(thing)
        if id(thing) in self._told:
            return self._told[id(thing)][1]
        if any(thing is x for x in self._open):
            return "itself"
        self._open.append(thing)
        try:
            told = next(way(thing) for kind, way in self._ways if isinstance(thing, kind))
        finally:
            self._open.pop()
        if isinstance(thing, FunctionType | type):
            # Functions call each other; kept with the function, so that none gets its number.
            self._told[id(thing)] = (thing, told)
        return told

    def _builtin(self, function: Any) -> str:
        owner = getattr(function, "__self__", None)
        known = owner is None or isinstance(owner, ModuleType | type)
        of = getattr(function, "__module__", None) if known else self.tell(owner)
        return f"builtin {function.__qualname__} of {of}"

    def _module(self, module: torch.nn.Module) -> str:
        weights = f"#{of_values([*module.state_dict().values()])[:12]}" if self._deep else ""
        return f"{type(module).__qualname__}{weights}"

    def _function(self, function: FunctionType) -> str:
        code = function.__code__
        taken: dict[str, Any] = {}
        if not _is_library(function.__module__):
            everything = function.__globals__
            taken = {x: everything[x] for x in sorted(_names(code)) if x in everything}
        near = {k: v for k, v in taken.items() if self._deep or isinstance(v, _SHALLOW)}
        cells = [_content(cell) for cell in function.__closure__ or ()]
        held = [x if self._deep or isinstance(x, _SHALLOW) else type(x) for x in cells]
        made = self.tell((function.__defaults__, function.__kwdefaults__, held, near))
        name = f"{function.__module__}.{function.__qualname__}"
        return f"{name}#{_digest(self._code(code, made))[:12]}"

    def _class(self, kind: type) -> str:
        if not self._deep or _is_library(kind.__module__):
            return repr(kind)
        code = [
            self.tell((name, _unwrapped(value)))
            for base in kind.__mro__
            if not _is_library(base.__module__)
            for name, value in sorted(vars(base).items())
            if isinstance(x := _unwrapped(value), FunctionType)
            or not (name.startswith("__") or isinstance(x, _OF_PYTHON))
        ]
        return f"{kind!r}#{_digest(code)[:12]}"

    def _code(self, code: CodeType, made: str = "") -> Iterable[bytes | str]:
        yield code.co_code
        yield repr(code.co_names)
        yield made
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from self._code(constant)
            else:
                yield self.tell(constant)

    def _object(self, thing: Any) -> str:
        text, kind = repr(thing), type(thing)
        own = _is_library(kind.__module__) or not self._deep
        code = "" if own else self.tell(kind)
        if dataclasses.is_dataclass(thing):
            fields = [x.name for x in dataclasses.fields(thing)]
            parts = [f"{x}={self.tell(getattr(thing, x))}" for x in fields]
            return f"{kind.__qualname__}({', '.join(parts)}){code}"
        if " at 0x" not in text:
            return f"{text}{code}"
        if isinstance(name := getattr(thing, "__qualname__", None), str):
            return f"{getattr(thing, '__module__', None)}.{name}"
        if not self._deep:
            return kind.__qualname__
        held = self.tell(getattr(thing, "__dict__", {}))
        return f"{kind.__qualname__}#{_digest([self.tell(kind), held])[:12]}"


def _is_library(module: str | None) -> bool:
    """Whether a module's code is told by a version, of the campaign's or of Python's."""
    return (module or "builtins").partition(".")[0] in _LIBRARIES


def _names(code: CodeType) -> set[str]:
    """Give the names that a function looks up, also in comprehensions and functions within."""
    inner = [_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    return {*code.co_names}.union(*inner)


def _unwrapped(value: Any) -> Any:
    """Give the function of a method of a class."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.cached_property) else value


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not there yet
        return None


def _pieces(value: Any) -> Iterable[bytes | str]:
    if isinstance(value, torch.Tensor):
        shown = torch.view_as_real(value) if value.is_complex() else value
        yield f"{value.dtype}{tuple(value.shape)}"
        yield bits.stored(shown.detach()).cpu().contiguous().numpy().tobytes()
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _pieces(part)
    else:
        yield describe(value)


def _digest(pieces: Iterable[bytes | str]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()
