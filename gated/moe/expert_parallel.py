"""Expert parallelism: every rank owns some of the experts, and tokens travel to them and back.

A model with N experts on R ranks keeps the gate and all else on every rank, and on rank r only a block of n_r experts
that stand next to each other, N = sum n_r. For one layer a rank

    1. sorts its (token, expert) pairs by expert, and with that by rank
    2. exchanges how many pairs go to each expert                            (all-to-all of N integers)
    3. exchanges the pairs' tokens                                           (all-to-all, uneven)
    4. brings what arrived, one piece per sender and expert, into expert order and runs its experts
    5. sends the results back                                                (all-to-all, the sizes swapped)
    6. adds them up with the gate's weights, which never left home

Backward is the same journey: the gradient of an exchange is the exchange with the two lists of sizes swapped.

Cost of a layer forward, R equal ranks with T tokens of d numbers each, and again backward:

    t = 2 (a (R - 1) + k T d bytes (R - 1) / R / bandwidth) + (the most pairs on one rank) * (time for a pair)

a: latency of a message. The last term is a maximum: ranks wait for the fullest.

Every rank must call the layer, and backward, equally often, with no tokens or no experts too; the gradient path is laid
so that each exchange then runs once backward and in the same order everywhere, whoever holds a leaf that needs it.

Source: survey, II-E; Lepikhin et al. 2020 (GShard, arXiv 2006.16668) for experts spread over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from gated.gates._validation import check_number
from gated.moe.routing import Routing

__all__ = ["ExpertParallel", "synchronise_gradients"]

Group = dist.ProcessGroup | DeviceMesh | None


class ExpertParallel:
    """A dispatch, `(x, routing, experts) -> y`, whose experts live on several ranks.

    `experts` holds this rank's own experts alone, `own(num_experts)` of them, while `routing` speaks of all. Their
    gradients come out whole, those of the sum of all ranks' losses. What every rank keeps a copy of (the gate) needs
    `synchronise_gradients` before the optimiser's step.

    Args:
        group: the ranks, a process group or a mesh of one dimension; all unless given.
        timeout: seconds that a rank waits for another. Makes a communicator of its own, so share one object among
            layers, and make it on all ranks of the group. None: the group's own limit (gloo: half an hour).
        sizes: how many experts each rank owns, in the order of ranks; as equal as can be unless given, the
            first ranks taking one more. 0 is allowed.

    Raises:
        ValueError: a mesh of more dimensions, sizes that do not fit, experts other than this rank's share.
        RuntimeError: torch.distributed is not initialised; an exchange failed because another rank has ended, raised,
            or is late. The layer cannot be used on after that. (NCCL may end the process instead.)
    """

    def __init__(self, group: Group = None, *, timeout: float | int | None = None, sizes: Sequence[int] | None = None):
        self.group = _group(group)
        if timeout is not None:
            check_number("timeout", timeout, "(0, 1e9)")
            self.group = dist.new_group(
                dist.get_process_group_ranks(self.group),
                timeout=timedelta(seconds=timeout),
                use_local_synchronization=True,
            )
        self.rank, self.ranks = dist.get_rank(self.group), dist.get_world_size(self.group)
        if sizes is not None and (len(sizes) != self.ranks or min(sizes) < 0):
            raise ValueError(f"sizes must be {self.ranks} numbers of experts, one a rank; got {list(sizes)}")
        self.sizes = sizes

    def blocks(self, num_experts: int) -> list[int]:
        """How many of `num_experts` experts each rank owns."""
        if self.sizes is None:
            least, more = divmod(num_experts, self.ranks)
            return [least + (rank < more) for rank in range(self.ranks)]
        if sum(self.sizes) != num_experts:
            raise ValueError(f"sizes must add up to the {num_experts} experts of the gate; got {list(self.sizes)}")
        return list(self.sizes)

    def own(self, num_experts: int) -> range:
        """Which of `num_experts` experts this rank owns."""
        blocks = self.blocks(num_experts)
        start = sum(blocks[: self.rank])
        return range(start, start + blocks[self.rank])

    def __call__(
        self, x: Float[Tensor, "tokens dim"], routing: Routing, experts: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "tokens dim_out"]:
        """The weighted sum of each token's experts, wherever they are; this rank's tokens in, their results out."""
        blocks = self.blocks(routing.num_experts)
        own = blocks[self.rank]
        if (given := getattr(experts, "num_experts", own)) != own:
            raise ValueError(
                f"experts must be the {own} of {routing.num_experts} that rank {self.rank} owns; got {given}"
            )
        order, offsets = routing.sort()
        leaving = offsets.diff()
        arriving = leaving.new_empty(self.ranks * own)
        self._exchange("counts", arriving, leaving, [own] * self.ranks, blocks)
        pieces = arriving.view(self.ranks, own)
        sent, received = torch.stack(
            [torch.stack([block.sum() for block in leaving.split(blocks)]), pieces.sum(1)]
        ).tolist()

        token = order // routing.experts.shape[1]
        thread = torch.zeros(0, device=x.device, requires_grad=torch.is_grad_enabled())
        rows, thread = _AllToAll.apply(x.index_select(0, token), thread, self, "tokens", received, sent)
        destination = torch.arange(len(rows), device=x.device) + (
            _starts(pieces.T).T.flatten() - _starts(pieces).flatten()
        ).repeat_interleave(arriving)
        source = torch.empty_like(destination).scatter_(0, destination, torch.arange(len(rows), device=x.device))
        bounds = nn.functional.pad(pieces.sum(0).cumsum(0), (1, 0))
        results = experts(rows.index_select(0, source), bounds).index_select(0, destination)
        results, _ = _AllToAll.apply(results, thread, self, "results", sent, received)
        weight = routing.weights.flatten()[order].to(results.dtype)
        return results.new_zeros(len(x), results.shape[1]).index_add(0, token, weight[:, None] * results)

    def _exchange(self, what: str, output: Tensor, input: Tensor, received: list[int], sent: list[int]) -> None:
        _wait_for(
            f"all-to-all of {what}",
            self.group,
            partial(dist.all_to_all_single, output, input.contiguous(), received, sent, group=self.group),
        )


class _AllToAll(torch.autograd.Function):
    """Rows to other ranks. `thread`, which is empty, ties a layer's exchanges together: each is differentiated once,
    and in the same order on all ranks, even where no rows, no experts or no leaf would ask for it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, thread: Tensor, parallel: ExpertParallel, what: str, received: list[int], sent: list[int]
    ) -> tuple[Tensor, Tensor]:
        ctx.parallel, ctx.what, ctx.received, ctx.sent = parallel, what, received, sent
        output = x.new_empty(sum(received), *x.shape[1:])
        parallel._exchange(what, output, x, received, sent)
        return output, thread.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, thread: Tensor) -> tuple[Tensor | None, ...]:
        output = grad.new_empty(sum(ctx.sent), *grad.shape[1:])
        ctx.parallel._exchange(f"gradients of the {ctx.what}", output, grad, ctx.sent, ctx.received)
        return output, thread, None, None, None, None


def synchronise_gradients(module: nn.Module, group: Group = None) -> None:
    """Add up over the ranks the gradients of all parameters but the experts'; call it between backward and step.

    The gradients are then those of the sum of the ranks' losses, as the experts' are already: so divide each rank's
    loss by the number of tokens on all ranks together, not on its own. A parameter that got no gradient here counts
    as zeros. Experts are the parameters below `experts` in a layer whose `dispatch` is an `ExpertParallel`.

    Args:
        group: the ranks that hold copies; unless given, those of the module's expert-parallel layers, else all.
    """
    layers: list[Any] = [m for m in module.modules() if isinstance(getattr(m, "dispatch", None), ExpertParallel)]
    apart = {id(parameter) for layer in layers for parameter in layer.experts.parameters()}
    shared = [p for p in module.parameters() if p.requires_grad and id(p) not in apart]
    ranks = layers[0].dispatch.group if layers and group is None else _group(group)
    for dtype in dict.fromkeys(parameter.dtype for parameter in shared):  # one message for each dtype
        alike = [p for p in shared if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in alike])
        _wait_for("all-reduce of gradients", ranks, partial(dist.all_reduce, flat, group=ranks))
        for parameter, part in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
            parameter.grad = part.view_as(parameter)


def _group(group: Group) -> Any:
    if not dist.is_initialized():
        raise RuntimeError("torch.distributed is not initialised: call init_process_group, or start with torchrun")
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group must be a mesh of one dimension; got {group}. Name one: mesh['expert']")
        return group.get_group()
    return dist.group.WORLD if group is None else group


def _wait_for(what: str, group: Any, call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:
        raise RuntimeError(
            f"the {what} failed on rank {dist.get_rank(group)} of {dist.get_world_size(group)}: another rank has "
            "ended or raised an error, is later than the time-out, or calls the layer, backward or "
            f"synchronise_gradients less often than this one. The backend says: {error}"
        ) from error


def _starts(pieces: Tensor) -> Tensor:
    """Where each piece starts when the pieces lie behind one another, row by row."""
    flat = pieces.flatten()
    return (flat.cumsum(0) - flat).view(pieces.shape)
