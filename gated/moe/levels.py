"""Routing levels: what the gate looks at, and which experts it may use.

A gate sees one row per token. A routing level fills that row, and the mask, from something coarser or other than the
token: its task, its sequence, its modality, its attributes, its place in the vocabulary. The table names the signal
(the gate's `x`) and the mask that come out.

| level      | here                                | the gate sees              | mask                          |
|------------|-------------------------------------|----------------------------|-------------------------------|
| token      | `per_token(x)`                      | the token                  | none                          |
| task       | `TaskSignal(tasks, features)`       | a vector of the task       | none                          |
| context    | `pooled_context(x)`                 | the sequence's mean        | none                          |
| modality   | `modality_mask(modality, owner)`    | the token                  | own and shared experts        |
| attribute  | `attribute_bits(code)`              | 8 bits                     | none                          |
| vocabulary | `vocabulary_mask(counts, N, ...)`   | the token                  | a fixed set per token id      |

A task's id leaks what the task is: give it to the baselines as an input too.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def per_token(x: Float[Tensor, "batch time features"]) -> Float[Tensor, "tokens features"]:
    """Tokens in one list, sequence by sequence."""
    _sequences(x)
    return x.flatten(0, 1)


def pooled_context(
    x: Float[Tensor, "batch time features"], valid: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "tokens features"]:
    """Each token's row is the mean of its sequence over the `valid` tokens, so that a sequence shares its experts.

    The mean sees later tokens: not for causal models.

    Raises:
        ValueError: x not (batch, time, features); `valid` of another shape, or a sequence with no valid token.
    """
    _sequences(x)
    if valid is None:
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if valid.shape != x.shape[:2] or valid.dtype != torch.bool:
        raise ValueError(f"valid must be boolean, shape {tuple(x.shape[:2])}; got {valid.dtype}, {tuple(valid.shape)}")
    count = valid.sum(1, keepdim=True)
    if (count == 0).any() and x.shape[1]:
        raise ValueError("valid must leave each sequence a token; got one without")
    mean = x.masked_fill(~valid[..., None], 0).sum(1) / count
    return mean.repeat_interleave(x.shape[1], 0)


class TaskSignal(nn.Module):
    """One learned row per task: a gate on it sends a whole task to the same experts, which alone need be loaded.

    `forward(task)`: ids in 0..tasks-1, one per token.

    Source: Kudugunta et al. 2021, Beyond distillation: task-level mixture-of-experts, arXiv 2110.03742.
    """

    def __init__(self, tasks: int, features: int):
        super().__init__()
        for name, size in (("tasks", tasks), ("features", features)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {size!r}")
        self.weight = nn.Parameter(torch.randn(tasks, features) * features**-0.5)

    def forward(self, task: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens features"]:
        _in_range("task", task, len(self.weight))
        return self.weight[task.long()]


def modality_mask(modality: Int[Tensor, "tokens"], owner: Int[Tensor, "num_experts"]) -> Bool[Tensor, "tokens experts"]:
    """True where the expert is the token's modality's own, or shared (owner -1).

    Args:
        modality: one id >= 0 per token. owner: per expert the modality it serves, or -1 for all.

    Raises:
        ValueError: not integers, a negative modality, or a modality without an expert.

    Source: survey, II-C (modality-level routing).
    """
    _in_range("modality", modality, None)
    if owner.ndim != 1 or owner.is_floating_point() or len(owner) == 0:
        raise ValueError(f"owner must be integers, shape (num_experts,); got {owner.dtype}, {tuple(owner.shape)}")
    mask = (owner == modality[:, None]) | (owner == -1)
    if not mask.any(-1).all():
        raise ValueError(f"owner must give each modality an expert; got {owner.tolist()}")
    return mask


def attribute_bits(code: Int[Tensor, "tokens"], bits: int = 8) -> Float[Tensor, "tokens bits"]:
    """The binary digits of `code`, lowest first, as 0.0 and 1.0.

    Attribute-level routing shows the gate these bits instead of the token: 0 to 5 for the modalities of the task and
    of the token, 6 for whether attention is causal, 7 for the token's source.

    Raises:
        ValueError: codes outside 0..2^bits - 1; bits outside 1..62.

    Source: Zhu et al. 2022, Uni-Perceiver-MoE, arXiv 2206.04674 (as the survey tells it, II-C).
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 62:
        raise ValueError(f"bits must be an integer from 1 to 62; got {bits!r}")
    _in_range("code", code, 1 << bits)
    return ((code.long()[:, None] >> torch.arange(bits, device=code.device)) & 1).float()


def vocabulary_mask(
    counts: Int[Tensor, "vocab"],
    num_experts: int,
    generator: torch.Generator,
    *,
    rare_below: int,
    visible_rare: int = 1,
    visible_frequent: int | None = None,
) -> Bool[Tensor, "vocab num_experts"]:
    """For each token id a fixed random set of experts that it may use; index it with the ids: `mask[ids]`.

    Ids seen fewer than `rare_below` times see `visible_rare` experts, so that these few examples train one expert
    well; frequent ids see `visible_frequent` (all unless given).

    Raises:
        ValueError: counts that are not integers of at least 0, or numbers of visible experts outside 1..num_experts.

    Source: Su et al. 2024 (MaskMoE), arXiv 2407.09816.
    """
    _in_range("counts", counts, None)
    frequent = num_experts if visible_frequent is None else visible_frequent
    for name, visible in (("visible_rare", visible_rare), ("visible_frequent", frequent)):
        if isinstance(visible, bool) or not 1 <= visible <= num_experts:
            raise ValueError(f"{name} must be from 1 to num_experts, {num_experts}; got {visible!r}")
    draw = torch.rand(len(counts), num_experts, generator=generator, device=counts.device)
    rank = draw.argsort(-1)  # a random permutation in each row
    return rank < torch.where(counts < rare_below, visible_rare, frequent)[:, None]


def _sequences(x: Tensor) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x must be floating point, shape (batch, time, features); got {x.dtype}, {tuple(x.shape)}")


def _in_range(name: str, ids: Tensor, end: int | None) -> None:
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, one-dimensional; got {ids.dtype}, {tuple(ids.shape)}")
    if ids.numel() and (ids.min() < 0 or (end is not None and ids.max() >= end)):
        raise ValueError(
            f"{name} must lie in 0..{'' if end is None else end - 1}; got {int(ids.min())}..{int(ids.max())}"
        )
