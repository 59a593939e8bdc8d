"""Bad input to the shards: a ValueError that names the argument (run without run-time type checks)."""

import functools

import pytest

from gated.lab import shards


def identity(x):
    return x


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "a\n"])
def test_a_name_must_be_a_files(name, tmp_path):
    with pytest.raises(ValueError, match="jobs: a name"):
        shards.run(identity, {name: {"x": 1}}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j])
def test_arguments_must_fit_json(value, tmp_path):
    with pytest.raises(ValueError, match=r"jobs: the arguments of 'a'.*JSON"):
        shards.run(identity, {"a": {"x": value}}, tmp_path)


@pytest.mark.parametrize("function", [lambda x: x, functools.partial(identity, x=1)])
def test_a_function_must_have_a_name(function, tmp_path):
    with pytest.raises(ValueError, match="function must have a name"):
        shards.run(function, {"a": {"x": 1}}, tmp_path)


def test_a_client_must_be_one(tmp_path):
    with pytest.raises(ValueError, match=r"client must be None or a Dask client.*got str"):
        shards.run(identity, {"a": {"x": 1}}, tmp_path, client="tcp://127.0.0.1:8786")


@pytest.mark.parametrize("workers", [0, -1])
def test_a_cluster_needs_a_worker(workers):
    with pytest.raises(ValueError, match="workers"), shards.local_client(workers):
        pass


def test_a_result_must_fit_json(tmp_path):
    def unfit():
        return object()

    with pytest.raises(RuntimeError, match=r"'a' failed .TypeError: JSON cannot hold a object"):
        shards.run(unfit, {"a": {}}, tmp_path)
    assert not list(tmp_path.iterdir())
