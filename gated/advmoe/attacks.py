"""What an attacker may try against a network that chooses, and the union of it all.

    panel = attack_panel(model, x, y, eps, generator=g)
    panel.accuracy()                # robust accuracy: no member found anything
    panel.accuracy("ste")           # ... against one member

Hard routing makes the loss jump where a route flips and hides slopes, so one attack by gradients proves little:

    "ste"        cross-entropy, gradients through the straight-through router
    "surrogate"  cross-entropy of the smooth stand-in (all experts, softmax weights)
    "path"       for each pathway: its own cross-entropy, less a penalty while the routers send the input elsewhere
    "search"     no gradients: random windows of +-eps, kept where the margin falls

Whatever they follow, all are judged by the hard model, after every step. An input that is misclassified as it stands
counts as broken in each. Models are attacked in evaluation mode and left in the mode they had.

The searches themselves are in `search.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.advmoe.networks import RoutedNetwork
from gated.advmoe.search import Found, Objective, Verdict, check_attack, pgd, random_search
from gated.advmoe.training import Bounds, evaluating
from gated.gates._validation import (
    check_axes,
    check_count,
    check_float,
    check_int,
    check_number,
    check_positive,
    check_sizes,
    holds_anywhere,
)

Member = Literal["ste", "surrogate", "path", "search"]


# Members of the panel ------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def wrong(model: nn.Module, y: Int[Tensor, " batch"]) -> Verdict:
    """Whether the hard model's answer is not y."""
    check_int("y", y)
    return lambda x_adv, i: model(x_adv).argmax(-1) != y[i]


def ste_attack(
    model: nn.Module, x: Tensor, y: Tensor, eps: float | int, *, steps: int = 20, restarts: int = 3, **rest: Any
) -> Found:
    """PGD on CE(f(x'), y): gradients to the routers are straight-through. Any classifier will do. `rest` as `pgd`.

    Args:
        eps: radius of the box, as in `pgd`.
        restarts: how many starts are tried; an input is broken if one of them breaks it.
    """
    with evaluating(model):
        return pgd(
            lambda x_adv, i: cross_entropy(model(x_adv), y[i]), wrong(model, y), x, eps, steps=steps, restarts=restarts,
            **rest,
        )  # fmt: skip


def surrogate_attack(
    model: RoutedNetwork, x: Tensor, y: Tensor, eps: float | int, *, temperature: float | int = 1.0, **rest: Any
) -> Found:
    """PGD on CE of the network that mixes all experts with weights softmax(s / T). `rest` as `pgd`.

    Args:
        eps: radius of the box, as in `pgd`.

    Raises:
        ValueError: a temperature that is not positive and finite; as `pgd`.
    """
    check_positive("temperature", temperature)
    with evaluating(model):
        return pgd(
            lambda x_adv, i: cross_entropy(model.trace(x_adv, temperature=temperature).logits, y[i]),
            wrong(model, y), x, eps, **rest,
        )  # fmt: skip


def path_attack(
    model: RoutedNetwork,
    x: Tensor,
    y: Tensor,
    eps: float | int,
    *,
    penalty: float | int = 10.0,
    kappa: float | int = 0.01,
    max_paths: int = 8,
    **rest: Any,
) -> Found:
    """For each pathway p: PGD on CE(f_p(x')) - penalty sum_l max(0, max_(j != p_l) s_lj - s_(l p_l) + kappa).

    f_p is the network with the route p in force, s_l the scores of router l on that way. All N^L pathways if they are
    at most `max_paths`, else those that most of x take. `rest` as `pgd`; the restarts are for each pathway.

    Args:
        eps: radius of the box, as in `pgd`.
    """
    check_attack(x, eps, None, max_paths=max_paths)
    check_number("penalty", penalty, "[0, inf)")
    check_number("kappa", kappa, "[0, inf)")
    with evaluating(model):
        paths = pathways(model, x, max_paths)
        broken = wrong(model, y)
        with torch.no_grad():
            every = torch.arange(len(x), device=x.device)
            total = Found(broken(x, every), x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device))
        for number, path in enumerate(paths):

            def objective(x_adv: Tensor, i: Tensor, path: Tensor = path) -> Tensor:
                trace = model.trace(x_adv, routes=path[:, None].expand(-1, len(x_adv)))
                away = F.relu(kappa - score_gap(trace.scores, trace.routes)).sum(0)
                return cross_entropy(trace.logits, y[i]) - penalty * away

            todo = (~total.broken).nonzero()[:, 0]
            if len(todo):
                part = pgd(_among(todo, objective), _among(todo, broken), x[todo], eps, **rest)
                total.broken[todo], total.x_adv[todo] = part.broken, part.x_adv
                total.blind[todo] = part.blind & (total.blind[todo] if number else True)
        return total._replace(blind=total.blind & ~total.broken)


def _among(todo: Tensor, f: Objective) -> Objective:
    """f of the inputs `todo`, for an attack that sees those only and counts them from 0."""
    return lambda x_adv, i: f(x_adv, todo[i])


def pathways(model: RoutedNetwork, x: Tensor, most: int = 8) -> Int[Tensor, "paths routers"]:
    """All pathways if there are at most `most`, else those that most of x take, the most taken first.

    Raises:
        ValueError: `most` below 1.
    """
    check_sizes(most=most)
    if model.num_experts**model.num_routers <= most:
        every = itertools.product(range(model.num_experts), repeat=model.num_routers)
        return torch.tensor(list(every), device=x.device)
    with evaluating(model), torch.no_grad():
        taken, count = model.trace(x).routes.T.unique(dim=0, return_counts=True)
    return taken[count.argsort(descending=True, stable=True)[:most]]


def score_gap(
    scores: Float[Tensor, "routers batch experts"], routes: Int[Tensor, "routers batch"]
) -> Float[Tensor, "routers batch"]:
    """s_e - max_(j != e) s_j for the route e: negative where the router would go elsewhere. +inf for one expert.

    Raises:
        ValueError: routes of another shape, or to an expert that does not exist.

    Example:
        >>> scores = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])  # one router, two inputs
        >>> score_gap(scores, torch.tensor([[0, 0]])).tolist()
        [[2.0, -2.0]]
    """
    check_float("scores", scores)
    check_int("routes", routes)
    check_axes("routers batch experts, routers batch", scores=scores, routes=routes)
    if holds_anywhere((routes < 0) | (routes >= scores.shape[-1])):
        raise ValueError(f"routes must lie in 0..{scores.shape[-1] - 1}; got another expert")
    own = scores.gather(-1, routes[..., None])
    others = scores.scatter(-1, routes[..., None], -torch.inf)
    return own[..., 0] - others.amax(-1)


def search_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float | int, **rest: Any) -> Found:
    """`random_search` on the hard model's margin z_y - max_(c != y) z_c. `rest` as there.

    Args:
        eps: radius of the box, as in `pgd`.
    """
    check_int("y", y)

    def margin(x_adv: Tensor, i: Tensor) -> Tensor:
        logits = model(x_adv)
        own = logits.gather(1, y[i][:, None])[:, 0]
        gap = own - logits.scatter(1, y[i][:, None], -torch.inf).amax(1)
        # equal logits: whoever argmax names has won
        return torch.where((gap == 0) & (logits.argmax(1) == y[i]), torch.finfo(gap.dtype).tiny, gap)

    with evaluating(model):
        return random_search(margin, x, eps, **rest)


# The panel -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """Which inputs each member broke. `clean` are those that were wrong as they stood, and they count in every member.

    `blind`: inputs that a member's gradients said nothing about. `x_adv`: an input that breaks the model where
    `union` is true.

    Args:
        found: what each member found, by name.

    Raises:
        ValueError: `accuracy` asked for a member that did not run.
    """

    clean: Bool[Tensor, " batch"]
    found: dict[str, Found]

    @property
    def union(self) -> Bool[Tensor, " batch"]:
        return torch.stack([self.clean, *(f.broken for f in self.found.values())]).any(0)

    @property
    def x_adv(self) -> Float[Tensor, "batch ..."]:
        best = next(iter(self.found.values())).x_adv.clone()
        for f in self.found.values():
            best[f.broken] = f.x_adv[f.broken]
        return best

    def accuracy(self, member: str | None = None) -> float:
        """Share of inputs that `member` ("clean" is nobody) did not break; that nobody broke, unless given."""
        if member is None:
            return 1 - self.union.double().mean().item()
        if member == "clean":
            return 1 - self.clean.double().mean().item()
        if member not in self.found:
            raise ValueError(f"member must be 'clean' or one of {list(self.found)}; got {member!r}")
        return 1 - self.found[member].broken.double().mean().item()

    def blind(self, member: str) -> int:
        """How many inputs survived `member` only because its gradients were exactly 0."""
        return int(self.found[member].blind.sum())


def attack_panel(
    model: Any,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    eps: float | int,
    *,
    members: Sequence[Member] = ("ste", "surrogate", "path", "search"),
    steps: int = 20,
    restarts: int = 3,
    alpha: float | int | None = None,
    temperature: float | int = 1.0,
    queries: int = 200,
    search_examples: int | None = 500,
    bounds: Bounds = None,
    generator: torch.Generator | None = None,
) -> Panel:
    """Every member on every input, each by itself, and the union.

    Args:
        eps: >= 0; 0 gives the clean accuracy in every member.
        members: "ste" and "search" take any classifier, the others one with `trace`.
        restarts: of "ste"; the others start once (for each pathway).
        search_examples: "search" looks at so many inputs only, from the first; the others count as not broken by it.
        alpha: length of a gradient's step; as in `pgd` if None.
        queries: of "search", for each input.

    Raises:
        ValueError: as `pgd`; no inputs, labels of another shape or dtype, unknown members.
        AttackError: as `pgd`.
    """
    if not len(x) or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(f"y must be one int64 label for each of at least one x; got {y.dtype} {tuple(y.shape)}")
    if not members or set(members) - set(get_args(Member)):
        raise ValueError(f"members must be some of {get_args(Member)}; got {tuple(members)}")
    check_attack(x, eps, bounds, steps=steps, restarts=restarts, queries=queries)
    check_positive("temperature", temperature)
    if search_examples is not None:
        check_count("search_examples", search_examples)
    common: dict[str, Any] = {"steps": steps, "alpha": alpha, "bounds": bounds, "generator": generator}
    found: dict[str, Found] = {}
    with evaluating(model), torch.no_grad():
        logits = model(x)
    if bool(((y < 0) | (y >= logits.shape[-1])).any()):
        raise ValueError(f"y must hold classes 0 to {logits.shape[-1] - 1}; got {int(y.min())} to {int(y.max())}")
    clean = logits.argmax(-1) != y
    for member in members:
        if member == "ste":
            found[member] = ste_attack(model, x, y, eps, restarts=restarts, **common)
        elif member == "surrogate":
            found[member] = surrogate_attack(model, x, y, eps, temperature=temperature, **common)
        elif member == "path":
            found[member] = path_attack(model, x, y, eps, **common)
        else:
            n = len(x) if search_examples is None else min(search_examples, len(x))
            part = search_attack(model, x[:n], y[:n], eps, queries=queries, bounds=bounds, generator=generator)
            broken, x_adv = clean.clone(), x.clone()
            broken[:n], x_adv[:n] = part.broken, part.x_adv
            found[member] = Found(broken, x_adv, torch.zeros_like(broken))
    return Panel(clean, found)


# Attacks on one part -------------------------------------------------------------------------------------------------


def frozen_path_attack(model: RoutedNetwork, x: Tensor, y: Tensor, eps: float | int, **rest: Any) -> Found:
    """RA_path: the route of the clean input stays in force, in the attack and in the verdict. `rest` as `pgd`.

    A success need not break the model itself, which may send that input elsewhere: this is the experts' own
    robustness, neither above nor below the model's.

    Args:
        eps: radius of the box, as in `pgd`.
    """
    check_int("y", y)
    with evaluating(model):
        with torch.no_grad():
            clean = model.trace(x).routes

        def logits(x_adv: Tensor, i: Tensor) -> Tensor:
            return model.trace(x_adv, routes=clean[:, i]).logits

        return pgd(
            lambda x_adv, i: cross_entropy(logits(x_adv, i), y[i]),
            lambda x_adv, i: logits(x_adv, i).argmax(-1) != y[i], x, eps, **rest,
        )  # fmt: skip


def route_attack(model: RoutedNetwork, x: Tensor, eps: float | int, **rest: Any) -> Found:
    """Inputs whose route flips in some layer: PGD on max_(j != e) s_lj - s_le for each router l, e the clean route.

    1 - mean(broken) is the routers' robustness RS. It is 1 too for a router that has collapsed, so show the load
    entropy beside it. Flips are counted by argmax. `rest` as `pgd`; the restarts are for each router.

    Args:
        eps: radius of the box, as in `pgd`.
    """
    check_attack(x, eps, None)
    with evaluating(model):
        with torch.no_grad():
            clean = model.trace(x).routes
        total = Found(
            *(torch.zeros(len(x), dtype=torch.bool, device=x.device), x.clone()), torch.zeros_like(clean[0]) > 0
        )
        if model.num_experts == 1:
            return total

        def flipped(x_adv: Tensor, i: Tensor) -> Tensor:
            return (model.trace(x_adv).routes != clean[:, i]).any(0)

        for router in range(model.num_routers):
            todo = (~total.broken).nonzero()[:, 0]
            if not len(todo):
                break

            def objective(x_adv: Tensor, i: Tensor, router: int = router) -> Tensor:
                return -score_gap(model.trace(x_adv).scores, clean[:, i])[router]

            part = pgd(_among(todo, objective), _among(todo, flipped), x[todo], eps, **rest)
            total.broken[todo], total.x_adv[todo], total.blind[todo] = part
        return total


def released_attack(
    model: RoutedNetwork, x: Tensor, y: Tensor, eps: float | int, *, weight: float | int = 6.0, **rest: Any
) -> Found:
    """The evaluation of the authors' program: PGD on CE(f(x'), y) + weight CE(R(x'), y mod N). Weaker on f than CE.

    Most of each sign step serves the router's term. For a column beside the union, never in its place. `rest` as
    `pgd`.

    Args:
        eps: radius of the box, as in `pgd`.

    Raises:
        ValueError: a model without one global router, a weight that is negative or not finite.

    Source: the program of Zhang et al. 2023, arXiv 2308.10110.
    """
    check_number("weight", weight, "[0, inf)")
    if model.router is None:
        raise ValueError("model must have a global router (routing='global', several experts); got none")

    def objective(x_adv: Tensor, i: Tensor) -> Tensor:
        trace = model.trace(x_adv)
        return cross_entropy(trace.logits, y[i]) + weight * cross_entropy(trace.scores[0], y[i] % model.num_experts)

    with evaluating(model):
        return pgd(objective, wrong(model, y), x, eps, **rest)
