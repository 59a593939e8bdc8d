"""Many runs at once: every variant (`Arm`) with every seed, as one leading axis of all weights.

Small networks spend their time on calling small operators. One `vmap` over stacked weights makes each call as large as
all runs together; the optimiser, the clipping and the statistics keep the runs apart.

A rollout is divided between weights and edges by the arm's schedule, counted in passes over all rollouts:

| schedule  | weights move                    | edges move                                        |
|-----------|---------------------------------|---------------------------------------------------|
| "fixed"   | in each pass                    | never: the arm's `graph`, or k of the first edges  |
| "split"   | in even passes, on the copies   | in odd passes, on the copies with odd numbers:    |
|           | with even numbers               | the paper's training and validation data          |
| "every5"  | in four passes of five          | in the fifth, on the same data: the released code |
| "joint"   | in each pass                    | in each pass, on the same data                    |

Where edges move the graph is drawn (Gumbel-top-k), else it is the exact one, as in rollouts. So the ratio of PPO is 1
before the first step of the weights, which is asserted; in a pass that moves edges it contains the change of the graph.
With `drawn` all passes are on drawn graphs, as in the released code: the weights then learn to use senders that the
exact graph leaves out, at the price of a ratio that is never 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from gated.commformer._batch import Batch
from gated.commformer.graph import messages, sample_graph
from gated.commformer.network import CommFormer, Decision
from gated.commformer.ppo import PPO, Rollout, ValueNorm, clipped_policy_loss, clipped_value_loss, run_mean
from gated.commformer.receive import gate_log_prob
from gated.commformer.worlds import World
from gated.gates._validation import check_axes, check_choice, check_count, check_number, check_positive, check_sizes
from gated.gates.noise import add_logistic_noise, gumbel_noise

EdgeSchedule = Literal["fixed", "split", "every5", "joint"]


@dataclass(frozen=True)
class Arm:
    """A variant.

    Args:
        name: shown by whoever compares.
        schedule: see above.
        k: senders of each receiver, where there is no `graph`.
        graph: alpha for "fixed"; zeros: nobody hears anybody.
        lr, edge_lr: of Adam, for weights and edges. Edges need a large one: a sample is what is intended with
            probability 0.9 once a logit leads three others by 3.3, and Adam moves a logit by about lr in a step.
        penalty: lambda, what an open receive gate costs. With the estimator "score" it is taken from the reward, so it
            is in the reward's units. With "straight_through" it stands in the loss, beside advantages of deviation 1:
            the price at which the gate shuts is then not the reward's.
        drawn: move the weights too on drawn graphs.

    Raises:
        ValueError: a graph beside a schedule that learns its own, `drawn` without one, a negative penalty.
    """

    name: str
    schedule: EdgeSchedule = "fixed"
    k: int = 1
    graph: Float[Tensor, "agents agents"] | None = None
    lr: float | int = 5e-4
    edge_lr: float | int = 0.05
    penalty: float | int = 0.0
    drawn: bool = False

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, get_args(EdgeSchedule))
        if self.graph is not None and self.schedule != "fixed":
            raise ValueError(f"graph is for the schedule 'fixed'; {self.schedule!r} learns its own")
        if self.graph is not None:
            check_axes("agents agents", graph=self.graph)
        if self.drawn and self.schedule == "fixed":
            raise ValueError("drawn needs a schedule that learns the graph, got 'fixed'")
        check_count("k", self.k)
        check_positive("lr", self.lr)
        check_positive("edge_lr", self.edge_lr)
        check_number("penalty", self.penalty, "[0, inf)")

    def moves(self, step: int) -> tuple[bool, bool]:
        """Whether pass `step`, counted from 0, moves weights and edges."""
        if self.schedule == "split":
            return step % 2 == 0, step % 2 == 1
        if self.schedule == "every5":
            return step % 5 != 4, step % 5 == 4
        return True, self.schedule == "joint"


class Losses(NamedTuple):
    """Of one pass, for each run, before weighting."""

    policy: Float[Tensor, " runs"]
    value: Float[Tensor, " runs"]
    entropy: Float[Tensor, " runs"]
    gate: Float[Tensor, " runs"]
    """Of the receive gate: its penalty, or with the estimator "score" its own clipped loss and baseline."""


class RunAdam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) that steps some runs of a stack and leaves the others as they are.

    A gradient of 0 is no way to leave one out: its momentum would go on.
    """

    def __init__(self, parameters: Mapping[str, Tensor], runs: int, eps: float = 1e-5) -> None:
        self.parameters, self.eps = parameters, eps
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.count = torch.zeros(runs, device=next(iter(parameters.values())).device)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: Float[Tensor, " runs"], where: Bool[Tensor, " runs"]) -> None:
        """x -= lr m / (sqrt(v) + eps) for the runs in `where`, each with its own rate and count of steps."""
        self.count += where
        count = self.count.clamp(min=1)
        rate, root = lr / (1 - 0.9**count), (1 - 0.999**count).sqrt()
        for name, p in self.parameters.items():
            shape = (-1, *[1] * (p.ndim - 1))
            on, g = where.view(shape), gradients[name]
            m, v = self.first[name], self.second[name]
            m.lerp_(g, 0.1 * on.to(g))
            v.lerp_(g * g, 0.001 * on.to(g))
            p -= (rate * where).view(shape) * m / (v.sqrt() / root.view(shape) + self.eps)


class Cohort:
    """Runs of `arms` times `seeds`, the seeds of an arm side by side: run = arm * len(seeds) + seed.

    All arms of a seed start with the same weights. Everything that is measured comes with a leading axis of runs.

    Args:
        build: makes the network of a seed; networks have one shape.
        arms: variants.
        seeds: of the starting values.
        settings: of PPO.

    Raises:
        ValueError: no arms or seeds; an arm's k or graph that does not fit the agents.
    """

    def __init__(
        self, build: Callable[[int], CommFormer], arms: Sequence[Arm], seeds: Sequence[int], settings: PPO | None = None
    ) -> None:
        check_sizes(arms=len(arms), seeds=len(seeds))
        for seed in seeds:
            check_count("seeds", seed, least=0)
        networks = [build(seed) for _ in arms for seed in seeds]
        self.arms, self.seeds, self.settings = tuple(arms), tuple(seeds), settings or PPO()
        self.runs, self.agents = len(networks), networks[0].agents
        stacked, _ = stack_module_state(networks)
        self.parameters = {name: p.detach().clone().requires_grad_() for name, p in stacked.items()}
        self.shape = copy.deepcopy(networks[0])
        self.weights = {name: p for name, p in self.parameters.items() if name != "edges"}
        self.edges = self.parameters["edges"]
        for arm in arms:
            if arm.graph is not None and arm.graph.shape != self.edges.shape[1:]:
                needed, given = tuple(self.edges.shape[1:]), tuple(arm.graph.shape)
                raise ValueError(f"graph of {arm.name!r} must have shape {needed}, got {given}")
        self._graphs(None)
        self.optimiser = RunAdam(self.weights, self.runs)
        self.edge_optimiser = RunAdam({"edges": self.edges}, self.runs)
        self.returns = ValueNorm(self.runs, like=self.edges)
        self.passes, self.frozen = 0, False
        self._choose = vmap(lambda p, o, g, n, r: self._call(p, o, g, noise=n, receive_noise=r))
        self._greedy = vmap(lambda p, o, g: self._call(p, o, g))
        self._given = vmap(lambda p, o, g, a, z: self._call(p, o, g, a, z))

    # What the runs do -------------------------------------------------------------------------------------------------

    def graph(self) -> Float[Tensor, "runs agents agents"]:
        """The exact graph of each run, which rollouts and execution use."""
        return self._graphs(None)[:, 0].detach()

    def decide(
        self,
        observation: Float[Tensor, "runs batch agents features"],
        generator: torch.Generator | None,
        graph: Float[Tensor, "runs agents agents"] | None = None,
    ) -> Decision:
        """All runs choose, on their exact graphs or on others; without a generator what is most probable."""
        if not observation.isfinite().all():
            raise ValueError("observation must be finite, got NaN or infinity")
        graph = self.graph() if graph is None else graph
        if generator is None:
            return Decision(*self._greedy(self.parameters, observation, graph))
        like = observation[..., :1].expand(*observation.shape[:-1], self.shape.actions)
        receive_noise = add_logistic_noise(torch.zeros_like(observation[..., 0]), generator)
        return Decision(
            *self._choose(self.parameters, observation, graph, gumbel_noise(like, generator), receive_noise)
        )

    @torch.no_grad()
    def collect(
        self,
        world: World,
        generator: torch.Generator,
        *,
        greedy: bool = False,
        observation: Float[Tensor, "copies agents features"] | None = None,
    ) -> Rollout:
        """A block of `world.limit` steps of all runs; run r plays copies r B to (r + 1) B - 1 of the world.

        Args:
            world: of `runs` B copies.
            generator: of starts, actions and gates.
            greedy: take the most probable action, and open where l > 0.
            observation: what `world.place` returned, where the caller chose the starts; None resets.

        Raises:
            ValueError: copies that can't be shared out, or a world of other sizes; NaN observations.
        """
        self._check(world)
        graph, draw = self.graph(), None if greedy else generator
        apart = lambda x: x.unflatten(0, (self.runs, -1))  # noqa: E731
        seen = apart(world.reset(generator) if observation is None else observation)
        record: dict[str, list[Tensor]] = {name: [] for name in Rollout._fields}
        for _ in range(world.limit):
            decision = self.decide(seen, draw, graph)
            step = world.step(decision.action.flatten(0, 1))
            for name, x in (
                ("observation", seen),
                ("action", decision.action),
                ("log_prob", decision.log_prob),
                ("reward", apart(step.reward)),
                ("value", decision.value),
                ("receive", decision.receive),
                ("gate_log_prob", gate_log_prob(decision.gate_logit, decision.receive)),
                ("gate_baseline", decision.gate_baseline),
                ("done", apart(step.done)),
                ("messages", messages(graph[:, None], decision.receive)),
            ):
                record[name].append(x)
            seen = apart(step.observation)
        if bool(record["done"][-1].all()):  # nothing follows anywhere: no value is needed
            record["value"].append(torch.zeros_like(decision.value))
            record["gate_baseline"].append(torch.zeros_like(decision.value))
        else:
            last = self.decide(seen, draw, graph)
            record["value"].append(last.value)
            record["gate_baseline"].append(last.gate_baseline)
        return Rollout(*(torch.stack(record[name], 1) for name in Rollout._fields))

    # How they learn ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, generator: torch.Generator) -> Losses:
        """`settings.epochs` passes over the rollout, each moving what the arms' schedules say. The last pass's losses.

        Raises:
            RuntimeError: the ratio is not 1 before the first step of the weights: the rollout is of another policy.
        """
        batch = self._batch(rollout)
        for _ in range(self.settings.epochs):
            losses = self._pass(batch, generator)
            self.passes += 1
        return Losses(*(x.detach() for x in losses))

    def train(self, world: World, updates: int, generator: torch.Generator) -> Float[Tensor, "updates runs"]:
        """`updates` times `collect` and `update`; the mean score of each rollout."""
        check_sizes(updates=updates)
        scores = []
        for _ in range(updates):
            rollout = self.collect(world, generator)
            self.update(rollout, generator)
            scores.append(rollout.score.mean(1))
        return torch.stack(scores)

    def freeze_edges(self) -> None:
        """From now on all passes move weights only, on the exact graph and on all data."""
        self.frozen = True

    def edge_gradients(
        self, rollout: Rollout, generator: torch.Generator
    ) -> tuple[Float[Tensor, "runs agents agents"], Float[Tensor, "runs agents agents"]]:
        """dL_policy/dE and dL_value/dE on graphs drawn anew: who tells the edges where to go."""
        batch = self._batch(rollout)
        graph = self._graphs(generator, [arm.graph is None for arm in self.arms])
        losses = self._losses(batch, self._forward(batch, graph), batch.weight)
        parts = (losses.policy.sum(), losses.value.sum())
        policy, value = (
            torch.autograd.grad(part, self.edges, retain_graph=True, materialize_grads=True)[0] for part in parts
        )
        return policy, value

    def member(self, run: int) -> CommFormer:
        """The network of one run, with a copy of its weights."""
        network = copy.deepcopy(self.shape)
        network.load_state_dict({name: p[run].detach().clone() for name, p in self.parameters.items()})
        return network

    def run_of(self, arm: str, seed: int) -> int:
        """Where the run of an arm's name and a seed stands."""
        names = [a.name for a in self.arms]
        if arm not in names or seed not in self.seeds:
            raise ValueError(f"arm and seed must be of {names} and {self.seeds}, got {arm!r} and {seed}")
        return names.index(arm) * len(self.seeds) + self.seeds.index(seed)

    # Parts ------------------------------------------------------------------------------------------------------------

    def _batch(self, rollout: Rollout) -> Batch:
        penalty = self._per_run([float(arm.penalty) for arm in self.arms])
        return Batch(rollout, self.settings, self.returns, penalty, self.shape.receive_gate == "score")

    def _pass(self, batch: Batch, generator: torch.Generator) -> Losses:
        moves = [(True, False) if self.frozen else arm.moves(self.passes) for arm in self.arms]
        weights, edges = (self._per_run([move[i] for move in moves]) for i in (0, 1))
        drawn = [move[1] or (arm.drawn and not self.frozen) for arm, move in zip(self.arms, moves, strict=True)]
        decision = self._forward(batch, self._graphs(generator, drawn))
        batch.begin(decision, ~self._per_run(drawn))
        halved = self._per_run([arm.schedule == "split" and not self.frozen for arm in self.arms])
        losses = self._losses(batch, decision, batch.half(halved, odd=edges))
        value = torch.where(edges & ~weights, self.settings.edge_value, self.settings.value)
        total = losses.policy + value * losses.value - self.settings.entropy * losses.entropy + losses.gate
        gradients = torch.autograd.grad(total.sum(), list(self.parameters.values()), materialize_grads=True)
        of = dict(zip(self.parameters, gradients, strict=True))
        norm = torch.stack([of[name].flatten(1).square().sum(1) for name in self.weights]).sum(0).sqrt()
        cut = (self.settings.grad_norm / (norm + 1e-6)).clamp(max=1)
        short = {name: of[name] * cut.view(-1, *[1] * (of[name].ndim - 1)) for name in self.weights}
        self.optimiser.step(short, self._per_run([float(arm.lr) for arm in self.arms]), weights)
        if bool(edges.any()):
            self.edge_optimiser.step(of, self._per_run([float(arm.edge_lr) for arm in self.arms]), edges)
        batch.fresh = batch.fresh & ~(weights | edges)
        return losses

    def _forward(self, batch: Batch, graph: Float[Tensor, "runs groups agents agents"]) -> Decision:
        """Teacher-forced, group g of the copies on graph g."""
        if graph.shape[1] == 1:
            graph = graph[:, 0]
        else:
            each = batch.copies // graph.shape[1]
            graph = graph.repeat_interleave(each, 1).repeat(1, batch.steps, 1, 1)
        return Decision(*self._given(self.parameters, batch.observation, graph, batch.action, batch.receive))

    def _losses(self, batch: Batch, decision: Decision, weight: Float[Tensor, "runs steps 1"]) -> Losses:
        clip, huber = self.settings.clip, self.settings.huber
        policy = clipped_policy_loss(decision.log_prob, batch.old_log_prob, batch.advantage, weight, clip)
        value = clipped_value_loss(decision.value, batch.old_value, batch.target, weight, clip, huber)
        gate = torch.zeros_like(policy)
        if self.shape.receive_gate == "straight_through":
            gate = batch.penalty * run_mean(decision.receive, weight)
        elif self.shape.receive_gate == "score":
            log_prob = gate_log_prob(decision.gate_logit, batch.receive)
            gate = clipped_policy_loss(log_prob, batch.old_gate_log_prob, batch.gate_advantage, weight, clip)
            expected = (decision.gate_baseline, batch.old_baseline, batch.gate_target)
            gate = gate + clipped_value_loss(*expected, weight, clip, huber)
        return Losses(policy, value, run_mean(decision.entropy, weight), gate)

    def _graphs(
        self, generator: torch.Generator | None, drawn: Sequence[bool] | None = None
    ) -> Float[Tensor, "runs groups agents agents"]:
        """Of each run: drawn with a gradient for the arms in `drawn`, else exact and without one."""
        groups, seeds = self.settings.groups if drawn is not None and any(drawn) else 1, len(self.seeds)
        rows = []
        for i, arm in enumerate(self.arms):
            edges = self.edges[i * seeds : (i + 1) * seeds, None]
            if arm.graph is not None:
                graph = arm.graph.to(edges).expand(seeds, groups, -1, -1)
            elif drawn is not None and drawn[i]:
                many = edges.expand(-1, groups, -1, -1)
                graph = sample_graph(many, arm.k, self.settings.temperature, generator=generator)
            else:
                graph = sample_graph(edges.detach(), arm.k, generator=None).expand(-1, groups, -1, -1)
            rows.append(graph)
        return torch.cat(rows)

    def _call(self, parameters: dict[str, Tensor], *args: Tensor, **noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(functional_call(self.shape, parameters, args, noise))

    def _per_run(self, values: Sequence[bool | float]) -> Tensor:
        """A value for each arm, for each of its seeds."""
        return torch.tensor(values, device=self.edges.device).repeat_interleave(len(self.seeds))

    def _check(self, world: World) -> None:
        sizes = (self.shape.agents, self.shape.observation, self.shape.actions)
        given = (world.num_agents, world.observation_size, world.num_actions)
        if sizes != given:
            raise ValueError(f"world must have {sizes} agents, features and actions, as the networks do, got {given}")
        least = 2 if any(arm.schedule == "split" for arm in self.arms) else 1
        if world.batch % self.runs or world.batch < least * self.runs:
            raise ValueError(
                f"world must have a multiple of {self.runs} copies, at least {least} for each run, got {world.batch}"
            )
        if (world.batch // self.runs) % self.settings.groups:
            raise ValueError(
                f"groups must divide the {world.batch // self.runs} copies of a run, got {self.settings.groups}"
            )
