"""Shards against the plain loop, with workers and drivers that are killed and files that are spoilt."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from gated.lab import shards

pytestmark = pytest.mark.processes


def moments(seed, size):
    """Sums whose last digits depend on the order of summation, and values that JSON finds hard."""
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {"sums": x.cumsum(0)[-3:], "mean": x.mean(), "third": 1 / 3, "huge": 1e300, 7: [math.inf, None]}


JOBS = {f"seed-{seed}": {"seed": seed, "size": 100_000 + seed} for seed in range(5)}


def exactly(results):
    return json.dumps(results)  # floats are written so that reading gives the same bits


@pytest.fixture(scope="module")
def client():
    with shards.local_client(2) as client:
        yield client


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return shards.run(moments, JOBS, tmp_path_factory.mktemp("alone"))


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def dead(pid):
    """Gone, or a zombie that nobody has reaped yet."""
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_the_loop_gives_what_the_function_returns(alone):
    assert list(alone) == list(JOBS)
    for name, arguments in JOBS.items():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        expected = moments(**arguments)
        torch.set_num_threads(threads)
        assert alone[name]["sums"] == expected["sums"].tolist() and alone[name]["mean"] == expected["mean"].item()
        assert alone[name]["third"] == 1 / 3 and alone[name]["7"] == [math.inf, None]


def test_order_and_a_cluster_change_nothing(client, alone, tmp_path):
    backwards = dict(reversed(JOBS.items()))
    assert exactly(shards.run(moments, backwards, tmp_path / "a", client=client)) == exactly(
        dict(reversed(alone.items()))
    )
    assert shards.run(moments, {}, tmp_path / "b", client=client) == {}
    more = torch.get_num_threads() + 1
    torch.set_num_threads(more)
    try:
        assert exactly(shards.run(moments, JOBS, tmp_path / "c")) == exactly(alone)
        assert torch.get_num_threads() == more
    finally:
        torch.set_num_threads(more - 1)


def test_finished_shards_are_read_and_not_run_again(tmp_path):
    calls = []

    def square(x):
        calls.append(x)
        return {"x": x, "square": x * x}

    some = {name: {"x": x} for name, x in {"a": 0.1, "b": 2.0}.items()}
    first = shards.run(square, some, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    more = {**some, "c": {"x": 3.0}}
    again = shards.run(square, more, tmp_path)
    assert calls == [0.1, 2.0, 3.0] and {k: again[k] for k in some} == first and again["c"]["square"] == 9
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "c.json"]


def test_another_job_is_never_taken_for_a_finished_one(tmp_path):
    calls = []

    def square(x):
        calls.append(("square", x))
        return x * x

    def cube(x):
        calls.append(("cube", x))
        return x * x * x

    assert shards.run(square, {"a": {"x": 2}}, tmp_path) == {"a": 4}
    assert shards.run(square, {"a": {"x": 3}}, tmp_path) == {"a": 9}
    assert shards.run(cube, {"a": {"x": 3}}, tmp_path) == {"a": 27}
    assert shards.run(cube, {"a": {"x": 3}}, tmp_path, version=2) == {"a": 27}
    assert shards.run(cube, {"a": {"x": 3}}, tmp_path, version=2) == {"a": 27}
    assert calls == [("square", 2), ("square", 3), ("cube", 3), ("cube", 3)]


def test_a_spoilt_file_is_made_again(tmp_path):
    calls = []

    def square(x):
        calls.append(x)
        return x * x

    job, path = {"a": {"x": 12}}, tmp_path / "a.json"
    shards.run(square, job, tmp_path)
    good = path.read_text()
    spoilt = [good[: len(good) // 2], "", "[]", "7", good.replace("144", "145"), good.replace('"result"', '"other"')]
    for text in spoilt:
        calls.clear()
        path.write_text(text)
        assert shards.run(square, job, tmp_path) == {"a": 144} and calls == [12]
        assert path.read_text() == good
    path.write_bytes(b"\xff\xfe\x00")
    (tmp_path / ".a.partial").write_text("{")  # what a driver leaves that is killed while it writes
    assert shards.run(square, job, tmp_path) == {"a": 144}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == good


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_failure_names_its_shard_and_keeps_the_others(where, request, tmp_path):
    client = request.getfixturevalue("client") if where == "there" else None

    def inverse(x):
        return 1 / x

    jobs = {"good": {"x": 2}, "bad": {"x": 0}}
    with pytest.raises(RuntimeError, match=r"'bad' failed \(ZeroDivisionError.*[01] of 2 shards") as caught:
        shards.run(inverse, jobs, tmp_path, client=client)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    jobs["bad"] = {"x": 4}
    assert shards.run(inverse, jobs, tmp_path, client=client) == {"good": 0.5, "bad": 0.25}


def test_a_killed_worker_costs_nothing(client, alone, tmp_path):
    mark = str(tmp_path / "pid")

    def once_deadly(name, seed, size, mark=mark, compute=moments):
        if name == "seed-2" and not os.path.exists(mark):
            with open(mark, "w") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(seed, size)

    jobs = {name: {"name": name, **arguments} for name, arguments in JOBS.items()}
    before = set(client.run(os.getpid).values())
    assert exactly(shards.run(once_deadly, jobs, tmp_path / "out", client=client)) == exactly(alone)
    with open(mark) as file:
        assert int(file.read()) in before
    wait(lambda: len(client.run(os.getpid)) == 2)


def test_a_shard_that_kills_every_worker_is_named(tmp_path, monkeypatch):
    import dask

    def deadly():
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shards, "RETRIES", 1)
    few = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    named = pytest.raises(RuntimeError, match=r"'a' failed .its worker died each time")
    with few, shards.local_client(1) as client, named:
        shards.run(deadly, {"a": {}}, tmp_path, client=client)


WORK = """
    import os, sys, time
    import torch
    from gated.lab import shards

    def work(seed, folder):
        open(os.path.join(folder, f"{seed}-{os.getpid()}.started"), "w").close()
        while seed >= 3 and not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.02)
        return torch.randn(50_000, generator=torch.Generator().manual_seed(seed)).sum()

    if __name__ == "__main__":
        import work
        jobs = {f"s{seed}": {"seed": seed, "folder": sys.argv[1]} for seed in range(6)}
        with shards.local_client(2) as client:
            out = shards.run(work.work, jobs, sys.argv[2], client=client)
        print(list(out.values()))
"""


def test_a_killed_driver_goes_on_where_it_was(tmp_path):
    (tmp_path / "work.py").write_text(textwrap.dedent(WORK))
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    command = [sys.executable, "work.py", str(marks), str(out)]
    driver = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: len(list(out.glob("*.json"))) == 3 and len(list(marks.glob("[345]-*"))) >= 2)
    finally:
        driver.kill()
        driver.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert sorted(path.stem for path in finished) == ["s0", "s1", "s2"]
    workers = {path.stem.split("-")[1] for path in marks.glob("*.started")}
    if sys.platform == "linux":
        wait(lambda: all(map(dead, workers)))  # its workers go with it
    (marks / "go").touch()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    expected = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in range(6):
        expected.append(torch.randn(50_000, generator=torch.Generator().manual_seed(seed)).sum().item())
    torch.set_num_threads(threads)
    assert json.loads(done.stdout) == expected
    assert all(len(list(marks.glob(f"{seed}-*"))) == 1 for seed in range(3))


def test_the_local_cluster_is_one_thread_a_worker_and_serves_no_pages(client):
    assert set(client.nthreads().values()) == {1} and len(client.nthreads()) == 2
    assert all(address.startswith("tcp://127.0.0.1") for address in client.nthreads())
    assert client.scheduler_info()["services"]["dashboard"] != 8787  # its HTTP server: never on the usual port
