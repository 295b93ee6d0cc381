"""The forwards of a model's layers as spans in the recording."""

from __future__ import annotations

import json
import sys
import threading
import time

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pystack_nb import marks
from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.layers import layers


if TYPE_CHECKING:
    from collections.abc import Iterator

    from pystack_nb.faults.layers import Layer

KIND = "layer"
_LONGEST_SIGNATURE = 1000  # longer text would be cut, and of no use then


@contextmanager
def annotate(model: torch.nn.Module, *, synchronize: bool = False) -> Iterator[None]:
    """Record each forward of each layer of a model as an event of kind ``layer``.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.  It gets hooks, which are taken away at the end, whatever was raised.
    synchronize : bool, optional
        Wait for the accelerator before each layer begins and ends.

    Raises
    ------
    FaultError
        If this is no model.

    Notes
    -----
    The event's ``name`` is the layer's path, as in `pystack_nb.faults.sites`, and ``(model)``
    for the model itself.  In its ``args`` are ``call``, which of the layer's forwards within
    one of the model it is, ``type``, ``device`` and, where one has passed, ``raised``, the
    exception.  The outermost one also has ``inputs``, the shapes and types that it was given,
    and ``grad``, from which `exposure` can run the model again.

    A span is what passed on the processor that runs Python.  On a CPU this is the layer's
    work and what Python does around it, which is the most of a small layer; the hooks' own
    time lies between the spans, in that of the layer around.  On an accelerator it is the
    *launching* of the layer's kernels, which run later; with `synchronize`, it is their run
    time too, in a program that is slower since nothing overlaps.

    Modules inside a compiled or scripted one run no hooks, and have no spans.

    Examples
    --------
    >>> with faults.annotate(model):  # doctest: +SKIP
    ...     model(images)
    """
    if not isinstance(model, torch.nn.Module):
        raise FaultError(f"{type(model).__name__} is no torch.nn.Module: pass the model itself")
    spans = _Spans(synchronize=synchronize and torch.accelerator.is_available())
    with ExitStack() as hooks:
        for layer in layers(model).values():
            spans.watch(layer, hooks)
        try:
            yield
        finally:
            spans.end_all()


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Describe what a model is given as text; None if that can't be."""
    try:
        text = json.dumps([_described(args), _described(kwargs)], separators=(",", ":"))
    except TypeError:
        return None
    return text if len(text) <= _LONGEST_SIGNATURE else None


def example(text: str, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make inputs of zeros that have a signature."""
    args, kwargs = (_made(part, device) for part in json.loads(text))
    return args, kwargs


class _Open(NamedTuple):
    layer: Layer
    call: int
    handled: BaseException | None  # when it began: another one at its end has passed through it
    more: dict[str, Any]
    begun_ns: int


@dataclass
class _Thread:
    stack: list[_Open] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)


class _Spans:
    def __init__(self, *, synchronize: bool) -> None:
        self._synchronize = synchronize
        self._threads: dict[int, _Thread] = {}
        self._args: dict[tuple[str, int, str], dict[str, Any]] = {}

    def watch(self, layer: Layer, hooks: ExitStack) -> None:
        def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not marks.recording():
                return
            thread = self._thread()
            stack = thread.stack
            if stack and stack[0].layer is layer:
                # The forward before was broken off by what hooks are not told of: Ctrl-C.
                self._end(thread, 0)
            more = {}
            if not stack:
                thread.calls.clear()
                more = {
                    "inputs": signature(args, kwargs),
                    "grad": torch.is_grad_enabled(),
                    "training": module.training,
                }
            call = thread.calls.get(layer.name, 0)
            thread.calls[layer.name] = call + 1
            if self._synchronize:
                torch.accelerator.synchronize()
            stack.append(_Open(layer, call, sys.exception(), more, time.perf_counter_ns()))

        def after(
            module: torch.nn.Module,  # noqa: ARG001 - torch gives it
            args: tuple[Any, ...],  # noqa: ARG001
            output: Any,
        ) -> None:
            thread = self._thread()
            for place in range(len(thread.stack) - 1, -1, -1):
                if thread.stack[place].layer is layer:
                    if self._synchronize:
                        torch.accelerator.synchronize()
                    self._end(thread, place, output)
                    return

        module = layer.module
        # As near to the layer's own forward as other hooks let it be.
        hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(module.register_forward_hook(after, prepend=True, always_call=True).remove)

    def end_all(self) -> None:
        """End the spans of this thread that an exception left open."""
        self._end(self._thread(), 0)

    def _thread(self) -> _Thread:
        return self._threads.setdefault(threading.get_ident(), _Thread())

    def _end(self, thread: _Thread, place: int, output: Any = None) -> None:
        """End the open span at a place of the stack, and those that are still open in it."""
        now_ns = time.perf_counter_ns()
        passing = sys.exception()
        while len(thread.stack) > place:
            span = thread.stack.pop()
            is_last = len(thread.stack) == place
            args = self._args_of(span, _device(span.layer.module, output if is_last else None))
            if passing is not span.handled or not is_last:
                args = {**args, "raised": type(passing).__name__ if passing else "interrupted"}
            marks.emit(KIND, span.layer.name, span.begun_ns, now_ns - span.begun_ns, args)

    def _args_of(self, span: _Open, device: str) -> dict[str, Any]:
        key = span.layer.name, span.call, device
        args = self._args.get(key)
        if args is None:
            args = {"call": span.call, "type": span.layer.type, "device": device}
            self._args[key] = args
        return args | span.more if span.more else args


def _device(module: torch.nn.Module, output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return output.device.type
    tensors = structures.outputs(output)
    if tensors:
        return structures.get(output, next(iter(tensors.values()))).device.type
    own = next(module.parameters(), None)
    return "cpu" if own is None else own.device.type


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": [*value.shape]}
    if isinstance(value, dict) and type(value) is dict and all(isinstance(x, str) for x in value):
        return {"dict": {name: _described(x) for name, x in value.items()}}
    if type(value) in {tuple, list}:
        return {type(value).__name__: [_described(x) for x in value]}
    if value is None or type(value) in {bool, int, float, str}:
        return {"value": value}
    raise TypeError


def _made(part: dict[str, Any], device: torch.device) -> Any:
    if "tensor" in part:
        return torch.zeros(part["shape"], dtype=getattr(torch, part["tensor"]), device=device)
    if "dict" in part:
        return {name: _made(x, device) for name, x in part["dict"].items()}
    if "value" in part:
        return part["value"]
    if "list" in part:
        return [_made(x, device) for x in part["list"]]
    return tuple(_made(x, device) for x in part["tuple"])
