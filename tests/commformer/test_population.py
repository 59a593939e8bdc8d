"""Training many runs at once: against one run at a time, PyTorch's Adam, the definitions, and what can be known."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gated.commformer import (
    PPO,
    Arm,
    Cohort,
    CommFormer,
    Rollout,
    ValueNorm,
    clipped_policy_loss,
    clipped_value_loss,
    graph_from_indices,
)
from gated.commformer.population import RunAdam
from gated.commformer.ppo import run_mean
from gated.commformer.worlds import PermutationLookup, Pursuit

F64 = torch.float64
PERMUTATION = (1, 2, 0)
ORACLE = graph_from_indices([[1], [2], [0]])
NOBODY = torch.zeros(3, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(seed: int, **options) -> CommFormer:
    return CommFormer(3, 5, 2, **{"width": 8, "decoder": "strict", "seed": seed} | options)


def lookup(copies: int, **options) -> PermutationLookup:
    return PermutationLookup(copies, PERMUTATION, 2, **options)


def population(*arms: Arm, seeds=(0,), settings: PPO | None = None, **options) -> Cohort:
    return Cohort(lambda seed: build(seed, **options), arms, seeds, settings)


def sharpen(people: Cohort) -> Cohort:
    """Weights of order one, so that everything matters."""
    with torch.no_grad():
        for name, p in people.weights.items():
            p += 0.3 * torch.randn(p.shape[1:], generator=generator(len(name)), dtype=p.dtype)
    return people


# The parts -----------------------------------------------------------------------------------------------------------


def test_values_are_standardised_by_corrected_averages():
    norm = ValueNorm(2, keep=0.5, like=torch.zeros(1))
    x = torch.tensor([[1.0, 2, 3, 100], [4.0, 4, 8, 8]])
    counts = torch.tensor([[1.0, 1, 1, 0], [1.0, 1, 1, 1]])
    assert torch.equal(norm.normalise(x), x) and torch.equal(norm.denormalise(x), x)
    norm.update(x, counts)
    expected = torch.stack(((x[0] - 2) / (2 / 3) ** 0.5, (x[1] - 6) / 2))
    assert torch.allclose(norm.normalise(x), expected, atol=1e-5)
    norm.update(x + 3, counts)  # weights 1/4 and 1/2 of the two, over 3/4
    shifts = torch.tensor([2.0, 6.0]) + 3 * 2 / 3
    assert torch.allclose(norm.denormalise(torch.zeros(2, 1))[:, 0], shifts)
    assert torch.allclose(norm.denormalise(norm.normalise(x)), x, atol=1e-4)


def test_losses_are_their_definitions():
    draw = generator(3)
    log_prob, old, gain, value, before, target = (torch.randn(2, 5, 3, generator=draw) / 2 for _ in range(6))
    weight = (torch.rand(2, 5, 1, generator=draw) < 0.6).float()
    policy = clipped_policy_loss(log_prob, old, gain, weight, 0.2)
    critic = clipped_value_loss(value, before, target, weight, 0.2, 0.3)
    for run in range(2):
        gains, errors = [], []
        for step in range(5):
            for agent in range(3):
                if not weight[run, step, 0]:
                    continue
                at = (run, step, agent)
                ratio = (log_prob[at] - old[at]).exp()
                gains.append(min(ratio * gain[at], max(0.8, min(1.2, ratio)) * gain[at]))
                near = before[at] + max(-0.2, min(0.2, value[at] - before[at]))
                errors.append(max(F.huber_loss(v, target[at], delta=0.3) for v in (value[at], near)))
        assert policy[run].item() == pytest.approx(-sum(gains).item() / len(gains), abs=1e-6)
        assert critic[run].item() == pytest.approx(sum(errors).item() / len(errors), abs=1e-6)


def test_adam_is_pytorchs_for_the_runs_that_step_and_nothing_for_the_others():
    start = torch.randn(3, 4, 2, generator=generator())
    ours, rates = start.clone(), torch.tensor([1e-2, 3e-3, 1e-3])
    adam = RunAdam({"x": ours}, 3)
    theirs = [nn.Parameter(start[run].clone()) for run in range(3)]
    each = [torch.optim.Adam([p], lr=rate.item(), eps=1e-5) for p, rate in zip(theirs, rates, strict=True)]
    steps = torch.tensor([[True, True, False], [True, False, False], [True, True, False], [False, True, False]])
    for n, where in enumerate(steps):
        gradient = torch.randn(3, 4, 2, generator=generator(n))
        adam.step({"x": gradient}, rates, where)
        for run in where.nonzero().flatten().tolist():
            theirs[run].grad = gradient[run]
            each[run].step()
    for run in range(3):
        assert torch.allclose(ours[run], theirs[run], atol=1e-6)
    assert torch.equal(ours[2], start[2])


def test_a_logit_moves_by_no_more_than_its_rate_in_a_step():
    edges = torch.zeros(1, 4, 4)
    adam = RunAdam({"edges": edges}, 1)
    for n in range(200):
        adam.step({"edges": torch.randn(1, 4, 4, generator=generator(n))}, torch.tensor([1e-4]), torch.tensor([True]))
    assert edges.abs().max() < 200 * 1e-4  # 3.3 would be needed for a firm choice


# Many runs are each of them ------------------------------------------------------------------------------------------


def test_a_population_is_its_runs_one_at_a_time():
    arms = (Arm("oracle", graph=ORACLE, lr=1e-2), Arm("none", graph=NOBODY, lr=3e-3))
    many = sharpen(population(*arms, seeds=(0, 1)))
    rollout = many.collect(lookup(4 * 16), generator())
    before = [many.member(run) for run in range(4)]
    many.update(rollout, generator())
    for run in range(4):
        arm = arms[run // 2]
        alone = Cohort(lambda seed, run=run: before[run], [arm], [0])
        alone.update(Rollout(*(x[run : run + 1] for x in rollout)), generator())
        for name, p in many.parameters.items():
            assert torch.allclose(p[run], alone.parameters[name][0], atol=2e-5), name


@pytest.mark.parametrize(("longest", "cut"), [(0.5, True), (50, False)])
def test_an_update_is_ppo_written_out_for_one_network(longest, cut):
    settings = PPO(epochs=3, grad_norm=longest)
    one = sharpen(population(Arm("oracle", graph=ORACLE, lr=1e-2), settings=settings))
    net = one.member(0)
    rollout = one.collect(lookup(32), generator())
    o, action, reward = (x[0, 0] for x in (rollout.observation, rollout.action, rollout.reward))
    with torch.no_grad():
        first = net(o, ORACLE, action)
    gain = reward - first.value
    gain = (gain - gain.mean()) / (gain.std(correction=0) + 1e-5)
    target = (reward - reward.mean()) / reward.std(correction=0)
    weights = [p for name, p in net.named_parameters() if name != "edges"]
    adam = torch.optim.Adam(weights, lr=1e-2, eps=1e-5)
    for _ in range(3):
        now = net(o, ORACLE, action)
        ratio = (now.log_prob - first.log_prob).exp()
        policy = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        near = first.value + (now.value - first.value).clamp(-0.2, 0.2)
        critic = torch.maximum(
            *(F.huber_loss(v, target, reduction="none", delta=10.0) for v in (now.value, near))
        ).mean()
        loss = -policy + critic - 0.01 * now.entropy.mean()
        adam.zero_grad()
        loss.backward()
        assert (nn.utils.clip_grad_norm_(weights, longest) > longest) == cut
        adam.step()
    losses = one.update(rollout, generator())
    assert losses.policy.item() == pytest.approx(-policy.item(), abs=1e-4)
    for name, p in net.named_parameters():
        assert torch.allclose(one.parameters[name][0], p, atol=2e-5), name


def test_arms_of_a_seed_start_alike_and_are_found_by_name():
    many = population(Arm("a", graph=ORACLE), Arm("b", "split"), seeds=(4, 7))
    assert [many.run_of(arm, seed) for arm in "ab" for seed in (4, 7)] == [0, 1, 2, 3]
    for p in many.parameters.values():
        assert torch.equal(p[0], p[2]) and torch.equal(p[1], p[3])
    for name, p in many.member(3).named_parameters():
        assert torch.equal(p, build(7).get_parameter(name))


def test_values_are_in_units_of_the_returns():
    """Rewards that are a hundred times as large and shifted lead to the same weights."""
    worlds = [sharpen(population(Arm("oracle", graph=ORACLE))) for _ in range(2)]
    rollout = worlds[0].collect(lookup(64), generator())
    for people, scale, shift in zip(worlds, (1, 100), (0, 7), strict=True):
        reward = scale * rollout.reward + shift
        people.returns.update(reward.flatten(1), torch.ones(1, 1))  # so that old values mean the same
        people.update(rollout._replace(reward=reward), generator())
    for a, b in zip(worlds[0].parameters.values(), worlds[1].parameters.values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


# The ratio -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"receive_gate": "straight_through"}, {"receive_gate": "score"}])
def test_the_ratio_is_exactly_one_before_the_first_step(options):
    people = sharpen(population(Arm("learned", "every5", k=1), **options))
    rollout = people.collect(lookup(32), generator(1))
    batch = people._batch(rollout)
    decision = people._forward(batch, people._graphs(None))
    assert (decision.log_prob - batch.old_log_prob).abs().max() < 1e-5  # choosing and teacher forcing, rounded
    batch.begin(decision, torch.tensor([True]))
    assert torch.equal(decision.log_prob, batch.old_log_prob)
    losses = people._losses(batch, decision, batch.weight)
    assert torch.equal(losses.policy, -run_mean(batch.advantage, batch.weight))


def test_another_policy_is_an_error():
    people = sharpen(population(Arm("learned", "every5"), receive_gate="straight_through"))
    rollout = people.collect(lookup(32), generator(1))
    assert 0 < rollout.receive.mean() < 1
    with pytest.raises(RuntimeError, match=r"ratio must be 1 .* another gate sample"):
        people.update(rollout._replace(receive=1 - rollout.receive), generator())
    people.update(rollout, generator())
    with pytest.raises(RuntimeError, match="ratio must be 1"):
        people.update(rollout, generator())  # a second time: the weights are others now


# Schedules -----------------------------------------------------------------------------------------------------------


def test_who_moves_in_which_pass():
    passes = {name: [Arm("x", name).moves(n) for n in range(6)] for name in ("fixed", "split", "every5", "joint")}
    assert passes["fixed"] == [(True, False)] * 6 and passes["joint"] == [(True, True)] * 6
    assert passes["split"] == [(True, False), (False, True)] * 3
    assert passes["every5"] == [(True, False)] * 4 + [(False, True), (True, False)]


def snapshot(people: Cohort) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in people.parameters.items()}


def test_a_pass_moves_what_its_schedule_says_and_nothing_else():
    arms = [Arm(name, name, lr=1e-3) for name in ("fixed", "split", "every5", "joint")]
    people = sharpen(population(*arms, settings=PPO(epochs=1, groups=2)))
    for step in range(6):
        before = snapshot(people)
        people.update(people.collect(lookup(4 * 8), generator(step)), generator(step))
        for run, arm in enumerate(arms):
            moved = {name: not torch.equal(before[name][run], p[run]) for name, p in people.parameters.items()}
            weights, edges = arm.moves(step)
            assert moved["edges"] == edges and moved["embed.1.weight"] == weights, (step, arm.name)
    people.freeze_edges()
    before = snapshot(people)
    people.update(people.collect(lookup(4 * 8), generator(9)), generator(9))
    assert torch.equal(before["edges"], people.edges)
    assert (before["embed.1.weight"] != people.weights["embed.1.weight"]).flatten(1).any(1).all()


def test_split_gives_even_copies_to_weights_and_odd_ones_to_edges():
    def after(step: int, spoilt: int | None) -> dict[str, torch.Tensor]:
        people = sharpen(population(Arm("split", "split"), settings=PPO(epochs=1)))
        rollout = people.collect(lookup(16), generator(2))
        reward = rollout.reward.clone()
        if spoilt is not None:  # other copies have the rewards: the same mean and deviation over all of them
            reward[:, :, spoilt::2] = reward[:, :, spoilt::2].flip(2)
        people.passes = step
        people.update(rollout._replace(reward=reward, value=torch.zeros_like(rollout.value)), generator(5))
        return snapshot(people)

    for step, moved, others in ((0, "heads.last", 1), (1, "edges", 0)):
        right = after(step, None)[moved]
        assert torch.allclose(right, after(step, others)[moved], atol=1e-6)
        assert (right - after(step, 1 - others)[moved]).abs().max() > 1e-4


def test_groups_are_graphs_of_their_own_for_equal_shares_of_the_copies():
    people = sharpen(population(Arm("learned", "joint"), Arm("ring", graph=ORACLE), settings=PPO(groups=4)))
    graphs = people._graphs(generator(), [True, False])
    assert graphs.shape == (2, 4, 3, 3) and len(graphs[0].detach().unique(dim=0)) > 1
    assert torch.equal(graphs[1], ORACLE.expand(4, 3, 3))
    batch = people._batch(people.collect(lookup(2 * 8), generator()))
    together = people._forward(batch, graphs)
    for group in range(4):
        alone = people._forward(batch, graphs[:, group : group + 1])
        own = slice(2 * group, 2 * group + 2)
        assert torch.allclose(together.logits[:, own], alone.logits[:, own], atol=1e-6)


def test_edges_hear_from_policy_and_critic():
    people = sharpen(population(Arm("learned", "split"), Arm("none", graph=NOBODY), settings=PPO(groups=4)))
    policy, value = people.edge_gradients(people.collect(lookup(2 * 32), generator()), generator())
    for part in (policy, value):
        assert part.shape == (2, 3, 3)
        assert part[0].abs().sum() > 0 and part[0].sum(-1).abs().max() < 1e-6
        assert (part[1] == 0).all()


# Rollouts ------------------------------------------------------------------------------------------------------------


def test_a_block_counts_steps_until_done_and_its_messages():
    def pursuit(copies: int) -> Pursuit:
        return Pursuit(copies, size=2, seers=2, blind=1, limit=12)

    world = pursuit(2 * 40)
    sizes = (world.num_agents, world.observation_size, world.num_actions)
    arms = [Arm("one", graph=graph_from_indices([[], [], [0]])), Arm("none", graph=NOBODY)]
    people = Cohort(lambda seed: CommFormer(*sizes, width=8, seed=seed), arms, [0])
    rollout = people.collect(world, generator(3))
    assert rollout.observation.shape == (2, 12, 40, 3, world.observation_size)
    replay, starts = pursuit(2 * 40), generator(3)
    replay.reset(starts)
    score, steps = torch.zeros(80), torch.zeros(80, dtype=torch.long)
    for t in range(12):
        steps += ~replay.done
        step = replay.step(rollout.action[:, t].flatten(0, 1))
        score += step.reward.mean(-1)
        assert torch.equal(step.done, rollout.done[:, t].flatten())
    assert torch.equal(rollout.steps.flatten(), steps) and torch.allclose(rollout.score.flatten(), score, atol=1e-6)
    assert 0 < rollout.done[:, -1].float().mean() < 1
    assert rollout.messages_per_step.tolist() == [1, 0] and rollout.receive_rate.tolist() == [1, 1]
    assert rollout.value.shape[1] == 13 and (rollout.value[:, -1] != 0).any()
    people.update(rollout, generator())


def test_dead_steps_teach_nothing():
    world = Pursuit(40, size=2, seers=1, blind=1, limit=12)
    sizes = (world.num_agents, world.observation_size, world.num_actions)
    ends = []
    for spoil in (False, True):
        people = Cohort(
            lambda seed: CommFormer(*sizes, width=8, seed=seed), [Arm("none", graph=torch.zeros(2, 2))], [0]
        )
        rollout = people.collect(world, generator(1))
        assert not rollout.live.all()
        if spoil:
            dead = ~rollout.live
            reward = rollout.reward.masked_fill(dead[..., None], 50.0)
            rollout = rollout._replace(reward=reward)
        people.update(rollout, generator())
        ends.append(snapshot(people))
    for name, p in ends[0].items():
        assert torch.equal(p, ends[1][name])


def test_common_starts_for_all_runs_and_greedy_play():
    people = sharpen(population(Arm("a", graph=ORACLE), Arm("b", graph=ORACLE)))
    world = lookup(2 * 10)
    symbols = torch.randint(2, (10, 3), generator=generator()).repeat(2, 1)
    rollout = people.collect(world, generator(), greedy=True, observation=world.place(symbols))
    assert torch.equal(rollout.action[0], rollout.action[1]) and torch.equal(rollout.score[0], rollout.score[1])
    assert torch.equal(rollout.action[0, 0], people.member(0)(rollout.observation[0, 0], ORACLE).action)


# What can be known beforehand ----------------------------------------------------------------------------------------


def test_a_team_learns_what_its_graph_lets_it():
    arms = [Arm(n, graph=g, lr=1e-2) for n, g in (("oracle", ORACLE), ("none", NOBODY))]
    arms += [Arm("joint", "joint", lr=1e-2), Arm("split", "split", lr=1e-2, drawn=True)]
    people = population(*arms, seeds=(0, 1), settings=PPO(epochs=2, groups=4), width=16, decoder="parallel")
    scores = people.train(lookup(8 * 32), 100, generator())
    oracle, none, joint, split = scores[-10:].mean(0).view(4, 2)
    assert (oracle > 0.97).all() and ((none - 0.5).abs() < 0.05).all()
    assert (joint > 0.9).all() and (split > 0.9).all()
    assert torch.equal(people.graph()[4:], ORACLE.expand(4, 3, 3))


def test_listening_pays_until_its_price_is_what_it_brings():
    """A flag says whether the other's symbol is wanted: 1 - 1/K = 1/2 is the value of listening then, 0 otherwise."""
    penalties = (0.3, 0.7)
    arms = [Arm(str(p), graph=ORACLE, lr=1e-2, penalty=p) for p in penalties]
    world = lookup(2 * 64, flag_rate=0.5)
    people = Cohort(
        lambda seed: CommFormer(
            3, world.observation_size, 2, width=16, decoder="parallel", receive_gate="score", seed=seed
        ),
        arms,
        [0],
        PPO(epochs=2),
    )
    people.train(world, 120, generator())
    rollout = people.collect(world, generator(1), greedy=True)
    flag = rollout.observation[..., -1]
    assert (rollout.receive[0] == flag[0]).float().mean() > 0.95
    assert rollout.receive[1].mean() < 0.05
    assert rollout.score[0].mean() > 0.95 and rollout.score[1].mean().item() == pytest.approx(0.75, abs=0.06)
