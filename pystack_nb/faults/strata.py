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

from pystack_nb.errors import CampaignError, FaultError
from pystack_nb.faults.fault import streams
from pystack_nb.faults.models import BitModel, Drawn, Sequence
from pystack_nb.faults.patterns import Element, Region


if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from numpy.typing import NDArray

    from pystack_nb.faults.models import ErrorModel
    from pystack_nb.faults.patterns import Pattern

    Columns = dict[str, NDArray[Any]]

_PIECE = 64  # faults looked at together, where others came twice


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
    pattern : Pattern or None
        Which elements are struck, drawn with the rest from a seed of each fault; None where
        one is and masks tell what becomes of it.
    shapes : tuple of tuple of int
        Of the tensor in each call, for one sample; needed where there is a pattern.
    batch_dims : tuple of int
        The dimension of each that counts samples; -1 for none.
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
    pattern: Pattern | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    batch_dims: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """The places of each call that may be hit: elements, or what a pattern strikes."""
        if self.pattern is None:
            return self.elements
        return tuple(self.pattern.places(x) for x in self.regions)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The tensor of each call."""
        weight = self.kind == "weight"
        return tuple(
            Region.of(x, weight=weight, batch=d)
            for x, d in zip(self.shapes, self.batch_dims, strict=True)
        )

    @property
    def weight(self) -> float:
        """Different faults on one sample: the stratum's size among the others.

        These are its places times what the error model may do to one element, where that is a
        number and one element is struck.  Where a pattern strikes several together, an event at
        each place is as likely as at another, whatever type is struck: it is the places.
        """
        if not isinstance(self.pattern, Element | None):
            return sum(self.places)
        choices = self.error.faults_per_element(self.dtype)
        return sum(self.places) * (1 if math.isinf(choices) else choices)

    @property
    def population(self) -> float:
        """Faults that can be drawn without one coming twice; infinite where that is no matter."""
        choices = self.error.faults_per_element(self.dtype)
        if isinstance(self.error, Sequence) or math.isinf(choices):
            return math.inf
        if self.pattern is not None and not (self.pattern.has_place and choices == 1):
            # What happens to each element, or where they are, has too many ways to be counted.
            return math.inf
        return sum(self.places) * choices * self.samples

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
        draw_some = self._chunk if self.pattern is None else self._seeded
        kept: Columns = self._placed(draw_some(rng, 0))
        chunk = 256
        # Chunks have the same sizes however many faults are wanted, so that a longer sample
        # continues a shorter one.
        while len(kept["bit"]) < count:
            drawn, at = draw_some(rng, chunk), 0
            while at < chunk and len(kept["bit"]) < count:
                wanted = count - len(kept["bit"])
                # A pattern's first element takes long to find: not of more than are wanted.
                some = wanted if at == 0 else max(wanted, _PIECE)
                end = chunk if self.pattern is None else at + some
                more = self._placed({x: values[at:end] for x, values in drawn.items()})
                kept = {x: np.concatenate([kept[x], more[x]]) for x in more}
                if math.isfinite(self.population):
                    first = _first(kept)
                    kept = {x: values[first] for x, values in kept.items()}
                at = end
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

    def _seeded(self, rng: np.random.Generator, count: int) -> Columns:
        ends = np.cumsum(self.places)
        place = rng.integers(ends[-1], size=count)
        sample = rng.integers(self.samples, size=count)
        # Below 2**53, which JSON's readers keep as it is.
        seed = rng.integers(2**53, size=count)
        call = np.searchsorted(ends, place, side="right")
        nothing = Drawn.of(count)
        return {
            "call": np.array(self.calls, np.int64)[call],
            "element": call.astype(np.int64),  # its place; `_placed` finds the element
            "sample": sample,
            "and_mask": nothing.and_mask,
            "or_mask": nothing.or_mask,
            "xor_mask": nothing.xor_mask,
            "value": nothing.value,
            "bit": np.full(count, self.bit),
            "seed": seed,
        }

    def _placed(self, drawn: Columns) -> Columns:
        """Find the first elements of what `_seeded` drew."""
        if self.pattern is None:
            return drawn
        regions, call, seed = self.regions, drawn["element"].tolist(), drawn["seed"].tolist()
        if self.pattern.first_drawn:
            first = [
                self.pattern.first(streams(s, 1)[0], regions[c])
                for s, c in zip(seed, call, strict=True)
            ]
        else:
            fixed = [self.pattern.first(np.random.default_rng(0), x) for x in regions]
            first = [fixed[c] for c in call]
        return drawn | {"element": np.array(first, np.int64)}


def _first(columns: Columns) -> NDArray[np.int64]:
    """Give the places of rows that are not there before, in their order."""
    # Other seeds may tell the same fault.
    told = [values for name, values in columns.items() if name != "seed"]
    rows = np.column_stack([np.ascontiguousarray(x).view(np.int64) for x in told])
    whole = np.ascontiguousarray(rows).view(
        np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))
    )
    return np.sort(np.unique(whole.ravel(), return_index=True)[1])


def stratify(
    sites: pd.DataFrame,
    error: ErrorModel,
    samples: int,
    *,
    per: str,
    pattern: Pattern | None = None,
) -> list[Stratum]:
    """Make the strata of a campaign.

    Parameters
    ----------
    sites : pandas.DataFrame
        As `sites_of_a_sample` gives it, or some of its rows.
    error : ErrorModel
        What happens to an element.
    samples : int
        Samples that each fault may be drawn for.
    per : {"network", "layer", "layer,bit"}
        Whether a stratum has one bit.
    pattern : Pattern, optional
        Which elements are struck together.  With one, or where what the error model does
        depends on the values, all faults are told by seeds.

    Raises
    ------
    CampaignError
        There is no site, or the error model or the pattern does not fit.
    """
    sites = sites[sites["elements"] > 0]
    if not len(sites):
        raise CampaignError("there is no site to strike; pass sites=faults.sites(model, inputs)")
    groups = sites.assign(dtype=[str(as_dtype(x)) for x in sites["dtype"]]).groupby(
        ["layer", "role", "kind", "dtype"], sort=False
    )
    single = pattern is None or isinstance(pattern, Element)
    if single and all(error.reduces(as_dtype(x)) for x in sites["dtype"]):
        pattern = None
    elif pattern is None:
        pattern = Element()
    found: list[Stratum] = []
    for key, rows in groups:
        layer, role, kind, name = cast("tuple[str, str, str, str]", key)
        dtype = as_dtype(name)
        shapes = () if pattern is None else tuple(_of_one_sample(x) for x in rows.itertuples())
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
                    pattern=pattern,
                    shapes=shapes,
                    batch_dims=tuple(int(x) for x in rows["batch_dim"]),
                )
            )
        if pattern is not None:
            _check_fits(pattern, found[-1])
    return found


def of_bit(error: ErrorModel, bit: int) -> ErrorModel:
    """Give a model of bits that strikes one of them; for -1 the model itself."""
    return error if bit < 0 else dataclasses.replace(cast("Any", error), bit=bit, field=None)


def _of_one_sample(site: Any) -> tuple[int, ...]:
    return tuple(1 if i == site.batch_dim else size for i, size in enumerate(site.shape))


def _check_fits(pattern: Pattern, stratum: Stratum) -> None:
    try:
        for region in stratum.regions:
            _check_dimension(pattern, region)
            pattern.places(region)
            pattern.draw(np.random.default_rng(0), region, stratum.error, stratum.dtype)
    except FaultError as error:
        raise CampaignError(
            f"{pattern} does not fit the {stratum.role} of layer {stratum.layer!r}: {error}; or"
            " pass as sites those rows of faults.sites(model, inputs) that it fits"
        ) from None


def _check_dimension(pattern: Pattern, region: Region) -> None:
    # What has one element is struck wholly, whichever dimension it is.
    if region.size > 1 and pattern.counted(region) == region.batch:
        raise FaultError(
            f"dimension {region.batch} counts the samples here: give"
            f" {type(pattern).__name__}(dim=-1), or another dimension"
        )


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
        yield bit, of_bit(error, bit)


def _one(bit: Any) -> bool:
    return bit is None or isinstance(bit, int)
