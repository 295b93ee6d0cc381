"""Put protections into a model, and take them out again."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pystack_nb.errors import FaultError
from pystack_nb.faults.padding import padded
from pystack_nb.faults.protection_guards import Defence, Guard
from pystack_nb.faults.protection_watch import watch


if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class Protection:
    """What `protect` gives: the guards, and what they have counted.

    Attributes
    ----------
    guards : list of (Defence, Guard)
        One for each defence and layer.
    """

    def __init__(self, guards: list[tuple[Defence, Guard]]) -> None:
        self.guards = guards

    def report(self) -> pd.DataFrame:
        """Give what was found up to now.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``defence``, and numbers of ``checks`` (outputs looked at),
            ``detections`` (outputs that looked wrong) and ``corrections`` (outputs that were
            put right; of `Ranger`, numbers).  A layer without checks did not run.
        """
        rows = [
            {
                "layer": guard.layer.name,
                "defence": type(defence).__name__,
                "checks": guard.checks,
                "detections": int(guard.detections),
                "corrections": int(guard.corrections),
            }
            for defence, guard in self.guards
        ]
        counts = dict.fromkeys(["checks", "detections", "corrections"], np.int64)
        return pd.DataFrame(rows, columns=["layer", "defence", *counts]).astype(counts)


@contextmanager
def protect(model: torch.nn.Module, *defences: Defence) -> Iterator[Protection]:
    """Protect a model for the length of a ``with`` block.

    Whichever of `protect` and `faults.inject` is entered first, a fault in a layer's input
    strikes before a defence sees the input, and one in its output strikes before a defence
    sees the output: defences look last, in the order given here.  Weights are another matter: a
    defence that remembers them (`Checksum`) takes those that it finds when it starts for right.

    Parameters
    ----------
    model : torch.nn.Module
        It gets hooks, and another ``forward`` in the guarded modules; both are removed at the
        end.  It may run in several threads at a time, and several protections of it may end
        in any order.  A copy that is made meanwhile, or a pickled one, is unprotected.
    *defences : Defence
        `Ranger`, `NanDetector`, `Duplicate`, `Checksum`.

    Yields
    ------
    Protection
        With the counts, also after the block.

    Raises
    ------
    FaultError
        If there is nothing to guard.
    FaultDetectedError
        From the model's forward, where a defence finds a fault and is to raise.

    Examples
    --------
    >>> ranger = faults.Ranger.profile(model, images)
    >>> with faults.protect(model, ranger, faults.NanDetector()) as protection:
    ...     model(images)
    >>> protection.report()
    """
    if not defences or not all(isinstance(defence, Defence) for defence in defences):
        raise FaultError(
            "there is nothing to protect by: give Ranger.profile(model, data), NanDetector(),"
            " Duplicate() or Checksum()"
        )
    guards = [(d, d.guard(layer)) for d in defences for layer in d.layers_of(model)]
    by_module: dict[torch.nn.Module, list[Guard]] = {}
    for _, guard in guards:
        by_module.setdefault(guard.layer.module, []).append(guard)
    with ExitStack() as undo:
        undo.enter_context(padded(model))
        for module, own in by_module.items():
            watch(module, own, undo)
        yield Protection(guards)
