"""Which faults protections leave, and what they cost in time."""

from __future__ import annotations

import time

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pystack_nb.errors import CampaignError, FaultDetectedError, FaultError
from pystack_nb.faults.blame import check_blame
from pystack_nb.faults.checks import whole
from pystack_nb.faults.data import Inputs, on_device_of, tensors
from pystack_nb.faults.engine_direct import check_chance, check_mode, tensors_of
from pystack_nb.faults.engine_trials import OUTCOMES, Outputs, Trials
from pystack_nb.faults.injection import Fault, inject
from pystack_nb.faults.layers import layers
from pystack_nb.faults.metrics import Top1, as_metric
from pystack_nb.faults.plan import Plan
from pystack_nb.faults.protection_guards import Defence
from pystack_nb.faults.protection_scope import Protection, protect
from pystack_nb.faults.replay import OfMasks
from pystack_nb.faults.results import overall
from pystack_nb.faults.state import untouched
from pystack_nb.faults.statistics import Estimate, wilson


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pystack_nb.faults.metrics import Metric

_DETECTED = "detected"
_NONE = "none"
_COLUMNS = {"layer", "call", "role", "element", "sample", "and_mask", "or_mask", "xor_mask"}


def compare(
    model: torch.nn.Module,
    data: Any,
    faults: Plan | pd.DataFrame,
    protections: Mapping[str, Defence | Sequence[Defence]],
    *,
    metric: Callable[..., Any] | None = None,
    confidence: float = 0.95,
    batch_size: int = 1,
    repeats: int = 31,
) -> pd.DataFrame:
    """Inject the same faults without and with protections, and time each.

    Each fault is injected on its own sample alone, with hooks: this is the slow way, meant for
    some thousands of faults.  Of a campaign with `weight_samples` that is the first sample.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode, unprotected.
    data : tuple, tensor, Dataset, DataLoader or list
        That of the campaign.
    faults : Plan or pandas.DataFrame
        ``campaign.plan()``, of any allocation: its strata are weighted by their sizes.  Or a
        table of faults, with those columns of `Plan.faults` that say where and how to strike:
        it is taken for a plain random sample, each row for as much as another.  Of campaigns
        with a pattern, or with error models that depend on values, as `Noise`, there are none
        such.  The faults of
        a plan are not quite one, even if it is proportional: each stratum has one at least.
    protections : mapping of str to Defence or sequence of Defence
        What to compare, by names; ``none`` is the name of the row without any.
    metric : callable, optional
        What a silent corruption is, as for `Campaign`: a `Metric`, or a function of ``(golden,
        faulty, label)`` of one sample; `Top1` by default.
    confidence : float
        Of the intervals.
    batch_size : int
        Samples in a forward that is timed.
    repeats : int
        How often one is timed for each protection.

    Returns
    -------
    pandas.DataFrame
        A row for each protection, the first for none: ``protection``; how many ``faults`` were
        ``masked``, ended as ``SDC`` (against the unprotected model without faults), as ``DUE``
        (an exception, or NaN or infinity where that model gives a number: as in a `Campaign`)
        or were ``detected`` (by an exception of a defence);
        ``noticed``, how many a defence counted, corrected ones too; ``SDC_rate`` with its
        interval ``SDC_low`` to ``SDC_high``: of a plan as `Campaign.total` gives it, which is no
        ratio of these counts, of a table that ratio with Wilson's interval; ``false_alarms``,
        samples of these faults in which a defence counted something without a fault;
        ``forward_us``, the median time of a forward in microseconds, and ``added_time`` as a
        share of the unprotected one; and
        ``relative_failures``, the expected number of silent corruptions per forward relative to
        none: the ratio of the rates times that of the forwards' times; and
        ``relative_failures_high``, the same of the interval's upper end, which is what is known
        where no corruption was seen.

    Raises
    ------
    CampaignError
        If there is no plan, no fault or no dict of protections, a column is missing, a
        protection is named ``none``, or the metric needs labels that the data hasn't got.
    FaultError
        If the model is in training mode, where outputs depend on chance, or a protection, which
        is named, can't be put into it or run.
    FaultDetectedError
        If one, which is named, finds a fault while it is timed, where there is none.

    Notes
    -----
    A protected forward that takes longer is exposed longer.  Rates are therefore not to be
    compared alone (H. Schirmeier, C. Borchert, O. Spinczyk, "Avoiding Pitfalls in Fault-Injection
    Based Comparison of Program Susceptibility to Soft Errors", DSN 2015).
    """
    inputs, labels = tensors(data)
    inputs = on_device_of(model, inputs)
    judge = as_metric(Top1() if metric is None else metric)
    plan = faults if isinstance(faults, Plan) else None
    faults = plan.faults if plan else faults
    if not isinstance(faults, pd.DataFrame):
        raise CampaignError(f"a {type(faults).__name__} is no plan: give campaign.plan()")
    if faults.empty or (judge.needs_labels and labels is None):
        raise CampaignError("there is nothing to compare: plan some faults, and give labels")
    if missing := _COLUMNS - {*faults}:
        raise CampaignError(
            f"the faults have no column {min(missing)!r}: give a plan, campaign.plan()"
        )
    if "seed" in faults:
        raise CampaignError(
            "these faults are told by seeds, of a pattern or of values: give those of a campaign"
            " without a pattern, and with a model of bits or of written values"
        )
    if not isinstance(protections, Mapping):
        raise CampaignError(
            f"protections are a {type(protections).__name__}: give a dict of them, by names such"
            ' as {"Ranger": ranger}'
        )
    if _NONE in protections:
        raise CampaignError(
            f"{_NONE!r} is the name of the row without protection, to which the others are"
            " compared: give this protection another name"
        )
    wrong = [x for x in protections.values() if not _is_protection(x)]
    if wrong:
        raise CampaignError(
            f"{wrong[0]!r:.60} is no protection: give protections by names, each a defence such"
            " as Ranger.profile(...) or a list of them"
        )
    repeats, batch_size = whole(repeats, "repeats", 1), whole(batch_size, "batch_size", 1)
    check_mode(layers(model))
    check_chance(model, inputs.each(lambda x: x[:1]))
    faults = pd.DataFrame({"value": np.nan, "bit": -1}, faults.index).assign(**faults)
    variants: dict[str, Sequence[Defence] | None] = {_NONE: None}
    variants |= {n: (d,) if isinstance(d, Defence) else tuple(d) for n, d in protections.items()}
    trials = _Trials(model, inputs, labels, judge)
    samples = sorted(set(faults["sample"]))
    trials.golden = {sample: tensors_of(trials.run(sample)) for sample in samples}
    times = _times(model, inputs.each(lambda x: x[:batch_size]), variants, repeats)
    rows = []
    for name, defences in variants.items():
        with _protected(model, name, defences) as guards:
            alarms = sum(trials.alarmed(sample, guards) for sample in samples)
            results = [trials.inject(fault, guards) for fault in faults.to_dict("records")]
        outcomes = pd.Series([outcome for outcome, _ in results])
        counts = {outcome: int((outcomes == outcome).sum()) for outcome in (*OUTCOMES, _DETECTED)}
        rate = _rate((outcomes == "SDC").to_numpy(), faults, plan, confidence)
        rows.append(
            {
                "protection": name,
                "faults": len(faults),
                **counts,
                "noticed": sum(noticed for _, noticed in results),
                "SDC_rate": rate.rate,
                "SDC_low": rate.low,
                "SDC_high": rate.high,
                "false_alarms": alarms,
                "forward_us": times[name] / 1e3,
                "added_time": times[name] / times[_NONE] - 1,
            }
        )
    table = pd.DataFrame(rows)
    alone = table["SDC_rate"].iloc[0] * table["forward_us"].iloc[0] or np.nan
    return table.assign(
        relative_failures=table["SDC_rate"] * table["forward_us"] / alone,
        relative_failures_high=table["SDC_high"] * table["forward_us"] / alone,
    )


def _is_protection(value: object) -> bool:
    if isinstance(value, Defence):
        return True
    return isinstance(value, Sequence) and all(isinstance(x, Defence) for x in value)


def _rate(
    events: NDArray[np.bool_], faults: pd.DataFrame, plan: Plan | None, confidence: float
) -> Estimate:
    if plan is None:
        count, trials = int(events.sum()), len(events)
        return Estimate(count / trials, *wilson(count, trials, confidence), confidence, trials)
    counts = faults[["stratum"]].assign(faults=1, SDC=events.astype(int)).groupby("stratum").sum()
    return overall(
        plan.strata,
        counts.reset_index(),
        "SDC",
        proportional=plan.proportional,
        confidence=confidence,
    )


@dataclass
class _Trials:
    model: torch.nn.Module
    inputs: Inputs
    labels: torch.Tensor | None
    metric: Metric

    def __post_init__(self) -> None:
        self.golden: dict[int, list[torch.Tensor]] = {}

    def run(self, sample: int) -> Any:
        with torch.no_grad(), untouched(self.model, generators=False):
            return self.inputs.each(lambda x: x[sample : sample + 1].clone()).given_to(self.model)

    def alarmed(self, sample: int, guards: Protection) -> bool:
        before = _detections(guards)
        try:
            self.run(sample)
        except FaultDetectedError:
            return True
        return _detections(guards) > before

    def inject(self, row: Mapping[Any, Any], guards: Protection) -> tuple[str, bool]:
        call = max(int(row["call"]), 0)
        fault = Fault(row["layer"], row["role"], OfMasks.of(row), call=call)
        before = _detections(guards)
        outcome = self._outcome(fault, int(row["sample"]))
        return outcome, _detections(guards) > before

    def _outcome(self, fault: Fault, sample: int) -> str:
        try:
            with inject(self.model, fault, seed=0):
                output = self.run(sample)
        except FaultDetectedError:
            return _DETECTED
        except FaultError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a fault raises is its outcome
            check_blame(error, self.inputs[0].device)
            return "DUE"
        one, none = np.ones(1, bool), np.zeros(1, np.int64)
        trials = Trials(none, none, (none.view(np.uint64),) * 3, np.full(1, np.nan))
        label = None if self.labels is None else self.labels[sample : sample + 1]
        outputs = Outputs()
        outputs.add(none, none, one, tensors_of(output))
        outputs.settle(trials, self.golden[sample], self.metric, label, 0.0)
        return OUTCOMES[int(trials.outcome[0])]


@contextmanager
def _protected(
    model: torch.nn.Module, name: str, defences: Sequence[Defence] | None
) -> Iterator[Protection]:
    """Protect a model, or leave it as it is (None); an error tells which protection it is of."""
    if defences is None:
        yield Protection([])
        return
    try:
        with protect(model, *defences) as guards:
            yield guards
    except (FaultError, FaultDetectedError) as error:
        raise type(error)(f"protection {name!r}: {error}") from error


def _times(
    model: torch.nn.Module,
    inputs: Inputs,
    variants: Mapping[str, Sequence[Defence] | None],
    repeats: int,
) -> dict[str, float]:
    # In turns, so that whatever else the machine does meets each of them.
    taken: dict[str, list[int]] = {name: [] for name in variants}
    wait: Callable[[], None] = (
        torch.accelerator.synchronize if inputs[0].device.type != "cpu" else lambda: None
    )
    for _ in range(repeats):
        for name, defences in variants.items():
            with (
                untouched(model, generators=False),
                _protected(model, name, defences),
                torch.no_grad(),
            ):
                for _ in range(3):  # the last one finds caches warm
                    given = inputs.each(torch.clone)  # the model may overwrite them
                    wait()
                    started = time.perf_counter_ns()
                    given.given_to(model)
                    wait()
                    ended = time.perf_counter_ns()
                taken[name].append(ended - started)
    return {name: median(nanoseconds) for name, nanoseconds in taken.items()}


def _detections(guards: Protection) -> int:
    return sum(int(guard.detections) for _, guard in guards.guards)
