"""Long studies in shards: each is computed once, lies in a file of its own, and may run on any machine.

A run that was stopped, however rudely, is called again with the same jobs: it reads the finished shards and computes
the others. A shard computes on one thread, since sums over several are rounded in another order; so a loop in this
process and a cluster of equal processors give the same numbers to the last digit.

Example:
    >>> import statistics, tempfile
    >>> from gated.lab.shards import run
    >>> jobs = {f"to-{n}": {"data": list(range(n))} for n in (5, 9)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run(statistics.mean, jobs, folder)  # client=local_client(), or Client("tcp://scheduler:8786"), to share it
    {'to-5': 2, 'to-9': 4}
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gated.lab.train import bar

if TYPE_CHECKING:
    from distributed import Client

Jobs = Mapping[str, Mapping[str, Any]]
Texts = Iterator[tuple[str, str]]
# No dashboard. The scheduler's HTTP server cannot be left out, so it takes any free port, not the usual one, on
# which another cluster may sit. And a worker that is replaced is no news: what fails is raised.
_QUIET: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
    "silence_logs": logging.CRITICAL,
}
# Dask tells its workers' allocator to give memory back to the system at once. Tensors of some 100 kB then come as fresh
# pages each time, which took more than half of a shard's time; these are the limits that other processes come to.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": 2**26, "MALLOC_MMAP_THRESHOLD_": 2**25}
RETRIES = 3  # how often a shard is sent again after the scheduler has given it up with its dead workers


def run(
    function: Callable[..., Any],
    jobs: Jobs,
    folder: str | Path,
    *,
    client: Client | None = None,
    version: int | str = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """`{name: function(**arguments)}` for the jobs `{name: arguments}`, in the jobs' order, kept in `folder`.

    Each result is written to `folder/<name>.json` when it arrives, beside the function's name, the version and the
    arguments that made it. A file is believed only if all of these are the ones asked for and its digest is right;
    else its shard is computed again. A file appears by renaming, so it is whole or not there. Only the calling process
    writes: workers need not share a file system with it. One process at a time may use a folder.

    Args:
        function: of a module that the workers can import, or of a notebook. Returns what JSON can hold (tensors and
            arrays become lists). Its result must depend on its arguments only.
        jobs: by name, the keyword arguments, which JSON can hold too. A cluster starts them in this order: long ones
            first, and no worker idles at the end.
        folder: is made if it is not there.
        client: None computes one shard after the other in this process. A Dask client sends them to its workers; a
            shard whose worker dies goes to another.
        version: change it when `function` comes to mean something else; what older versions left is computed again.
        progress: whether to show a bar where somebody watches.

    Returns:
        The results as they come back from their files, whether they were computed now or earlier.

    Raises:
        ValueError: a name that cannot be a file's, arguments or a function that a file cannot name, a client that is
            none.
        RuntimeError: a shard failed. It is named, and the cause is attached. What finished stays.
    """
    folder, label = Path(folder), _label(function)
    if client is not None and not (hasattr(client, "submit") and hasattr(client, "cancel")):
        raise ValueError(f"client must be None or a Dask client (distributed.Client); got {type(client).__name__}")
    wanted = {name: {"function": label, "version": version, "arguments": _plain(name, jobs[name])} for name in jobs}
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: text for name in jobs if (text := _read(folder, name, wanted[name])) is not None}
    missing = {name: jobs[name] for name in jobs if name not in found}
    computed = _here(function, missing) if client is None else _there(function, missing, client)
    try:
        for _, (name, text) in zip(bar(list(missing), "shards", progress), computed, strict=True):
            _write(folder, name, wanted[name], text)
            found[name] = text
    except _ShardError as error:
        raise RuntimeError(
            f"shard {error.args[0]!r} failed ({error.args[1]}); {len(found)} of {len(jobs)} shards are finished in "
            f"{folder}, and the same call goes on from there"
        ) from error.__cause__
    return {name: json.loads(found[name]) for name in jobs}


@contextmanager
def local_client(workers: int | None = None) -> Iterator[Client]:
    """A Dask client with workers on this machine: one process a core, one thread each, no dashboard.

    A script that opens one must do so under `if __name__ == "__main__":`, because the workers import it.

    Raises:
        ValueError: workers below 1.
    """
    import dask
    from dask.system import CPU_COUNT  # what this process may use, which in a container is less than the machine has
    from distributed import Client, LocalCluster

    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, or None for one a core; got {workers}")
    with dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": n for name, n in _ALLOCATOR.items()}):
        cluster = LocalCluster(n_workers=workers or CPU_COUNT, threads_per_worker=1, **_QUIET)
        with cluster, Client(cluster) as client:
            yield client


# One shard ----------------------------------------------------------------------------------------------------------


class _ShardError(Exception):
    """(name, what happened); the cause is chained."""


def _compute(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The result as JSON text, computed on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _text(function(**arguments))
    finally:
        torch.set_num_threads(threads)


def _here(function: Callable[..., Any], jobs: Jobs) -> Texts:
    for name, arguments in jobs.items():
        try:
            text = _compute(function, arguments)
        except Exception as error:
            raise _ShardError(name, f"{type(error).__name__}: {error}") from error
        yield name, text


def _there(function: Callable[..., Any], jobs: Jobs, client: Client) -> Texts:
    if not jobs:
        return
    from distributed import KilledWorker, as_completed

    def send(name: str) -> Any:
        # The key is of this run: results live in files, not in the scheduler's memory of an earlier run.
        key = f"{name}-{run_key}-{tries[name]}"
        return client.submit(_compute, function, jobs[name], key=key, pure=False, priority=-place[name])

    run_key, tries = os.urandom(4).hex(), Counter[str]()
    place = {name: i for i, name in enumerate(jobs)}
    waiting = {send(name): name for name in jobs}
    arriving = as_completed(list(waiting))
    try:
        for future in arriving:
            name = waiting.pop(future)
            try:
                text = future.result()
            except KilledWorker as error:
                # Its worker died again and again, perhaps for its neighbours' sake: it gets some more chances.
                tries[name] += 1
                if tries[name] > RETRIES:
                    raise _ShardError(name, "its worker died each time: is there enough memory?") from error
                again = send(name)
                waiting[again] = name
                arriving.add(again)
                continue
            except Exception as error:
                raise _ShardError(name, f"{type(error).__name__}: {error}") from error
            yield name, text
    finally:
        client.cancel(list(waiting))


# One file -----------------------------------------------------------------------------------------------------------


def _read(folder: Path, name: str, job: dict[str, Any]) -> str | None:
    """The result's text, or None where it is not there, not whole, or another job's."""
    try:
        entry = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        text = json.dumps(entry["result"])
        return text if entry["job"] == job and entry["digest"] == _digest(text) else None
    except (OSError, ValueError, KeyError, TypeError):  # ValueError: neither text nor JSON
        return None


def _write(folder: Path, name: str, job: dict[str, Any], text: str) -> None:
    partial = folder / f".{name}.partial"
    partial.write_text(
        f'{{"job": {json.dumps(job)}, "digest": "{_digest(text)}", "result": {text}}}\n', encoding="utf-8"
    )
    partial.replace(folder / f"{name}.json")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    def convert(x: Any) -> Any:
        if hasattr(x, "tolist"):
            return x.tolist()
        if isinstance(x, Mapping):
            return dict(x)
        raise TypeError(f"JSON cannot hold a {type(x).__name__}")

    return json.dumps(json.loads(json.dumps(value, default=convert)))  # keys are texts now, as after reading


def _plain(name: str, arguments: Mapping[str, Any]) -> Any:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", name):
        raise ValueError(f"jobs: a name must be a file's name of letters, digits and _.+=-; got {name!r}")
    try:
        return json.loads(_text(dict(arguments)))
    except TypeError as error:
        raise ValueError(f"jobs: the arguments of {name!r} must be what JSON can hold; {error}") from None


def _label(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None)
    if name is None or "<lambda>" in name:
        raise ValueError(f"function must have a name, by which its files are known again; got {function!r}")
    return f"{function.__module__}.{name}"
