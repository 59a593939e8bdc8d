"""Cache policies against ten-line references, and against what is known of them."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gated.pregated.cache import POLICIES, Policy, belady, replay

traces = st.lists(st.integers(0, 6), max_size=40)
capacities = st.integers(1, 8)


def reference(policy, capacity, trace):
    """Looks back over the whole trace at each eviction."""
    inside, came, hits = set(), {}, []
    for now, key in enumerate(trace):
        hits.append(key in inside)
        if key in inside:
            continue
        if len(inside) == capacity:
            ranks = []
            for k in inside:
                last = max(n for n in range(now) if trace[n] == k)
                uses = sum(trace[n] == k for n in range(came[k], now))
                ranks.append(({"lru": (last,), "lfu": (uses, last), "lifo": (-came[k],)}[policy], k))
            inside.remove(min(ranks)[1])
        inside.add(key)
        came[key] = now
    return hits


@settings(max_examples=200)
@given(st.sampled_from(POLICIES), st.integers(1, 4), st.lists(st.integers(0, 6), min_size=12, max_size=30))
def test_policies_are_their_definitions(policy, capacity, trace):
    assert replay(policy, capacity, trace) == reference(policy, capacity, trace)


@given(capacities, traces)
def test_lru_is_a_stack(capacity, trace):
    """What a small cache hits, a larger one hits too."""
    small, large = replay("lru", capacity, trace), replay("lru", capacity + 1, trace)
    assert all(b or not a for a, b in zip(small, large, strict=True))


@given(st.sampled_from(POLICIES), capacities, traces)
def test_nobody_beats_the_cache_that_knows_the_future(policy, capacity, trace):
    assert sum(replay(policy, capacity, trace)) <= sum(belady(capacity, trace))


@given(st.integers(1, 3), st.lists(st.integers(0, 3), max_size=8))
def test_the_bound_is_reached_by_some_choice(capacity, trace):
    """Brute force over all sequences of evictions."""

    def best(n, inside):
        if n == len(trace):
            return 0
        key = trace[n]
        if key in inside:
            return 1 + best(n + 1, inside)
        if len(inside) < capacity:
            return best(n + 1, inside | {key})
        return max(best(n + 1, inside - {gone} | {key}) for gone in inside)

    assert sum(belady(capacity, trace)) == best(0, frozenset())


@given(traces)
def test_a_cache_for_all_misses_each_key_once(trace):
    for hits in (*(replay(policy, 7, trace) for policy in POLICIES), belady(7, trace)):
        assert hits.count(False) == len(set(trace))


def test_by_hand():
    trace = "abcad"
    assert replay("lru", 3, [*trace, "b"])[-1] is False  # b was the oldest when d came
    assert replay("lru", 3, [*trace, "c"])[-1] is True
    assert replay("lfu", 3, [*trace, "a"])[-1] is True
    assert replay("lifo", 3, [*trace, "c"])[-1] is False  # c came last
    assert replay("lifo", 3, [*trace, "b"])[-1] is True
    # a loop one longer than the cache: the policies that most caches use never hit
    loop = list(itertools.islice(itertools.cycle("abcd"), 40))
    assert not any(replay("lru", 3, loop)) and sum(belady(3, loop)) > 20 and sum(replay("lifo", 3, loop)) >= 18


def test_a_key_that_may_not_go_stays():
    policy = Policy("lru")
    for key in "abc":
        policy.use(key)
    assert policy.victim({"b", "c"}) == "b"
    assert policy.victim({"a", "b", "c"}) == "a"
