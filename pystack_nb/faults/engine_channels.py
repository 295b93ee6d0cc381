"""Weight faults of linear layers and convolutions, in batches as neuron faults are.

Each output channel of such a layer is made from weights of its own, so that faults in several
channels can be struck together and the layer run once: each channel is, bit for bit, what its
fault by itself gives.  From there on a weight fault is a neuron fault of a whole channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.faults import bits
from pystack_nb.faults.blame import check_blame
from pystack_nb.faults.engine_neurons import NeuronSweep
from pystack_nb.faults.engine_steps import name_of
from pystack_nb.faults.engine_trials import sizes_of


if TYPE_CHECKING:
    from pystack_nb.faults.engine_program import Env, Program
    from pystack_nb.faults.engine_trace import Step
    from pystack_nb.faults.engine_trials import Ints
    from pystack_nb.faults.engine_weights import Target, Weight

# The dimension of channels, counted from the end, of what an operation gives.
_CHANNELS = {"linear": -1, "conv1d": -2, "conv2d": -3, "conv3d": -4}


@dataclass(frozen=True)
class Channels:
    """A weight or bias, and the layer's operation that makes channels of it.

    Attributes
    ----------
    weight : Weight
    step : int
        The operation; a hook sees what it gives in the next step.
    dim : int
        The dimension of channels.
    each : int
        Elements of the weight that belong to a channel.
    """

    weight: Weight
    step: int
    dim: int
    each: int


@dataclass(frozen=True)
class Struck:
    """What trials strike.

    Attributes
    ----------
    channels : list of Channels or None
        By site.
    site : numpy.ndarray of int64
        Each trial's.
    """

    channels: list[Channels | None]
    site: Ints

    def elements(self, program: Program) -> int:
        """Give the largest number of elements that are kept of a trial."""
        made = (program.row_elements(program.steps[x.step].out.id) for x in self.channels if x)
        return max([program.output_elements, *made])


def channels_of(program: Program, target: Target) -> Channels | None:
    """Find out whether a weight's elements belong to channels; None if not."""
    weight, k = target.weight, target.first
    used_once = k >= 0 and target.last == k
    if weight is None or target.remade or not used_once or k + 2 > program.length:
        return None
    step = program.steps[k]
    dim = _CHANNELS.get(name_of(step))
    if (
        dim is None
        or not _is_operand(weight.tensor, step)
        or not _is_seen_by_hook_alone(program, k)
        or not _is_golden_around(program, k)
    ):
        return None
    shape = weight.tensor.shape
    return Channels(weight, k, dim, weight.tensor.numel() // max(shape[0], 1))


def _is_operand(weight: torch.Tensor, step: Step) -> bool:
    """Whether an operation takes a tensor as its weight or bias, and no other one in its memory.

    A bias in the memory of a weight would make an element a part of two channels.
    """
    operands = [x for x in step.args[1:3] if isinstance(x, torch.Tensor)]
    memories = {x.untyped_storage()._cdata for x in operands}  # noqa: SLF001
    return len(memories) == len(operands) and any(_is_same(x, weight) for x in operands)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors show the same memory as the same elements: a transposed one does not."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def _is_seen_by_hook_alone(program: Program, k: int) -> bool:
    """Whether what a step gives goes to a hook, where rows can be struck, and nowhere else."""
    made, seen = program.steps[k].out, program.steps[k + 1]
    return (
        seen.site is not None
        and seen.args[0] == made
        and made.id not in program.live[k + 2]
        and made.id in program.batch_dim
        and program.clean[k + 1]
    )


def _is_golden_around(program: Program, k: int) -> bool:
    """Whether golden tensors from before a step and from behind it are there at a time."""
    return not any(program.join_before(k) < x <= k + 1 for x in program.boundaries)


class ChannelSweep(NeuronSweep):
    """A pass with faults of weights, each of which is in one channel.

    It is made as a `NeuronSweep`, with the step after each operation as ``step``, and with
    what the trials strike.
    """

    def __init__(self, *given: Any, struck: Struck, **options: Any) -> None:
        super().__init__(*given, **options)
        self._struck = struck
        count = len(self._trials.element)
        # Of each trial: which channel, and which row of those that its step has made.
        self._channel, self._where = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._made: dict[int, torch.Tensor] = {}
        self._dim: dict[int, int] = {}

    def _stops(self, joins: Ints, trials: Ints) -> set[int]:
        starts = {self._program.join_before(x.step) for x in self._among(trials).values()}
        return super()._stops(joins, trials) | starts

    def _prepare(self, kept: dict[int, Env], trials: Ints, rows: Ints) -> Ints:
        """Compute the channels of some trials; those that can't be so are left."""
        sites = self._struck.site[trials]
        parts: dict[int, list[tuple[Ints, torch.Tensor]]] = {}
        self._made, left = {}, [trials[:0]]
        for i, place in self._among(trials).items():
            own, start = sites == i, self._program.join_before(place.step)
            self._dim[place.step + 1] = place.dim
            self._channel[trials[own]] = self._trials.element[trials[own]] // place.each
            made = parts.setdefault(place.step + 1, [])
            for row in np.unique(rows[own]):
                some = trials[own & (rows == row)]
                found, failed = self._of_sample(place, kept[start], start, int(row), some)
                made += found
                left.append(failed)
        for step, made in parts.items():
            if made:
                done = np.concatenate([some for some, _ in made])
                self._where[done] = np.arange(len(done))
                self._made[step] = torch.cat([x for _, x in made])
        self._left += left
        return np.flatnonzero(~np.isin(trials, np.concatenate(left)))

    def _among(self, trials: Ints) -> dict[int, Channels]:
        sites, known = np.unique(self._struck.site[trials]), self._struck.channels
        return {int(i): place for i in sites if (place := known[i]) is not None}

    def _of_sample(
        self, place: Channels, kept: Env, start: int, row: int, trials: Ints
    ) -> tuple[list[tuple[Ints, torch.Tensor]], Ints]:
        program, dims = self._program, self._program.batch_dim
        env = self._constants | {
            # Copies, as where each sample is computed by itself.
            i: kept[i].narrow(dims[i], row, 1).clone()
            for i in program.live[start]
        }
        out = program.steps[place.step].out.id
        program.run(env, 1, start, place.step)
        program.run_step[place.step](env, 1)
        right = env[out]
        made, failed = [], [trials[:0]]
        for some in _distinct(self._channel[trials], trials):
            channels = self._channel[some]
            which = torch.from_numpy(channels).to(right.device)
            try:
                with place.weight.all_struck(self._trials, some):
                    program.run_step[place.step](env, 1)
            except Exception as error:  # noqa: BLE001 - each is going to raise it by itself
                check_blame(error, program.device)
                failed.append(some)
                continue
            given = env[out]
            made.append((some, _rows_of(given, place.dim, dims[out], which)))
            given.index_copy_(place.dim, which, right.index_select(place.dim, which))
            if not torch.equal(bits.stored(given), bits.stored(right)):
                made.pop()
                failed.append(some)
        return made, np.concatenate(failed)

    def _corrupt(self, env: Env, step: int, rows: Ints, trials: Ints) -> None:
        target = self._program.steps[step].out.id
        tensor = env[target] = env[target].clone()
        dim, channel = self._program.batch_dim[target], self._dim[step] % tensor.dim()
        usual = self._usual_of(step, tensor, rows, trials)
        device = tensor.device
        made = self._made[step][torch.from_numpy(self._where[trials]).to(device)]
        where = (rows, self._channel[trials])
        shown = tensor.movedim((dim, channel), (0, 1))
        shown[tuple(torch.from_numpy(x).to(device) for x in where)] = made
        self._far[self._trials.grow(trials, sizes_of(made), usual)] = True


def _rows_of(tensor: torch.Tensor, channel: int, batch: int, which: torch.Tensor) -> torch.Tensor:
    """Give some channels of the only sample, one in each row."""
    shown = tensor.movedim((batch, channel % tensor.dim()), (0, 1))
    return shown[0].index_select(0, which)


def _distinct(channels: Ints, trials: Ints) -> list[Ints]:
    """Split trials so that no two of a part are in one channel."""
    order = np.argsort(channels, kind="stable")
    ordered = channels[order]
    first = np.searchsorted(ordered, ordered)
    turn = np.arange(len(ordered)) - first
    return [trials[order[turn == n]] for n in range(int(turn.max(initial=-1)) + 1)]
