"""The forwards of a model's layers as spans in the recording."""

from __future__ import annotations

import json
import sys
import threading
import time

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from pystack_nb import marks
from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.hooks import unhook
from pystack_nb.faults.identity import identity
from pystack_nb.faults.layers import ROOT, layers


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pystack_nb.faults.layers import Layer

KIND = "layer"
_LONGEST_SIGNATURE = 1000  # longer text would be cut, and of no use then
_INTERRUPTED = "interrupted"


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
    one of the model it is, ``type``, ``device``, ``model``, which tells several models apart,
    and, where one has passed, ``raised``, the exception.  The outermost one also has
    ``inputs``, the shapes and types that it was given, and ``grad``, from which `exposure` can
    run the model again, and ``synchronized``, whether the accelerator was waited for.  Of a
    forward that ended unseen, as by Ctrl-C that was caught around it, ``raised`` is
    ``interrupted``, and its spans end when a layer last began or ended.

    Several models, and parts of an annotated one, can be annotated at a time.  Annotating the
    same module once more changes nothing until the first one ends, nor does `synchronize`.

    A span is what passed on the processor that runs Python.  On a CPU this is the layer's
    work and what Python does around it, which is the most of a small layer; the hooks' own
    time lies between the spans, in that of the layer around.  On an accelerator it is the
    *launching* of the layer's kernels, which run later; with `synchronize`, it is their run
    time too, in a program that is slower since nothing overlaps.  `exposure` takes no launch
    times for run times.

    Modules inside a compiled or scripted one run no hooks, and have no spans.

    Examples
    --------
    >>> with faults.annotate(model):  # doctest: +SKIP
    ...     model(images)
    """
    if not isinstance(model, torch.nn.Module):
        raise FaultError(f"{type(model).__name__} is no torch.nn.Module: pass the model itself")
    user, synchronize = object(), synchronize and torch.accelerator.is_available()
    with ExitStack() as undo:
        for _ in ("once", "again where the first one was interrupted"):
            undo.callback(_leave, model, user)
        with _changing:
            spans = _annotated.get(model)
            is_first = spans is None
            if spans is None:
                spans = _annotated[model] = _Spans(model, synchronize=synchronize)
            spans.users.append(user)
            if is_first:
                spans.begin(model)
        yield


def _leave(model: torch.nn.Module, user: object) -> None:
    with _changing:
        spans = _annotated.get(model)
        if spans is None:
            return
        spans.users = [x for x in spans.users if x is not user]
        if not spans.users:
            spans.end()
            del _annotated[model]


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


class _Thread(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Open] = []
        self.calls: dict[str, int] = {}
        self.last_ns = 0  # when a layer last began or ended


class _Spans:
    def __init__(self, model: torch.nn.Module, *, synchronize: bool) -> None:
        self.users: list[object] = []
        self._hooks: list[tuple[torch.nn.Module, Callable[..., Any]]] = []
        self._model = identity(model)
        self._synchronize = synchronize
        self._thread = _Thread()
        self._args: dict[tuple[str, int, str], dict[str, Any]] = {}

    def begin(self, model: torch.nn.Module) -> None:
        """Watch each layer.  If an interrupt comes, call `end`."""
        for layer in layers(model).values():
            self._watch(layer)

    def _watch(self, layer: Layer) -> None:
        def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not marks.recording() or module is not layer.module:  # a copy has the hooks, too
                return
            thread = self._thread
            stack = thread.stack
            if stack and layer.name == ROOT and not _runs_itself(module):
                # The forward before was broken off by what hooks are not told of: Ctrl-C.
                self._end(0, sys.exception())
            more = {}
            if not stack:
                thread.calls.clear()
                more = {
                    "inputs": signature(args, kwargs),
                    "grad": torch.is_grad_enabled(),
                    "training": module.training,
                    "synchronized": self._synchronize,
                }
            call = thread.calls.get(layer.name, 0)
            thread.calls[layer.name] = call + 1
            if self._synchronize:
                torch.accelerator.synchronize()
            thread.last_ns = time.perf_counter_ns()
            stack.append(_Open(layer, call, sys.exception(), more, thread.last_ns))

        def after(
            module: torch.nn.Module,  # noqa: ARG001 - torch gives it
            args: tuple[Any, ...],  # noqa: ARG001
            output: Any,
        ) -> None:
            stack = self._thread.stack
            for place in range(len(stack) - 1, -1, -1):
                if stack[place].layer is layer:
                    if self._synchronize:
                        torch.accelerator.synchronize()
                    self._end(place + 1, sys.exception())
                    self._end_last(output)
                    return

        module = layer.module
        self._hooks += (module, before), (module, after)
        # As near to the layer's own forward as other hooks let it be.
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, prepend=True, always_call=True)

    def end(self) -> None:
        """Take the hooks away, and end the spans of this thread that were left open.

        This may be called again, after it was interrupted.
        """
        while self._hooks:
            unhook(*self._hooks[-1])
            self._hooks.pop()
        self._end(0, sys.exception())

    def _end_last(self, output: Any) -> None:
        """End the innermost span, whose forward has ended."""
        thread, now_ns, passing = self._thread, time.perf_counter_ns(), sys.exception()
        span = thread.stack.pop()
        args = self._args_of(span, _device_type(span.layer.module, output))
        if passing is not span.handled:
            args = {**args, "raised": type(passing).__name__ if passing else _INTERRUPTED}
        self._emit(span, now_ns, args)
        thread.last_ns = now_ns

    def _end(self, place: int, passing: BaseException | None) -> None:
        """End the spans from a place of the stack on, whose forwards did not tell of their end."""
        thread, now_ns = self._thread, time.perf_counter_ns()
        while len(thread.stack) > place:
            span = thread.stack.pop()
            is_passing = passing is not None and passing is not span.handled
            raised = type(passing).__name__ if is_passing else _INTERRUPTED
            args = {**self._args_of(span, _device_type(span.layer.module, None)), "raised": raised}
            self._emit(span, now_ns if is_passing else thread.last_ns, args)

    def _emit(self, span: _Open, ended_ns: int, args: dict[str, Any]) -> None:
        marks.emit(KIND, span.layer.name, span.begun_ns, ended_ns - span.begun_ns, args)

    def _args_of(self, span: _Open, device: str) -> dict[str, Any]:
        key = span.layer.name, span.call, device
        args = self._args.get(key)
        if args is None:
            args = {
                "call": span.call,
                "type": span.layer.type,
                "device": device,
                "model": self._model,
            }
            self._args[key] = args
        return args | span.more if span.more else args


_annotated: WeakKeyDictionary[torch.nn.Module, _Spans] = WeakKeyDictionary()
_changing = threading.Lock()


def _runs_itself(module: torch.nn.Module) -> bool:
    """Tell whether a module that begins to run does so within a forward of its own."""
    running = torch.nn.Module._call_impl.__code__  # noqa: SLF001 - what runs hooks and forward
    count, frame = 0, sys._getframe()  # noqa: SLF001 - the interpreter's way to its own stack
    while (above := frame.f_back) is not None and count < 2:
        frame = above
        count += frame.f_code is running and frame.f_locals.get("self") is module
    return count > 1


def _device_type(module: torch.nn.Module, output: Any) -> str:
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
