"""Whether the rows of a declaration name places that are there."""

from __future__ import annotations

import operator

from typing import TYPE_CHECKING, Any

from pystack_nb.errors import FaultLocationError


if TYPE_CHECKING:
    from collections.abc import Collection, Sized


def check_names(function: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuse a declaration of nothing, or by names that it hasn't got."""
    if not given:
        raise FaultLocationError(
            f"Please specify an injection or injection function: {function}({', '.join(known)})"
        )
    unknown = [name for name in given if name not in known]
    if unknown:
        raise FaultLocationError(
            f"{function} does not know {', '.join(unknown)}: choose among {', '.join(known)}"
        )


def layer_classes(given: Any) -> list[Any]:
    """Give the classes of modules that are layers, or refuse what is none and not "all"."""
    if given == "all":
        return ["all"]
    try:
        types = list(given)
    except TypeError:
        types = [given]
        given = None
    wrong = [x for x in types if x != "all" and not isinstance(x, type)]
    if wrong or given is None:
        raise FaultLocationError(
            f"{(wrong or types)[0]!r} is no list of layer types: give classes of modules in"
            ' brackets, such as [torch.nn.Conv2d], or ["all"]'
        )
    return types


def check_lists(*lists: Sized) -> None:
    """Refuse lists of different lengths, and what isn't a list."""
    try:
        lengths = [len(rows) for rows in lists]
    except TypeError:
        raise FaultLocationError(
            "sites are declared as lists, one number of each for every fault: put single"
            " numbers into brackets"
        ) from None
    if len(set(lengths)) > 1:
        raise FaultLocationError(
            f"Injection location missing values: the lists have {lengths} entries; give one in"
            " each for every fault"
        )


def check_values(values: Sized, sites: Sized) -> None:
    """Refuse fewer values than sites; more are left alone, as PyTorchFI's own tests have them."""
    if len(values) < len(sites):
        raise FaultLocationError(
            f"Injection value missing: {len(values)} values for {len(sites)} sites; give one for"
            " each"
        )


def one_of(number: Any, size: int, message: str) -> int:
    """Give a whole number from 0 to ``size - 1``, or refuse it."""
    try:
        value = operator.index(number)
    except TypeError:
        raise FaultLocationError(
            f"{number!r}: {message}; give a whole number below {size}"
        ) from None
    if not 0 <= value < size:
        raise FaultLocationError(f"{value} < {size}: {message}; give one from 0 to {size - 1}")
    return value


def dimension(number: Any, shape: tuple[int, ...], dim: int) -> int:
    """Give an index that is in range in one dimension of a shape, or refuse it."""
    return one_of(number, shape[dim], f"Out of bounds error in Dimension {dim} of {shape}!")


def weight_index(given: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """Give the index of one weight, or refuse it.

    Parameters
    ----------
    given : tuple
        ``k``, ``dim1``, ``dim2``, ``dim3``; the last may be a tuple.
    shape : tuple of int
        The weight's.

    Returns
    -------
    tuple of int or None
        Of four entries at least: with None (a new axis) in place of dimensions that the
        weight hasn't got, which is what functions written for PyTorchFI expect.
    """
    *head, last = given
    where = [*head, *(last if isinstance(last, tuple | list) else [last])]
    where += [None] * (len(shape) - len(where))
    if any(number is not None for number in where[len(shape) :]):
        raise FaultLocationError(
            f"the index {tuple(where)} has more numbers than the weight of shape {shape} has"
            " dimensions: give None for the others"
        )
    numbers = [dimension(number, shape, d) for d, number in enumerate(where[: len(shape)])]
    return *numbers, *where[len(shape) :]
