"""Checks of what metrics say, users' own above all."""

from __future__ import annotations

import warnings

from typing import TYPE_CHECKING, Any

import torch

from pystack_nb.errors import CampaignError
from pystack_nb.faults.metrics import Exact, Metric, Tolerance, TopK, Verdict, shown


if TYPE_CHECKING:
    from collections.abc import Sequence


def is_trusted(metric: Metric) -> bool:
    """Whether a metric is the package's own: it calls nothing wrong that has not changed."""
    return isinstance(metric, TopK | Tolerance | Exact)


def check_nothing_wrong(
    metric: Metric, outputs: Sequence[Sequence[torch.Tensor]], labels: torch.Tensor | None
) -> None:
    """See that a metric does not call outputs wrong that no fault has changed.

    Parameters
    ----------
    metric : Metric
        One that is not trusted.
    outputs : sequence of sequence of torch.Tensor
        The golden output of each of some samples.
    labels : torch.Tensor or None
        Theirs.

    Raises
    ------
    CampaignError
        All are called wrong: it may tell what is right.

    Warns
    -----
    RuntimeWarning
        Some are.
    """
    wrong = [
        bool(
            verdict_of(
                metric,
                golden,
                [x.clone() for x in golden],
                None if labels is None else labels[[i]].to(golden[0].device),
            ).changed[0]
        )
        for i, golden in enumerate(outputs)
    ]
    if all(wrong):
        raise CampaignError(
            "the metric says that the output is wrong where no fault has changed anything, in all"
            f" of {len(wrong)} samples: let it return True, or a number that is not 0, where the"
            " faulty output is worse than the golden one"
        )
    if any(wrong):
        warnings.warn(
            "the metric says that the output is wrong where no fault has changed anything, in"
            f" {sum(wrong)} of {len(wrong)} samples: all faults in such samples are SDC",
            RuntimeWarning,
            stacklevel=4,
        )


def verdict_of(
    metric: Metric,
    golden: Sequence[torch.Tensor],
    faulty: Sequence[torch.Tensor],
    labels: torch.Tensor | None,
) -> Verdict:
    """Ask a metric, and check that what it says is a verdict; see `Metric.judge_all`.

    Raises
    ------
    CampaignError
        It is something else.
    """
    verdict = metric.judge_all(golden, faulty, labels)
    _check_verdict(metric, verdict, len(golden[0]))
    return verdict


def _check_verdict(metric: Metric, verdict: Any, rows: int) -> None:
    if isinstance(verdict, Verdict):
        lead = [] if verdict.lead is None else [verdict.lead]
        parts: list[Any] = [verdict.changed, verdict.score, *lead]
        wrong = [x for x in parts if not isinstance(x, torch.Tensor) or x.shape != (rows,)]
        if not wrong and verdict.changed.dtype != torch.bool:
            wrong = [verdict.changed]
        if not wrong:
            return
        said = f"a Verdict with {shown(wrong[0])}"
    else:
        said = shown(verdict)
    judge = "judge" if type(metric).judge_all is Metric.judge_all else "judge_all"
    raise CampaignError(
        f"{type(metric).__name__}.{judge}() returned {said} for a batch of {rows}: let it return"
        f" faults.Verdict(changed, score), tensors of shape (n,), here ({rows},), of truth values"
        " and of numbers"
    )
