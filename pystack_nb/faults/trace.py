"""Run a model once and see which layers run, in which order, on which tensors."""

from __future__ import annotations

import weakref

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.hooks import unhook
from pystack_nb.faults.layers import Layer, layers
from pystack_nb.faults.state import untouched


if TYPE_CHECKING:
    Site = tuple[str, int, str]


@dataclass(frozen=True)
class Seen:
    """A tensor that a layer took or gave.

    Attributes
    ----------
    role : str
        Its name within the call.
    shape : tuple of int
    dtype : torch.dtype
    same_as : tuple of (str, int, str), or None
        Layer, call and role under which this very tensor, with these contents, was seen
        before: a container's output is its last module's, an input another layer's output.
    """

    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    same_as: Site | None


@dataclass
class Call:
    """One forward of one layer.

    Attributes
    ----------
    layer : Layer
    call : int
        How often this layer ran before, within the forward of the model.
    parent : int
        The call within which it ran, as its place in `Trace.calls`; -1 for the model's own.
    inputs, outputs : list of Seen
    started, ended : int
        Moments, counted from 0: of two calls one can see which ran before, or within, the
        other.
    """

    layer: Layer
    call: int
    parent: int
    started: int
    ended: int = -1
    inputs: list[Seen] = field(default_factory=list)
    outputs: list[Seen] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """What one forward of a model did.

    Attributes
    ----------
    layers : dict of str to Layer
        All of the model's, run or not, in definition order.
    calls : list of Call
        In the order in which they started.
    """

    layers: dict[str, Layer]
    calls: list[Call]


def trace(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Run a model once, without gradients, and leave it as it was.

    Parameters
    ----------
    model : torch.nn.Module
        In training or evaluation mode: it runs in the one that it is in.
    args, kwargs : tuple, dict
        What its forward takes; it is given copies.

    Raises
    ------
    FaultError
        If the model can't run on that, or has lazy layers that never ran.
    """
    tracer = _Tracer()
    found = layers(model)
    for layer in found.values():
        for slot in layer.slots.values():
            # A lazy layer would get its weights from this run, and with them be another model.
            slot.open()
    with ExitStack() as hooks, untouched(model), torch.no_grad():
        for layer in found.values():
            tracer.watch(layer, hooks)
        try:
            # A forward may begin by changing what it is given.
            args, kwargs = structures.copied(args, kwargs)
            model(*args, **kwargs)
        except Exception as error:
            raise FaultError(
                f"the model can't run on this example ({type(error).__name__}: {error}): give"
                " the inputs that model(...) takes, keyword arguments by their names"
            ) from error
    return Trace(found, tracer.calls)


class _Tracer:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._open: list[int] = []
        self._clock = 0
        self._count: dict[str, int] = {}
        self._first: dict[int, tuple[weakref.ref[torch.Tensor], int, Site]] = {}

    def watch(self, layer: Layer, hooks: ExitStack) -> None:
        def before(
            module: torch.nn.Module,  # noqa: ARG001 - torch gives it
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
        ) -> None:
            number = self._count.get(layer.name, 0)
            self._count[layer.name] = number + 1
            call = Call(layer, number, self._open[-1] if self._open else -1, self._tick())
            self._open.append(len(self.calls))
            self.calls.append(call)
            call.inputs = self._see(call, structures.inputs(args, kwargs), (args, kwargs))

        def after(
            module: torch.nn.Module,  # noqa: ARG001 - torch gives it
            args: tuple[Any, ...],  # noqa: ARG001
            output: Any,
        ) -> None:
            call = self.calls[self._open.pop()]
            call.outputs = self._see(call, structures.outputs(output), output)
            call.ended = self._tick()

        # Before they are there: an interrupt may come next.
        hooks.callback(unhook, layer.module, before)
        hooks.callback(unhook, layer.module, after)
        layer.module.register_forward_pre_hook(before, with_kwargs=True)
        layer.module.register_forward_hook(after, always_call=True)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock - 1

    def _see(self, call: Call, found: dict[str, structures.Path], value: Any) -> list[Seen]:
        seen = []
        for role, path in found.items():
            tensor = structures.get(value, path)
            site = (call.layer.name, call.call, role)
            # A tensor that was changed in place since it was seen is another one.
            version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001
            known = self._first.get(id(tensor))
            same = known is not None and known[0]() is tensor and known[1] == version
            if not same:
                self._first[id(tensor)] = (weakref.ref(tensor), version, site)
            before = known[2] if known is not None and same else None
            seen.append(Seen(role, tuple(tensor.shape), tensor.dtype, before))
        return seen
