"""The samples of a campaign: whatever holds them becomes tensors with a batch dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, default_collate

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
        the label.  A shuffling loader's samples are taken in its dataset's order, so that a
        sample keeps its number.

    Returns
    -------
    inputs : list of torch.Tensor
        One for each argument of the model, samples along dimension 0.
    labels : torch.Tensor or None
        Along dimension 0.

    Raises
    ------
    CampaignError
        These are no samples, or none, or not equally many of each.
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


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, tuple | str | bytes)


def _listed(inputs: Any) -> list[torch.Tensor]:
    found = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    try:
        return [torch.as_tensor(x) for x in found]
    except (TypeError, ValueError, RuntimeError):
        raise CampaignError(f"these inputs are no tensors; {_FORMS}") from None


def _collated(data: Any) -> Any:
    if isinstance(data, DataLoader) and not isinstance(data.sampler, RandomSampler):
        return _joined(list(data))
    collate: Any = default_collate
    if isinstance(data, DataLoader):
        data, collate = data.dataset, data.collate_fn
    if isinstance(data, IterableDataset):
        items = list(cast("Iterable[Any]", data))
    else:
        items = [data[i] for i in range(len(data))]
    if not items:
        raise CampaignError(f"there is no sample; {_FORMS}")
    try:
        return collate(items)
    except (TypeError, RuntimeError) as error:
        raise CampaignError(f"these samples make no batch ({error}); {_FORMS}") from None


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
