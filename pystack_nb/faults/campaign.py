"""Campaigns: how often a fault matters, with an interval."""

from __future__ import annotations

import dataclasses
import math
import time

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pystack_nb.errors import CampaignError
from pystack_nb.faults import engine_direct, executors, fingerprint, plan
from pystack_nb.faults.campaign_sites import PLACE, chosen_sites
from pystack_nb.faults.checks import check_is, whole
from pystack_nb.faults.data import Inputs, on_device_of, tensors
from pystack_nb.faults.metric_checks import check_nothing_wrong, is_trusted
from pystack_nb.faults.metrics import Top1, as_metric
from pystack_nb.faults.models import BitFlip, ErrorModel
from pystack_nb.faults.patterns import Pattern
from pystack_nb.faults.plan import Design, Plan
from pystack_nb.faults.replay import as_fault
from pystack_nb.faults.results import Analysis
from pystack_nb.faults.state import repeatable
from pystack_nb.faults.store import Store
from pystack_nb.faults.strata import Stratum, stratify
from pystack_nb.faults.trial import at_a_time, few


if TYPE_CHECKING:
    import os

    from collections.abc import Callable, Iterable, Iterator

    from pystack_nb.faults.fault import Fault

_NUMBERS = ("before", "after", "score")
_BATCH_SECONDS = 2.0  # what a killed campaign loses at most, about
_BATCH = (64, 8192)  # faults of a batch, at least and at most


class Campaign(Analysis):
    """Inject a sample of all possible faults, and estimate how often they change the result.

    Parameters
    ----------
    model : torch.nn.Module
        In ``eval()`` mode; it is left as it is.  Each forward finds its buffers and attributes
        as they were at first; what it keeps elsewhere, so that outputs differ, is refused.
    data : tuple, tensor, dict, Dataset, DataLoader or list
        Samples, with labels where the metric needs them; see `data.tensors`.  The inputs of a
        model that takes keyword arguments are a dict: ``({"x": x, "mask": mask}, labels)``.
        Only those that are drawn are looked at: what is wrong in others, as NaN, goes unnoticed.
    error_model : ErrorModel, optional
        What happens to an element.  Models of bits and of written values, on single elements,
        are fast: many faults share a forward.  `Noise`, `Custom` and all patterns have a
        forward for each fault.  A `Custom` function must give the same for the same values and
        generator; `run` in other processes needs one that can be pickled.
    sites : {"neurons", "weights"} or pandas.DataFrame, optional
        Where: outputs of the innermost layers, parameters and buffers, both (the default), or
        rows of what `sites` gives for an example of any size, any of them: their columns
        ``layer``, ``call`` and ``role``.  Only by such rows of integer tensors, and of what
        is there for quantisation to be simulated: observers, and copies of weights.
    seed : int
        Required.  All faults are drawn from it.
    metric : callable, optional
        Tells whether a faulty output is a silent corruption; `Top1` by default.  A function
        ``(golden, faulty, label)`` gets one sample's outputs, without a batch dimension, and its
        label (or None), and returns True, False or a number: the ``score``, an SDC if not 0::

            def far(golden, faulty, label):
                return float((faulty - golden).abs().max() > 0.1)
    per : {"network", "layer", "layer,bit"}, optional
        What the error margin is for: the whole network (Leveugle et al., DATE 2009), each layer
        and role, or each of their bits (Ruospo et al., DATE 2023).
    pattern : Pattern, optional
        Which elements of a tensor a fault strikes together; one by default.  The population of
        a layer and role are then its places instead of its elements, and the samples: channels
        (one, where its number is given), rows, one for `Everywhere` and the error rates,
        elements for `Several`.  It is finite, and no fault comes twice, where the error model
        can do one thing only to an element, as `Zero` or ``BitFlip(bit=30)``, and the place
        tells the elements; elsewhere the faults are drawn with replacement.
    error, confidence : float, optional
        Margin of error, as a fraction, and its confidence; also that of the results' intervals.
    faults : int, optional
        Number of faults in all, instead of that from the margin: at most 20,000,000; where
        fewer are possible, all of them.
    allocation : {"proportional", "equal", "neyman"}, optional
        How a number of faults is split over layers and roles.  Proportional to their faults is
        a plain random sample and bad for small layers; ``"neyman"`` runs a pilot of 100 in each
        first, which is part of the sample, and then gives more where outcomes vary: `faults`
        can't be fewer than the pilot's.
    batch_size : int, optional
        Faults per forward; it never changes a result.
    path : str or path-like, optional
        Folder for the results.  A campaign that was killed goes on from it, with as many
        threads of torch: their number decides how sums are rounded.
    weight_samples : int, optional
        Samples on which each weight fault is tried; by default one, drawn with the fault.

    Raises
    ------
    CampaignError
        Without a seed, or where an argument can't be.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Any,
        error_model: ErrorModel | None = None,
        sites: str | pd.DataFrame | None = None,
        *,
        seed: int | None = None,
        metric: Callable[..., Any] | None = None,
        pattern: Pattern | None = None,
        per: str = "network",
        error: float = 0.01,
        confidence: float = 0.99,
        faults: int | None = None,
        allocation: str = "proportional",
        batch_size: int | None = None,
        path: str | os.PathLike[str] | None = None,
        weight_samples: int | None = None,
    ) -> None:
        if seed is None:
            raise CampaignError("a campaign without a seed can't be repeated; pass seed=0")
        self.seed = whole(seed, "seed", 0)
        check_is(model, torch.nn.Module, "model", "a torch.nn.Module")
        check_is(error_model, ErrorModel | None, "error_model", "an error model, as BitFlip()")
        self.model = model
        inputs, self.labels = tensors(data)
        self.inputs = on_device_of(model, inputs)
        self.error_model = BitFlip() if error_model is None else error_model
        check_is(pattern, Pattern | None, "pattern", "a pattern, as Channel()")
        self.pattern = pattern
        self.metric = as_metric(Top1() if metric is None else metric)
        count = None if faults is None else whole(faults, "faults", 1)
        self.design = Design(per, error, confidence, count, allocation)
        self.batch_size = None if batch_size is None else whole(batch_size, "batch_size", 1)
        self.weight_samples = (
            None if weight_samples is None else whole(weight_samples, "weight_samples", 1)
        )
        if self.metric.needs_labels and self.labels is None:
            raise CampaignError(f"{self.metric} needs labels; pass data=(inputs, labels)")
        self.sites = chosen_sites(self.model, self.inputs, sites)
        self._strata = self._stratify()
        self.design.total(self._strata)
        if self.design.allocation == "neyman":
            self.design.pilot(self._strata)
        self._store = None if path is None else Store(path, self.fingerprint())
        self._finished: list[pd.DataFrame] = []
        self._tried: list[pd.DataFrame] = []
        self._seconds_each = math.nan
        self._plan: Plan | None = None
        self._engine: Any = None

    def plan(self) -> Plan:
        """Say what will be injected, and how long it will take as a short pilot tells.

        Returns
        -------
        Plan
            As text, a table.  With Neyman's allocation its pilot is printed and run for it,
            and kept.
        """
        return self._planned(None, progress=False)

    def run(self, executor: Any = None, *, progress: bool = True) -> pd.DataFrame:
        """Print the plan, inject the faults, and give the results.

        Weights are struck in the model itself, and put back: let no other thread use it
        meanwhile.  Recordings of this process get an event of kind ``fault`` for each fault
        that is evaluated in it, which lasts as long as its batch.

        Parameters
        ----------
        executor : concurrent.futures.Executor or distributed.Client, optional
            Where batches are evaluated; here by default.  A worker that is lost costs its
            unfinished batch: dask runs that again elsewhere, and in place of a broken pool of
            processes a new one goes on, with a warning, and runs what was unfinished last, in
            smaller and smaller parts. A fault that kills its process by itself is a ``DUE``.
            The trial that tells the time runs there, too.  Processes have to start and to
            get the model: they pay where a run takes minutes.  Those of a campaign that is
            killed outlive it, as of any pool.
        progress : bool, optional
            Show a progress bar.

        Returns
        -------
        pandas.DataFrame
            As `results`.

        Raises
        ------
        CampaignError
            The folder is another campaign's, or the workers died.
        """
        if self._store is not None:
            self._store.check()
        self._check_metric()
        planned = self._planned(executor, progress=progress)
        print(planned)  # noqa: T201 - what a run will do is said before it does it
        if there := len(self._done()):
            print(f"{there:,} of {len(planned.faults):,} faults are there already")  # noqa: T201
        self._inject(planned, executor, progress=progress)
        return self.results

    @property
    def results(self) -> pd.DataFrame:
        """A row per finished fault: what was planned, ``outcome before after score``.

        `outcome` is ``masked``, ``SDC`` or ``DUE``, `before` and `after` the element's values,
        and `score` the metric's own number, NaN where it has none.  Of a folder it is there
        after `run`, which only evaluates what is left.
        """
        done = self._done()
        if self._plan is None or done.empty:
            raise CampaignError("there are no results yet; call run() first")
        done = done.astype({"outcome": str, **dict.fromkeys(_NUMBERS, np.float64)})
        return self._plan.faults.merge(done, on="fault", validate="one_to_one")

    @property
    def strata(self) -> pd.DataFrame:
        """The strata of the plan; see `Plan.strata`."""
        if self._plan is None:
            raise CampaignError("nothing is planned yet; call plan() or run() first")
        return self._plan.strata

    def fault(self, number: int) -> Fault:
        """Give a planned fault for `inject`, to see what it does.

        Parameters
        ----------
        number : int
            As in the column ``fault`` of `results`.

        Returns
        -------
        Fault
            It strikes what it struck in the campaign, whatever seed `inject` is given, in a
            forward of its ``sample`` alone (with `weight_samples` of each that it was tried on).
            In a forward of several it needs ``dataclasses.replace(fault, sample=...)``, unless
            it is one of a weight.  Without ``torch.no_grad()``, under which campaigns run, some
            layers round otherwise.

        Raises
        ------
        CampaignError
            There is no such fault, or no plan yet.

        Examples
        --------
        >>> row = campaign.results.query("outcome == 'SDC'").iloc[0]
        >>> with torch.no_grad(), faults.inject(model, campaign.fault(row["fault"])) as log:
        ...     model(images[[row["sample"]]])
        >>> log.to_frame()
        """
        if self._plan is None:
            raise CampaignError("nothing is planned yet; call plan() or run() first")
        table = self._plan.faults
        at = whole(number, "number", 0)
        if at >= len(table):
            raise CampaignError(f"there is no fault {at}; pass a number from 0 to {len(table) - 1}")
        row = table.iloc[at]
        return as_fault(row, self._strata[row["stratum"]])

    @property
    def proportional(self) -> bool:
        """Whether strata have faults in proportion to their sizes, as far as can be."""
        return self.design.proportional

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        return self.design.confidence

    def fingerprint(self) -> dict[str, Any]:
        """Give all that the results depend on, as JSON values: what ``campaign.json`` holds."""
        return {
            "seed": self.seed,
            "model": fingerprint.of_model(self.model),
            "data": fingerprint.of_values(
                [self.inputs, self.labels, *([self.inputs.names] if self.inputs.names else [])]
            ),
            "error_model": fingerprint.describe(self.error_model),
            "pattern": None if self.pattern is None else fingerprint.describe(self.pattern),
            "metric": fingerprint.describe(self.metric),
            "sites": fingerprint.of_table(self.sites),
            "design": dataclasses.asdict(self.design),
            "weight_samples": self.weight_samples,
            "golden": self._golden_hash(),
            "threads": torch.get_num_threads(),
            "device": fingerprint.of_device(self.inputs[0].device),
            # Attention's fused form rounds otherwise.
            "mha_fastpath": torch.backends.mha.get_fastpath_enabled(),
            "versions": fingerprint.of_versions(),
        }

    def __repr__(self) -> str:
        done = len(self._done())
        if self._plan is None or not done:
            return f"Campaign({self.error_model}, seed={self.seed}): not run yet"
        return (
            f"Campaign({self.error_model}, seed={self.seed}): {done:,} of"
            f" {len(self._plan.faults):,} faults\n"
            f"SDC {self.total('SDC')}\nDUE {self.total('DUE')}"
        )

    def _golden_hash(self) -> str:
        """Hash the bits of some outputs: what they hang on besides weights shows in them."""
        return fingerprint.of_values(self._golden(self._some_samples(3)))

    def _check_metric(self) -> None:
        if is_trusted(self.metric):
            return
        some = self._some_samples(16)
        labels = None if self.labels is None else self.labels[some]
        check_nothing_wrong(self.metric, self._golden(some), labels)

    def _some_samples(self, count: int) -> list[int]:
        samples: list[int] = np.unique(
            np.linspace(0, len(self.inputs[0]) - 1, count).astype(int)
        ).tolist()
        return samples

    def _golden(self, samples: list[int]) -> list[list[torch.Tensor]]:
        with repeatable(self.inputs[0].device):
            return [
                engine_direct.forward(self.model, self.inputs.each(lambda x, i=i: x[[i]]))  # type: ignore[misc]
                for i in samples
            ]

    def _stratify(self) -> list[Stratum]:
        found = stratify(
            self.sites,
            self.error_model,
            len(self.inputs[0]),
            per=self.design.per,
            pattern=self.pattern,
        )
        if self.weight_samples is None:
            return found
        return [dataclasses.replace(x, samples=1) if x.kind == "weight" else x for x in found]

    def _planned(self, executor: Any, *, progress: bool) -> Plan:
        if self._plan is not None:
            return self._plan
        events = None
        if self.design.allocation == "neyman":
            pilot = plan.make(self._strata, self.design, self.seed)
            pilot = dataclasses.replace(pilot, seconds=self._estimate(pilot.faults, executor))
            print(f"First a pilot for Neyman's allocation:\n{pilot}")  # noqa: T201 - as in run
            self._inject(pilot, executor, progress=progress)
            outcomes = pilot.faults.merge(self._done(), on="fault")
            happened = outcomes["stratum"][outcomes["outcome"] != "masked"]
            events = np.bincount(happened, minlength=len(self._strata)).astype(np.int64)
        planned = plan.make(self._strata, self.design, self.seed, events)
        self._plan = dataclasses.replace(planned, seconds=self._estimate(planned.faults, executor))
        return self._plan

    def _inject(self, planned: Plan, executor: Any, *, progress: bool) -> None:
        if self._store is None:
            self._run_batches(planned, executor, progress=progress)
            return
        with self._store.opened():
            self._run_batches(planned, executor, progress=progress)

    def _run_batches(self, planned: Plan, executor: Any, *, progress: bool) -> None:
        faults = planned.faults
        left, tried = self._left(faults), self._tried
        if not len(left) and not tried:
            return
        if tried:
            self._keep(pd.concat(tried, ignore_index=True))
            self._tried = []
        bar = _bar(len(faults), len(faults) - len(left)) if progress else None
        try:
            batches = _batches(left, self._seconds_each)
            for batch in self._evaluated(batches, executor):
                self._keep(batch)
                if bar is not None:
                    bar.update(len(batch))
        finally:
            if bar is not None:
                bar.close()

    def _evaluated(
        self, batches: Iterable[pd.DataFrame], executor: Any, *, trial: bool = False
    ) -> Iterator[pd.DataFrame]:
        job = executors.Job(make_engine, self._arguments, torch.get_num_threads())
        own = self._own() if executor is None else None
        return executors.evaluate(executor, job, batches, own=own, trial=trial)

    def _keep(self, batch: pd.DataFrame) -> None:
        if self._store is None:
            self._finished.append(batch)
        else:
            self._store.append(batch)

    def _left(self, faults: pd.DataFrame) -> pd.DataFrame:
        known = [x["fault"] for x in (self._done(), *self._tried) if len(x)]
        return faults[~faults["fault"].isin(pd.concat(known))] if known else faults

    def _done(self) -> pd.DataFrame:
        if self._store is not None:
            return self._store.read()
        if not self._finished:
            return pd.DataFrame()
        # An interrupt may have come between keeping a batch and knowing that it is kept.
        return pd.concat(self._finished, ignore_index=True).drop_duplicates("fault")

    @property
    def _arguments(self) -> dict[str, Any]:
        names = ("model", "inputs", "labels", "metric", "batch_size", "weight_samples")
        arguments = {x: getattr(self, x) for x in names}
        if (pattern := self._strata[0].pattern) is not None:
            named = zip(*(self.sites[x] for x in PLACE), strict=True)
            elements = dict(zip(named, self.sites["elements"].tolist(), strict=True))
            arguments |= {
                "error_model": self.error_model,
                "pattern": pattern,
                "elements": elements,
            }
        return arguments

    def _own(self) -> Any:
        if self._engine is None:
            self._engine = make_engine(**self._arguments)
        return self._engine

    def _estimate(self, faults: pd.DataFrame, executor: Any) -> float:
        """Time some of the faults that are left; what became of them is kept for the run."""
        left = self._left(faults)
        if left.empty:
            return 0.0
        # On the executor, where there is one: a fault may kill the process that evaluates it.
        started = time.perf_counter()
        parts = [*self._evaluated([few(left, _BATCH[1])], executor, trial=True)]
        taken = time.perf_counter() - started
        self._tried += parts
        others = len(left) - sum(map(len, parts))
        # A fault that killed the process took no time that is known.
        told = [x.attrs for x in parts if "seconds" in x.attrs] or [{"seconds": 0.0}]
        self._seconds_each = max(x.get("seconds_each", math.nan) for x in told)
        at_once = at_a_time(executor, torch.get_num_threads())
        # Another worker has to start, too, before it takes a part of them.
        starting = taken - sum(x["seconds"] for x in told) if at_once > 1 else 0.0
        return starting + self._seconds_each * others / at_once if others else 0.0


def make_engine(*, inputs: Inputs, labels: torch.Tensor | None, **options: Any) -> Any:
    """Make the engine of a campaign, here or in a worker."""
    engine = import_module(f"{__package__}.engine")
    return engine.Engine(data=engine.EngineData(inputs, labels), **options)


def _batches(faults: pd.DataFrame, seconds: float) -> Iterator[pd.DataFrame]:
    # Their size decides what is lost and how often a file is written, and nothing else.
    wanted = _BATCH[1] if math.isnan(seconds) or seconds <= 0 else _BATCH_SECONDS / seconds
    size = int(min(max(wanted, _BATCH[0]), _BATCH[1]))
    for start in range(0, len(faults), size):
        yield faults.iloc[start : start + size].reset_index(drop=True)


def _bar(total: int, done: int) -> Any:
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, unit=" faults")
