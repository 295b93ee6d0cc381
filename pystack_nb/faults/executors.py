"""Batches of faults on other threads, processes and machines.

A worker gets the model once, and keeps its own copy: evaluating patches weights in place, which
two threads can't do to one model.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
import time
import uuid
import warnings

from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pystack_nb import marks
from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pandas as pd

_WINDOW = 64  # batches handed out and not yet back
_local = threading.local()


@dataclass(frozen=True)
class Job:
    """What a worker needs besides the faults.

    Attributes
    ----------
    engine : callable
        Makes an engine of what follows; must be importable.
    arguments : dict
        The model, the data and so on.
    threads : int
        Of torch, in each process: their number decides how sums are rounded.
    """

    engine: Callable[..., Any]
    arguments: dict[str, Any]
    threads: int

    def make(self) -> Any:
        """Make an engine."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return self.engine(**self.arguments)


def evaluate(
    executor: Any, job: Job, batches: Iterable[pd.DataFrame], *, own: Any = None
) -> Iterator[pd.DataFrame]:
    """Evaluate batches, and give each one's results as they come.

    Parameters
    ----------
    executor : None, concurrent.futures.Executor or distributed.Client
        Where; None for here.
    job : Job
        Of the campaign.
    batches : iterable of pandas.DataFrame
        Rows of `Plan.faults`.
    own : Engine, optional
        The one of this process, used without an executor.

    Yields
    ------
    pandas.DataFrame
        What the engine gives for a batch, in whatever order batches end.

    Raises
    ------
    CampaignError
        The executor is none, the job can't be sent, or the pool broke.
    """
    if executor is None:
        engine = job.make() if own is None else own
        for batch in batches:
            yield evaluated(engine, batch)
        return
    with _reachable(executor, _pickled(job)) as (pool, where):
        token = uuid.uuid4().hex
        try:
            yield from _each(batches, lambda batch: pool.submit(work, token, where, batch))
        except BrokenExecutor:
            raise CampaignError(
                "a worker of the pool died, and the pool with it; run the campaign again with a"
                " new pool: finished batches are kept"
            ) from None
        except Exception as error:
            if type(error).__name__ != "KilledWorker":
                raise
            raise CampaignError(
                f"workers died again and again ({error}); give them more memory, or pass a"
                " smaller batch_size, and run the campaign again: finished batches are kept"
            ) from None


def _each(
    batches: Iterable[pd.DataFrame], submit: Callable[[pd.DataFrame], Future[pd.DataFrame]]
) -> Iterator[pd.DataFrame]:
    left = iter(batches)
    pending: set[Future[pd.DataFrame]] = set()
    try:
        while True:
            pending.update(submit(batch) for batch in islice(left, _WINDOW - len(pending)))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in pending:
            future.cancel()


def work(token: str, where: str | bytes, batch: pd.DataFrame) -> pd.DataFrame:
    """Evaluate a batch on a worker, with the engine that its thread keeps.

    Parameters
    ----------
    token : str
        Names the run.
    where : str or bytes
        The pickled job, or the file that it is in.
    batch : pandas.DataFrame
        Rows of `Plan.faults`.
    """
    if getattr(_local, "token", None) != token:
        payload = Path(where).read_bytes() if isinstance(where, str) else where
        _local.engine = pickle.loads(payload).make()  # noqa: S301 - the campaign's own
        _local.token = token
    return evaluated(_local.engine, batch)


def evaluated(engine: Any, batch: pd.DataFrame) -> pd.DataFrame:
    """Evaluate a batch, and tell recordings of this process of each fault in it.

    A fault's event lasts as long as its batch: faults are evaluated together.
    """
    started = time.perf_counter_ns()
    results: pd.DataFrame = engine.evaluate(batch)
    if marks.recording():
        took = time.perf_counter_ns() - started
        told = batch[["fault", "layer", "call", "role", "sample", "element", "bit"]]
        for args in told.assign(outcome=results["outcome"].to_numpy()).to_dict("records"):
            name = f"{args['layer']}:{args['role']}"
            marks.emit("fault", name, started, took, {str(k): v for k, v in args.items()})
    return results


def _pickled(job: Job) -> bytes:
    try:
        # Models of a notebook are classes of __main__, which pickle can't send.
        dumps = import_module("cloudpickle").dumps
    except ImportError:
        dumps = pickle.dumps
    try:
        payload: bytes = dumps(job)
    except Exception as error:  # noqa: BLE001 - whatever the model's parts raise
        raise CampaignError(
            f"the model, data, metric or error model can't be sent to workers ({error}); define"
            " them in a module, or run without an executor"
        ) from None
    return payload


@contextmanager
def _reachable(executor: Any, payload: bytes) -> Iterator[tuple[Executor, Any]]:
    if isinstance(executor, Executor):
        with tempfile.TemporaryDirectory(prefix="pystack_nb-campaign-") as folder:
            path = Path(folder) / "job"
            path.write_bytes(payload)
            yield executor, str(path)
    elif hasattr(executor, "get_executor"):
        # A task, not scattered data: the scheduler makes it again when its workers die.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a model is large
            held = executor.submit(_hold, payload, pure=False)
        yield executor.get_executor(pure=False), held
    else:
        raise CampaignError(
            f"{type(executor).__name__} runs no batches; pass a concurrent.futures pool or a"
            " dask.distributed Client"
        )


def _hold(payload: bytes) -> bytes:
    return payload
