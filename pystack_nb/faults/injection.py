"""Let faults strike a model while it runs, and leave it as it was."""

from __future__ import annotations

import threading
import time

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pystack_nb import marks
from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.elements import Elements
from pystack_nb.faults.fault import Fault, Strike, streams
from pystack_nb.faults.hooks import Forward, Forwards, Hook, unhook
from pystack_nb.faults.layers import Layer, OwnSlot, find, layers, listed
from pystack_nb.faults.log import Contents, Injection, InjectionLog
from pystack_nb.faults.padding import padded
from pystack_nb.faults.patches import Patch


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from numpy.typing import NDArray

    from pystack_nb.faults.drawn import Drawn
    from pystack_nb.faults.structures import Path

__all__ = ["Fault", "inject"]


@contextmanager
def inject(
    model: torch.nn.Module, *faults: Fault, seed: int | None = None
) -> Iterator[InjectionLog]:
    """Let faults strike a model, in as many forwards as run within the context.

    Weights are changed in place and restored bit by bit; outputs and inputs are changed in
    copies, by hooks that are removed. Contexts nest, and may end in any order. A recording of
    this process has an event of kind ``fault`` for each injection.

    Parameters
    ----------
    model : torch.nn.Module
        Any model that is not compiled, on any device, in training or evaluation mode.
    *faults : Fault
        Of neurons and weights together; where they meet they strike in this order.
    seed : int, optional
        Of what the faults leave to chance. Each fault has a random stream of its own, so that
        more faults behind it do not change it; without a seed each context differs.

    Yields
    ------
    InjectionLog
        What took place, up to now.

    Raises
    ------
    FaultError
        On entry if a layer, weight, element or bit does not exist; from within a forward if
        an output or input turns out not to have it; at the end if a fault did not take
        place, or the weight or layer that it struck was exchanged for another one. After any
        exception the model is as it was.

    Examples
    --------
    >>> with faults.inject(model, faults.Fault("conv1", "weight", (0, 0, 1, 1))) as log:
    ...     model(images)
    >>> log.to_frame()

    Notes
    -----
    **What is a forward.** One begins when a layer that is watched (the model itself and each
    one whose output or input a fault strikes) runs while none of them does in this thread.
    Threads that use the model at once have forwards of their own, numbered in the order in
    which they begin, but the same weights. A method of the model that is called in place of
    the model, as in ``model.encode(x)``, is not seen: each layer that it runs is then a forward
    of its own. One that is broken off, by Ctrl-C too, has ended when the next one begins.

    **What the program writes stays.** An element of a weight is put back if it still holds the
    bits that the fault made; what an optimizer, ``load_state_dict`` or a running mean has
    written to it in the meantime is not undone (and a flipped value that was trained on is
    what it was trained to). Of two faults in one element, what the later one made of it stays
    until that one ends.

    **Gradients** pass through a struck output as if nothing had happened to it; and through
    a weight that was struck in one forward alone (``when``) with its value at that time, which
    is the restored one in a backward after it.

    **An output is struck in what the layer returns.** Where the model ignores that, as it may
    with ``torch.nn.ReLU(inplace=True)``, the fault is in the log and without effect: strike the
    layer before, or the input of the one behind.

    **Copies** of the model that are made within the context, by `copy.deepcopy`, `pickle` or
    `torch.save`, have its struck weights for ever, but no hooks that strike.

    `torch.nn.TransformerEncoderLayer` computes in another, fused way when no hook watches it,
    with other roundings: compare with a forward in the same context whose fault has not yet
    struck, or switch it off by ``torch.backends.mha.set_fastpath_enabled(False)``.
    """
    if not isinstance(model, torch.nn.Module):
        raise FaultError(f"{type(model).__name__} is no torch.nn.Module: give the model itself")
    if not faults or not all(isinstance(fault, Fault) for fault in faults):
        raise FaultError(
            "there is nothing to inject: give one or more faults.Fault(...), those of a list as"
            " inject(model, *faults)"
        )
    try:
        drawn = streams(seed, len(faults))
    except (TypeError, ValueError):
        raise FaultError(f"{seed!r} is no seed: give a whole number from 0 on") from None
    strikes = [
        Strike(fault, number, stream)
        for number, (fault, stream) in enumerate(zip(faults, drawn, strict=True))
    ]
    with ExitStack() as undo:
        undo.enter_context(padded(model))
        injection = _Injection(model, strikes, undo)
        yield injection.log
        undo.close()
        injection.check()
        for strike in strikes:
            strike.check()


class _Injection:
    def __init__(self, model: torch.nn.Module, strikes: list[Strike], undo: ExitStack) -> None:
        self.log = InjectionLog()
        self._model = model
        self._lock = threading.Lock()
        self._forwards = Forwards()
        self._neurons: dict[torch.nn.Module, list[tuple[Layer, Strike]]] = {model: []}
        self._weights: list[tuple[Layer, Strike]] = []
        self._lasting: list[tuple[Layer, Strike, Patch]] = []
        self._patches: dict[Patch, Strike] = {}
        self._hooks: list[tuple[torch.nn.Module, Hook]] = []
        self._complaints: list[str] = []
        for _ in ("once", "again where the first one was interrupted"):
            undo.callback(self._end)
        found = layers(model)
        for strike in strikes:
            layer = find(model, found, strike.fault.layer)
            watched = self._neurons.setdefault(layer.module, [])
            if not strike.fault.is_weight:
                watched.append((layer, strike))
                continue
            # All weights are looked at before the first is touched.
            strike.place(layer.slot(strike.fault.role).open())
            self._weights.append((layer, strike))
        for layer, strike in self._weights:
            if strike.fault.when is None:
                self._strike_weight(layer, strike, -1)
        for module in self._neurons:
            # Not the module that a hook is given: replicas of one share its hooks.
            before, after = Hook(partial(self._before, module)), Hook(partial(self._after, module))
            self._hooks += (module, before), (module, after)
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(after, always_call=True)

    def check(self) -> None:
        """Raise a FaultError if what was struck did not stay in the model."""
        parts = {id(module) for module in self._model.modules()}
        for layer, strike in self._weights:
            if id(layer.module) not in parts:
                self._complaints.append(
                    f"{strike.fault}: this layer was taken out of the model while a fault was in"
                    " it: change the model outside of inject"
                )
        if self._complaints:
            raise FaultError("; ".join(self._complaints))

    def _before(
        self,
        module: torch.nn.Module,
        _: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        forward = self._forwards.begin(module)
        if forward.is_outermost:
            for layer, strike, patch in self._lasting:
                self._force(layer, strike, patch)
            for layer, strike in self._weights:
                if strike.fault.when is not None and strike.due(forward.number):
                    self._strike_weight(layer, strike, forward.number, forward.undo)
        given = args, kwargs
        found = structures.inputs(args, kwargs)
        taken = self._strike_side("input", module, forward, given, found)
        return None if taken is given else taken

    def _after(
        self,
        module: torch.nn.Module,
        _: torch.nn.Module,
        args: tuple[Any, ...],  # noqa: ARG002 - torch gives it
        output: Any,
    ) -> Any:
        forward = self._forwards.running(module)
        if forward is None:
            return None
        try:
            # None is what there is after an exception, too.
            if output is None:
                return None
            found = structures.outputs(output)
            return self._strike_side("output", module, forward, output, found)
        finally:
            forward.cut(len(forward.stack) - 1)

    def _strike_side(
        self,
        side: str,
        module: torch.nn.Module,
        forward: Forward,
        value: Any,
        found: dict[str, Path],
    ) -> Any:
        own: set[str] = set()
        call = forward.stack[-1].number
        for layer, strike in self._neurons[module]:
            fault = strike.fault
            if (
                fault.role.split(".")[0] != side
                or fault.call not in {None, call}
                or not strike.due(forward.number)
            ):
                continue
            role = structures.resolve(fault.role, found)
            if role is None:
                raise FaultError(
                    f"layer {layer.name!r} ({layer.type}) has no {fault.role!r}: choose"
                    f" {listed(found, 'another layer, for there is no tensor')}"
                )
            tensor = structures.get(value, found[role])
            placed = self._place(strike, tensor)
            if placed is None:
                continue
            if role not in own:
                # Others may hold the tensor: the residual path, the caller, the layer before.
                tensor = tensor.clone()
                value = structures.replaced(value, found[role], tensor)
                own.add(role)
            self._apply(layer, strike, tensor, placed, (forward.number, call, role))
        return value

    def _strike_weight(
        self,
        layer: Layer,
        strike: Strike,
        forward: int,
        undo: list[Callable[[], None]] | None = None,
    ) -> None:
        role = strike.fault.role
        slot = layer.slot(role)
        tensor = slot.open()
        placed = self._place(strike, tensor)
        if placed is None:
            return
        patch = Patch(slot, tensor, placed[0])
        self._patches[patch] = strike
        if undo is not None:
            undo.append(partial(self._undo, patch))
        where = forward, 0, role
        patch.strike(tensor, lambda: self._apply(layer, strike, tensor, placed, where))
        if strike.fault.when is None and placed[1].lasting and isinstance(slot, OwnSlot):
            self._lasting.append((layer, strike, patch))

    def _force(self, layer: Layer, strike: Strike, patch: Patch) -> None:
        # A broken cell stays broken, whatever an optimizer has written to it since.
        tensor = layer.slot(strike.fault.role).open()
        placed = self._place(strike, tensor)
        if placed is not None:
            self._complain(
                strike,
                patch.force(tensor, placed[0], lambda: strike.fault.error.apply(tensor, *placed)),
            )

    def _undo(self, patch: Patch) -> None:
        complaint = patch.undo()
        strike = self._patches.pop(patch, None)
        if strike is not None:
            self._complain(strike, complaint)

    def _end(self) -> None:
        # Each is forgotten when it is done, and not before: an interrupt may come.
        while self._hooks:
            unhook(*self._hooks[-1])
            self._hooks.pop()
        self._forwards.end_all()
        while self._patches:
            self._undo(next(reversed(self._patches)))

    def _complain(self, strike: Strike, complaint: str) -> None:
        if complaint:
            self._complaints.append(f"{strike.fault}: the weight {complaint}")

    def _place(
        self, strike: Strike, tensor: torch.Tensor
    ) -> tuple[NDArray[np.int64], Drawn] | None:
        with self._lock:
            return strike.place(tensor)

    def _apply(
        self,
        layer: Layer,
        strike: Strike,
        tensor: torch.Tensor,
        placed: tuple[NDArray[np.int64], Drawn],
        where: tuple[int, int, str],
    ) -> None:
        positions, drawn = placed
        forward, call, role = where
        elements = Elements(tensor, positions, drawn.kept)
        before = Contents.of(elements)
        started = time.monotonic_ns()
        with torch.no_grad():
            strike.fault.error.change(elements, drawn)
        after = Contents.of(elements)
        site = (strike.number, forward, layer.name, call, role, tuple(tensor.shape), tensor.dtype)
        injection = Injection(*site, positions, drawn.bit, before, after, started)
        self.log.injections.append(injection)
        if marks.recording():
            took = time.monotonic_ns() - started
            marks.emit("fault", f"{layer.name}:{role}", started, took, injection.event())
        strike.struck.add(forward)
