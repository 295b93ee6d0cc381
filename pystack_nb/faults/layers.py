"""The layers of a model by name, and the tensors that they own.

A layer is a module that runs or owns tensors.  Its name is the first path under which
`torch.nn.Module.named_modules` finds it, ``(model)`` for the model itself.  Modules that only
serve another one's weight (parametrisations, packed parameters) belong to that layer.
"""

from __future__ import annotations

import difflib

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from pystack_nb.errors import FaultError


if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = "(model)"
# Parts of a module that hold its parameters and never run.
HOLDERS = {"parametrizations", "_packed_params"}


class Slot(Protocol):
    """A place in a layer that holds a tensor."""

    @property
    def module(self) -> Any:
        """The module that holds it."""

    @property
    def name(self) -> str:
        """Its name there."""

    def open(self) -> torch.Tensor:
        """Give the tensor, to look at or to change in place."""

    def close(self, tensor: torch.Tensor) -> None:
        """Make the layer use a tensor that was opened and changed."""


@dataclass(frozen=True)
class OwnSlot:
    """A parameter or a buffer: the layer uses the very tensor."""

    module: torch.nn.Module
    name: str

    def open(self) -> torch.Tensor:
        """Give the parameter or buffer."""
        held = self.module._parameters.get(self.name)  # noqa: SLF001 - not a computed one
        tensor = self.module._buffers.get(self.name) if held is None else held  # noqa: SLF001
        if tensor is None or is_lazy(tensor):
            raise FaultError(
                f"{self.name} of this {type(self.module).__name__} is not there yet: run the"
                " model once, so that its lazy layers know their shapes"
            )
        return tensor

    def close(self, tensor: torch.Tensor) -> None:
        """Do nothing: the change is there."""


@dataclass(frozen=True)
class PackedSlot:
    """A weight or bias of a quantised module, packed for the processor's kernels."""

    module: Any
    name: str

    def open(self) -> torch.Tensor:
        """Unpack the tensor."""
        held = _unpacked(self.module)[self.name].detach()
        # What embeddings unpack is nobody else's, and of a kind that PyTorch can't clone.
        return held.clone() if hasattr(self.module, "_weight_bias") else held

    def close(self, tensor: torch.Tensor) -> None:
        """Pack it again."""
        if not hasattr(self.module, "_weight_bias"):
            self.module.set_weight(tensor)
            return
        given = self.module._weight_bias()  # noqa: SLF001 - where torch keeps them
        if not isinstance(given, dict):
            held = _unpacked(self.module) | {self.name: tensor}
            self.module.set_weight_bias(held["weight"], held.get("bias"))
            return
        # Of the recurrent modules, cells look for theirs by kind, and the others by name.
        for kind in given.values():
            if self.name in kind:
                kind[self.name] = tensor
        flat = {name: held for kind in given.values() for name, held in kind.items()}
        self.module.set_weight_bias(flat | given)


@dataclass(frozen=True)
class Layer:
    """A module and the tensors that belong to it, by role."""

    name: str
    module: torch.nn.Module
    slots: dict[str, Slot] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The name of the module's class, as it was before it was parametrised."""
        return type_before_parametrizations(self.module).__name__

    def slot(self, role: str) -> Slot:
        """Give the place of a weight, or say which there are."""
        if role not in self.slots:
            raise FaultError(
                f"layer {self.name!r} ({self.type}) owns no tensor {role!r}: choose"
                f" {listed(self.slots, 'another layer, for it owns none')}"
            )
        return self.slots[role]


def layers(model: torch.nn.Module) -> dict[str, Layer]:
    """Find every module of a model that can run or owns tensors, in definition order.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, one without parameters too.

    Returns
    -------
    dict of str to Layer
        A module that stands at several paths is there once, by the first.

    Raises
    ------
    FaultError
        If this is no model, or a part is compiled, so that hooks would not see it run.
    """
    if not isinstance(model, torch.nn.Module):
        raise FaultError(f"{type(model).__name__} is no torch.nn.Module: give the model itself")
    found: dict[str, Layer] = {}
    inner: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise FaultError(
                f"{path or 'the model'} is compiled and runs without its modules' hooks: give the"
                " Python model that it was made of (model._orig_mod after torch.compile)"
            )
        if id(module) in inner:
            continue
        parent, prefix = _owner(path)
        layer = found[parent] if prefix else Layer(path or ROOT, module)
        found.setdefault(layer.name, layer)
        names = [name for name, _ in module.named_parameters(recurse=False)]
        names += [name for name, _ in module.named_buffers(recurse=False)]
        layer.slots.update({_role(prefix + name): OwnSlot(module, name) for name in names})
        if _is_packed(module):
            layer.slots.update({name: PackedSlot(module, name) for name in _unpacked(module)})
            for held in ("_packed_params", "_all_weight_values"):
                part = getattr(module, held, None)
                if isinstance(part, torch.nn.Module):
                    inner.update(map(id, part.modules()))
    return found


def find(model: torch.nn.Module, found: dict[str, Layer], name: str) -> Layer:
    """Give the layer of a name, or of another path of the same module.

    Raises
    ------
    FaultError
        If there is none; the message names those that are spelt alike.
    """
    known = name or ROOT
    if known in found:
        return found[known]
    for path, module in model.named_modules(remove_duplicate=False):
        if path == name:
            same = [layer for layer in found.values() if layer.module is module]
            if same:
                return same[0]
    alike = difflib.get_close_matches(name, found, n=3, cutoff=0.4) or list(found)[:8]
    raise FaultError(
        f"the model has no layer {name!r}: choose {listed(alike)}, or another one of"
        " faults.sites(model, ...)"
    )


def listed(names: Iterable[str], none: str = "") -> str:
    """Write names as a choice: ``'a', 'b' or 'c'``."""
    quoted = [repr(name) for name in names]
    if not quoted:
        return none
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def _is_packed(module: torch.nn.Module) -> bool:
    if hasattr(module, "set_weight_bias"):
        return hasattr(module, "_weight_bias")
    # Embeddings have no bias.
    return hasattr(module, "set_weight") and callable(getattr(module, "weight", None))


def _unpacked(module: Any) -> dict[str, torch.Tensor]:
    if not hasattr(module, "_weight_bias"):
        return {"weight": module.weight()}
    given = module._weight_bias()  # noqa: SLF001 - where torch keeps them
    if isinstance(given, dict):
        named = {name: held for kind in given.values() for name, held in kind.items()}
    else:
        named = dict(zip(("weight", "bias"), given, strict=True))
    return {name: held for name, held in named.items() if held is not None}


def _role(name: str) -> str:
    # What a layer takes and gives has these names.
    return f"own.{name}" if name.split(".", maxsplit=1)[0] in {"input", "output"} else name


def _owner(path: str) -> tuple[str, str]:
    parts = path.split(".")
    if "parametrizations" not in parts:
        return path, ""
    at = parts.index("parametrizations")
    return ".".join(parts[:at]) or ROOT, "".join(f"{part}." for part in parts[at + 1 :]) or "."
