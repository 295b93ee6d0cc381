"""Which storage of a model holds what a layer gave, and from when to when it is needed.

The model runs once under a dispatch mode that sees every operator with its tensors.  Starts and
ends of layers' calls are *moments*; between two of them is a *segment*, which belongs to the
innermost call that is open.  Contents of storage are a *value*: written by one operator, and
read by others until something else is written in their place.  A value belongs to the layer
whose call first gives it to others.  What passes it on (`Identity`, views, a container whose
output is its last layer's) has no storage of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits, structures
from pystack_nb.faults.hooks import unhook
from pystack_nb.faults.layers import ROOT, OwnSlot, layers
from pystack_nb.faults.state import untouched


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pystack_nb.faults.layers import Layer

CallOf = tuple[str, int]


@dataclass(frozen=True)
class Output:
    """What a call gave, under one role.

    Attributes
    ----------
    call : tuple of (str, int)
        The layer and which of its forwards.
    role : str
    bits : int
        Of the storage that is its own; 0 for what another call's value is.
    born : int
        Segment in which it was written.
    last_read : int
        Segment in which it was read for the last time.
    """

    call: CallOf
    role: str
    bits: int
    born: int
    last_read: int


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer.

    Attributes
    ----------
    layer, role : str
    bits : int
        0 for one that is another layer's, too, which comes first.
    readers : frozenset of (str, int)
        Calls that read it.
    """

    layer: str
    role: str
    bits: int
    readers: frozenset[CallOf]


@dataclass(frozen=True)
class Liveness:
    """What one forward of a model did with its storage.

    Attributes
    ----------
    moments : list of (tuple of (str, int), bool)
        Calls that begin (False) or end (True), in order.
    segments : list of (str, int)
        Whom each segment belongs to: segment k lies between moments k and k + 1.
    outputs : list of Output
    weights : list of Weight
    macs : dict of (str, int) to int
        Multiply-accumulates of each call, without those of calls within it.
    """

    moments: list[tuple[CallOf, bool]]
    segments: list[CallOf]
    outputs: list[Output]
    weights: list[Weight]
    macs: dict[CallOf, int]


def liveness(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, grad: bool = False
) -> Liveness:
    """Run a model once, see what it does with its storage, and leave it as it was.

    Parameters
    ----------
    model : torch.nn.Module
        It runs in the mode that it is in.
    args, kwargs : tuple, dict
        What its forward takes.
    grad : bool, optional
        Whether gradients are recorded, for models that then run other layers.

    Raises
    ------
    FaultError
        If the model can't run on that.

    Notes
    -----
    All of one forward's storage is kept until it ends.  A write into a part of a storage makes
    all of it a new value.  Operators that PyTorch counts no FLOPs of (recurrent layers' fused
    kernels, quantised ones) have no multiply-accumulates here.
    """
    observer = _Observer(layers(model))
    with ExitStack() as hooks, untouched(model), torch.set_grad_enabled(grad):
        observer.watch(hooks)
        for tensor in tree_leaves((args, kwargs)):
            observer.stored(tensor)
        try:
            with observer:
                model(*args, **kwargs)
        except Exception as error:
            raise FaultError(
                f"the model can't run on this example ({type(error).__name__}: {error}): pass"
                " inputs=, what model(...) takes, a tuple of it or a dict of keyword arguments"
            ) from error
    return observer.result()


@dataclass
class _Value:
    """Contents of a storage; those that were there before the model ran are nobody's."""

    born: int
    last_read: int
    owner: CallOf | None = None
    outputs: dict[tuple[Any, ...], tuple[str, int]] = field(default_factory=dict)
    is_foreign: bool = False


@dataclass
class _Stored:
    storage: torch.UntypedStorage  # held, so that its address becomes no other one's
    value: _Value
    readers: set[CallOf] = field(default_factory=set)


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: dict[str, Layer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = found
        self._known: dict[int, _Stored] = {}
        self._values: list[_Value] = []
        self._passed: list[tuple[CallOf, str]] = []
        self._moments: list[tuple[CallOf, bool]] = []
        self._segments: list[CallOf] = []
        self._open: list[CallOf] = []
        self._count: dict[str, int] = {}
        self._macs: dict[CallOf, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # what consists of others, as under inference_mode, is seen as those
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        result = func(*args, **kwargs)
        if not self._open:
            return result
        if not (func.is_view or _takes_shape_alone(func)):
            self._read(args, kwargs)
        self._written(func, args, kwargs)
        for tensor in tree_leaves(result):
            self._made(tensor)
        count: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
        if count:
            call = self._open[-1]
            flops = count(*args, **kwargs, out_val=result)
            self._macs[call] = self._macs.get(call, 0) + flops // 2
        return result

    def watch(self, hooks: ExitStack) -> None:
        """See each layer begin and end."""
        for layer in self._layers.values():
            for slot in layer.slots.values():
                if isinstance(slot, OwnSlot):
                    self.stored(slot.open())
            before, after = self._hooks(layer)
            # Before they are there: an interrupt may come next.
            hooks.callback(unhook, layer.module, before)
            hooks.callback(unhook, layer.module, after)
            layer.module.register_forward_pre_hook(before)
            layer.module.register_forward_hook(after, prepend=True)

    def stored(self, tensor: Any) -> _Stored | None:
        """Give what is known of a tensor's storage; what is new was there before the model ran."""
        storage = _storage(tensor)
        if storage is None:
            return None
        address = storage._cdata  # noqa: SLF001 - the storage itself, whatever refers to it
        if address not in self._known:
            self._known[address] = _Stored(storage, _Value(-1, -1, is_foreign=True))
        return self._known[address]

    def result(self) -> Liveness:
        """Tell what was seen."""
        outputs = [
            Output(value.owner, role, size, value.born, value.last_read)
            for value in self._values
            if value.owner
            for role, size in value.outputs.values()
        ]
        outputs += [Output(call, role, 0, 0, 0) for call, role in self._passed]
        return Liveness(self._moments, self._segments, outputs, [*self._weights()], self._macs)

    def _weights(self) -> Iterable[Weight]:
        credited: set[int] = set()
        for layer in self._layers.values():
            for role, slot in layer.slots.items():
                tensor = slot.open()
                stored = self.stored(tensor) if isinstance(slot, OwnSlot) else None
                if stored is None:  # packed: no operator shows it
                    calls = frozenset(x for x in self._segments if x[0] == layer.name)
                    yield Weight(layer.name, role, _bits(tensor), calls)
                    continue
                size = 0 if id(tensor) in credited else _bits(tensor)
                credited.add(id(tensor))
                yield Weight(layer.name, role, size, frozenset(stored.readers))

    def _hooks(self, layer: Layer) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: torch.nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            number = self._count.get(layer.name, 0)
            self._count[layer.name] = number + 1
            call = layer.name, number
            self._open.append(call)
            self._moments.append((call, False))
            self._segments.append(call)

        def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
            call = self._open[-1]
            for role, path in structures.outputs(output).items():
                self._given(call, role, structures.get(output, path))
            self._open.pop()
            self._moments.append((call, True))
            if self._open:
                self._segments.append(self._open[-1])

        return before, after

    def _given(self, call: CallOf, role: str, tensor: torch.Tensor) -> None:
        stored = self.stored(tensor)
        value = stored.value if stored else None
        if value is None or value.is_foreign or value.owner not in {None, call}:
            self._passed.append((call, role))
        else:
            value.owner = call
            # Several views of one storage are several outputs; one tensor twice is one.
            place = (tensor.storage_offset(), *tensor.shape, *tensor.stride())
            size = 0 if place in value.outputs else _bits(tensor)
            value.outputs[(*place, role) if place in value.outputs else place] = role, size
        if value and call[0] == ROOT:
            value.last_read = len(self._segments) - 1  # by whoever ran the model

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in tree_leaves((args, kwargs)):
            stored = self.stored(tensor)
            if stored:
                stored.value.last_read = len(self._segments) - 1
                stored.readers.add(self._open[-1])

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for number, argument in enumerate(func._schema.arguments):  # noqa: SLF001
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in tree_leaves(given):
                stored = self.stored(tensor)
                if stored and not stored.value.is_foreign:
                    stored.value = self._new_value()

    def _made(self, tensor: Any) -> None:
        storage = _storage(tensor)
        if storage is not None and storage._cdata not in self._known:  # noqa: SLF001
            self._known[storage._cdata] = _Stored(storage, self._new_value())  # noqa: SLF001

    def _new_value(self) -> _Value:
        segment = len(self._segments) - 1
        value = _Value(segment, segment)
        self._values.append(value)
        return value


def _storage(tensor: Any) -> torch.UntypedStorage | None:
    if not isinstance(tensor, torch.Tensor):
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse and the like have none of their own
        return None


def _bits(tensor: torch.Tensor) -> int:
    """Count the stored bits of a tensor; those that an expanded one repeats count once."""
    try:
        width = bits.width(tensor.dtype)
    except FaultError:
        return 0
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * width


def _takes_shape_alone(func: Any) -> bool:
    name: str = func.overloadpacket.__name__
    return name.endswith("_like") or name.startswith("new_")
