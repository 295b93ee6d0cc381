"""Corrupted models that share everything with the original one."""

from __future__ import annotations

import functools
import inspect
import time

from abc import abstractmethod
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from torch import nn

from pystack_nb import marks
from pystack_nb.errors import FaultError
from pystack_nb.faults.hooks import unhook
from pystack_nb.faults.layers import ROOT
from pystack_nb.faults.padding import padded
from pystack_nb.faults.pytorchfi_layers import Layer, first_tensor, with_first_tensor
from pystack_nb.faults.pytorchfi_part import CorruptedPart


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pystack_nb.faults.pytorchfi import FaultInjection


class CorruptedModel(nn.Module):
    """A model under faults that shares parameters, buffers and modules with the original.

    Calling it, or a method that the model's class has of its own, runs the original with
    the faults in place; they are gone when the call ends, whatever was raised.  So does
    calling a module of it that was taken by name, by index, by a slice or in a loop:
    ``corrupted.conv1(x)``, ``corrupted[0](x)``, ``for layer in corrupted: x = layer(x)``.
    Corrupted weights are seen there (``corrupted.conv1.weight``) and in ``state_dict()``.

    All else is the original's own, where PyTorchFI has a copy's: ``parameters()``,
    ``modules()`` and ``children()`` have the right weights and run without faults (see
    `applied`), ``train()``, ``to()``, an optimizer's step and assignments change the original,
    and ``isinstance`` knows it for no more than a `torch.nn.Module`.  Use ``copy.deepcopy``
    for a corrupted model with weights of its own.

    Parameters
    ----------
    model : torch.nn.Module
        The original one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        of = model.__dict__
        self.__dict__.update({x: of[x] for x in ("_parameters", "_buffers", "_modules")})
        self.__dict__["_model"] = model
        del self.__dict__["training"]

    @abstractmethod
    def _strike(self, undo: ExitStack) -> None:
        """Put the faults in place, and what takes them away on the stack."""

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Put the faults into the original model for the length of a ``with`` block.

        Yields
        ------
        torch.nn.Module
            The original model, now under faults: to look at corrupted weights, or to run
            parts of it.
        """
        with ExitStack() as undo:
            undo.enter_context(padded(self._model))
            self._strike(undo)
            yield self._model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original model under the faults."""
        with self.applied() as model:
            return model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the training flags of the original model."""
        self._model.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Give the original's state with the corrupted weights in it."""
        with self.applied() as model:
            state: dict[str, Any] = model.state_dict(*args, **kwargs)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state into the original model."""
        return self._model.load_state_dict(state_dict, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__.get("_model")
        if model is None:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(message)
        return self.look(model, name)

    def __len__(self) -> int:
        return len(self._model)

    def __bool__(self) -> bool:
        return bool(self._model)

    def __iter__(self) -> Iterator[Any]:
        return (self.part(item) for item in self._model)

    def __getitem__(self, key: Any) -> Any:
        return self.part(self._model[key])

    def part(self, item: Any) -> Any:
        """Give a module as one under these faults, and anything else as it is."""
        return CorruptedPart(self, item) if isinstance(item, nn.Module) else item

    def look(self, module: nn.Module, name: str) -> Any:
        """Give an attribute of one of the original's modules as it is under these faults."""
        value = getattr(module, name)
        if isinstance(value, torch.Tensor):
            return self._tensor(module, name, value)
        # What every module has is for the original: hooks, moving it, its training flag.
        if not _is_own_method(module, value) or hasattr(nn.Module, name):
            return self.part(value)

        @functools.wraps(value)
        def under_faults(*args: Any, **kwargs: Any) -> Any:
            with self.applied():
                return value(*args, **kwargs)

        return under_faults

    def _tensor(self, module: nn.Module, name: str, right: torch.Tensor) -> torch.Tensor:
        del module, name
        return right


class Patch(NamedTuple):
    """The corrupted elements of one parameter."""

    name: str
    owners: list[tuple[nn.Module, str]]
    where: tuple[torch.Tensor, ...]
    values: torch.Tensor

    def apply(self, right: torch.Tensor) -> torch.Tensor:
        """Give the parameter with these elements wrong."""
        wrong = right.clone()
        wrong[tuple(i.to(wrong.device) for i in self.where)] = self.values.to(wrong)
        return wrong


class CorruptedWeights(CorruptedModel):
    """A model of which some weights are wrong.

    No stored bit of the original is written: a struck parameter is exchanged, while the
    model runs, for one with the wrong elements, so that gradients reach the original.
    """

    def __init__(self, model: nn.Module, changed: dict[nn.Parameter, torch.Tensor]) -> None:
        super().__init__(model)
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {p: [] for p in changed}
        names: dict[nn.Parameter, str] = {}
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():  # noqa: SLF001
                if parameter is not None and parameter in places:
                    places[parameter].append((module, name))
                    names.setdefault(parameter, path or ROOT)
        self.__dict__["patches"] = [
            Patch(names[parameter], places[parameter], *_difference(parameter, wrong))
            for parameter, wrong in changed.items()
        ]

    def _strike(self, undo: ExitStack) -> None:
        for patch in self.patches:
            module, name = patch.owners[0]
            _tell(patch.name, name, 0)
            right = module._parameters[name]  # noqa: SLF001
            wrong = patch.apply(right)
            for owner, key in patch.owners:
                owner._parameters[key] = wrong  # noqa: SLF001
                undo.callback(owner._parameters.__setitem__, key, right)  # noqa: SLF001

    def _tensor(self, module: nn.Module, name: str, right: torch.Tensor) -> torch.Tensor:
        for patch in self.patches:
            if any(owner is module and key == name for owner, key in patch.owners):
                wrong: torch.Tensor = patch.apply(right)
                return wrong
        return right


class CorruptedNeurons(CorruptedModel):
    """A model of which some outputs of layers are set to values, or handed to a function.

    Parameters
    ----------
    injection : FaultInjection
        Its ``corrupt_batch``, ``corrupt_layer``, ``corrupt_dim`` and ``corrupt_value`` are
        read when the model runs.
    function : callable or None
        Takes module, input and output of each layer, like a forward hook; None sets the
        values.

    Attributes
    ----------
    live : bool
        Becomes False when the injection declares other faults: then the model is right.
    """

    def __init__(self, injection: FaultInjection, function: Callable[..., Any] | None) -> None:
        super().__init__(injection.original_model)
        self.__dict__.update(injection=injection, function=function, live=True)

    def _strike(self, undo: ExitStack) -> None:
        if not self.live:
            return
        pfi = self.injection
        struck = pfi.corrupt_layer
        due = {struck} if isinstance(struck, int) else set(struck)
        number = {(x.module, x.call): i for i, x in enumerate(pfi.layers) if x.call >= 0}
        hooked = {m for (m, _), i in number.items() if self.function is not None or i in due}
        calls: Counter[nn.Module] = Counter()
        left = set(due)

        def begin(*_: Any) -> None:
            calls.clear()
            left.update(due)

        def strike(module: nn.Module, args: Any, output: Any) -> Any:
            i = number.get((module, calls[module]))
            calls[module] += 1
            if i is None:
                return None
            left.discard(i)
            pfi.current_layer = i
            if i in due:
                _tell(pfi.layers[i].name, "output", pfi.layers[i].call)
            if self.function is not None:
                return self.function(module, args, output)
            return set_values(pfi, i, output) if i in due else None

        def end(*_: Any) -> None:
            if left:
                names = ", ".join(f"{i} ({_name(pfi.layers, i)})" for i in sorted(left))
                raise FaultError(
                    f"this forward did not run the layers {names}, so that their faults could"
                    " not take place: inject into layers that run on this input"
                )

        # Before they are there: an interrupt may come next.
        for module, hook in [
            (self._model, begin),
            *((x, strike) for x in hooked),
            (self._model, end),
        ]:
            undo.callback(unhook, module, hook)
        handles = [self._model.register_forward_pre_hook(begin)]
        handles += [module.register_forward_hook(strike) for module in hooked]
        handles.append(self._model.register_forward_hook(end))
        before = pfi.handles
        pfi.handles = handles
        undo.callback(setattr, pfi, "handles", before)
        undo.callback(pfi.reset_current_layer)


def set_values(injection: FaultInjection, number: int, output: Any) -> Any:
    """Give a layer's output with the declared values; the output itself stays as it is."""
    tensor = first_tensor(output)
    if tensor is None:
        raise FaultError(f"layer {number} returned no tensor this time: inject into another layer")
    struck = injection.corrupt_layer
    at = {
        injection.index_of(i, tuple(tensor.shape)): injection.corrupt_value[i]
        for i in range(len(struck))
        if struck[i] == number
    }
    wrong = tensor.clone()
    index = torch.tensor([*at]).to(wrong.device)
    values = [torch.as_tensor(v).to(wrong.dtype).reshape(()) for v in at.values()]
    if len({x.device for x in values}) > 1:
        values = [x.to(wrong.device) for x in values]
    wrong[tuple(index.T)] = torch.stack(values).to(wrong.device)
    return with_first_tensor(output, wrong)


def _difference(
    parameter: torch.Tensor, wrong: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    same = (wrong == parameter.detach()) & (torch.signbit(wrong) == torch.signbit(parameter))
    index = torch.nonzero(~same, as_tuple=True)
    return index, wrong[index]


def _is_own_method(module: nn.Module, value: Any) -> bool:
    return inspect.ismethod(value) and value.__self__ is module


def _name(layers: list[Layer], number: int) -> str:
    return layers[number].name if 0 <= number < len(layers) else "no such layer"


def _tell(layer: str, role: str, call: int) -> None:
    if marks.recording():
        site = {"layer": layer, "role": role, "call": call}
        marks.emit("fault", f"{layer}:{role}", time.perf_counter_ns(), 0, site)
