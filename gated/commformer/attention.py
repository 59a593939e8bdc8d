"""Attention along the edges of a graph, where an edge also says that it is there: relation attention.

x_i: agent i's vector [width]. e_ij in {0, 1}: the kind of relation, here "itself" and "somebody I hear". Each kind has
a vector, and a linear map of it gives ra and rb, added to the query and to the key:

    s_ij = (q_i + ra[e_ij]) . (k_j + rb[e_ij]) / sqrt(width),   p_i = softmax_j over {i} and {j: alpha_ij = 1}

There are two kinds, so two vectors are mapped, once. A tensor of relations [batch, agents, agents, width], as in the
released code, is never made. That saves 2 B N^2 d^2 multiply-adds beside the 2 B N^2 d of scores and values, and takes
N^2 numbers for an input instead of 3 N^2 d.

Paper: arXiv 2405.08550, section on the relation-enhanced attention; the two-vector form is ours.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_choice, check_float

Estimator = Literal["masked", "normalised"]


def relation_attention(
    q: Float[Tensor, "*batch queries width"],
    own: tuple[Float[Tensor, "*batch queries width"], Float[Tensor, "*batch queries width"]],
    others: tuple[Float[Tensor, "*batch keys width"], Float[Tensor, "*batch keys width"]],
    relation: Float[Tensor, "2 twice_width"],
    links: Float[Tensor, "*#batch queries keys"],
    estimator: Estimator = "masked",
) -> Float[Tensor, "*batch queries width"]:
    """What each query hears: its own value, always, and those of the others that `links` lets through.

    An agent's own key and value stand apart from what it sends, because a decoder must not show it its own action; a
    row without links returns its own value exactly. For all agents at once `links` is a graph without its diagonal.

    The links are 0 or 1. Their gradient comes by one of two estimators, which agree in every value:

    - "masked" (the released code's): the softmax p over what is linked, times links. dL/dlinks_ij = p_ij <v_j,
      dL/dout_i>, so 0 where there is no link.
    - "normalised": p_ij = links_ij exp(s_ij) / sum_l links_il exp(s_il). Same value, dL/dlinks_ij = exp(s_ij) / Z_i
      <v_j - out_i, dL/dout_i>: what a missing link would have brought.

    Args:
        q: W_q x_i + b.
        own: key and value of each query's agent.
        others: keys and values of those who send.
        relation: [ra; rb] of e = 0 (itself) and of e = 1 (somebody heard), [2, 2 width].
        links: 1 where a query hears a key.

    Raises:
        ValueError: an unknown estimator; shapes that do not fit.

    Example:
        >>> q, k, v = torch.randn(3, 1, 4, 8).unbind(0)
        >>> heard = relation_attention(q, (k, v), (k, v), torch.zeros(2, 16), torch.zeros(4, 4))
        >>> bool((heard == v).all())  # nobody is heard: each keeps its own value
        True
    """
    check_choice("estimator", estimator, get_args(Estimator))
    _check(q, own, others, relation, links)
    ra, rb = relation.chunk(2, -1)
    scale = 1 / math.sqrt(q.shape[-1])
    heard = ((q + ra[1]) * scale) @ (others[0] + rb[1]).mT
    itself = (((q + ra[0]) * scale) * (own[0] + rb[0])).sum(-1, keepdim=True)
    linked = links.detach() > 0.5
    scores = torch.cat((itself, heard.masked_fill(~linked, -torch.inf)), -1)
    if estimator == "masked":
        p = scores.softmax(-1)
        mine, theirs = p[..., :1], p[..., 1:] * links
    else:
        # The largest score of a link, so that one that isn't there can't push the others below the smallest number.
        top = scores.detach().amax(-1, keepdim=True)
        mine, theirs = (itself - top).exp(), links * (heard - top).clamp(max=30).exp()
        total = mine + theirs.sum(-1, keepdim=True)
        mine, theirs = mine / total, theirs / total
    return mine * own[1] + theirs @ others[1]


def released_attention(
    q: Float[Tensor, "*batch agents width"],
    k: Float[Tensor, "*batch agents width"],
    v: Float[Tensor, "*batch agents width"],
    relation: Float[Tensor, "2 twice_width"],
    graph: Float[Tensor, "*#batch agents agents"],
    causal: bool = False,
) -> Float[Tensor, "*batch agents width"]:
    """The same with what the released code does differently, for comparison with its numbers:

    - the relation of (i, j) is read at (j, i): it says whether j hears i, not whether i hears j;
    - scores are divided by width instead of by its root;
    - M = alpha + 1 on the diagonal masks, and multiplies p once more, without a new sum: an agent that was drawn for
      itself counts twice.

    Args:
        graph: alpha, whose diagonal may be 1 (`sample_graph` with `self_edges`).
        causal: j <= i only.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(q, (q, q), (k, v), relation, graph)
    agents = q.shape[-2]
    ra, rb = relation.chunk(2, -1)
    absent, present = ((q + ra[e]) @ (k + rb[e]).mT / q.shape[-1] for e in (0, 1))
    factor = graph + torch.eye(agents, dtype=graph.dtype, device=graph.device)
    hidden = factor.detach() == 0
    if causal:
        hidden = hidden | torch.ones(agents, agents, dtype=torch.bool, device=graph.device).triu(1)
    scores = torch.where(graph.detach().mT > 0.5, present, absent).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) * factor) @ v


def _check(
    q: Tensor, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], relation: Tensor, links: Tensor
) -> None:
    check_float("q", q)
    key, value = others
    check_float("others, or v,", value)
    if key.shape != value.shape or key.shape[:-2] != q.shape[:-2] or key.shape[-1] != q.shape[-1]:
        raise ValueError(f"keys and values of others, k and v, must fit q, {q.shape}; got {key.shape}, {value.shape}")
    if own[0].shape != q.shape or own[1].shape != q.shape:
        raise ValueError(f"own must have the shape of q, {tuple(q.shape)}; got {own[0].shape}, {own[1].shape}")
    if relation.shape != (2, 2 * q.shape[-1]):
        raise ValueError(f"relation must have shape (2, {2 * q.shape[-1]}), got {tuple(relation.shape)}")
    batch, rows = links.shape[:-2], q.shape[:-2]
    fits = links.shape[-2:] == (q.shape[-2], key.shape[-2]) and len(batch) <= len(rows)
    if not fits or any(size not in (1, wanted) for size, wanted in zip(batch[::-1], rows[::-1], strict=False)):
        needed = f"(*batch, {q.shape[-2]}, {key.shape[-2]})"
        raise ValueError(f"links (graph) must have shape {needed}, queries and keys, got {tuple(links.shape)}")
