"""The network: an encoder in which observations cross the graph once, a critic on it, and a decoder of actions.

    o_i -> LN, Linear, GELU, LN -> relation attention along the graph -> rep_i -> value_i
                                                                        rep_i -> decoder -> logits of a_i

Three decoders. "strict": agent i hears the actions a_j, j < i, of those that it hears, and of nobody else. "mat": as
released; token i carries a_{i-1}, and an agent always sees its own token, so the action of the agent before it arrives
without an edge, and an edge (i, j) delivers a_{j-1}. "parallel": no actions are told, agents act at once.

With one layer an observation takes one hop, and in the strict decoder an action too: what agent i does depends on agent
j if and only if i hears j. Without edges there is no communication at all (but for "mat").

Paper: arXiv 2405.08550 (graph, encoder, decoder) and 2411.00382 (receive gate), on the Multi-Agent Transformer,
arXiv 2205.14953. Sizes and starts follow the released code; its dropout is left out, because it makes the policy of the
update another one than that of the rollout, and so are 3,362 parameters that it never uses.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.commformer.attention import Estimator, relation_attention, released_attention
from gated.commformer.graph import check_agents, initial_edges
from gated.commformer.receive import ReceiveEstimator, ReceiveGate, stored_gate
from gated.gates._validation import check_count, check_float, check_floats, check_int, check_sizes, holds_anywhere
from gated.gates.noise import add_logistic_noise, gumbel_noise

DecoderName = Literal["strict", "mat", "parallel"]
Sent = tuple[Tensor, Tensor]  # keys and values


class Decision(NamedTuple):
    """What one call computed, for each agent."""

    action: Tensor
    """Chosen, or as given, [*batch, agents]."""
    logits: Tensor
    """Of its actions, given those of earlier agents that it hears, [*batch, agents, actions]."""
    value: Tensor
    """The critic's, [*batch, agents]."""
    receive: Tensor
    """z: 1 where an agent listened, [*batch, agents]. All ones without a gate."""
    gate_logit: Tensor
    """l of the receive gate, inf without one."""
    gate_baseline: Tensor
    """What an agent's own observation makes it expect, 0 without a gate."""

    @property
    def log_prob(self) -> Tensor:
        """log pi(a_i | ...), [*batch, agents], in nats."""
        return self.logits.log_softmax(-1).gather(-1, self.action[..., None]).squeeze(-1)

    @property
    def entropy(self) -> Tensor:
        """Of each agent's policy, [*batch, agents], in nats."""
        return torch.special.entr(self.logits.softmax(-1)).sum(-1)


class RelationLayer(nn.Module):
    """x_i -> W_o relation_attention(...) + b, with W_q, W_k, W_v, W_o and the map of the two relation vectors."""

    def __init__(self, width: int, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator
        self.query, self.key, self.value, self.out = (_small(nn.Linear(width, width)) for _ in range(4))
        self.relation = _small(nn.Linear(width, 2 * width))

    def send(self, x: Float[Tensor, "*batch keys width"]) -> Sent:
        """Key and value of x: all that others get of it."""
        return self.key(x), self.value(x)

    def forward(
        self,
        x: Float[Tensor, "*batch queries width"],
        own: Sent,
        others: Sent,
        kinds: Float[Tensor, "2 width"],
        links: Float[Tensor, "*#batch queries keys"],
    ) -> Float[Tensor, "*batch queries width"]:
        q, relation = self.query(x), self.relation(kinds)
        return self.out(relation_attention(q, own, others, relation, links, self.estimator))

    def released(self, x: Tensor, sent: Sent, kinds: Tensor, graph: Tensor, causal: bool) -> Tensor:
        return self.out(released_attention(self.query(x), *sent, self.relation(kinds), graph, causal))


class FeedForward(nn.Sequential):
    """Linear, activation, Linear, all of one width."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__(nn.Linear(width, width), activation, nn.Linear(width, width))


class AgentHeads(nn.Module):
    """A head of its own for each agent: LN, Linear, GELU, LN, Linear to the logits, with stacked weights."""

    def __init__(self, agents: int, width: int, actions: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, agents, width))
        self.shift = nn.Parameter(torch.zeros(2, agents, width))
        self.hidden = nn.Parameter(_orthogonal(agents, width, width, gain=math.sqrt(2)))
        self.hidden_bias = nn.Parameter(torch.zeros(agents, width))
        self.last = nn.Parameter(_orthogonal(agents, width, actions, gain=0.01))
        self.last_bias = nn.Parameter(torch.zeros(agents, actions))

    def forward(
        self, x: Float[Tensor, "*batch some width"], agents: slice = slice(None)
    ) -> Float[Tensor, "*batch some actions"]:
        """Logits of all agents, or of those in `agents`, which x then holds."""
        shape, s = x.shape, agents
        x = x.reshape(-1, *shape[-2:]).transpose(0, 1)  # [agents, batch, width]: one product for each agent
        x = self._norm(x, 0, s) @ self.hidden[s] + self.hidden_bias[s, None]
        x = self._norm(F.gelu(x), 1, s) @ self.last[s] + self.last_bias[s, None]
        return x.transpose(0, 1).reshape(*shape[:-1], -1)

    def _norm(self, x: Tensor, which: int, s: slice) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.scale[which, s, None] + self.shift[which, s, None]


class CommFormer(nn.Module):
    """Agents that act on what they see and on what the graph lets them hear. The logits E of the graph are `edges`.

    Args:
        agents: N >= 2.
        observation, actions: numbers that an agent sees, and actions that it has.
        width: d of all layers.
        decoder: "strict", "mat" or "parallel", see above.
        receive_gate: add the gate that decides at each step whether an agent listens; None leaves it out. Its estimator
            is "straight_through" (the slope of the sigmoid) or "score" (the gate is an action of its own).
        estimator: of the gradient with regard to edges and gate (`relation_attention`).
        paper_quirks: compute attention as the released code does (`released_attention`); neither with "strict" nor with
            a gate, which the released code does not have.
        seed: of all starting values.

    Raises:
        ValueError: one agent; sizes below 1; an unknown name; `paper_quirks` with what the released code has not.

    Example:
        >>> model = CommFormer(agents=3, observation=5, actions=4)
        >>> heard = graph_from_indices([[1], [2], [0]])
        >>> model.act(torch.randn(2, 3, 5), heard, torch.Generator().manual_seed(0)).action.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        agents: int,
        observation: int,
        actions: int,
        *,
        width: int = 64,
        decoder: DecoderName = "strict",
        receive_gate: ReceiveEstimator | None = None,
        estimator: Estimator = "masked",
        paper_quirks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_agents(agents)
        check_sizes(observation=observation, actions=actions, width=width)
        check_count("seed", seed, least=0)
        for name, value, known in (
            ("decoder", decoder, get_args(DecoderName)),
            ("receive_gate", receive_gate, (None, *get_args(ReceiveEstimator))),
            ("estimator", estimator, get_args(Estimator)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if paper_quirks and (decoder == "strict" or receive_gate):
            raise ValueError("paper_quirks needs the decoder 'mat' or 'parallel' and no receive_gate, as released")
        self.agents, self.observation, self.actions = agents, observation, actions
        self.decoder, self.receive_gate, self.paper_quirks = decoder, receive_gate, paper_quirks
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.kinds = nn.Parameter(torch.randn(2, width))
            self.embed = nn.Sequential(
                nn.LayerNorm(observation), _linear(observation, width), nn.GELU(), nn.LayerNorm(width)
            )
            self.listen = RelationLayer(width, estimator)
            self.feed = FeedForward(width, nn.ReLU()).apply(_small)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.critic = nn.Sequential(
                _linear(width, width), nn.GELU(), nn.LayerNorm(width), _linear(width, 1, gain=0.01)
            )
            if decoder != "parallel":
                self.token = nn.Sequential(
                    _linear(actions + 1, width, bias=False), nn.GELU(), nn.LayerNorm(width)
                )  # the last column is the start
                self.recall, self.consult = RelationLayer(width, estimator), RelationLayer(width, estimator)
                self.decoder_feed = FeedForward(width, nn.GELU())
                self.decoder_feed[0], self.decoder_feed[2] = _linear(width, width), _linear(width, width, gain=0.01)
                self.decoder_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
            self.heads = AgentHeads(agents, width, actions)
            self.gate = ReceiveGate(observation) if receive_gate else None
        self.edges = nn.Parameter(initial_edges(agents, generator=torch.Generator().manual_seed(seed)))

    def forward(
        self,
        observation: Float[Tensor, "*batch agents observation"],
        graph: Float[Tensor, "*#batch agents agents"],
        action: Int[Tensor, "*batch agents"] | None = None,
        receive: Float[Tensor, "*batch agents"] | None = None,
        *,
        noise: Float[Tensor, "*batch agents actions"] | None = None,
        receive_noise: Float[Tensor, "*batch agents"] | None = None,
        cached: bool = True,
    ) -> Decision:
        """One pass with the actions given (teacher forcing), or one agent after another, choosing them.

        Args:
            observation: o.
            graph: alpha, one for all or one for each input (`sample_graph`).
            action: what was done; None chooses.
            receive: z, as stored with the action: the value is used again. Also an intervention where there is no gate.
            noise: Gumbel noise that is added to the logits before the largest is taken, which samples; None takes the
                most probable action.
            receive_noise: logistic noise on the gate's logits, which samples z; None opens where l > 0.
            cached: keep keys and values of earlier agents while choosing; False computes all of them again at each of
                the N steps, with the same result. `paper_quirks` always does.

        Raises:
            ValueError: shapes that do not fit the network, or each other; NaN observations.
        """
        self._check(observation, graph, action, receive=receive, noise=noise, receive_noise=receive_noise)
        links, z, logit, baseline = self._links(observation, graph, receive, receive_noise)
        representation = self.encode(observation, links)
        value = self.critic(representation).squeeze(-1)
        if action is None:
            action, logits = self._choose(representation, links, noise, cached)
        else:
            logits = self._logits(representation, links, action)
        return Decision(action, logits, value, z, logit, baseline)

    def act(
        self,
        observation: Float[Tensor, "*batch agents observation"],
        graph: Float[Tensor, "*#batch agents agents"],
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Samples z and the actions from `generator`; None takes what is most probable. Raises as `forward` does."""
        noise = receive_noise = None
        if generator is not None:
            noise = gumbel_noise(observation[..., :1].expand(*observation.shape[:-1], self.actions), generator)
            receive_noise = add_logistic_noise(torch.zeros_like(observation[..., 0]), generator)
        return self(observation, graph, noise=noise, receive_noise=receive_noise)

    def encode(
        self,
        observation: Float[Tensor, "*batch agents observation"],
        links: Float[Tensor, "*#batch agents agents"],
    ) -> Float[Tensor, "*batch agents width"]:
        """rep: what each agent knows once its observation and those that it hears are mixed. `links` is alpha z."""
        x = self.embed(observation)
        sent = self.listen.send(x)
        if self.paper_quirks:
            heard = self.listen.released(x, sent, self.kinds, links, causal=False)
        else:
            heard = self.listen(x, sent, sent, self.kinds, links)
        x = self.norms[0](x + heard)
        return self.norms[1](x + self.feed(x))

    def _links(
        self, observation: Tensor, graph: Tensor, receive: Tensor | None, receive_noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha z without its diagonal, z, and the gate's two outputs. Without a gate l = inf: always open."""
        links = graph if self.paper_quirks else graph * (1 - torch.eye(self.agents, device=graph.device).to(graph))
        ones = torch.ones_like(observation[..., 0])
        if self.gate is None:
            logit, baseline, z = ones * torch.inf, ones * 0, ones if receive is None else receive
        else:
            logit, baseline = self.gate(observation)
            if receive is None:
                receive = ((logit if receive_noise is None else logit + receive_noise) > 0).to(logit)
            z = stored_gate(logit, receive) if self.receive_gate == "straight_through" else receive
        if self.gate is not None or receive is not None:
            links = links * z[..., None]
        return links, z, logit, baseline

    def _logits(self, representation: Tensor, links: Tensor, action: Tensor) -> Tensor:
        """Teacher-forced, all agents at once."""
        if self.decoder == "parallel":
            return self.heads(representation)
        told = self._tokens(action)
        start = self._start(told)
        causal = links.tril(-1)
        if self.decoder == "strict":
            x, _ = self._decode(start, representation, causal, (self.recall.send(told), self.consult.send(told)))
            return self.heads(x)
        x = torch.cat((start[..., :1, :], told[..., :-1, :]), -2)
        if not self.paper_quirks:
            return self.heads(self._decode(x, representation, causal, None)[0])
        first, second, third = self.decoder_norms
        x = first(x + self.recall.released(x, self.recall.send(x), self.kinds, links, causal=True))
        heard = self.consult.released(representation, self.consult.send(x), self.kinds, links, causal=True)
        x = second(representation + heard)
        return self.heads(third(x + self.decoder_feed(x)))

    def _choose(
        self, representation: Tensor, links: Tensor, noise: Tensor | None, cached: bool
    ) -> tuple[Tensor, Tensor]:
        """One agent after another; of those before it, keys and values are there already."""
        noise = representation.new_zeros(self.actions) if noise is None else noise
        if self.decoder == "parallel":
            logits = self.heads(representation)
            return (logits + noise).argmax(-1), logits
        noise = noise.expand(*representation.shape[:-1], self.actions)
        if self.paper_quirks or not cached:
            action = torch.zeros_like(representation[..., 0], dtype=torch.long)
            for m in range(self.agents):
                logits = self._logits(representation, links, action)
                chosen = (logits + noise).argmax(-1)
                action = torch.where(torch.arange(self.agents, device=action.device) == m, chosen, action)
            return action, logits
        token = start = self._start(representation[..., :1, :])
        sent: list[Tensor] = [start[..., :0, :]] * 4  # keys and values of both layers
        actions, rows = [], []
        for m in range(self.agents):
            row = slice(m, m + 1)
            before = ((sent[0], sent[1]), (sent[2], sent[3]))
            x, own = self._decode(token, representation[..., row, :], links[..., row, :m], before)
            rows.append(self.heads(x, row))
            actions.append((rows[-1] + noise[..., row, :]).argmax(-1))
            told = self._tokens(actions[-1])
            if self.decoder == "strict":
                own = (self.recall.send(told), self.consult.send(told))
            else:
                token = told
            new = (*own[0], *own[1])
            sent = [torch.cat(pair, -2) for pair in zip(sent, new, strict=True)]
        return torch.cat(actions, -1), torch.cat(rows, -2)

    def _decode(
        self, x: Tensor, representation: Tensor, links: Tensor, others: tuple[Sent, Sent] | None
    ) -> tuple[Tensor, tuple[Sent, Sent]]:
        """The decoder's layers for some agents, and what these agents' own tokens send. None: all hear one another."""
        first, second, third = self.decoder_norms
        own = self.recall.send(x)
        x = first(x + self.recall(x, own, others[0] if others else own, self.kinds, links))
        own_later = self.consult.send(x)
        heard = self.consult(representation, own_later, others[1] if others else own_later, self.kinds, links)
        x = second(representation + heard)
        return third(x + self.decoder_feed(x)), (own, own_later)

    def _tokens(self, action: Tensor) -> Tensor:
        onehot = action[..., None] == torch.arange(self.actions + 1, device=action.device)
        return self.token(onehot.to(self.edges.dtype))

    def _start(self, like: Tensor) -> Tensor:
        """The start token for each position of `like`."""
        columns = torch.arange(self.actions + 1, device=like.device)
        return self.token((columns == self.actions).to(like)).expand_as(like)

    def _check(self, observation: Tensor, graph: Tensor, action: Tensor | None, **floats: Tensor | None) -> None:
        n = self.agents
        check_floats(f"*batch {n} {self.observation}", observation=observation)
        rows = tuple(observation.shape[:-1])
        fits = zip(graph.shape[-3::-1], rows[-2::-1], strict=False)
        if graph.shape[-2:] != (n, n) or graph.ndim > len(rows) + 1 or any(a not in (1, b) for a, b in fits):
            raise ValueError(f"graph must have shape (*batch, {n}, {n}), batch {rows[:-1]}, got {tuple(graph.shape)}")
        for name, x in {"action": action, **floats}.items():
            if x is None:
                continue
            (check_int if name == "action" else check_float)(name, x)
            shape = (*rows, self.actions) if name == "noise" else rows
            if x.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
        if action is not None and holds_anywhere((action < 0) | (action >= self.actions)):
            raise ValueError(f"action must lie in 0..{self.actions - 1}, got others")
        if holds_anywhere(~observation.isfinite()):
            raise ValueError("observation must be finite, got NaN or infinity")


def _linear(inputs: int, outputs: int, *, gain: float = math.sqrt(2), bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _small(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return layer


def _orthogonal(agents: int, inputs: int, outputs: int, *, gain: float) -> Tensor:
    """[agents, inputs, outputs], each agent's drawn for itself."""
    return torch.stack([nn.init.orthogonal_(torch.empty(outputs, inputs), gain).T for _ in range(agents)])
