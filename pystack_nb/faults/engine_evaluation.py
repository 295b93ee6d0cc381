"""One evaluation: faults become trials, trials find the quickest way, outcomes come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pystack_nb.errors import CampaignError
from pystack_nb.faults import engine_direct as direct
from pystack_nb.faults.blame import MemoryShortageError
from pystack_nb.faults.engine_channels import ChannelSweep, Struck, channels_of
from pystack_nb.faults.engine_golden import Golden
from pystack_nb.faults.engine_neurons import NeuronSweep
from pystack_nb.faults.engine_seeded import Seeded, SeededWeight
from pystack_nb.faults.engine_trace import Site
from pystack_nb.faults.engine_trials import DUE, OUTCOMES, Outputs, Trials
from pystack_nb.faults.engine_weights import AloneSweep, Target, Weight
from pystack_nb.faults.layers import OwnSlot, find


if TYPE_CHECKING:
    from collections.abc import Iterator

    from pystack_nb.faults.engine import Engine
    from pystack_nb.faults.engine_program import Program
    from pystack_nb.faults.engine_trials import Ints

_SITE = ["layer", "call", "role", "kind"]
_SAMPLES_AT_ONCE = 32
# Outputs wait until their golden ones are there; so many numbers of them at most.
_OUTPUTS_KEPT = 2**22


class Evaluation:
    """One call of `Engine.evaluate`, whose docstring says what is taken, given and raised."""

    def __init__(self, engine: Engine, faults: pd.DataFrame) -> None:
        self._engine = engine
        self._faults = faults
        self._site, sites = _distinct(faults)
        samples = faults["sample"].to_numpy(np.int64)
        known = len(engine.data)
        if len(samples) and not (samples.min() >= 0 and samples.max() < known):
            raise CampaignError(
                f"a fault names a sample that is not among the {known}: plan with these data"
            )
        several = engine.weight_samples
        self._shared = (faults["kind"] == "weight").to_numpy() & (several is not None)
        each = np.where(self._shared, several or 1, 1)
        self._fault = np.repeat(np.arange(len(faults)), each)
        self._first = np.cumsum(each) - each
        within = np.arange(len(self._fault)) - self._first[self._fault]
        columns = {name: faults[name].to_numpy(np.uint64)[self._fault] for name in _MASKS}
        value = (
            faults["value"].to_numpy(np.float64)
            if "value" in faults
            else np.full(len(faults), np.nan)
        )
        self._trials = Trials(
            faults["element"].to_numpy(np.int64)[self._fault],
            np.where(self._shared[self._fault], within, samples[self._fault]),
            (columns["and_mask"], columns["or_mask"], columns["xor_mask"]),
            value[self._fault],
            self._seeds(sites),
        )
        self._targets: list[Any] = [
            self._weight(site, number) if site[3] == "weight" else site[:3]
            for number, site in enumerate(sites)
        ]
        self._due = np.zeros(len(faults), bool)
        self.ways = {"batch": 0, "alone": 0, "direct": 0}

    def run(self) -> pd.DataFrame:
        """Run all trials, and give a row for each fault."""
        trials = np.arange(len(self._fault))
        try:
            self._look()
            program = None if self._trials.seeded is not None else self._engine.program
            if program is None:
                self._direct(trials)
            else:
                with torch.inference_mode():
                    self._constants = program.constants()
                    self._fast(program, trials)
        finally:
            # An interrupt may have come between a fault and what undoes it.
            for target in self._targets:
                if not isinstance(target, tuple):
                    target.put_back()
        return self._table()

    def _look(self) -> None:
        """Look at weights, once, before any fault strikes."""
        for number, target in enumerate(self._targets):
            if isinstance(target, Weight):
                target.look(self._trials, np.flatnonzero(self._site[self._fault] == number))

    def _fast(self, program: Program, trials: Ints) -> None:
        targets = [self._target(program, target) for target in self._targets]
        step = np.array([-1 if t is None else t.first for t in targets], np.int64)
        site = self._site[self._fault]
        shared = self._shared[self._fault]
        neuron = np.array([t is not None and t.weight is None for t in targets], bool)
        batched = np.array(
            [
                bool(n) and program.all_row_by_row(program.join_before(int(k)), int(k))
                for n, k in zip(neuron, step, strict=True)
            ],
            bool,
        )
        slow = np.array([t is None for t in targets], bool)
        again = [self._in_batches(program, trials[batched[site]], step[site])]
        channels = [None if t is None else channels_of(program, t) for t in targets]
        by_channel = np.array([x is not None for x in channels], bool)
        # What these make in a channel is measured where they make it, and tells more.
        self._trials.growth[by_channel[site]] = 1.0
        behind = np.array([-1 if x is None else x.step + 1 for x in channels], np.int64)
        wanted = trials[by_channel[site] & ~shared & ~self._trials.unchanged]
        struck = Struck(channels, site)
        again.append(self._in_batches(program, wanted, behind[site], struck))
        batched_weight = np.zeros(len(trials), bool)
        batched_weight[wanted] = True
        alone = ~batched & ~slow
        again.append(trials[alone[site] & ~shared & ~batched_weight])
        again.append(
            self._together(program, targets, np.flatnonzero(alone[self._site] & self._shared))
        )
        self._alone(program, targets, np.concatenate(again))
        self._direct(trials[slow[site]])

    def _in_batches(
        self,
        program: Program,
        trials: Ints,
        step: Ints,
        struck: Struck | None = None,
    ) -> Ints:
        engine, again = self._engine, [trials[:0]]
        for samples, some in self._by_samples(trials, _SAMPLES_AT_ONCE):
            each = program.output_elements if struck is None else struck.elements(program)
            each = max(each, len(program.watched))
            kept = max(engine.batch, _OUTPUTS_KEPT // each)
            for at in range(0, len(some), kept):
                part = some[at : at + kept]
                again += self._batch(program, part, step, samples, struck)
        return np.unique(np.concatenate(again))

    def _batch(
        self,
        program: Program,
        trials: Ints,
        step: Ints,
        samples: Ints,
        struck: Struck | None,
    ) -> list[Ints]:
        engine, results, outputs = self._engine, self._trials, Outputs()
        given = (program, self._constants, results, step)
        options: dict[str, Any] = {
            "batch": engine.batch,
            "outputs": outputs,
            "follow": engine.metric.decides_by_rank,
        }
        if struck is None:
            sweep = NeuronSweep(*given, **options)
        else:
            sweep = ChannelSweep(*given, struck=struck, **options)
        golden = Golden(program, self._constants, engine.data.rows(samples))
        rows = np.searchsorted(samples, results.sample[trials])
        try:
            left = sweep.run(golden, trials, rows)
        except MemoryShortageError:
            if engine.batch == 1:
                raise
            engine.halve_batch()
        else:
            self.ways["batch"] += len(trials)
            return [self._settle(program, outputs, golden, samples), left[~results.exact[left]]]
        # Outside of the handler, whose exception holds all that filled the memory.
        del sweep, golden, outputs
        return self._batch(program, trials, step, samples, struck)

    def _together(self, program: Program, targets: list[Any], faults: Ints) -> Ints:
        """Run each of some weight faults on all samples at once."""
        several = self._engine.weight_samples
        if several is None or not len(faults):
            return faults[:0]
        trials = self._first[faults][:, None] + np.arange(several)
        starts = np.array([-1 if t is None else t.first for t in targets], np.int64)
        start = starts[self._site[faults]]
        may = (start < 0) | (start >= program.last_jump)
        may &= self._engine.metric.decides_by_rank
        each_alone, trials, faults = trials[~may].ravel(), trials[may], faults[may]
        outputs, samples = Outputs(), np.arange(several)
        sweep = AloneSweep(program, self._constants, self._trials, targets, outputs)
        again = [each_alone]
        each = max(program.output_elements, len(program.watched))
        kept = max(1, _OUTPUTS_KEPT // (several * each))
        for at in range(0, len(faults), kept):
            part = slice(at, at + kept)
            golden = Golden(program, self._constants, self._engine.data.rows(samples))
            sweep.run(golden, trials[part], self._site[faults[part]])
            again.append(self._settle(program, outputs, golden, samples))
        self.ways["batch"] += trials.size
        return np.concatenate([*again, *sweep.failed])

    def _alone(self, program: Program, targets: list[Any], trials: Ints) -> None:
        site = self._site[self._fault]
        for samples, every in self._by_samples(trials, 1):
            some = self._undecided(every)
            if not len(some):
                continue
            self.ways["alone"] += len(some)
            outputs = Outputs()
            sweep = AloneSweep(program, self._constants, self._trials, targets, outputs)
            golden = Golden(program, self._constants, self._engine.data.rows(samples))
            sweep.run(golden, some[:, None], site[some])
            self._settle(program, outputs, golden, samples)
            for failed in sweep.failed:
                self._trials.outcome[failed] = DUE
            self._note_due(some)

    def _undecided(self, trials: Ints) -> Ints:
        """Leave out trials of faults for which another sample has settled everything.

        A fault that is a ``DUE`` on one is one, without a score, whatever it is on the others.
        """
        return trials[~self._due[self._fault[trials]]]

    def _note_due(self, exact: Ints) -> None:
        self._due[self._fault[exact[self._trials.outcome[exact] == DUE]]] = True

    def _direct(self, trials: Ints) -> None:
        engine, site = self._engine, self._site[self._fault]
        for samples, every in self._by_samples(trials, 1):
            some = self._undecided(every)
            if not len(some):
                continue
            self.ways["direct"] += len(some)
            inputs = engine.data.rows(samples)
            golden = engine.golden(inputs)
            _check_finite(golden, samples)
            for trial in some:
                outputs = Outputs()
                target = self._targets[site[trial]]
                if not direct.run_one(
                    engine.model, inputs, target, self._trials, trial=trial, outputs=outputs
                ):
                    self._trials.outcome[trial] = DUE
                labels = self._labels(samples)
                outputs.settle(self._trials, golden, engine.metric, labels, 0.0)
            engine.check_same(golden, direct.forward(engine.model, inputs))
            self._note_due(some)

    def _settle(self, program: Program, outputs: Outputs, golden: Golden, samples: Ints) -> Ints:
        golden.advance(program.length)
        engine = self._engine
        noise = engine.noise if outputs.inexact else 0.0
        leaves = program.outputs(golden.env)
        _check_finite(leaves, samples)
        labels = self._labels(samples)
        return outputs.settle(self._trials, leaves, engine.metric, labels, noise)

    def _labels(self, samples: Ints) -> torch.Tensor | None:
        labels = self._engine.data.labels
        return None if labels is None else labels[torch.from_numpy(samples).to(labels.device)]

    def _by_samples(self, trials: Ints, together: int) -> Iterator[tuple[Ints, Ints]]:
        """Give sorted samples, so many at most, with those of the trials that are theirs."""
        order = np.argsort(self._trials.sample[trials], kind="stable")
        trials = trials[order]
        samples, first = np.unique(self._trials.sample[trials], return_index=True)
        bounds = np.append(first, len(trials))
        for at in range(0, len(samples), together):
            end = min(at + together, len(samples))
            yield samples[at:end], trials[bounds[at] : bounds[end]]

    def _seeds(self, sites: list[tuple[str, int, str, str]]) -> Seeded | None:
        engine, faults = self._engine, self._faults
        if "seed" not in faults:
            return None
        if engine.error_model is None or engine.pattern is None:
            raise CampaignError(
                "these faults are told by seeds: give the error_model and pattern that they"
                " were planned with"
            )
        seed, bit = (faults[x].to_numpy(np.int64)[self._fault] for x in ("seed", "bit"))
        counts = np.array([engine.elements.get(site[:3], -1) for site in sites], np.int64)
        elements = counts[self._site[self._fault]]
        return Seeded(engine.error_model, engine.pattern, seed, bit, elements)

    def _weight(self, site: tuple[str, int, str, str], number: int) -> Weight | SeededWeight:
        layer = find(self._engine.model, self._engine.layers, site[0])
        if self._trials.seeded is not None:
            return SeededWeight(layer.slot(site[2]))
        weight = Weight(layer.slot(site[2]))
        trials = np.flatnonzero(self._site[self._fault] == number)
        direct.check_elements(site, self._trials.element[trials], weight.tensor.numel())
        return weight

    def _target(self, program: Program, target: Weight | tuple[str, int, str]) -> Target | None:
        """Find out what a site is in the program; None if it is not there."""
        if isinstance(target, Weight):
            if not isinstance(target.slot, OwnSlot):
                return None
            uses, remade = program.uses(target.tensor)
            return Target(*(uses[0], uses[-1]) if uses else (-1, -1), target, remade)
        layer = find(self._engine.model, self._engine.layers, target[0])
        step = program.sites.get(Site(layer.name, *target[1:]))
        if step is None or program.steps[step].out.id not in program.batch_dim:
            return None
        site = self._targets.index(target)
        trials = np.flatnonzero(self._site[self._fault] == site)
        count = program.row_elements(program.steps[step].out.id)
        direct.check_elements(target, self._trials.element[trials], count)
        return Target(step, step)

    def _table(self) -> pd.DataFrame:
        results, first, faults = self._trials, self._first, self._faults
        if len(faults):
            outcome = np.maximum.reduceat(results.outcome, first)
            score = np.add.reduceat(results.score, first) / np.diff([*first, len(results.score)])
        else:
            outcome, score = results.outcome, results.score
        table = pd.DataFrame(
            {
                "fault": faults["fault"].to_numpy(),
                "outcome": np.array(OUTCOMES, object)[outcome],
                "before": results.before[first],
                "after": results.after[first],
                "score": score,
            }
        )
        table.attrs["ways"] = self.ways
        return table


_MASKS = ["and_mask", "or_mask", "xor_mask"]


def _check_finite(golden: list[torch.Tensor], samples: Ints) -> None:
    """Refuse samples whose golden output is no number: no fault could make it worse."""
    floating = [x for x in golden if x.is_floating_point()]
    if not floating:
        return
    finite = torch.stack([x.isfinite().reshape(len(x), -1).any(1) for x in floating]).any(0)
    if not finite.all():
        sample = samples[int(finite.int().argmin())]
        raise CampaignError(
            f"without any fault the model's output for sample {sample} has no finite number, so"
            " that no fault could make it worse: leave such samples out, or mend the model"
        )


def _distinct(faults: pd.DataFrame) -> tuple[Ints, list[tuple[str, int, str, str]]]:
    """Find the sites, and the number of each fault's one."""
    groups = faults.groupby(_SITE, sort=False, observed=True)
    number: Ints = groups.ngroup().to_numpy().astype(np.int64)
    first = faults.drop_duplicates(_SITE)[_SITE]
    return number, [(str(a), int(b), str(c), str(d)) for a, b, c, d in first.to_numpy().tolist()]
