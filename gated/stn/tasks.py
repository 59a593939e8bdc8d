"""What the study tunes: signals, pictures with holes, and characters, each with its network and its ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gated.stn.hyperparameters import Hyperparameter
from gated.stn.selftune import cutout, input_noise

Setting = Mapping[str, float | int]
Data = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """Examples, a network, and what is to be tuned."""

    pool: Data
    rows: Callable[[int], tuple[Tensor, Tensor, Tensor]]
    """seed -> training, validation and test rows of the pool."""
    body: Callable[[int], nn.Module]
    """width -> a network with dropouts."""
    width: int
    hyper: tuple[Hyperparameter, ...]
    rates: dict[str, str]
    augment: Callable[..., Tensor] | None
    batch: int = 32


def mlp(inputs: int, width: int, classes: int) -> nn.Sequential:
    """Three linear layers, with a dropout before each."""
    sizes = [inputs, width, width, classes]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Dropout(), nn.Linear(a, b)]
    return nn.Sequential(*layers)


def signals(pool: Data, test: Data, only: Sequence[str] = (), *, train: int = 1000, valid: int = 800) -> Task:
    """One-dimensional signals: 40-128-128-10 and five hyperparameters, or `only` some of them.

    Few examples to train on, so that the network overfits within 800 steps and has something to tune.
    """
    x, _ = pool
    both = torch.cat([x, test[0]]), torch.cat([pool[1], test[1]])

    def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return order[:train], order[train : train + valid], torch.arange(len(x), len(both[0]))

    hyper = [Hyperparameter(name, 0, 0.9, 0.05) for name in ("input", "first", "second")]
    hyper += [Hyperparameter("noise", 0, 1, 0.05), Hyperparameter("decay", 1e-6, 0.1, 1e-5, scale="log")]
    kept = tuple(h for h in hyper if not only or h.name in only)
    rates = {"0": "input", "3": "first", "6": "second"}
    chosen = {place: name for place, name in rates.items() if name in {h.name for h in kept}}
    body = lambda width: _without(mlp(x.shape[1], width, 10), set(rates) - set(chosen))  # noqa: E731
    noisy = lambda x, values, g: input_noise(x, values["noise"], g)  # noqa: E731
    return Task(both, rows, body, 128, kept, chosen, noisy)


def holes(pool: Data, test: Data) -> Task:
    """The signals, with two whole numbers to tune: how many holes (0 to 3) and how long (0 to 12)."""
    plain = signals(pool, test)
    hyper = (Hyperparameter("holes", 0, 4, 1, kind="discrete"), Hyperparameter("length", 0, 13, 3, kind="discrete"))
    cut = lambda x, values, g: cutout(x, values["holes"], values["length"], g, most=3)  # noqa: E731
    body = lambda width: _without(mlp(pool[0].shape[1], width, 10), {"0", "3", "6"})  # noqa: E731
    return plain._replace(hyper=hyper, rates={}, augment=cut, body=body)


class Windows(nn.Module):
    """Embeds 12 characters and lays them side by side."""

    def __init__(self, symbols: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x.long()).flatten(1)


def characters(tokens: Tensor, symbols: int, *, part: int = 6_000, span: int = 12, block: int = 500) -> Task:
    """The next character from 12: an embedding, 192-128-128-symbols, and four hyperparameters.

    Seed s has the s-th stretch of 3 `part` characters, cut into blocks that are dealt to training, validation and test,
    so that the three are alike.
    """
    stretches, blocks = len(tokens) // (3 * part), 3 * part // block

    def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)) * block
        starts = order + seed % stretches * 3 * part
        train, valid, test = (starts[:, None] + torch.arange(block - span)).chunk(3)
        return train.flatten(), valid.flatten(), test.flatten()

    hyper = tuple(Hyperparameter(name, 0, 0.9, 0.05) for name in ("input", "first", "second"))
    hyper += (Hyperparameter("decay", 1e-6, 0.1, 1e-5, scale="log"),)
    body = lambda width: nn.Sequential(Windows(symbols, 16), *mlp(16 * span, width, symbols))  # noqa: E731
    rates = {"1": "input", "4": "first", "7": "second"}
    pool = tokens.unfold(0, span, 1)[:-1], tokens[span:].long()
    return Task(pool, rows, body, 128, hyper, rates, None)


def _without(net: nn.Sequential, dropouts: set[str]) -> nn.Sequential:
    for name in dropouts:
        net[int(name)] = nn.Identity()
    return net
