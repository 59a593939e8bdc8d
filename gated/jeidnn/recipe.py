"""How the study grows a network, freezes it, and teaches its exits and gates."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gated.jeidnn.network import ExitNetwork, Features
from gated.jeidnn.training import PhaseLoss, alternate, warm_up

BATCH, RATE = 125, 0.3  # of heads and gates; 20 batches an epoch, turns of 10
TURNS = 12  # epochs of heads, and as many of gates


class Parts(NamedTuple):
    """Samples (x, y) that no other part has."""

    train: tuple[Tensor, Tensor]
    gates: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def divide(x: Tensor, y: Tensor, seed: int) -> Parts:
    """Shuffled and cut 50 : 15 : 15 : 20."""
    n = len(y)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    sizes = [n // 2, 3 * n // 20, 3 * n // 20]
    return Parts(*((x[i], y[i]) for i in order.split([*sizes, n - sum(sizes)])))


def pooled(z: Tensor) -> Tensor:
    """What the exits read: the mean over pixels, normalised, so that the heads of all depths learn at one rate."""
    z = z.mean((2, 3)) if z.ndim == 4 else z
    return F.layer_norm(z, z.shape[1:])


def learn(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], part: Any, epochs: int, seed: int) -> None:
    """AdamW at 3e-3, one cycle, batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=0.01)
    x, y = part
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs * -(-len(x) // 64))
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            loss(x[rows], y[rows]).backward()
            optimiser.step()
            schedule.step()
    module.eval()


class Grown(NamedTuple):
    """A frozen network with its exits, and the features of the four parts."""

    network: ExitNetwork
    train: Features
    gates: Features
    calibration: Features
    test: Features


def grow(body: Callable[[], nn.Module], parts: Parts, seed: int, epochs: int) -> Grown:
    """Trains the backbone on its last head alone, freezes it, and reads the features once."""
    with seeded(seed):
        backbone = body()
        learn(backbone, lambda x, y: F.cross_entropy(backbone(x), y), parts.train, epochs, seed)
        network = ExitNetwork(backbone, parts.train[0][:1], summary=pooled)
    return Grown(network, *(network.features(*part) for part in parts))


def warmed(grown: Grown, seed: int) -> ExitNetwork:
    """The heads after the paper's warm-up."""
    network = grown.network
    warm_up(
        network, grown.train, grown.gates, epochs=10, batch_size=BATCH, learning_rate=0.1, generator=generator(seed, 1)
    )
    return network


def taught(network: ExitNetwork, grown: Grown, trade_off: float | int, seed: int, **changes: Any) -> list[PhaseLoss]:
    """`alternate` as all arms run it: the same number of batches for heads, and for gates, whoever takes part."""
    options: dict[str, Any] = {"phases": ("gates", "heads"), "held_out": grown.gates} | changes
    return alternate(
        network,
        grown.train,
        trade_off,
        epochs=TURNS * len(options["phases"]),
        period=10,
        batch_size=BATCH,
        learning_rate=RATE,
        generator=generator(seed, 2),
        **options,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Starting values from this seed; the global random numbers go on as if nothing had been."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


def generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * purpose + seed)
