"""Several processes from one: ranks for notebooks and tests, whose functions another process could not import.

`launch(["worker.py", ...], ranks=2)` runs one Python process a rank on this machine and returns what each printed;
`with joined(): ...` is the process group in each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist


def launch(arguments: Sequence[str], ranks: int, seconds: float | int = 120) -> list[str]:
    """Start `python *arguments` once a rank, each on one thread, and return what each printed.

    Raises:
        RuntimeError: a rank failed, or they took longer than `seconds`; with what the ranks said. None is left running.
    """
    with tempfile.TemporaryDirectory() as folder:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        place = {"WORLD_SIZE": str(ranks), "GATED_STORE": (Path(folder) / "store").as_uri(), **one_thread}
        end, running = time.monotonic() + seconds, []
        for rank in range(ranks):
            with open(Path(folder, f"out{rank}"), "w") as out, open(Path(folder, f"error{rank}"), "w") as error:
                environment = os.environ | place | {"RANK": str(rank)}
                command = [sys.executable, *arguments]
                running.append(subprocess.Popen(command, env=environment, stdout=out, stderr=error))
        failed = {}
        for rank, process in enumerate(running):
            try:
                if code := process.wait(max(0, end - time.monotonic())):
                    failed[rank] = f"rank {rank}: {code}"
            except subprocess.TimeoutExpired:
                failed[rank] = f"rank {rank}: not done after {seconds} s"
        for process in running:
            process.kill()
            process.wait()
        if failed:
            said = [f"{text}\n{Path(folder, f'error{rank}').read_text()}" for rank, text in failed.items()]
            raise RuntimeError("\n".join([f"{ranks} ranks of {' '.join(arguments)}", *said]))
        return [Path(folder, f"out{rank}").read_text() for rank in range(ranks)]


@contextmanager
def joined(seconds: float | int = 60) -> Iterator[None]:
    """Be a rank of those that `launch` started: a process group over gloo, on CPUs."""
    dist.init_process_group(
        "gloo",
        init_method=os.environ["GATED_STORE"],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=seconds),
    )
    yield
    dist.destroy_process_group()
