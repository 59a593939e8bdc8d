"""A decoder whose mixture blocks may be routed early: block b's experts are chosen by a gate in block b - N.

Layer b (B of them), on the residual stream x, with h_b the normalised input of its experts:

    x = x + attention(norm x),    h_b = norm x,    x = x + sum over i in S_b of p_bi W2_bi ReLU(W1_bi h_b)

and `between` dense layers of the same form behind it. The look-ahead N says which gate makes p_b:

    b < N:   p_b = softmax(h_b R_b)             the layer's own gate
    b >= N:  p_b = softmax(h_{b-N} P_{b-N})     a gate N mixture layers earlier; N = 0 is the conventional mixture

S_b are the k largest. Both the choice and the scale p come from the same gate, so the loss reaches P_{b-N} and, through
it, h_{b-N}. p is not renormalised: with k = 1 it would be the constant 1, and no gate would learn. There are B
gates for every N: `layers[j].own` exists for j < N (for all j if N = 0), `layers[j].ahead` for j < B - N. Hence the
first layer holds two, the last N none.

`PreGatedDecoder.forward` is for training, all positions at once. For generation a runtime calls `start`, then for each
token `embed`, for each layer `attend`, `route`, `mix`, `leave`, and last `read`; between `route` and `mix` it may fetch
the experts from wherever they are.

Source: Hwang et al. 2024, arXiv 2308.12066, section IV-B. How layers 1 to N - 1 are routed is not said there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gated.gates import switch_loss, z_loss
from gated.gates._validation import check_axes, check_count, check_int, check_sizes
from gated.kernels.topk_gate import topk_gate
from gated.pregated.layers import ExpertWeights, Mixture, Route, Turn, distinct

Router = Literal["gate", "hash", "random"]


class Output(NamedTuple):
    logits: Float[Tensor, "batch time vocab"]
    routes: list[Route]
    """One for each mixture layer, tokens = batch * time."""


@dataclass
class State:
    """What one generation remembers: keys and values of each attention, the position, and gates' results ahead."""

    past: list[Float[Tensor, "2 batch heads context head_dim"]]
    generator: torch.Generator | None = None
    position: int = -1
    tokens: Int[Tensor, " batch"] | None = None
    scores: dict[int, Float[Tensor, "tokens num_experts"]] = field(default_factory=dict)
    """Logits that are known already, by the layer they are for."""


class PreGatedDecoder(nn.Module):
    """The decoder of this module's docstring: tokens to next-token logits.

    Args:
        vocab, dim, hidden: sizes; `hidden` is an expert's (and a dense layer's) inner width.
        blocks: B, mixture layers.
        num_experts: E. With 1 the model is a dense one that does the same work as k = 1 of many.
        look_ahead: N, 0..B-1.
        k: experts a token takes.
        heads, context: of the attention; the context is the longest sequence.
        between: dense layers behind each mixture layer (1 in Switch Transformers).
        router: `gate` learns. Two controls learn nothing, have no gate, and weigh experts by 1/k: `hash` gives each
            token of the vocabulary k experts in each layer by a fixed lot, `random` draws them anew for every token.
        generator: where the initial weights (and the lots) come from; None takes PyTorch's global one.

    Raises:
        ValueError: sizes below 1, k > E, N outside 0..B-1, N > 0 without gates, dim not a multiple of heads.

    Example:
        >>> model = PreGatedDecoder(vocab=16, dim=8, hidden=16, blocks=2, num_experts=4)
        >>> model(torch.randint(16, (1, 5))).logits.shape
        torch.Size([1, 5, 16])
    """

    def __init__(
        self,
        vocab: int,
        dim: int,
        hidden: int,
        blocks: int,
        num_experts: int,
        *,
        look_ahead: int = 1,
        k: int = 1,
        heads: int = 4,
        context: int = 64,
        between: int = 0,
        router: Router = "gate",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(vocab=vocab, dim=dim, hidden=hidden, blocks=blocks, num_experts=num_experts)
        check_sizes(k=k, heads=heads, context=context)
        check_count("between", between, least=0)
        check_count("look_ahead", look_ahead, least=0)
        if k > num_experts:
            raise ValueError(f"k must be at most num_experts = {num_experts}, got {k}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads = {heads}, got {dim}")
        if router not in ("gate", "hash", "random"):
            raise ValueError(f"router must be 'gate', 'hash' or 'random', got {router!r}")
        _check_look_ahead(look_ahead, blocks, router)
        self.vocab, self.dim, self.hidden, self.num_experts = vocab, dim, hidden, num_experts
        self.look_ahead, self.k, self.heads, self.context = look_ahead, k, heads, context
        self.router: Router = router
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        learns = router == "gate"
        self.layers: Sequence[Mixture] = nn.ModuleList(  # type: ignore[assignment]
            Mixture(
                dim,
                hidden,
                num_experts,
                heads,
                between,
                own=learns and (b < look_ahead or look_ahead == 0),
                ahead=learns and 0 < look_ahead < blocks - b,
            )
            for b in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)
        lots = torch.rand(blocks, vocab if router == "hash" else 0, num_experts, generator=generator)
        self.lots: Tensor
        self.register_buffer("lots", lots)
        added = ("w_out", "w_out.weight", "out.weight")  # to the residual stream, so many times
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name in ("tokens.weight", "positions.weight"):
                    weight.normal_(0, 0.5, generator=generator)
                elif weight.ndim > 1:
                    scale = (2 * blocks * (1 + between)) ** -0.5 if name.endswith(added) else 1.0
                    weight.normal_(0, scale * weight.shape[1] ** -0.5, generator=generator)

    def gate_of(self, block: int) -> nn.Linear | None:
        """The gate that routes layer `block`, wherever it lives; None without learned gates."""
        early = self.look_ahead > 0 and block >= self.look_ahead
        return self.layers[block - self.look_ahead].ahead if early else self.layers[block].own

    def forward(self, tokens: Int[Tensor, "batch time"], *, generator: torch.Generator | None = None) -> Output:
        """Logits for each position's next token, and the routes that were taken.

        `generator` is what the router `random` draws from.

        Raises:
            ValueError: more positions than `context`; tokens that are no integers [batch, time].
        """
        check_int("tokens", tokens)
        check_axes("batch time", tokens=tokens)
        if tokens.shape[1] > self.context:
            raise ValueError(f"tokens must have at most context = {self.context} positions, got {tokens.shape[1]}")
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        scores: dict[int, Tensor] = {}
        routes = []
        for b, layer in enumerate(self.layers):
            x = x + layer.attention(layer.attention_norm(x))
            h = layer.norm(x).flatten(0, 1)
            routes.append(self._route(b, h, tokens.flatten(), scores, generator))
            x = x + layer.experts(h, routes[-1]).view_as(x)
            for dense in layer.between:
                x = dense(x)
        return Output(self.head(self.norm(x)), routes)

    def _route(
        self,
        b: int,
        h: Float[Tensor, "tokens dim"],
        tokens: Int[Tensor, " tokens"],
        scores: dict[int, Tensor],
        generator: torch.Generator | None,
    ) -> Route:
        """Runs the gates of layer b on h_b, which may serve a later layer, and takes the scores that are for b."""
        layer = self.layers[b]
        if self.router == "hash":
            scores[b] = self.lots[b, tokens].to(h.dtype)
        elif self.router == "random":
            scores[b] = torch.rand(len(h), self.num_experts, generator=generator, dtype=h.dtype, device=h.device)
        if layer.own is not None:
            scores[b] = layer.own(h)
        if layer.ahead is not None:
            scores[b + self.look_ahead] = layer.ahead(h)
        logits = scores.pop(b)
        taken = topk_gate(logits, self.k, renormalise=False)
        weights = taken.weights if self.router == "gate" else torch.full_like(taken.weights, 1 / self.k)
        return Route(weights, taken.experts, taken.position, taken.offsets, logits)

    # One token at a time --------------------------------------------------------------------------------------------

    def start(self, batch: int, *, generator: torch.Generator | None = None) -> State:
        """The state before the first token of `batch` sequences."""
        shape = (2, batch, self.heads, self.context, self.dim // self.heads)
        attentions = sum(1 + len(layer.between) for layer in self.layers)
        return State([self.head.weight.new_zeros(shape) for _ in range(attentions)], generator)

    def embed(self, tokens: Int[Tensor, " batch"], state: State) -> Float[Tensor, "batch dim"]:
        """Opens a step: x for the next token of each sequence.

        Raises:
            ValueError: the context is full.
        """
        if state.position + 1 >= self.context:
            raise ValueError(f"tokens must number at most context = {self.context}, which is reached")
        state.position += 1
        state.tokens = tokens
        return self.tokens(tokens) + self.positions.weight[state.position]

    def attend(self, b: int, x: Float[Tensor, "batch dim"], state: State) -> tuple[Tensor, Tensor]:
        """x behind the attention of layer b, and h_b."""
        layer = self.layers[b]
        past = state.past[b * (1 + len(layer.between))]
        x = x + layer.attention.step(layer.attention_norm(x), past, state.position)
        return x, layer.norm(x)

    def route(self, b: int, h: Float[Tensor, "batch dim"], state: State) -> Route:
        """The route of layer b, from a gate that ran earlier or runs now; `state.scores` then holds those ahead."""
        assert state.tokens is not None
        return self._route(b, h, state.tokens, state.scores, state.generator)

    def hint(self, b: int, h: Float[Tensor, "batch dim"]) -> list[int]:
        """A guess at the experts of layer b + 1, for nothing: the gate of layer b + 1 applied to h_b.

        Raises:
            ValueError: layer b + 1 has no gate of its own.
        """
        gate = self.layers[b + 1].own if b + 1 < len(self.layers) else None
        if gate is None:
            raise ValueError(f"b must be a layer before one with a gate of its own, got {b}")
        return distinct(topk_gate(gate(h), self.k).offsets)

    def known(self, b: int, state: State) -> list[int]:
        """The experts of layer b, which a gate that has run already chose.

        Raises:
            ValueError: no gate chose them yet.
        """
        if b not in state.scores:
            raise ValueError(f"b must be a layer whose gate has run, one of {sorted(state.scores)}; got {b}")
        return distinct(topk_gate(state.scores[b], self.k).offsets)

    def mix(
        self,
        h: Float[Tensor, "batch dim"],
        route: Route,
        experts: Mapping[int, ExpertWeights],
        turns: Sequence[Turn] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """What the experts of `route` add; `experts` holds W1 and W2 of those taken, wherever they were copied to.

        An expert after the other in their order, so equal weights give equal bits. A host that took `route.turns()`
        before it asked for the experts has nothing to wait for here.
        """
        y = torch.zeros_like(h)
        for i, token, slot in route.turns() if turns is None else turns:
            w_in, w_out = experts[i]
            y[token] += route.weights[token, slot, None] * (F.relu(h[token] @ w_in) @ w_out)
        return y

    def leave(self, b: int, x: Float[Tensor, "batch dim"], state: State) -> Float[Tensor, "batch dim"]:
        """x behind the dense layers that follow mixture layer b."""
        between = self.layers[b].between
        for i, dense in enumerate(between, 1):
            past = state.past[b * (1 + len(between)) + i]
            x = dense.feed(x + dense.attention.step(dense.attention_norm(x), past, state.position))
        return x

    def read(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch vocab"]:
        """Closes a step: the next token's logits."""
        return self.head(self.norm(x))


def rewire(
    model: PreGatedDecoder,
    look_ahead: int,
    init: Literal["serve", "old", "random"] = "serve",
    *,
    generator: torch.Generator | None = None,
) -> PreGatedDecoder:
    """A pre-gated copy of a conventional model (N = 0), with its weights and none of its memory.

    The first N gates stay where they are. For a gate that now lives in layer j and routes layer j + N, `init` says what
    it starts from: `serve` R_{j+N}, the gate of the layer that it will route, moved N layers up (the residual stream
    changes slowly, so it sees much the same); `old` R_j, the gate of the layer that it lives in; `random` new weights,
    drawn with `generator`.

    Args:
        look_ahead: N.

    Raises:
        ValueError: a model that is not conventional, N outside 0..B-1, an unknown init.

    Source: Hwang et al. 2024, section IV-C. The paper does not say what the moved gates start from.

    Example:
        >>> model = PreGatedDecoder(vocab=16, dim=8, hidden=16, blocks=2, num_experts=4, look_ahead=0)
        >>> rewire(model, look_ahead=1).look_ahead
        1
    """
    if model.look_ahead or model.router != "gate":
        raise ValueError(
            f"model must be conventional: look_ahead 0 and router 'gate'; got {model.look_ahead}, {model.router!r}"
        )
    if init not in ("serve", "old", "random"):
        raise ValueError(f"init must be 'serve', 'old' or 'random', got {init!r}")
    _check_look_ahead(look_ahead, len(model.layers), model.router)
    new = copy.deepcopy(model)
    new.look_ahead = look_ahead
    if look_ahead == 0:
        return new
    gates = [layer.own for layer in new.layers]
    for j, layer in enumerate(new.layers):
        layer.own = gates[j] if j < look_ahead else None
        if j + look_ahead < len(gates):
            layer.ahead = ahead = copy.deepcopy(gates[j + look_ahead if init == "serve" else j])
            if init == "random" and ahead is not None:
                nn.init.normal_(ahead.weight, std=model.dim**-0.5, generator=generator)
    return new


def without_experts(model: PreGatedDecoder) -> PreGatedDecoder:
    """A copy of all that is no expert; its experts are on the `meta` device, with shapes and no memory."""
    experts = [weight for layer in model.layers for weight in layer.experts.parameters()]
    return copy.deepcopy(model, {id(w): nn.Parameter(torch.empty_like(w, device="meta")) for w in experts})


def balance_loss(routes: Sequence[Route]) -> Float[Tensor, ""]:
    """Mean over the layers of E sum_i f_i Q_i, from the p that routed the layer, wherever its gate lives.

    Source: Fedus, Zoph & Shazeer 2021, arXiv 2101.03961, eqs. 4 to 6.

    Example:
        >>> model = PreGatedDecoder(vocab=16, dim=8, hidden=16, blocks=2, num_experts=4)
        >>> balance_loss(model(torch.randint(16, (1, 5))).routes).ndim
        0
    """
    return torch.stack([switch_loss(route.probability, _taken(route)) for route in routes]).mean()


def router_z_loss(routes: Sequence[Route]) -> Float[Tensor, ""]:
    """Mean over the layers of the z loss of the logits that routed the layer (Zoph et al. 2022)."""
    return torch.stack([z_loss(route.logits) for route in routes]).mean()


def _taken(route: Route) -> Tensor:
    return torch.zeros_like(route.logits, dtype=torch.bool).scatter(1, route.experts, True)


def _check_look_ahead(look_ahead: int, blocks: int, router: str) -> None:
    check_count("look_ahead", look_ahead, least=0)
    if look_ahead >= blocks:
        raise ValueError(f"look_ahead must lie in 0..{blocks - 1} for {blocks} blocks, got {look_ahead}")
    if look_ahead and router != "gate":
        raise ValueError(f"look_ahead must be 0 for router {router!r}, which has no gates to move; got {look_ahead}")
