"""What becomes of faults: the fast way to the outcomes that the slow way would give.

The slow way is a forward of the model for each fault, with a copy of one sample: where a sample
lies in memory can change how torch rounds.  Here the forward is traced once as a program
(`engine_program`) that starts where a fault strikes:

* neuron faults share a batch, one in each row (`engine_neurons`);
* weights of a linear layer or a convolution are struck many at a time, one for each channel of
  the output, which then shares batches in the same way (`engine_channels`);
* any other weight is struck in place, and what comes before it is computed once
  (`engine_weights`);
* a fault whose traces vanish is not followed any further.

Rounding may depend on the size of a batch.  Golden numbers, and thus what a fault finds and
leaves, are therefore computed sample by sample; an outcome that a rounding error might change
is taken from a run of that fault alone, which is bit for bit what the model gives.  Where no
program can be made, each fault has a forward of the model (`engine_direct`).  On a GPU cuDNN
is held to deterministic algorithms, which it may choose otherwise for another batch, as the
measured rounding errors then tell.
"""

from __future__ import annotations

import math
import time

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.errors import CampaignError, FaultError
from pystack_nb.faults import engine_direct as direct
from pystack_nb.faults.blame import check_blame, is_memory_shortage
from pystack_nb.faults.data import Inputs
from pystack_nb.faults.engine_evaluation import Evaluation
from pystack_nb.faults.engine_golden import Golden
from pystack_nb.faults.engine_program import Program, UntraceableError
from pystack_nb.faults.engine_trials import finite_size
from pystack_nb.faults.layers import layers
from pystack_nb.faults.metrics import Metric, Top1, as_metric
from pystack_nb.faults.state import repeatable, untouched


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from pystack_nb.faults.engine_program import Env
    from pystack_nb.faults.engine_trials import Ints
    from pystack_nb.faults.models import ErrorModel
    from pystack_nb.faults.patterns import Pattern

__all__ = ["Engine", "EngineData"]

_LARGEST_BATCH = 512
_LONG = 0.1  # seconds, beside which what a part costs besides is nothing
_NEARLY = 1.15  # as quick as the quickest: clocks are not more exact
# Rounding errors that were seen, times this, is what may happen.
_SAFETY = 32
# What a few hundred operations make of one: more than that is another result.
_ROUNDING = 2048
# Values that are told by their text.
_PLAIN = int | float | complex | str | bytes | torch.dtype | torch.device


@dataclass(frozen=True)
class EngineData:
    """Samples.

    Parameters
    ----------
    inputs : list of torch.Tensor, shape (samples, ...)
        One for each argument of the model, on its device; `Inputs` for keyword arguments.
    labels : torch.Tensor, shape (samples, ...), or None
        What is known to be right.
    """

    inputs: Sequence[torch.Tensor]
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def rows(self, samples: Ints) -> Inputs:
        """Copy the inputs of some samples."""
        which = torch.from_numpy(samples)
        return Inputs.of(self.inputs).each(lambda x: x[which.to(x.device)])


class Engine:
    """Evaluates faults in a model.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.  Its weights are struck while faults are evaluated, and are as they were
        afterwards.
    data : EngineData
        The samples.
    metric : Metric or callable
        What counts as a wrong output.
    batch_size : int, optional
        Neuron faults that are computed together; found out by measuring if not given.  No
        result depends on it.
    weight_samples : int, optional
        Evaluate each weight fault on so many samples, the first ones of the data, instead of
        on its own: its outcome is then the worst one, ``DUE``, ``SDC``, ``masked``, and its
        score the mean.
    error_model : ErrorModel, optional
        What faults do whose rows have a ``seed``.
    pattern : Pattern, optional
        Which elements they strike.
    elements : mapping of (str, int, str) to int, optional
        How many the tensor of a layer, call and role was planned to have, for one sample; a
        seeded fault in one that has another number is refused.

    Raises
    ------
    FaultError
        If the model draws random numbers, as in training mode.
    CampaignError
        If the metric needs labels and there are none, or there are too few samples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: EngineData,
        metric: Metric | Callable[..., Any] | None = None,
        batch_size: int | None = None,
        weight_samples: int | None = None,
        *,
        error_model: ErrorModel | None = None,
        pattern: Pattern | None = None,
        elements: Mapping[tuple[str, int, str], int] | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.metric = as_metric(Top1() if metric is None else metric)
        self.weight_samples = weight_samples
        self.error_model, self.pattern = error_model, pattern
        self.elements = {} if elements is None else elements
        self._given_batch = batch_size
        self._largest_batch = _LARGEST_BATCH if batch_size is None else batch_size
        self._state: list[Any] = []
        self._repeats = False
        self.layers = layers(model)
        self._check()

    def evaluate(self, faults: pd.DataFrame) -> pd.DataFrame:
        """Run faults, in whatever order is quick.

        Parameters
        ----------
        faults : pandas.DataFrame
            As in a plan: ``fault layer call role kind element sample and_mask or_mask
            xor_mask`` and, where it is not all NaN, ``value``; with ``seed`` also ``bit``.

        Returns
        -------
        pandas.DataFrame
            A row per fault, in the order given: ``fault``, ``outcome`` (``masked``, ``SDC``
            or ``DUE``), ``before`` and ``after`` (the struck element's number as float64),
            ``score`` (the metric's; NaN where it has none, and for ``DUE``).

        Raises
        ------
        FaultError
            If a fault names no place in the model.
        CampaignError
            If it names no sample.
        """
        state = _state(self.model)
        if _differ(state, self._state):
            self._state, self._repeats = state, False
            for name in ("program", "_tuned"):
                self.__dict__.pop(name, None)
            self._check()
        with repeatable(self.data.inputs[0].device):
            return Evaluation(self, faults).run()

    def golden(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the model itself on one sample; the first time, see that it gives that again."""
        found = direct.forward(self.model, inputs)
        if not self._repeats:
            direct.check_chance(self.model, inputs)
            self.check_same(found, direct.forward(self.model, inputs))
            self._repeats = True
        return found

    def check_same(self, golden: list[torch.Tensor], again: list[torch.Tensor]) -> None:
        """Raise a FaultError if two forwards without a fault gave different outputs.

        Where ranks decide, differences that rounding explains are let pass.
        """
        by_rank = self.metric.decides_by_rank
        if len(golden) != len(again) or not all(
            x.shape == y.shape
            and (torch.equal(*_comparable(x, y)) or (by_rank and _is_close(x, y)))
            for x, y in zip(golden, again, strict=True)
        ):
            raise FaultError(
                "the model gives another output for the same input when it runs again, so that"
                " outcomes would depend on the order of faults: let it keep what it remembers in"
                " buffers or plain attributes, which are put back after each forward"
            )

    @cached_property
    def program(self) -> Program | None:
        """The model's forward; None if it is no fixed list of operations."""
        with untouched(self.model, generators=False):
            try:
                program = Program(self.model, self.data.rows(np.arange(min(3, len(self.data)))))
                return program if self._agrees(program) else None
            except UntraceableError:
                return None
            except (FaultError, CampaignError):
                raise
            except Exception as error:  # noqa: BLE001 - of a batch; each sample may do by itself
                check_blame(error, self.data.inputs[0].device)
                return None

    @property
    def batch(self) -> int:
        """Rows that are computed together."""
        return min(self._tuned[0], self._largest_batch)

    def halve_batch(self) -> None:
        """Compute fewer rows together from now on."""
        self._largest_batch = max(1, self.batch // 2)

    @property
    def noise(self) -> float:
        """A bound of the rounding errors of a batch, as a share of an output's largest number."""
        return self._tuned[1]

    def _check(self) -> None:
        if self.metric.needs_labels and self.data.labels is None:
            raise CampaignError(f"{self.metric} needs labels: give data with labels")
        if self.weight_samples is not None and not 0 < self.weight_samples <= len(self.data):
            raise CampaignError(
                f"weight_samples={self.weight_samples} of {len(self.data)} samples: give a"
                f" number from 1 to {len(self.data)}, or more data"
            )
        if self._given_batch is not None and self._given_batch < 1:
            raise CampaignError(f"a batch of {self._given_batch}: give batch_size=1 or more")
        direct.check_mode(self.layers)

    def _agrees(self, program: Program) -> bool:
        """Compare with the model itself, bit for bit."""
        samples = np.unique([0, len(self.data) // 2, len(self.data) - 1])
        singles = [
            direct.forward(self.model, self.data.rows(samples[[i]])) for i in range(len(samples))
        ]
        with torch.inference_mode():
            constants = program.constants()
            alone = [self._outputs(program, constants, samples[[i]]) for i in range(len(samples))]
            same = all(
                len(one) == len(other)
                and all(
                    torch.equal(*_comparable(direct.as_row(x), y))
                    for x, y in zip(one, other, strict=True)
                )
                for one, other in zip(alone, singles, strict=True)
            )
            # Twice the same sample, so that even of a single one no batch goes unseen.
            rows = np.append(samples, samples[0])
            together = self._outputs(program, constants, rows)
            for i, dim in enumerate(program.batch_dim[n] for n in program.output):
                exact = torch.cat([alone[k][i] for k in [*range(len(samples)), 0]], dim)
                same &= _is_close(together[i].movedim(dim, 0), exact.movedim(dim, 0))
        return same

    def _outputs(self, program: Program, constants: Env, samples: Ints) -> list[torch.Tensor]:
        env = constants | dict(zip(program.inputs, self.data.rows(samples), strict=True))
        program.run(env, len(samples), 0, program.length)
        return [env[i] for i in program.output]

    @cached_property
    def _tuned(self) -> tuple[int, float]:
        """Find the quickest batch, and how far its numbers are from those of single samples."""
        program = self.program
        assert program is not None  # noqa: S101 - asked for only where there is one
        each: dict[int, float] = {}  # seconds of a row, by size
        size = self._given_batch or 16
        with torch.inference_mode():
            constants = program.constants()
            while True:
                try:
                    outputs, taken = self._timed(program, constants, size)
                except (RuntimeError, MemoryError) as error:
                    if size == 1 or not is_memory_shortage(error):
                        raise
                    size //= 2
                    self._largest_batch = size
                    if each:
                        break
                    continue
                each[size] = taken / size
                enough = _NEARLY * min(each.values())
                if self._given_batch or size >= self._largest_batch or taken > _LONG:
                    break
                if min([*each.values()][-2:]) > enough:  # the last two are slower
                    break
                size *= 2
            # Of some that are about as quick the largest, which has the fewest parts.
            best = max(n for n, x in each.items() if x <= enough)
            few = np.arange(min(8, len(self.data), size))
            golden = Golden(program, constants, self.data.rows(few))
            golden.advance(program.length)
            single = program.outputs(golden.env)
            return best, max(_noise(x[: len(few)], y) for x, y in zip(outputs, single, strict=True))

    def _timed(
        self, program: Program, constants: Env, size: int
    ) -> tuple[list[torch.Tensor], float]:
        rows = self.data.rows(np.arange(size) % len(self.data))
        taken = float("inf")
        for _ in range(3):
            env = constants | {i: x.clone() for i, x in zip(program.inputs, rows, strict=True)}
            started = time.perf_counter()
            program.run(env, size, 0, program.length)
            outputs = program.outputs(env)
            if outputs[0].device.type != "cpu":
                torch.accelerator.synchronize(outputs[0].device)
            taken = min(taken, time.perf_counter() - started)
        return outputs, taken


def _state(model: torch.nn.Module) -> list[Any]:
    """Give what a program is made of besides numbers: texts, and objects that are it."""
    found: list[Any] = [str(x.data_ptr()) for x in (*model.parameters(), *model.buffers())]
    for module in model.modules():
        # Hooks may have come, a defence's, too; an instance's own forward is an attribute.
        found += module._forward_pre_hooks.values()  # noqa: SLF001
        found += module._forward_hooks.values()  # noqa: SLF001
        for name, value in module.__dict__.items():
            found += [name, repr(value) if isinstance(value, _PLAIN) else value]
    return found


def _differ(one: list[Any], other: list[Any]) -> bool:
    return len(one) != len(other) or any(
        a is not b and not (type(a) is type(b) is str and a == b)
        for a, b in zip(one, other, strict=True)
    )


def _comparable(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not one.is_floating_point():
        return one, other
    return one.nan_to_num(), other.nan_to_num()


def _is_close(some: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether rounding explains the differences."""
    if not exact.is_floating_point():
        return torch.equal(some, exact)
    return _noise(some, exact) <= _SAFETY * _ROUNDING * torch.finfo(exact.dtype).eps


def _noise(some: torch.Tensor, exact: torch.Tensor) -> float:
    """Bound the share of an output's largest number by which its numbers may be off."""
    if not exact.is_floating_point():
        return 0.0
    size, _ = finite_size(exact, exact)
    _, alike = finite_size(some, exact)
    off, _ = finite_size(some.double() - exact.double(), exact)
    if not (off.isfinite() & alike).all():
        return math.inf
    share = (off / size).nan_to_num(0.0, 0.0, 0.0)
    return max(_SAFETY * float(share.amax()), _SAFETY * torch.finfo(exact.dtype).eps)
