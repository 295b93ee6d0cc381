"""How the exposures of a model's layers vary together, from forward to forward."""

from __future__ import annotations

import math

from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import pandas as pd

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEPT = "bit_seconds_of_forwards"


class _Kept(tuple[Any, ...]):
    """What no copy of a table has to copy: pandas copies attributes deeply, and often."""

    __slots__ = ()

    def __deepcopy__(self, memo: Any) -> _Kept:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)  # a file is to be read without this class, too


def keep(table: pd.DataFrame, each: Floats) -> None:
    """Keep in a table of exposure what each forward gave.

    ``attrs["bit_seconds_of_forwards"]`` has a ``(layer, role, (bit-seconds of each forward))``
    for each row: nothing but numbers and text, as Parquet's metadata need it, and no arrays,
    which pandas could not compare.

    Parameters
    ----------
    table : pandas.DataFrame
        With columns ``layer role``.
    each : numpy.ndarray, shape (rows, forwards)
        Bit-seconds.
    """
    names = zip(table["layer"], table["role"], strict=True)
    table.attrs[KEPT] = _Kept(
        (layer, role, tuple(x)) for (layer, role), x in zip(names, each.tolist(), strict=True)
    )


def deviations(table: pd.DataFrame, sites: pd.DataFrame) -> Floats | None:
    """Give how far exposures were from their means in each forward, as noise of the means.

    Parameters
    ----------
    table : pandas.DataFrame
        Of exposure.
    sites : pandas.DataFrame
        With columns ``layer role``, of which no two rows have the same.

    Returns
    -------
    numpy.ndarray of shape (forwards, sites) or None
        ``(E_ik - mean(E_i)) / sqrt(n (n - 1))``: the squared length of its product with g is the
        variance of ``sum(g_i mean(E_i))``.  None where the table has nothing that was kept by
        `keep`, or not of all rows as they are now: some were rescaled, renamed or summed up,
        or have another deviation or number of forwards.  Rows that are missing are no harm.
    """
    kept = {(layer, role): np.array(x, float) for layer, role, x in table.attrs.get(KEPT, ())}
    if not kept or not {"layer", "role", "bit_seconds_sd"} <= {*table}:
        return None
    forwards = int(table.attrs.get("forwards", 1))
    place = {site: n for n, site in enumerate(zip(sites["layer"], sites["role"], strict=True))}
    found = np.zeros((forwards, len(place)))
    columns = table[["layer", "role", "bit_seconds", "bit_seconds_sd"]]
    for layer, role, mean, sd in columns.itertuples(index=False):
        each = kept.get((layer, role), np.zeros(0))
        if forwards < 2 or len(each) != forwards:
            return None
        rounding = 1e-9 * np.array([mean, sd]) + 1e-12 * mean
        if not (np.abs([each.mean() - mean, each.std(ddof=1) - sd]) <= rounding).all():
            return None
        if (layer, role) in place:
            found[:, place[layer, role]] += each - each.mean()
    return found / math.sqrt(forwards * (forwards - 1))
