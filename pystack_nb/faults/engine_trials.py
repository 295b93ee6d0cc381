"""Trials, and what became of them: a fault on a sample is a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.faults import bits, values
from pystack_nb.faults.metric_checks import verdict_of
from pystack_nb.faults.metrics import main_output, rows_of


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pystack_nb.faults.engine_seeded import Seeded
    from pystack_nb.faults.metrics import Metric

    Ints = NDArray[np.int64]
    _Part = tuple[Ints, Ints, NDArray[np.bool_], list[torch.Tensor]]

MASKED, SDC, DUE = 0, 1, 2
OUTCOMES = ["masked", "SDC", "DUE"]

# By how much an injected number may be larger than all the golden ones beside it before
# rounding errors are no longer measured by the output's own size.
_FAR = 4096.0


@dataclass
class Trials:
    """Faults on samples, and their results, an array element each.

    Attributes
    ----------
    element, sample : numpy.ndarray of int64
        Flat index of the element, the batch left out, and index of the sample.
    masks : tuple of numpy.ndarray of uint64
        And, or, xor.
    value : numpy.ndarray of float64
        What is written into quantised tensors, NaN where the masks say it.
    seeded : Seeded or None
        What the faults do, where seeds and not the masks say it.
    outcome : numpy.ndarray of int8
        An index into ``OUTCOMES``.
    before, after, score : numpy.ndarray of float64
        The element's number without and with the fault, and what the metric says.
    exact : numpy.ndarray of bool
        Whether the outcome is that of the trial by itself, bit for bit.
    unchanged : numpy.ndarray of bool
        Whether the fault found the bits as it would have made them.
    bits_before, bits_after : numpy.ndarray of int64
        A weight's stored bits, as `bits.stored` shows them.
    growth : numpy.ndarray of float64
        How many times as large as all others beside it the fault makes the element, at least
        1: rounding errors may be that much larger.
    """

    element: Ints
    sample: Ints
    masks: tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
    value: NDArray[np.float64]
    seeded: Seeded | None = None

    def __post_init__(self) -> None:
        count = len(self.element)
        self.outcome = np.zeros(count, np.int8)
        self.before, self.after, self.score = (np.full(count, np.nan) for _ in range(3))
        self.bits_before, self.bits_after = (np.zeros(count, np.int64) for _ in range(2))
        self.exact = np.zeros(count, bool)
        self.unchanged = np.zeros(count, bool)
        self.growth = np.ones(count)
        self._signed: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}

    def corrupt(
        self,
        tensor: torch.Tensor,
        dim: int,
        rows: Ints,
        trials: Ints,
        usual: NDArray[np.float64] | float = np.inf,
    ) -> Ints:
        """Strike an element in each of some rows of a tensor, in place.

        Parameters
        ----------
        tensor : torch.Tensor
            Whose elements have memory of their own.
        dim : int
            The dimension of the rows.
        rows, trials : numpy.ndarray of int64, shape (n,)
            Each trial's row.
        usual : numpy.ndarray of float64, shape (n,), or float
            The size of the numbers in each trial's row.

        Returns
        -------
        numpy.ndarray of int64
            Those of ``trials`` whose fault is far larger than what it replaces.
        """
        if tensor.is_quantized:
            return self._corrupt_quantised(tensor, trials)
        where = self._place(tensor, dim, rows, trials)
        stored = bits.stored(tensor)
        if len(where) == 1:
            stored = stored.view(-1)
        old = stored[where]
        which = torch.from_numpy(trials).to(tensor.device)
        a, o, x = (mask[which] for mask in self._masks(tensor))
        new = ((old & a) | o) ^ x
        stored[where] = new
        self.before[trials], self.after[trials] = (_numbers(x, tensor.dtype) for x in (old, new))
        self.unchanged[trials] = (old == new).cpu().numpy()
        return self.grow(trials, np.abs(self.after[trials]), usual)

    def grow(self, trials: Ints, sizes: NDArray[Any], usual: NDArray[np.float64] | float) -> Ints:
        """Note that faults make numbers of a size, where others are usual.

        Returns
        -------
        numpy.ndarray of int64
            Those of ``trials`` whose numbers are far larger, or are none.
        """
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            times = np.where(sizes == 0, 0.0, sizes / usual)
            far: Ints = trials[~(sizes <= _FAR * np.asarray(usual))]
        # No number is as large as one can be; zeros are no larger than zeros.
        self.growth[trials] = np.maximum(self.growth[trials], np.nan_to_num(times, nan=np.inf))
        return far

    def change(self, tensor: torch.Tensor, positions: Ints, trials: Ints) -> None:
        """Strike elements at flat positions of a tensor of any type, in place."""
        value = self.value[trials]
        if tensor.is_quantized and not np.isnan(value).any():
            # The masks do not know the scale.
            values.put(tensor, positions, torch.from_numpy(value))
        else:
            bits.change(tensor, positions, *(mask[trials] for mask in self.masks))

    def _corrupt_quantised(self, tensor: torch.Tensor, trials: Ints) -> Ints:
        """Strike the only row of a tensor."""
        at = self.element[trials]
        old, self.before[trials] = bits.read(tensor, at), values.take(tensor, at).cpu().numpy()
        self.change(tensor, at, trials)
        self.after[trials] = values.take(tensor, at).cpu().numpy()
        self.unchanged[trials] = old == bits.read(tensor, at)
        return trials[:0]

    def _masks(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        key = (tensor.dtype, tensor.device)
        if key not in self._signed:
            self._signed[key] = [
                torch.from_numpy(bits.signed(m, tensor.dtype)).to(tensor.device) for m in self.masks
            ]
        return self._signed[key]

    def _place(
        self, tensor: torch.Tensor, dim: int, rows: Ints, trials: Ints
    ) -> tuple[torch.Tensor, ...]:
        element, shape = self.element[trials], list(tensor.shape)
        del shape[dim]
        if dim == 0 and tensor.is_contiguous():
            each = tensor.numel() // max(len(tensor), 1)
            return (torch.from_numpy(rows * each + element).to(tensor.device),)
        axes = list(np.unravel_index(element, tuple(shape)))
        axes.insert(dim, rows)
        return tuple(torch.from_numpy(np.ascontiguousarray(a)).to(tensor.device) for a in axes)


def largest(rows: torch.Tensor) -> NDArray[np.float64]:
    """Give the largest finite absolute number in each row."""
    if not rows.is_floating_point() or not rows.numel():
        return np.zeros(len(rows))
    # Numbers of one byte have no absolute ones of their own.
    wide = rows_of(rows.float() if rows.element_size() == 1 else rows).abs()
    found: NDArray[np.float64] = wide.nan_to_num_(0, 0, 0).amax(1).double().cpu().numpy()
    return found


def sizes_of(rows: torch.Tensor) -> NDArray[np.float64]:
    """Give the largest absolute number in each row, NaN where one is none."""
    found: NDArray[np.float64] = rows_of(rows).abs().amax(1).double().cpu().numpy()
    return found


def finite_size(tensor: torch.Tensor, golden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the largest absolute number of each row, of those that are finite in golden.

    Returns
    -------
    size : torch.Tensor of float64, shape (n,)
    same : torch.Tensor of bool, shape (n,)
        Whether what is infinite or no number in golden is that here, too.
    """
    mine, right = rows_of(tensor.double()), rows_of(golden.double())
    finite = right.isfinite()
    alike = finite | (mine == right) | (mine.isnan() & right.isnan())
    return torch.where(finite, mine.abs(), 0.0).amax(1), alike.all(1)


class Outputs:
    """Outputs of trials, kept until the golden ones are there to be compared with."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._equal: list[tuple[Ints, Ints]] = []

    def add(
        self, trials: Ints, rows: Ints, exact: NDArray[np.bool_], leaves: Sequence[torch.Tensor]
    ) -> None:
        """Keep outputs.

        Parameters
        ----------
        trials, rows : numpy.ndarray of int64, shape (n,)
            Whose, and the row of their sample among the golden outputs.
        exact : numpy.ndarray of bool, shape (n,)
            Whether the bits are what the trial by itself would give.
        leaves : sequence of torch.Tensor, shape (n, ...)
            The tensors of the model's output.
        """
        self._parts.append((trials, rows, exact, list(leaves)))

    def add_equal(self, trials: Ints, rows: Ints) -> None:
        """Note trials whose output is the golden one."""
        if len(trials):
            self._equal.append((trials, rows))

    def _joined(self) -> Iterator[_Part]:
        """Put together what was kept in small pieces, and give it by the shapes of outputs."""
        groups: dict[Any, list[_Part]] = {}
        for part in self._parts:
            shapes = tuple((x.shape[1:], x.dtype) for x in part[3])
            groups.setdefault(shapes, []).append(part)
        for parts in groups.values():
            trials, rows, exact, leaves = zip(*parts, strict=True)
            joined = [torch.cat(x) for x in zip(*leaves, strict=True)]
            yield np.concatenate(trials), np.concatenate(rows), np.concatenate(exact), joined

    @property
    def inexact(self) -> bool:
        """Whether any output is not exact."""
        return any(not exact.all() for _, _, exact, _ in self._parts)

    def settle(
        self,
        results: Trials,
        golden: Sequence[torch.Tensor],
        metric: Metric,
        labels: torch.Tensor | None,
        noise: float,
    ) -> Ints:
        """Write outcomes and scores.

        Parameters
        ----------
        results : Trials
            Where they are written.
        golden : sequence of torch.Tensor, shape (m, ...)
            The golden outputs, a row per sample.
        metric : Metric
            Which judges.
        labels : torch.Tensor, shape (m, ...), or None
            The samples'.
        noise : float
            The largest error of a number that is not exact, as a share of the largest number
            in the output, where faults are no larger than what is beside them.

        Returns
        -------
        numpy.ndarray of int64
            The trials that are not exact and whose outcome rounding might change.
        """
        unsure = [np.empty(0, np.int64)]
        for trials, rows, exact, leaves in self._joined():
            errors = noise * results.growth[trials] if noise else np.zeros(len(trials))
            outcome, score, sure = _judge(leaves, golden, rows, metric, labels=labels, noise=errors)
            results.outcome[trials], results.score[trials] = outcome, score
            results.exact[trials] = exact
            unsure.append(trials[~(sure | exact)])
        if self._equal:
            trials, rows = (np.concatenate(x) for x in zip(*self._equal, strict=True))
            used, position = np.unique(rows, return_inverse=True)
            same = [x[torch.from_numpy(used).to(x.device)] for x in golden]
            none = np.zeros(len(used))
            outcome, score, _ = _judge(same, golden, used, metric, labels=labels, noise=none)
            results.outcome[trials], results.score[trials] = outcome[position], score[position]
            results.exact[trials] = True
        self._parts, self._equal = [], []
        return np.concatenate(unsure)


def _judge(
    leaves: Sequence[torch.Tensor],
    golden: Sequence[torch.Tensor],
    rows: Ints,
    metric: Metric,
    *,
    labels: torch.Tensor | None,
    noise: NDArray[np.float64],
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.bool_]]:
    if [x.shape[1:] for x in leaves] != [x.shape[1:] for x in golden]:
        # A fault that changes the output's shape corrupts it, whatever the metric.
        count = len(rows)
        return np.full(count, SDC, np.int8), np.full(count, np.nan), np.ones(count, bool)
    device = leaves[0].device
    where = torch.from_numpy(rows).to(device)
    broken = torch.zeros(len(rows), dtype=torch.bool, device=device)
    right = [x[where] for x in golden]
    for faulty, good in zip(leaves, right, strict=True):
        if faulty.is_floating_point():
            broken |= rows_of(good.isfinite() & ~faulty.isfinite()).any(1)
    given = None if labels is None else labels.to(device)[where]
    verdict = verdict_of(metric, right, leaves, given)
    changed, score = verdict.changed.to(device), verdict.score.to(device)
    outcome = torch.where(broken, DUE, changed.to(torch.int8) * SDC)
    if verdict.lead is None:
        sure = torch.zeros_like(broken)
    else:
        main = main_output(leaves)
        size, same = finite_size(leaves[main], right[main])
        # Numbers that a fault makes cancel each other out are rounded before they do.
        size = torch.maximum(size, finite_size(right[main], right[main])[0])
        # A comparison with NaN is false: what is not a number is not sure, either.
        bound = 2 * torch.from_numpy(noise).to(size.device) * size
        sure = (verdict.lead > bound) & ~broken & same
        if leaves[main].is_floating_point():
            # It takes but an error to make these infinite.
            sure &= bound < torch.finfo(leaves[main].dtype).max - size
    score = torch.where(broken, torch.nan, score)
    return (
        outcome.to(torch.int8).cpu().numpy(),
        score.cpu().numpy(),
        sure.cpu().numpy(),
    )


def _numbers(stored: torch.Tensor, dtype: torch.dtype) -> NDArray[Any]:
    numbers: NDArray[Any] = stored.view(dtype).double().cpu().numpy()
    return numbers
