"""One fault: where it strikes, when, and what it does."""

from __future__ import annotations

import operator

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits
from pystack_nb.faults.models import BitFlip, ErrorModel
from pystack_nb.faults.patterns import Element, Pattern, Region


if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from numpy.typing import NDArray

    from pystack_nb.faults.drawn import Drawn

_SIDES = ("output", "input")


@dataclass(frozen=True)
class Fault:
    """A fault for `inject`.

    Parameters
    ----------
    layer : str
        Path of a module, as in the column ``layer`` of `sites`. Any path of a shared module
        means the module: `call`, and not the path, says which of its runs is struck.
    role : str
        ``output`` or ``input`` (with a path where that is a tuple or a dict), or the name of a
        weight or buffer: the column ``role`` of `sites`.
    index : tuple of int, int or Pattern, optional
        The element, with the batch's dimension (without it where ``sample`` is given), or a
        pattern of elements. Without it one is drawn, each as likely as another.
    error : ErrorModel
        What happens to it.
    call : int, optional
        Which forward of the layer within one of the model; None for each of them.
    when : int or sequence of int, optional
        Transient: strike only these forwards of the model, counted from 0 in the context.
        Without it the fault is permanent: it strikes the same elements in the same way in
        every forward. Forwards whose batch has no such sample are left out. A weight is
        struck once, at the start, and what the program then writes to it stays; only stuck
        bits are forced again, before each forward.
    sample : int, optional
        Strike this sample of the batch only.
    batch_dim : int
        The dimension that counts samples, for ``sample``: the column of the same name in a
        `Campaign`'s ``sites``.

    Raises
    ------
    FaultError
        If this can't be in any model.
    """

    layer: str
    role: str = "output"
    index: int | tuple[int, ...] | Pattern | None = None
    error: ErrorModel = field(default_factory=BitFlip)
    call: int | None = 0
    when: int | Sequence[int] | None = None
    sample: int | None = None
    batch_dim: int = 0

    def __post_init__(self) -> None:
        for name in ("layer", "role"):
            if not isinstance(getattr(self, name), str):
                raise FaultError(
                    f"a {name} has a name, and {getattr(self, name)!r} is none: see"
                    " faults.sites(model, ...)"
                )
        if not isinstance(self.error, ErrorModel):
            raise FaultError(f"{self.error!r} is no error model: give one, such as BitFlip()")
        _counts(self.batch_dim, "batch_dim")
        for name in ("call", "sample"):
            if getattr(self, name) is not None:
                _counts(getattr(self, name), name)
        if self.forwards is not None and not self.forwards:
            raise FaultError("when names no forward: give numbers from 0, or leave it away")
        if self.is_weight and (self.call not in {0, None} or self.sample is not None):
            raise FaultError(
                f"{self.role!r} is the same in all calls and for all samples: leave call and"
                " sample away, or use the role input or output"
            )
        if self.index is None or isinstance(self.index, Pattern):
            return
        for number in self.index if isinstance(self.index, tuple) else (self.index,):
            _counts(number, "index")

    @property
    def is_weight(self) -> bool:
        """Whether the tensor is the layer's own, not one that it takes or gives."""
        return self.role.split(".")[0] not in _SIDES

    @property
    def forwards(self) -> frozenset[int] | None:
        """The forwards of a transient fault."""
        if self.when is None:
            return None
        listed = self.when if isinstance(self.when, Iterable) else (self.when,)
        return frozenset(_counts(number, "when") for number in listed)

    def __str__(self) -> str:
        return f"fault of {self.role} of layer {self.layer!r}"


def streams(seed: int | None, count: int) -> list[np.random.Generator]:
    """Give the random stream of each of some faults that are injected together."""
    return [np.random.default_rng(x) for x in np.random.SeedSequence(seed).spawn(count)]


class Strike:
    """A fault on its way: what was drawn for it, and which forwards it has struck.

    A fault is drawn once for each shape of its tensor, so that a permanent one stays where it
    is while a short batch in between gets one that fits.
    """

    def __init__(self, fault: Fault, number: int, rng: np.random.Generator) -> None:
        self.fault = fault
        self.number = number
        self.struck: set[int] = set()
        self._rng = rng
        self._drawn: dict[
            tuple[tuple[int, ...], torch.dtype], tuple[NDArray[np.int64], Drawn] | None
        ] = {}
        self._short = ""

    def due(self, forward: int) -> bool:
        """Whether a forward is one that the fault strikes."""
        forwards = self.fault.forwards
        return forwards is None or forward in forwards

    def place(self, tensor: torch.Tensor) -> tuple[NDArray[np.int64], Drawn] | None:
        """Give elements and what happens to them, None if the batch has no such sample."""
        key = tuple(tensor.shape), tensor.dtype
        if key not in self._drawn:
            self._drawn[key] = self._draw(*key)
        return self._drawn[key]

    def check(self) -> None:
        """Raise a FaultError if the fault did not strike as it was told to."""
        forwards = self.fault.forwards
        missed = sorted((forwards or set()) - self.struck)
        if missed or not self.struck:
            which = f"forward {', '.join(map(str, missed))}" if missed else "any forward"
            raise FaultError(
                f"fault {self.number} ({self.fault}, call {self.fault.call}) did not take place"
                f" in {which}: {self._short or 'none got there'}. Run the model within the"
                " context, and choose a site at which it arrives (faults.sites(model, ...))"
            )

    def _draw(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[NDArray[np.int64], Drawn] | None:
        fault, dim = self.fault, self.fault.batch_dim
        if fault.sample is not None and dim >= len(shape):
            raise FaultError(f"{fault}: shape {shape} has no dimension {dim}: give its batch_dim")
        if fault.sample is not None and fault.sample >= shape[dim]:
            self._short = f"there was no sample {fault.sample} in shape {shape}"
            return None
        index = Element() if fault.index is None else fault.index
        if isinstance(index, Pattern):
            region = Region.of(shape, weight=fault.is_weight, batch=dim, sample=fault.sample)
            return index.draw(self._rng, region, fault.error, dtype)
        where = index if isinstance(index, tuple) else (index,)
        if fault.sample is not None and len(where) == len(shape) - 1:
            where = (*where[:dim], fault.sample, *where[dim:])
        if not fault.is_weight and len(where) == len(shape) and dim < len(shape):
            if where[dim] >= shape[dim]:
                bits.check_index((*where[:dim], *where[dim + 1 :]), shape[:dim] + shape[dim + 1 :])
                self._short = f"there was no sample {where[dim]} in shape {shape}"
                return None
            if fault.sample not in {None, where[dim]}:
                raise FaultError(
                    f"{fault}: index {where} is not of sample {fault.sample}: leave one of them out"
                )
        where = bits.check_index(where, shape)
        flat = int(np.ravel_multi_index(where, shape)) if shape else 0
        return np.array([flat], np.int64), fault.error.draw(self._rng, dtype, 1)


def _counts(number: object, name: str) -> int:
    try:
        value = operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        several = " (several are a tuple)" if isinstance(number, Iterable) else ""
        if isinstance(number, type) and issubclass(number, Pattern):
            several = f", but a class: {number.__name__}() is a pattern"
        raise FaultError(
            f"{name} counts from 0, and {number!r:.60} is no whole number{several}: give one"
        ) from None
    if value < 0:
        raise FaultError(f"{name} counts from 0, and {value} is below: give the number itself")
    return value
