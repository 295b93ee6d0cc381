"""The layers of a model as PyTorchFI numbers them, found by running it once."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torch import nn
from torch.utils import _pytree as pytree

from pystack_nb.errors import FaultError, PystackError
from pystack_nb.faults.layers import HOLDERS, ROOT
from pystack_nb.faults.layers import layers as every_layer
from pystack_nb.faults.state import untouched


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, eq=False)
class Layer:
    """One number: a module, and which of its forwards.

    Attributes
    ----------
    name : str
        The module's path in the model, as in `faults.sites`.
    module : torch.nn.Module
        The module itself.
    call : int
        0 for the first time that it runs in a forward of the model; -1 if it never does
        (its weights are used by another module).
    shape : tuple of int or None
        Of the output's first tensor, for one sample; None if it never runs.
    """

    name: str
    module: nn.Module
    call: int
    shape: tuple[int, ...] | None

    @property
    def weight(self) -> nn.Parameter | None:
        """The parameter named ``weight``, if it has one that is stored as such."""
        return self.module._parameters.get("weight")  # noqa: SLF001 - not a computed attribute


def find(model: nn.Module, types: Sequence[Any], inputs: tuple[Any, ...]) -> list[Layer]:
    """Run a model once and list its layers of some types in the order in which they ran.

    Parameters
    ----------
    model : torch.nn.Module
        In train or eval mode; its flags, buffers and all random generators are afterwards
        as they were.
    types : sequence of type, or of "all"
        What counts as a layer.
    inputs : tuple
        What the model is run on.

    Returns
    -------
    list of Layer
        One for each run, then those that never ran and own a weight.

    Raises
    ------
    FaultError
        If the model can't run on the inputs or has no layer of these types.
    """
    every_layer(model)  # refuses compiled models, whose hooks do not run
    modules = {
        module: name or ROOT
        for name, module in model.named_modules()
        if HOLDERS.isdisjoint(name.split(".")) and _counts(module, types)
    }
    found: list[Layer] = []
    calls = dict.fromkeys(modules, 0)

    def note(module: nn.Module, _: Any, output: Any) -> None:
        tensor = first_tensor(output)
        shape = None if tensor is None else tuple(tensor.shape)
        found.append(Layer(modules[module], module, calls[module], shape))
        calls[module] += 1

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        with _evaluating(model):
            model(*inputs)
    except PystackError:
        raise
    except Exception as error:
        raise FaultError(
            f"the model can't run on its example input ({type(error).__name__}: {error}): give"
            " the right input_shape, or inputs= with one example (a tensor or a tuple)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found = [layer for layer in found if layer.shape is not None]
    idle = [Layer(modules[m], m, -1, None) for m, count in calls.items() if not count]
    found += [layer for layer in idle if layer.weight is not None]
    if not found:
        raise FaultError(
            f"the model has no layer of the types {[getattr(t, '__name__', t) for t in types]}"
            ' that runs: give other layer_types, or ["all"]'
        )
    return found


def first_tensor(output: Any) -> torch.Tensor | None:
    """Give the first tensor in what a module returns: of an LSTM, its outputs."""
    leaves = pytree.tree_leaves(output)
    return next((leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), None)


def with_first_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """Give what a module returned with another first tensor."""
    leaves, spec = pytree.tree_flatten(output)
    where = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    leaves[where] = tensor
    return pytree.tree_unflatten(leaves, spec)


def _counts(module: nn.Module, types: Sequence[Any]) -> bool:
    leaf = all(name in HOLDERS for name, _ in module.named_children())
    if any(isinstance(kind, str) for kind in types):
        return leaf and not isinstance(module, nn.ParameterList)
    # One with parts and parameters (MultiheadAttention) is a layer when it is asked for.
    owns = any(True for _ in module.parameters(recurse=False))
    return isinstance(module, tuple(types)) and (leaf or owns)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with untouched(model), torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training
