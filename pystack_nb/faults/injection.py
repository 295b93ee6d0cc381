"""Let faults strike a model while it runs, and leave it as it was."""

from __future__ import annotations

import time

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb import marks
from pystack_nb.errors import FaultError
from pystack_nb.faults import bits, structures
from pystack_nb.faults.fault import Fault, Strike
from pystack_nb.faults.layers import Layer, OwnSlot, Slot, find, layers, listed
from pystack_nb.faults.log import Contents, Injection, InjectionLog


if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pystack_nb.faults.models import Drawn
    from pystack_nb.faults.structures import Path

__all__ = ["Fault", "inject"]


@contextmanager
def inject(
    model: torch.nn.Module, *faults: Fault, seed: int | None = None
) -> Iterator[InjectionLog]:
    """Let faults strike a model, in as many forwards as run within the context.

    Weights are changed in place and restored bit by bit; outputs and inputs are changed in
    copies, by hooks that are removed. Contexts nest. A recording of this process has an event
    of kind ``fault`` for each injection. Gradients pass through a struck output
    as if nothing had happened to it.

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
        place. After any exception the model is as it was.

    Examples
    --------
    >>> with faults.inject(model, faults.Fault("conv1", "weight", (0, 0, 1, 1))) as log:
    ...     model(images)
    >>> log.to_frame()

    Notes
    -----
    `torch.nn.TransformerEncoderLayer` computes in another, fused way when no hook watches it,
    with other roundings: compare with a forward in the same context whose fault has not yet
    struck, or switch it off by ``torch.backends.mha.set_fastpath_enabled(False)``.
    """
    if not isinstance(model, torch.nn.Module):
        raise FaultError(f"{type(model).__name__} is no torch.nn.Module: give the model itself")
    if not faults or not all(isinstance(fault, Fault) for fault in faults):
        raise FaultError("there is nothing to inject: give one or more faults.Fault(...)")
    try:
        streams = np.random.SeedSequence(seed).spawn(len(faults))
    except (TypeError, ValueError):
        raise FaultError(f"{seed!r} is no seed: give a whole number from 0 on") from None
    strikes = [
        Strike(fault, number, np.random.default_rng(stream))
        for number, (fault, stream) in enumerate(zip(faults, streams, strict=True))
    ]
    with ExitStack() as undo:
        injection = _Injection(model, strikes, undo)
        yield injection.log
        undo.close()
        for strike in strikes:
            strike.check()


class _Injection:
    def __init__(self, model: torch.nn.Module, strikes: list[Strike], undo: ExitStack) -> None:
        self.log = InjectionLog()
        self._forward = -1
        self._calls: dict[torch.nn.Module, int] = {}
        self._running: list[tuple[torch.nn.Module, int]] = []
        self._neurons: dict[torch.nn.Module, list[tuple[Layer, Strike]]] = {model: []}
        self._transient: list[tuple[Layer, Strike]] = []
        self._lasting: list[tuple[Layer, Strike]] = []
        # What a forward struck is put back when it ends.
        self._forwards = ExitStack()
        permanent: list[tuple[Layer, Strike]] = []
        found = layers(model)
        for strike in strikes:
            layer = find(model, found, strike.fault.layer)
            watched = self._neurons.setdefault(layer.module, [])
            if not strike.fault.is_weight:
                watched.append((layer, strike))
                continue
            # All weights are looked at before the first is touched.
            strike.place(layer.slot(strike.fault.role).open())
            (permanent if strike.fault.when is None else self._transient).append((layer, strike))
        for layer, strike in permanent:
            self._strike_weight(layer, strike, undo)
        undo.callback(self._forwards.close)
        for module in self._neurons:
            before = module.register_forward_pre_hook(self._before, with_kwargs=True)
            undo.callback(before.remove)
            undo.callback(module.register_forward_hook(self._after, always_call=True).remove)

    def _before(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self._running:
            self._forward += 1
            self._calls.clear()
        number = self._calls.get(module, 0)
        self._calls[module] = number + 1
        self._running.append((module, number))
        if len(self._running) == 1:
            for layer, strike in self._lasting:
                _keep(layer, strike)
            for layer, strike in self._transient:
                if strike.due(self._forward):
                    self._strike_weight(layer, strike, self._forwards)
        given = args, kwargs
        taken = self._strike_side("input", module, number, given, structures.inputs(args, kwargs))
        return None if taken is given else taken

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002
        if not any(running is module for running, _ in self._running):
            return None
        # A forward that failed within, and was caught there, has left no word.
        while self._running[-1][0] is not module:
            self._running.pop()
        try:
            if output is None:
                return None
            number = self._running[-1][1]
            found = structures.outputs(output)
            return self._strike_side("output", module, number, output, found)
        finally:
            self._running.pop()
            if not self._running:
                self._forwards.close()

    def _strike_side(
        self, side: str, module: torch.nn.Module, call: int, value: Any, found: dict[str, Path]
    ) -> Any:
        own: set[str] = set()
        for layer, strike in self._neurons[module]:
            fault = strike.fault
            if (
                fault.role.split(".")[0] != side
                or fault.call not in {None, call}
                or not strike.due(self._forward)
            ):
                continue
            role = structures.resolve(fault.role, found)
            if role is None:
                raise FaultError(
                    f"layer {layer.name!r} ({layer.type}) has no {fault.role!r}: choose"
                    f" {listed(found, 'another layer, for there is no tensor')}"
                )
            tensor = structures.get(value, found[role])
            placed = strike.place(tensor)
            if placed is None:
                continue
            if role not in own:
                # Others may hold the tensor: the residual path, the caller, the layer before.
                tensor = tensor.clone()
                value = structures.replaced(value, found[role], tensor)
                own.add(role)
            self._apply(layer, strike, tensor, placed, (self._forward, call, role))
        return value

    def _strike_weight(self, layer: Layer, strike: Strike, undo: ExitStack) -> None:
        slot = layer.slot(strike.fault.role)
        tensor = slot.open()
        placed = strike.place(tensor)
        if placed is None:
            return
        stored = bits.read(tensor, placed[0])
        undo.callback(_restore, slot, tensor, tensor.dtype, placed[0], stored)
        self._apply(layer, strike, tensor, placed, (self._forward, 0, strike.fault.role))
        slot.close(tensor)
        if strike.fault.when is None and placed[1].lasting:
            self._lasting.append((layer, strike))

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
        before = Contents.of(tensor, positions)
        started = time.monotonic_ns()
        with torch.no_grad():
            strike.fault.error.apply(tensor, positions, drawn)
        after = Contents.of(tensor, positions)
        site = (strike.number, forward, layer.name, call, role, tuple(tensor.shape), tensor.dtype)
        injection = Injection(*site, positions, drawn.bit, before, after, started)
        self.log.injections.append(injection)
        if marks.recording():
            took = time.monotonic_ns() - started
            marks.emit("fault", f"{layer.name}:{role}", started, took, injection.event())
        strike.struck.add(forward)


def _keep(layer: Layer, strike: Strike) -> None:
    # A broken cell stays broken, whatever an optimizer has written to it since.
    slot = layer.slot(strike.fault.role)
    tensor = slot.open()
    placed = strike.place(tensor)
    if placed is not None and isinstance(slot, OwnSlot):
        strike.fault.error.apply(tensor, *placed)


def _restore(
    slot: Slot,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    positions: NDArray[np.int64],
    stored: NDArray[np.uint64],
) -> None:
    if not isinstance(slot, OwnSlot):
        tensor = slot.open()
    if tensor.dtype != dtype:
        raise FaultError(
            f"a weight of {dtype} became {tensor.dtype} while a fault was in it, and can't be"
            " restored: load it anew, and convert the model outside of inject"
        )
    bits.write(tensor, positions, stored)
    slot.close(tensor)
