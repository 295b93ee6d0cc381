"""Batches of faults on other threads, processes and machines.

A worker gets the model once, and keeps its own copy: evaluating patches weights in place, which
two threads can't do to one model.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import threading
import time
import warnings

from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from pystack_nb import marks
from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator


_WINDOW = 64  # batches handed out and not yet back
_STALLED = 3  # pools that break one after the other, and finish nothing
_TRIES = 2  # of a fault that kills its process: something else may have done so
_HOPELESS = 4  # faults that do, before anything is finished
_TRIAL_SECONDS = 0.06  # tell how long the rest takes
_TRIAL_FIRST = 4  # faults that are tried together, after the first one alone
_LOOK, _NO_WORKERS = 5.0, 60.0  # seconds: how often workers are looked for, and how long
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
    executor: Any,
    job: Job,
    batches: Iterable[pd.DataFrame],
    *,
    own: Any = None,
    trial: bool = False,
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
    trial : bool, optional
        Run as many of each batch as tell how long the others take, see `tried`.

    Yields
    ------
    pandas.DataFrame
        What the engine gives for a batch, in whatever order batches end.

    Raises
    ------
    CampaignError
        The executor is none, the job can't be sent, pools broke again and again whatever
        they were given, or Dask has no workers any more.

    Warns
    -----
    RuntimeWarning
        A pool of processes broke, and its unfinished batches are run in a new one; Dask gave
        batches up whose workers died more often than its ``allowed-failures``, and they are
        run again; or a fault killed its process by itself, and is a ``DUE``.
    """
    if executor is None:
        engine = job.make() if own is None else own
        for batch in batches:
            yield tried(engine, batch) if trial else evaluated(engine, batch)
        return
    payload = _pickled(job)
    # The same job has the same name, so that workers keep its engine.
    token = hashlib.sha256(payload).hexdigest()
    with _reachable(executor, payload) as (pool, where):
        yield from _each(batches, pool, (work_trial if trial else work, token, where))


def _each(
    batches: Iterable[pd.DataFrame], pool: Any, task: tuple[Any, ...]
) -> Iterator[pd.DataFrame]:
    """Give results as they come; what a broken pool did not finish comes last, one at a time."""
    rest, suspects, finished, stalled = iter(batches), list[Any](), 0, 0
    with ExitStack() as pools:
        while True:
            lost: list[pd.DataFrame] = []
            before = finished
            for result in _until_broken(rest, pool, task, lost):
                finished += 1
                yield result
            if not lost:
                break
            suspects += lost
            stalled = 0 if finished > before else stalled + 1
            pool = _renewed(pool, len(lost), stalled, pools)
    if suspects:
        yield from _one_by_one(suspects, pool, task, finished=finished > 0)


def _one_by_one(
    suspects: list[pd.DataFrame], pool: Executor, task: tuple[Any, ...], *, finished: bool
) -> Iterator[pd.DataFrame]:
    """Run batches among which some fault may kill its process, each alone.

    What kills is halved, until it is a single fault that does so twice: it is a `DUE`.
    """
    held: list[pd.DataFrame] = []  # believed when something else can be finished
    left = suspects[::-1]
    deaths = 0
    with _Alone(pool, task) as alone:
        while left:
            batch = left.pop()
            result = alone.run(batch)
            if not isinstance(result, int):
                yield from map(_crashed, held)
                held, finished, deaths = [], True, 0
                yield result
                continue
            if len(batch) > 1:
                middle = len(batch) // 2
                halves = batch.iloc[middle:], batch.iloc[:middle]
                left += [x.reset_index(drop=True) for x in halves]
                continue
            deaths += result
            if deaths < _TRIES:
                left.append(batch)
            else:
                deaths = 0
                held.append(batch)
            if finished:
                yield from map(_crashed, held)
                held = []
            elif len(held) >= _HOPELESS:
                raise _died(pool, again=True)
        # All that was there were crashes, and fewer than what makes one doubt.
        yield from map(_crashed, held)


class _Alone:
    """Runs a batch at a time: in a pool of one process, or on Dask's workers, which come again."""

    def __init__(self, pool: Executor, task: tuple[Any, ...]) -> None:
        self._pool, self._task = pool, task
        self._own: Executor | None = None

    def __enter__(self) -> Self:
        self._own = None if _is_dask(self._pool) else _alike(self._pool, 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._own.shutdown()

    def run(self, batch: pd.DataFrame) -> pd.DataFrame | int:
        """Give the results of a batch, or how many processes died of it."""
        evaluate, token, where = self._task
        pool = self._pool if self._own is None else self._own
        self._make_ready(pool, token, where)
        try:
            result: pd.DataFrame = _result(pool, evaluate, token, where, batch)
        except Exception as error:
            deaths = _deaths(error)
            if not deaths:
                raise
        else:
            return result
        self.__exit__()
        self.__enter__()
        return deaths

    def _make_ready(self, pool: Executor, token: str, where: Any) -> None:
        """Let a worker make its engine: where this breaks, no fault is to blame."""
        for again in range(_TRIES, -1, -1):
            try:
                _result(pool, ready, token, where)
            except Exception as error:
                if not _deaths(error):
                    raise
                if not again or not _is_dask(pool):
                    raise _died(self._pool, again=True) from None
                # A worker that was about to die may have held the job.
                where.retry()
            else:
                return


def _crashed(fault: pd.DataFrame) -> pd.DataFrame:
    """Give the outcome of a fault that kills its process."""
    row = fault.iloc[0]
    warnings.warn(
        f"fault {row['fault']} ({row['layer']}:{row['role']}, element {row['element']} of sample"
        f" {row['sample']}) kills the process that evaluates it, and counts as a DUE",
        RuntimeWarning,
        stacklevel=2,
    )
    nothing = dict.fromkeys(("before", "after", "score"), np.nan)
    return fault[["fault"]].assign(outcome="DUE", **nothing).reset_index(drop=True)


def _until_broken(
    batches: Iterator[pd.DataFrame],
    pool: Any,
    task: tuple[Any, ...],
    lost: list[pd.DataFrame],
) -> Iterator[pd.DataFrame]:
    pending: dict[Future[pd.DataFrame], pd.DataFrame] = {}
    batch: pd.DataFrame | None = None
    killed = 0
    try:
        while killed < _HOPELESS:
            for batch in islice(batches, _WINDOW - len(pending)):
                pending[pool.submit(*task, batch)] = batch
            batch = None
            if not pending:
                return
            for future in _first_done(pending, pool):
                if _given_up(pool, future):
                    # Dask goes on with all others.
                    lost.append(pending.pop(future))
                    killed += 1
                    continue
                result = future.result()
                del pending[future]
                killed = 0
                yield result
        lost += pending.values()
    except BrokenExecutor:
        # The pool fails all that it has not finished.
        wait(pending)
        for future, its in pending.items():
            if future.exception() is None:
                yield future.result()
            else:
                lost.append(its)
        pending.clear()
        lost += [] if batch is None else [batch]
    finally:
        for future in pending:
            future.cancel()


def work(token: str, where: str | bytes, batch: pd.DataFrame) -> pd.DataFrame:
    """Evaluate a batch on a worker, with the engine that its thread keeps.

    Parameters
    ----------
    token : str
        Names the job.
    where : str or bytes
        The pickled job, or the file that it is in.
    batch : pandas.DataFrame
        Rows of `Plan.faults`.
    """
    ready(token, where)
    return evaluated(_local.engine, batch)


def work_trial(token: str, where: str | bytes, batch: pd.DataFrame) -> pd.DataFrame:
    """Do as `work`, as far as `tried` goes."""
    ready(token, where)
    return tried(_local.engine, batch)


def tried(engine: Any, batch: pd.DataFrame) -> pd.DataFrame:
    """Evaluate faults, more and more at a time, until they tell how long others take.

    Returns
    -------
    pandas.DataFrame
        Results, of the first ones of the batch.  ``attrs`` has ``seconds``, what all of them
        took, and ``seconds_each``, what a fault took among the last ones.
    """
    parts: list[pd.DataFrame] = []
    at, count, seconds = 0, 1, 0.0
    while at < len(batch):
        some = batch.iloc[at : at + count].reset_index(drop=True)
        started = time.perf_counter()
        parts.append(evaluated(engine, some))
        taken = time.perf_counter() - started
        at, seconds = at + len(some), seconds + taken
        # The first one also traces the model and finds the quickest batch.
        if at > 1 and taken > _TRIAL_SECONDS:
            break
        count = 8 * count if at > 1 else _TRIAL_FIRST
    found = pd.concat(parts, ignore_index=True)
    found.attrs |= {"seconds": seconds, "seconds_each": taken / len(some)}
    return found


def ready(token: str, where: str | bytes) -> None:
    """Make the engine of a job on a worker's thread, where it is not there yet."""
    if getattr(_local, "token", None) != token:
        payload = Path(where).read_bytes() if isinstance(where, str) else where
        _local.engine = pickle.loads(payload).make()  # noqa: S301 - the campaign's own
        _local.token = token


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


def _is_dask(pool: Executor) -> bool:
    return type(pool).__name__ == "ClientExecutor"


def _first_done(futures: Collection[Future[Any]], pool: Executor) -> set[Future[Any]]:
    """Wait for some futures: not for ever, where Dask has no worker that could finish one."""
    away = 0.0
    while not (
        done := wait(futures, _LOOK if _is_dask(pool) else None, return_when=FIRST_COMPLETED).done
    ):
        workers = vars(pool)["_client"].scheduler_info()["workers"]
        away = 0.0 if workers else away + _LOOK
        if away >= _NO_WORKERS:
            raise CampaignError(
                f"Dask has had no worker for {away:.0f} s: faults may have killed them all; start"
                " others, with dask's distributed.deploy.lost-worker-timeout at some minutes, and"
                " run the campaign again: finished batches are kept"
            )
    return done


def _result(pool: Executor, task: Callable[..., Any], *args: Any) -> Any:
    future = pool.submit(task, *args)
    _first_done([future], pool)
    return future.result()


def _given_up(pool: Executor, future: Future[pd.DataFrame]) -> bool:
    """Tell whether Dask, and not the pool with all that is in it, has given a batch up."""
    error = future.exception() if _is_dask(pool) else None
    return error is not None and _deaths(error) > 0


def _deaths(error: BaseException) -> int:
    """Tell how many processes died of what ended in this error."""
    if isinstance(error, BrokenExecutor):
        return 1
    if type(error).__name__ == "KilledWorker":  # of Dask, which tries some times by itself
        return 1 + int(error.args[2])
    return 0


def _renewed(pool: Executor, lost: int, stalled: int, pools: ExitStack) -> Executor:
    """Make a pool like one that broke, or give that of Dask, which has new workers."""
    if _is_dask(pool) and stalled < _STALLED:
        warnings.warn(
            f"workers of Dask died again and again: {lost} unfinished batches are run at the end,"
            " one by one",
            RuntimeWarning,
            stacklevel=2,
        )
        return pool
    if type(pool) is not ProcessPoolExecutor or stalled >= _STALLED:
        raise _died(pool, again=stalled > 0)
    workers = vars(pool)["_max_workers"]
    warnings.warn(
        f"a worker of the ProcessPoolExecutor died, and the pool with it: a new one of {workers}"
        f" processes goes on, and the {lost} unfinished batches are run at the end, one by one",
        RuntimeWarning,
        stacklevel=2,
    )
    return pools.enter_context(_alike(pool, workers))


def _alike(pool: Executor, workers: int) -> Executor:
    held = vars(pool)  # what it was made with, which it tells nobody
    return ProcessPoolExecutor(
        workers,
        mp_context=held["_mp_context"],
        initializer=held["_initializer"],
        initargs=held["_initargs"],
        max_tasks_per_child=held["_max_tasks_per_child"],
    )


def _died(pool: Executor, *, again: bool) -> CampaignError:
    if _is_dask(pool):
        return CampaignError(
            "workers of Dask died again and again; give them more memory, or pass a smaller"
            " batch_size, and run the campaign again: finished batches are kept"
        )
    return CampaignError(
        f"a worker of the {type(pool).__name__} died, and the pool with it"
        f"{', again and again' if again else ''}; give workers more memory, or pass a"
        " smaller batch_size, and run the campaign again with a new pool: finished batches"
        " are kept"
    )


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
