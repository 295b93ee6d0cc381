"""The places of a model that a fault can strike."""

from __future__ import annotations

import inspect
import math

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits, structures
from pystack_nb.faults.layers import OwnSlot
from pystack_nb.faults.trace import Trace, trace


if TYPE_CHECKING:
    from pystack_nb.faults.layers import Layer

    Row = tuple[Any, ...]

_COLUMNS = ["layer", "type", "call", "role", "kind", "shape", "dtype", "elements"]
_COLUMNS += ["bits", "same_as"]


def sites(model: torch.nn.Module, *inputs: Any, **kw: Any) -> pd.DataFrame:
    """List every layer's tensors, by running the model once.

    The model, its buffers, its modules' attributes, its gradients and all random generators are
    afterwards as they were before, but for what it puts into its lists and dicts; it runs in the
    mode that it is in, on a copy of the example.

    Parameters
    ----------
    model : torch.nn.Module
        Any model that is not compiled.
    *inputs, **kw
        What ``model(...)`` takes: an example.  With one sample (``images[:1]``), sizes are those
        that a `Campaign` draws from.  A dict alone is inputs by name, as in the data of a
        `Campaign`, unless the model's forward takes no arguments of these names.

    Returns
    -------
    pandas.DataFrame
        A row per tensor, layers in the order in which they first run, those that never run
        (they only own weights) last:

        * ``layer``: path of the module; ``(model)`` for the model itself. A shared module has
          the first of its paths, and its runs by whichever path are its calls;
        * ``type``: name of its class;
        * ``call``: which forward of the layer within one of the model, from 0; 0 for weights;
        * ``role``: ``output``, ``input`` or a weight's or buffer's name; within tuples, dicts
          and the like with the path, as in ``output.0`` or ``input.kw.mask``. Where two paths
          read alike the later one ends with ``~2`` (and so on), and a weight that is called
          ``output`` or ``input`` is ``own.output`` or ``own.input``;
        * ``kind``: ``neuron`` or ``weight`` (buffers, too);
        * ``shape`` (tuple), ``dtype`` (torch.dtype);
        * ``elements``: number of elements, of all samples of the example;
        * ``bits``: stored bits of an element; 0 if faults can't strike this type;
        * ``same_as``: empty, or the earlier site (``layer:call:role``) that is this very
          tensor. Each tensor counts once among the rows where it is empty: choose from those
          what a random fault may strike.

    Raises
    ------
    FaultError
        If this is no model, or one that can't run on the example or has no tensor.

    Examples
    --------
    >>> faults.sites(torch.nn.Linear(2, 3), torch.ones(5, 2))[["role", "shape", "elements"]]
         role   shape  elements
    0   input  (5, 2)        10
    1  output  (5, 3)        15
    2  weight  (3, 2)         6
    3    bias    (3,)         3
    """
    inputs, kw = _by_name(model, inputs, kw)
    return _table(trace(model, inputs, kw))


def sites_of_a_sample(
    model: torch.nn.Module, inputs: tuple[Any, ...], kw: dict[str, Any]
) -> pd.DataFrame:
    """List as `sites` what is one sample's, by running the model once more with one more of it.

    Sizes may coincide, as those of ``arange(x.shape[0])`` and ``arange(4)`` in a batch of 4, so
    that no single run tells which dimension of a tensor counts the samples.

    Parameters
    ----------
    model : torch.nn.Module
        See `sites`.
    inputs, kw
        What the model takes.  The first dimension of the first tensor counts the samples: one,
        where a model folds time, tokens or patches into the batch, since nothing would tell how
        many of a layer's rows are a sample's.

    Returns
    -------
    pandas.DataFrame
        As `sites`, with ``elements`` of one sample for neurons, and ``batch_dim``: the dimension
        that counts the samples, -1 for none.  If the model can't run with one sample more, it is
        0 where that dimension has the size of the inputs'.

    Raises
    ------
    FaultError
        As `sites`.
    """
    ran = trace(model, inputs, kw)
    samples, larger = _one_more(inputs, kw)
    dims = _batch_dims(ran, _run_again(model, larger), samples)
    table = _table(ran)
    places = zip(table["layer"], table["call"], table["role"], strict=True)
    counted = [dims.get(place, -1) for place in places]
    table["batch_dim"] = counted
    table["elements"] = [
        math.prod(size for i, size in enumerate(shape) if i != dim)
        for shape, dim in zip(table["shape"], counted, strict=True)
    ]
    return table


def _table(ran: Trace) -> pd.DataFrame:
    found: dict[str, tuple[Layer, list[Row]]] = {}
    for call in ran.calls:
        _, rows = found.setdefault(call.layer.name, (call.layer, []))
        for seen in call.inputs + call.outputs:
            place = "" if seen.same_as is None else "{}:{}:{}".format(*seen.same_as)
            where = (call.layer.name, call.layer.type, call.call, seen.role, "neuron")
            rows.append((*where, *_what(seen.shape, seen.dtype), place))
    owners: dict[int, str] = {}
    for name, layer in ran.layers.items():
        rows = found.setdefault(name, (layer, []))[1]
        rows.extend(_weights(layer, owners))
    table = [row for _, rows in found.values() for row in rows]
    if not table:
        raise FaultError("this model has no tensor that a fault could strike: give another one")
    return pd.DataFrame(table, columns=_COLUMNS)


def _what(shape: tuple[int, ...], dtype: torch.dtype) -> Row:
    return shape, dtype, math.prod(shape), _width(dtype)


def _by_name(
    model: torch.nn.Module, inputs: tuple[Any, ...], kw: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a sole dict as keyword arguments, where the forward takes them."""
    if kw or len(inputs) != 1 or not isinstance(inputs[0], Mapping):
        return inputs, kw
    named = inputs[0]
    try:
        inspect.signature(model.forward).bind(**named)
    except (TypeError, AttributeError):  # what is no model is refused when it is traced
        return inputs, kw
    return (), dict(named)


def _weights(layer: Layer, owners: dict[int, str]) -> list[Row]:
    rows = []
    for role, slot in layer.slots.items():
        tensor = slot.open()
        place = f"{layer.name}:0:{role}"
        # What is unpacked is a tensor of its own, which may have the address of an earlier one.
        owner = owners.setdefault(id(tensor), place) if isinstance(slot, OwnSlot) else place
        place = "" if owner == place else owner
        what = _what(tuple(tensor.shape), tensor.dtype)
        rows.append((layer.name, layer.type, 0, role, "weight", *what, place))
    return rows


def _width(dtype: torch.dtype) -> int:
    try:
        return bits.width(dtype)
    except FaultError:
        return 0


def _one_more(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, Any]:
    """Give the number of samples, and the inputs with the first one once more (None: no way)."""
    whole: Any = (args, kwargs)
    paths = [*structures.inputs(args, kwargs).values()]
    first = structures.get(whole, paths[0]) if paths else torch.zeros(())
    samples = first.shape[0] if first.dim() else 0
    if not samples:
        return 0, None
    for path in paths:
        tensor = structures.get(whole, path)
        if tensor.dim() and tensor.shape[0] == samples:
            try:
                grown = torch.cat([tensor, tensor[:1]])
            except RuntimeError:  # of a layout that can't be sliced, as sparse ones
                return samples, None
            whole = structures.replaced(whole, path, grown)
    return samples, whole


def _shapes(ran: Trace | None) -> dict[tuple[str, int, str], tuple[int, ...]]:
    return {
        (call.layer.name, call.call, seen.role): seen.shape
        for call in (ran.calls if ran else ())
        for seen in call.inputs + call.outputs
    }


def _run_again(model: torch.nn.Module, inputs: Any) -> Trace | None:
    if inputs is None:
        return None
    try:
        return trace(model, *inputs)
    except FaultError:
        return None


def _batch_dims(ran: Trace, larger: Trace | None, samples: int) -> dict[tuple[str, int, str], int]:
    again = _shapes(larger)

    def dimension(site: tuple[str, int, str], shape: tuple[int, ...]) -> int:
        if site not in again or len(again[site]) != len(shape):
            return 0 if samples and shape[:1] == (samples,) else -1
        grown = [
            i for i, pair in enumerate(zip(shape, again[site], strict=True)) if len({*pair}) > 1
        ]
        one_more = len(grown) == 1 and (shape[grown[0]], again[site][grown[0]]) == (
            samples,
            samples + 1,
        )
        return grown[0] if one_more else -1

    return {site: dimension(site, shape) for site, shape in _shapes(ran).items()}
