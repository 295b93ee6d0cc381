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
    from collections.abc import Iterable

_FORMS = "pass (inputs, labels), a tensor of inputs, a Dataset, a DataLoader or a list of samples"


def tensors(data: Any) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Give the model's inputs and the labels of all samples.

    Parameters
    ----------
    data : tuple, tensor, Dataset, DataLoader or list
        ``(inputs, labels)``, where `inputs` is a tensor, or a list of them for a model that
        takes several, and `labels` a tensor or None; a tensor of inputs; or a Dataset, list or
        DataLoader of samples.  A sample is an input, or a tuple of inputs of which the last is
        the label.  The samples of a loader that shuffles are taken in its dataset's order, so
        that a sample keeps its number; of one with a `RandomSampler` all of them.

    Returns
    -------
    inputs : list of torch.Tensor
        One for each argument of the model, samples along dimension 0.
    labels : torch.Tensor or None
        Along dimension 0.

    Raises
    ------
    CampaignError
        These are no samples, or none, or not equally many of each, or a loader that draws
        other ones each time.
    """
    if isinstance(data, torch.Tensor):
        inputs, labels = [data], None
    elif isinstance(data, tuple) and len(data) == 2:
        inputs, labels = _listed(data[0]), None if data[1] is None else torch.as_tensor(data[1])
    elif isinstance(data, DataLoader | Dataset) or _is_list(data):
        inputs, labels = _split(_collated(data))
    else:
        raise CampaignError(f"{type(data).__name__} holds no samples; {_FORMS}")
    counts = {len(x) if x.dim() else 0 for x in inputs}
    counts |= set() if labels is None else {len(labels) if labels.dim() else 0}
    if len(counts) != 1 or counts == {0}:
        raise CampaignError(
            f"inputs and labels have {sorted(counts)} samples; {_FORMS}, equally many of each"
        )
    return inputs, labels


def device_of(model: torch.nn.Module, otherwise: torch.device) -> torch.device:
    """Give the device of a model's first parameter or buffer; another one if it has none."""
    return next((x.device for x in chain(model.parameters(), model.buffers())), otherwise)


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, tuple | str | bytes)


def _listed(inputs: Any) -> list[torch.Tensor]:
    found = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    try:
        return [torch.as_tensor(x) for x in found]
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
    if isinstance(first, tuple | list):
        return [_joined([batch[i] for batch in batches]) for i in range(len(first))]
    raise CampaignError(f"a batch of {type(first).__name__} can't be passed on; {_FORMS}")


def _split(batch: Any) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    if isinstance(batch, Mapping):
        raise CampaignError(
            "samples that are mappings don't say which is the label; pass (inputs, labels)"
        )
    if isinstance(batch, torch.Tensor):
        return [batch], None
    found = _listed(batch)
    return (found[:-1], found[-1]) if len(found) > 1 else (found, None)
