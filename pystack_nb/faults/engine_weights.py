"""Faults that are run by themselves: those of weights, and neuron faults without a batch.

A weight is struck where it lies, the program runs from its first use on, and the bits are put
back.  With one sample each result is, bit for bit, what the model gives by itself.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.faults import bits, values
from pystack_nb.faults.blame import check_blame
from pystack_nb.faults.engine_growth import Growth
from pystack_nb.faults.engine_trials import largest
from pystack_nb.faults.layers import OwnSlot


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pystack_nb.faults.engine_golden import Golden
    from pystack_nb.faults.engine_program import Env, Program
    from pystack_nb.faults.engine_trials import Ints, Outputs, Trials
    from pystack_nb.faults.layers import Slot


@dataclass(frozen=True)
class Target:
    """What the trials of one group strike.

    Attributes
    ----------
    first, last : int
        The steps that see the fault first and last; equal for a neuron, -1 for none.
    weight : Weight or None
        The parameter or buffer, None for a neuron.
    remade : bool
        Whether other constants are computed from it.
    """

    first: int
    last: int
    weight: Weight | None = None
    remade: bool = False


class AloneSweep:
    """One pass over the program with trials that are run one after another.

    Parameters
    ----------
    program, constants
        What runs.
    trials : Trials
        Where results are written.
    targets : list of Target
        What can be struck.
    outputs : Outputs
        Where outputs are kept.
    """

    def __init__(
        self,
        program: Program,
        constants: Env,
        trials: Trials,
        targets: list[Target],
        outputs: Outputs,
    ) -> None:
        self._program = program
        self._constants = constants
        self._trials = trials
        self._targets = targets
        self._outputs = outputs
        self._growth = Growth(program, trials)
        self.failed: list[Ints] = []

    def run(self, golden: Golden, trials: Ints, target: Ints) -> None:
        """Run faults.

        Parameters
        ----------
        golden : Golden
            Of the samples, at position 0.
        trials : numpy.ndarray of int64, shape (n, m)
            The trials of each fault, one for each of the samples.
        target : numpy.ndarray of int64, shape (n,)
            What each fault strikes.
        """
        program = self._program
        idle = np.array([self._targets[t].first < 0 for t in target], bool)
        idle |= self._trials.unchanged[trials[:, 0]]
        for equal in trials[idle]:
            self._outputs.add_equal(equal, np.arange(len(equal)))
        trials, target = trials[~idle], target[~idle]
        joins = np.array([program.join_before(self._targets[t].first) for t in target], np.int64)
        order = np.argsort(joins, kind="stable")
        trials, target, joins = trials[order], target[order], joins[order]
        self._protected = {int(p): program.mutated_from(int(p)) for p in np.unique(joins)}
        self._golden = golden
        golden.sizes = {} if trials.shape[1:] > (1,) else None
        for start, self._end in pairwise(program.boundaries):
            first, last = np.searchsorted(joins, [start, self._end])
            kept = golden.advance(self._end, set(joins[first:last].tolist()))
            for i in range(first, last):
                position = int(joins[i])
                self._one(trials[i], self._targets[target[i]], kept[position], position)
        if golden.sizes is not None:
            self._growth.compare(golden.sizes)

    def _one(self, trials: Ints, target: Target, kept: Env, position: int) -> None:
        protected = self._protected[position]
        env = self._constants | {i: x.clone() if i in protected else x for i, x in kept.items()}
        try:
            if target.weight is None:
                self._with_neuron(env, trials, target, position)
            else:
                with target.weight.struck(self._trials, trials[0]):
                    if target.remade:
                        env |= self._remade()
                    self._go_on(env, trials, target, position)
        except _RaisedError:
            self.failed.append(trials)

    def _remade(self) -> Env:
        with self._blamed():
            return self._program.constants()

    def _run(self, env: Env, batch: int, start: int, end: int) -> None:
        with self._blamed():
            self._program.run(env, batch, start, end)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Whatever a fault makes an operation raise is its outcome.
            check_blame(error, self._program.device)
            raise _RaisedError from error

    def _with_neuron(self, env: Env, trials: Ints, target: Target, position: int) -> None:
        program, step = self._program, target.first
        self._run(env, 1, position, step)
        program.run_step[step](env, 1)
        number = program.steps[step].out.id
        env[number] = env[number].clone()
        self._trials.corrupt(env[number], program.batch_dim[number], np.zeros(1, np.int64), trials)
        program.forget(env, step)
        if self._trials.unchanged[trials[0]]:
            self._outputs.add_equal(trials, np.zeros(1, np.int64))
        else:
            self._go_on(env, trials, target, step + 1)

    def _go_on(self, env: Env, trials: Ints, target: Target, position: int) -> None:
        program, batch, end = self._program, len(trials), self._end
        rows = np.arange(batch)
        if batch == 1:
            self._run(env, batch, position, end)
            if target.last < end and self._is_golden(env, position):
                self._outputs.add_equal(trials, rows)
                return
            self._run(env, batch, end, program.length)
        else:
            with self._blamed():
                self._growth.run(env, trials, rows, position, program.length)
        exact = np.full(batch, batch == 1)
        self._outputs.add(trials, rows, exact, [x.clone() for x in program.outputs(env)])

    def _is_golden(self, env: Env, position: int) -> bool:
        golden = self._golden.env
        return all(
            torch.equal(bits.stored(env[i]), bits.stored(golden[i]))
            for i in self._program.changed_between(max(position - 1, 0), self._end)
        )


class _RaisedError(Exception):
    pass


class Weight:
    """The stored bits of a parameter or buffer.

    Parameters
    ----------
    slot : Slot
        Where the layer holds it.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.tensor = slot.open()
        self._shape = tuple(self.tensor.shape)
        # NumPy's way to an element is ten times as fast as PyTorch's.
        view = bits.own(self.tensor)
        self._view: Any = view.numpy() if view.device.type == "cpu" else view
        self._own = isinstance(slot, OwnSlot)
        self._struck: Callable[[], None] | None = None

    def look(self, results: Trials, trials: Ints) -> None:
        """Find out what faults would do; if an interrupt comes, call `put_back`."""
        element, dtype = results.element[trials], self.tensor.dtype
        old = bits.read(self.tensor, element)
        results.before[trials] = values.take(self.tensor, element).double().cpu().numpy()
        if self.tensor.is_quantized:
            new, after = zip(*(self._one(results, t) for t in trials), strict=True)
            changed = np.array(new, np.uint64)
            results.after[trials] = after
        else:
            a, o, x = (mask[trials] for mask in results.masks)
            changed = (((old & a) | o) ^ x) & np.uint64((1 << bits.width(dtype)) - 1)
            results.after[trials] = np.array(bits.values_of(changed, dtype), np.float64)
        if not self.tensor.is_quantized:
            usual = largest(self.tensor.detach()[None])
            results.grow(trials, np.abs(results.after[trials]), usual)
        results.unchanged[trials] = old == changed
        results.bits_before[trials] = bits.signed(old, dtype)
        results.bits_after[trials] = bits.signed(changed, dtype)

    def _one(self, results: Trials, trial: np.int64) -> tuple[np.uint64, float]:
        # In place: embeddings have weights that PyTorch can't clone.
        at = results.element[[trial]]
        self._struck = partial(bits.write, self.tensor, at, bits.read(self.tensor, at))
        try:
            results.change(self.tensor, at, np.array([trial]))
            return bits.read(self.tensor, at)[0], float(values.take(self.tensor, at)[0])
        finally:
            self.put_back()

    @contextmanager
    def struck(self, results: Trials, trial: int) -> Iterator[None]:
        """Strike an element, and put its bits back at the end."""
        where = np.unravel_index(results.element[trial], self._shape)
        self._struck = partial(self._put, where, results.bits_before[trial])
        try:
            self._put(where, results.bits_after[trial])
            yield
        finally:
            self.put_back()

    @contextmanager
    def all_struck(self, results: Trials, trials: Ints) -> Iterator[None]:
        """Strike elements, no two of them the same, and put their bits back at the end."""
        where = np.unravel_index(results.element[trials], self._shape)
        self._struck = partial(self._put_all, where, results.bits_before[trials])
        try:
            self._put_all(where, results.bits_after[trials])
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Put back the bits of what is struck, if anything is: an interrupt may have come."""
        if self._struck is not None:
            self._struck()
            self._struck = None

    def _put_all(self, where: tuple[Ints, ...], stored: Ints) -> None:
        if isinstance(self._view, np.ndarray):
            self._view[where] = stored
            return
        device = self._view.device
        at = tuple(torch.from_numpy(x).to(device) for x in where)
        self._view[at] = torch.from_numpy(stored).to(device, self._view.dtype)

    def _put(self, where: tuple[Any, ...], stored: np.int64) -> None:
        self._view[where] = stored if isinstance(self._view, np.ndarray) else int(stored)
        if not self._own:
            self.slot.close(self.tensor)
