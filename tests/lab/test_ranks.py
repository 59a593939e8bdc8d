"""Processes from one: what they print comes back, and a failure comes back with what was said."""

import sys
import time

import pytest

from gated.lab.ranks import joined, launch

pytestmark = pytest.mark.clock


def all_reduce():
    import torch
    import torch.distributed as dist

    total = torch.tensor(10.0 ** dist.get_rank())
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}, {torch.get_num_threads()} thread, {total.item():g}")


def test_ranks_meet_and_each_one_is_heard():
    said = launch([__file__, "all_reduce"], 3)
    assert said == [f"rank {rank} of 3, 1 thread, 111\n" for rank in range(3)]


def test_a_failing_rank_is_reported():
    """`launch` hands on what a rank said, and stops the others."""
    with pytest.raises(RuntimeError, match=r"(?s)rank 1: 1\n.*no such function"):
        launch(["-c", "import os, sys, time; os.environ['RANK'] == '1' and sys.exit('no such function'); print(1)"], 2)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"not done after 1 s"):
        launch(["-c", "import time; time.sleep(60)"], 2, seconds=1)
    assert time.monotonic() - start < 10


if __name__ == "__main__":
    with joined():
        globals()[sys.argv[1]]()
