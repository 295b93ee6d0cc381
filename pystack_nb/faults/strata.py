"""Strata: faults that are alike, and their random streams.

A stratum is a layer and a role (a module that runs several times is one), with
``per="layer,bit"`` also a bit.  Its faults come from a random stream of their own, so that they
depend neither on other strata nor on how many of them are asked for: a larger sample starts
with the smaller one.
"""

from __future__ import annotations

import dataclasses
import math

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pystack_nb.errors import CampaignError
from pystack_nb.faults.models import BitModel, Sequence


if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from numpy.typing import NDArray

    from pystack_nb.faults.models import ErrorModel

    Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Stratum:
    """Faults that are alike.

    Attributes
    ----------
    number : int
        Place among the strata; it names the random stream.
    layer, role, kind, dtype
        As in the table of `sites`.
    bit : int
        The only bit that is struck, -1 where the error model chooses.
    calls, elements : tuple of int
        The forwards of the layer, and the elements of the tensor in each.
    error : ErrorModel
        What happens to an element.
    samples : int
        Number of samples that a fault is drawn for; 1 where one fault is tried on several.
    """

    number: int
    layer: str
    role: str
    kind: str
    dtype: torch.dtype
    bit: int
    calls: tuple[int, ...]
    elements: tuple[int, ...]
    error: ErrorModel
    samples: int

    @property
    def weight(self) -> float:
        """Different faults on one sample: the stratum's size among the others."""
        choices = self.error.faults_per_element(self.dtype)
        return sum(self.elements) * (1 if math.isinf(choices) else choices)

    @property
    def population(self) -> float:
        """Faults that can be drawn without one coming twice; infinite where that is no matter."""
        choices = self.error.faults_per_element(self.dtype)
        if isinstance(self.error, Sequence) or math.isinf(choices):
            return math.inf
        return sum(self.elements) * choices * self.samples

    def draw(self, seed: int, count: int) -> Columns:
        """Draw the stratum's first faults; none comes twice where `population` is finite.

        Parameters
        ----------
        seed : int
            The campaign's.
        count : int
            How many, at most `population`.

        Returns
        -------
        dict of str to numpy.ndarray, each of shape (count,)
            Columns of `Plan.faults`, without those that are the stratum's own.
        """
        rng = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(self.number,)))
        )
        kept: Columns = self._chunk(rng, 0)
        chunk = 256
        # Chunks have the same sizes however many faults are wanted, so that a longer sample
        # continues a shorter one.
        while len(kept["bit"]) < count:
            more = self._chunk(rng, chunk)
            kept = {x: np.concatenate([kept[x], more[x]]) for x in more}
            if math.isfinite(self.population):
                first = _first(kept)
                kept = {x: values[first] for x, values in kept.items()}
            chunk *= 2
        return {x: values[:count] for x, values in kept.items()}

    def _chunk(self, rng: np.random.Generator, count: int) -> Columns:
        ends = np.cumsum(self.elements)
        place = rng.integers(ends[-1], size=count)
        sample = rng.integers(self.samples, size=count)
        drawn = self.error.draw(rng, self.dtype, count)
        call = np.searchsorted(ends, place, side="right")
        return {
            "call": np.array(self.calls, np.int64)[call],
            "element": place - (ends - self.elements)[call],
            "sample": sample,
            "and_mask": drawn.and_mask,
            "or_mask": drawn.or_mask,
            "xor_mask": drawn.xor_mask,
            "value": drawn.value,
            "bit": drawn.bit,
        }


def _first(columns: Columns) -> NDArray[np.int64]:
    """Give the places of rows that are not there before, in their order."""
    rows = np.column_stack([np.ascontiguousarray(x).view(np.int64) for x in columns.values()])
    whole = np.ascontiguousarray(rows).view(
        np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))
    )
    return np.sort(np.unique(whole.ravel(), return_index=True)[1])


def stratify(sites: pd.DataFrame, error: ErrorModel, samples: int, *, per: str) -> list[Stratum]:
    """Make the strata of a campaign.

    Parameters
    ----------
    sites : pandas.DataFrame
        As `sites` gives it, or some of its rows.
    error : ErrorModel
        One whose faults are told by masks: not `Noise` or `Custom`.
    samples : int
        Samples that each fault may be drawn for.
    per : {"network", "layer", "layer,bit"}
        Whether a stratum has one bit.

    Raises
    ------
    CampaignError
        There is no site, or the error model does not fit.
    """
    sites = sites[sites["elements"] > 0]
    if not len(sites):
        raise CampaignError("there is no site to strike; pass sites=faults.sites(model, inputs)")
    groups = sites.assign(dtype=[str(as_dtype(x)) for x in sites["dtype"]]).groupby(
        ["layer", "role", "kind", "dtype"], sort=False
    )
    found: list[Stratum] = []
    for key, rows in groups:
        layer, role, kind, name = cast("tuple[str, str, str, str]", key)
        dtype = as_dtype(name)
        if not error.reduces(dtype):
            raise CampaignError(
                f"what {error} does depends on the values, so that its faults can't be planned;"
                " use faults.inject for it, or a model of bits or of values in a campaign"
            )
        for bit, model in _models(error, dtype, per):
            found.append(
                Stratum(
                    number=len(found),
                    layer=layer,
                    role=role,
                    kind=kind,
                    dtype=dtype,
                    bit=bit,
                    calls=tuple(int(x) for x in rows["call"]),
                    elements=tuple(int(x) for x in rows["elements"]),
                    error=model,
                    samples=samples,
                )
            )
    return found


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Give the type that a table of sites names."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise CampaignError(f"{dtype!r} is no type of torch; pass a table that faults.sites gave")
    return found


def _models(error: ErrorModel, dtype: torch.dtype, per: str) -> Iterator[tuple[int, ErrorModel]]:
    if per != "layer,bit":
        yield -1, error
        return
    if not isinstance(error, BitModel) or error.bits != 1 or not _one(error.bit):
        raise CampaignError(f'{error} strikes no single bit; use per="layer" for it')
    for bit in error.candidates(dtype):
        yield bit, dataclasses.replace(cast("Any", error), bit=bit, field=None)


def _one(bit: Any) -> bool:
    return bit is None or isinstance(bit, int)
