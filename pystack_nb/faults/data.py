"""The samples of a campaign: whatever holds them becomes tensors with a batch dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FORMS = (
    "pass (inputs, labels), a tensor of inputs or a dict of them by name, a Dataset, a DataLoader"
    " or a list of samples"
)


class Inputs(list[torch.Tensor]):
    """What a model is given: tensors with samples along dimension 0, by place or by name.

    Parameters
    ----------
    tensors : iterable of torch.Tensor
        One for each argument.
    names : tuple of str, optional
        Of keyword arguments, one for each tensor; without them all are positional.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], names: tuple[str, ...] = ()) -> None:
        super().__init__(tensors)
        self.names = names

    @classmethod
    def of(cls, tensors: Iterable[torch.Tensor]) -> Inputs:
        """Take inputs as they are, and other tensors as positional."""
        return tensors if isinstance(tensors, cls) else cls(tensors)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """Give what a function makes of each tensor."""
        return Inputs(map(change, self), self.names)

    @property
    def arguments(self) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Positional and keyword arguments."""
        if self.names:
            return (), dict(zip(self.names, self, strict=True))
        return tuple(self), {}

    def given_to(self, model: Callable[..., Any]) -> Any:
        """Call a model with them."""
        args, kwargs = self.arguments
        return model(*args, **kwargs)


def tensors(data: Any) -> tuple[Inputs, torch.Tensor | None]:
    """Give the model's inputs and the labels of all samples.

    Parameters
    ----------
    data : tuple, tensor, dict, Dataset, DataLoader or list
        ``(inputs, labels)``, where `inputs` is a tensor, or a tuple or list of them for a model
        that takes several, or a dict of them by the names of keyword arguments, and `labels` a
        tensor or None; a tensor or dict of inputs; or a Dataset, list or DataLoader of samples.
        A sample is an input, or a tuple of inputs of which the last is the label, or a dict
        of inputs and a label.  The samples of a loader that shuffles are taken in its dataset's
        order, so that a sample keeps its number; of one with a `RandomSampler` all of them.

    Returns
    -------
    inputs : Inputs
        One for each argument of the model, samples along dimension 0.
    labels : torch.Tensor or None
        Along dimension 0.

    Raises
    ------
    CampaignError
        These are no samples, or none, or not equally many of each, or a loader that draws
        other ones each time.
    """
    inputs: Inputs
    if isinstance(data, torch.Tensor | Mapping):
        inputs, labels = _listed(data), None
    elif isinstance(data, tuple) and len(data) == 2:
        inputs = _listed(data[0])
        labels = None if data[1] is None else _tensor(data[1])
    elif isinstance(data, DataLoader | Dataset) or _is_list(data):
        inputs, labels = _split(_collated(data))
    else:
        raise CampaignError(f"{type(data).__name__} holds no samples; {_FORMS}")
    if any(x.dim() and not len(x) for x in inputs):
        raise CampaignError(f"there is no sample; {_FORMS}")
    if labels is not None and not labels.dim():
        raise CampaignError(
            "the labels are a single number; of one sample pass (x[:1], y[:1]), which keeps the"
            " dimension that counts samples"
        )
    counts = {len(x) if x.dim() else 0 for x in inputs}
    counts |= set() if labels is None else {len(labels) if labels.dim() else 0}
    if not inputs or len(counts) != 1 or counts == {0}:
        raise CampaignError(
            f"inputs and labels have {sorted(counts)} samples; {_FORMS}, equally many of each"
        )
    return inputs, labels


def device_of(model: torch.nn.Module, otherwise: torch.device) -> torch.device:
    """Give the device of a model's first parameter or buffer; another one if it has none."""
    return next((x.device for x in chain(model.parameters(), model.buffers())), otherwise)


def on_device_of(model: torch.nn.Module, inputs: Inputs) -> Inputs:
    """Give inputs on the device of a model.

    Raises
    ------
    CampaignError
        Nothing is computed there.
    """
    moved = inputs.each(
        lambda x: x if x.is_meta else x.to(device_of(model, x.device))  # one can't be moved
    )
    if any(x.is_meta for x in moved):
        raise CampaignError(
            "the model or the data is on the meta device, where tensors have no numbers: load"
            " the weights, as with model.to_empty(device=...) and load_state_dict(...), and pass"
            " real data"
        )
    return moved


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, tuple | str | bytes)


def _tensor(data: Any) -> torch.Tensor:
    # `torch.as_tensor` moves tensors, too, to the default device.
    return data if isinstance(data, torch.Tensor) else torch.as_tensor(data)


def _listed(inputs: Any) -> Inputs:
    names: tuple[str, ...] = ()
    if isinstance(inputs, Mapping):
        # In one order, whoever wrote them down.
        names = tuple(sorted(inputs))
        inputs = [inputs[name] for name in names]
    found = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    try:
        return Inputs(map(_tensor, found), names)
    except (TypeError, ValueError, RuntimeError):
        raise CampaignError(f"these inputs are no tensors; {_FORMS}") from None


def _collated(data: Any) -> Any:
    collate: Any = default_collate
    order: Iterable[int] | None = None
    if isinstance(data, DataLoader):
        shuffled = isinstance(data.sampler, RandomSampler)
        order = None if shuffled else _order(data)
        if not shuffled and order is None:
            return _joined(list(data))
        if data.batch_sampler is None:
            # The dataset's items are batches.
            some = range(len(cast("Any", data.dataset))) if order is None else order
            return _joined([data.collate_fn(data.dataset[i]) for i in some])
        data, collate = data.dataset, data.collate_fn
    if isinstance(data, IterableDataset):
        items = list(cast("Iterable[Any]", data))
    else:
        items = [data[i] for i in (range(len(data)) if order is None else order)]
    if not items:
        raise CampaignError(f"there is no sample; {_FORMS}")
    try:
        return collate(items)
    except (TypeError, RuntimeError) as error:
        raise CampaignError(f"these samples make no batch ({error}); {_FORMS}") from None


def _order(loader: DataLoader[Any]) -> list[int] | None:
    """Give the samples of a loader in a fixed order; None where it gives one by itself."""
    if isinstance(loader.dataset, IterableDataset):
        return None
    batches: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else batches
    if isinstance(sampler, SequentialSampler | Sequence):
        return None
    one, other = (sorted(_flat(batches)) for _ in range(2))
    if one == other:
        return one
    raise CampaignError(
        f"this loader's {type(sampler).__name__} draws other samples each time, so that"
        " no sample keeps its number; pass the samples themselves, such as a Subset"
    )


def _flat(indices: Iterable[Any]) -> Iterable[Any]:
    for index in indices:
        if isinstance(index, list | tuple):
            yield from index
        else:
            yield index


def _joined(batches: list[Any]) -> Any:
    if not batches:
        raise CampaignError(f"there is no sample; {_FORMS}")
    first = batches[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {name: _joined([batch[name] for batch in batches]) for name in first}
    if isinstance(first, tuple | list):
        return [_joined([batch[i] for batch in batches]) for i in range(len(first))]
    raise CampaignError(f"a batch of {type(first).__name__} can't be passed on; {_FORMS}")


def _split(batch: Any) -> tuple[Inputs, torch.Tensor | None]:
    if isinstance(batch, Mapping):
        raise CampaignError(
            "samples that are mappings don't say which is the label; pass (inputs, labels)"
        )
    if isinstance(batch, torch.Tensor):
        return _listed(batch), None
    parts = list(batch)
    if isinstance(parts[0], Mapping) and len(parts) == 2:
        return _listed(parts[0]), _tensor(parts[1])
    found = _listed(parts)
    return (Inputs(found[:-1]), found[-1]) if len(found) > 1 else (found, None)
