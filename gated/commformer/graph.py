"""Who hears whom: a learnable matrix of logits, of which each receiver keeps its k largest senders.

E: `edges` [*batch, agents, agents], row i the receiver, column j the sender. alpha: `graph`, the same shape,
alpha_ij = 1 where i hears j. The diagonal never competes and is 0 in every graph: what an agent knows itself passes
anyway. (In the released code it competes, so that with k = 1 an agent that picks itself hears nobody:
`self_edges=True`.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates import gumbel_topk_gate
from gated.gates._validation import Temperature, check_count, check_float, check_number, is_number


def initial_edges(
    agents: int, *batch: int, spread: float | int = 1e-2, generator: torch.Generator
) -> Float[Tensor, "*batch agents agents"]:
    """E_ij = 1 + spread e_ij, e ~ N(0, 1).

    With equal logits the k largest are whatever the sort makes of them, the same senders for every receiver: a hub that
    nobody chose. The noise breaks the ties.

    Raises:
        ValueError: fewer than 2 agents, a spread that is not positive.

    Example:
        >>> initial_edges(3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 3])
    """
    check_agents(agents)
    if not (is_number(spread) and 0 < spread < torch.inf):
        raise ValueError(f"spread must be positive and finite, or ties stay, got {spread}")
    return 1 + spread * torch.randn(*batch, agents, agents, generator=generator)


def senders(agents: int, share: float | int) -> int:
    """k = max(floor(N S), 1), at most N - 1: how many senders each receiver keeps for a share S of the edges.

    Raises:
        ValueError: fewer than 2 agents, a share outside (0, 1].

    Source: arXiv 2405.08550; the floor for each row is the released code's.

    Example:
        >>> senders(agents=10, share=0.4)
        4
    """
    check_agents(agents)
    check_number("share", share, "(0, 1]")
    return min(max(int(agents * share), 1), agents - 1)


def sample_graph(
    edges: Float[Tensor, "*batch agents agents"],
    k: int,
    temperature: Temperature = 1.0,
    *,
    generator: torch.Generator | None,
    self_edges: bool = False,
) -> Float[Tensor, "*batch agents agents"]:
    """alpha_i = 1 at the k largest of E_i + g, else 0: forward exactly 0 and 1, backward y = softmax((E_i + g)/T).

    Each leading index has a graph of its own: `edges.expand(8, -1, -1)` draws eight. The gradient with regard to a row
    of E adds up to 0, and all senders that were not drawn share one number for each y: they get no credit of their own
    (see `estimator` in `relation_attention` for what else can be had).

    Args:
        edges: E.
        k: 1..agents - 1.
        temperature: T > 0.
        generator: where g ~ Gumbel(0, 1) comes from; None gives the exact graph, for execution.
        self_edges: let the diagonal compete, as the released code does. Then k may be `agents`.

    Raises:
        ValueError: one agent, a matrix that is not square or not finite, k out of range, T <= 0.

    Source: arXiv 2405.08550 (the relaxation); Kool, van Hoof & Welling 2019, arXiv 1903.06059 (the draw).

    Example:
        >>> edges = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
        >>> sample_graph(edges, k=1, generator=None).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    check_edges(edges)
    most = edges.shape[-1] - (not self_edges)
    check_count("k", k)
    if k > most:
        raise ValueError(f"k must be at most {most}, so many senders are there for each receiver, got {k}")
    return gumbel_topk_gate(edges if self_edges else _without_self(edges), k, temperature, generator=generator)


def inclusion_probability(
    edges: Float[Tensor, "*batch agents agents"], k: int
) -> Float[Tensor, "*batch agents agents"]:
    """P(alpha_ij = 1) under `sample_graph` at any T, in closed form for k = 1 and k = 2; 0 on the diagonal.

    p = softmax(E_i) over the others. k = 1: p_j. k = 2: p_j + sum_{l != j} p_l p_j / (1 - p_l), first or second.

    Raises:
        ValueError: as in `sample_graph`; another k.

    Source: Plackett 1975.

    Example:
        >>> inclusion_probability(torch.zeros(3, 3), k=1).tolist()
        [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    """
    check_edges(edges)
    check_count("k", k)
    if k not in (1, 2) or k > edges.shape[-1] - 1:
        raise ValueError(f"k must be 1 or 2, and at most agents - 1 = {edges.shape[-1] - 1}, got {k}")
    logits = _without_self(edges)
    first = logits.softmax(-1)
    if k == 1:
        return first
    # [..., l, j]: the law of the second sender once l is gone, without the cancellation of 1 - p_l
    second = logits[..., None, :].masked_fill(_eye(edges), -torch.inf)
    return first + (first[..., None, :] @ second.softmax(-1)).squeeze(-2)


def logit_gap(edges: Float[Tensor, "*batch agents agents"], k: int) -> Float[Tensor, "*batch agents"]:
    """The k-th largest logit of each row less the next one: how firmly the graph is decided. inf where none is left.

    Raises:
        ValueError: as in `sample_graph`.

    Example:
        >>> logit_gap(torch.tensor([[0.0, 2.0, 1.5], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]]), k=1).tolist()
        [0.5, 1.0, 1.0]
    """
    check_edges(edges)
    check_count("k", k)
    if k >= edges.shape[-1]:
        raise ValueError(f"k must lie in 1..{edges.shape[-1] - 1}, got {k}")
    order = _without_self(edges).sort(-1, descending=True).values
    return order[..., k - 1] - order[..., k]


def messages(
    graph: Float[Tensor, "*#batch agents agents"], receive: Float[Tensor, "*#batch agents"] | None = None
) -> Float[Tensor, "*batch"]:
    """Messages of one step, sum_i z_i sum_{j != i} alpha_ij: what crosses between agents. z = 1 without a gate.

    Raises:
        ValueError: a graph that is not square, or receivers that are not its agents.

    Example:
        >>> messages(graph_from_indices([[1, 2], [0], []])).item()
        3.0
    """
    check_graph(graph)
    heard = graph.masked_fill(_eye(graph), 0).sum(-1)
    if receive is None:
        return heard.sum(-1)
    if receive.shape[-1:] != graph.shape[-1:]:
        raise ValueError(f"receive must have an entry for each of {graph.shape[-1]} agents, got {tuple(receive.shape)}")
    if any(1 != a != b != 1 for a, b in zip(receive.shape[-2::-1], graph.shape[-3::-1], strict=False)):
        raise ValueError(f"receive must fit the batch of graph, {tuple(graph.shape)}; got {tuple(receive.shape)}")
    return (heard * receive).sum(-1)


def graph_from_indices(senders_of: list[list[int]]) -> Float[Tensor, "agents agents"]:
    """alpha with ones at [i, j] for j in `senders_of[i]`; rows may be empty or differ in length.

    Raises:
        ValueError: an agent that does not exist, or that hears itself.

    Example:
        >>> graph_from_indices([[1], [0, 2], []]).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    agents = len(senders_of)
    if agents < 2:
        raise ValueError(f"senders_of must hold a row an agent, and agents must be at least 2, got {agents}")
    graph = torch.zeros(agents, agents)
    for i, row in enumerate(senders_of):
        if isinstance(row, str) or not isinstance(row, Sequence):
            raise ValueError(f"senders_of[{i}] must be a list of agents, got {row!r}")
        for j in row:
            if not isinstance(j, int) or not 0 <= j < agents or j == i:
                raise ValueError(f"senders_of[{i}] must hold other agents in 0..{agents - 1}, got {j}")
            graph[i, j] = 1
    return graph


def check_agents(agents: int) -> None:
    check_count("agents", agents)
    if agents < 2:
        raise ValueError("agents must be at least 2: one agent has nobody to hear, got 1")


def check_edges(edges: Tensor) -> None:
    check_float("edges", edges)
    if edges.ndim < 2 or edges.shape[-1] != edges.shape[-2]:
        raise ValueError(f"edges must have shape (*batch, agents, agents), got {tuple(edges.shape)}")
    check_agents(edges.shape[-1])
    if not torch.compiler.is_compiling() and not edges.detach().isfinite().all():
        raise ValueError("edges must be finite, got NaN or infinity")


def check_graph(graph: Tensor) -> None:
    check_float("graph", graph)
    if graph.ndim < 2 or graph.shape[-1] != graph.shape[-2]:
        raise ValueError(f"graph must have shape (*batch, agents, agents), got {tuple(graph.shape)}")


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=torch.bool, device=like.device)


def _without_self(edges: Tensor) -> Tensor:
    return edges.masked_fill(_eye(edges), -torch.inf)
