"""Which expert gives way when the fast tier is full, and how good that choice can be.

    lru    the one used longest ago
    lfu    the one used least often since it came in, of these the one used longest ago
    lifo   the one that came in last

Source: Hwang et al. 2024, arXiv 2308.12066, section VI-D. The bound: Belady 1966, A study of replacement algorithms.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from gated.gates._validation import check_choice

Key = TypeVar("Key", bound=Hashable)

POLICIES = ("lru", "lfu", "lifo")


class Policy(Generic[Key]):
    """Remembers the uses of what is in the cache, and names the next to go.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        check_choice("policy", name, POLICIES)
        self.name = name
        self._uses: dict[Key, int] = {}  # in the order of the last use; for lifo in the order of arrival

    def use(self, key: Key) -> None:
        """Notes that `key` was used; it is new, or in the cache already."""
        uses = self._uses.get(key, 0) + 1
        if self.name != "lifo":
            self._uses.pop(key, None)
        self._uses[key] = uses

    def victim(self, among: Collection[Key]) -> Key:
        """Takes out the key that goes, one of those of `among` that are in the cache, and returns it."""
        candidates = [key for key in self._uses if key in among]
        if not candidates:
            raise ValueError("among must hold a key that is in the cache, got none")
        if self.name == "lifo":
            key = candidates[-1]
        else:
            key = candidates[0] if self.name == "lru" else min(candidates, key=self._uses.__getitem__)
        del self._uses[key]
        return key


def replay(policy: str, capacity: int, trace: Iterable[Hashable]) -> list[bool]:
    """Whether each access of `trace` finds its key in a cache of `capacity` keys that starts empty.

    Raises:
        ValueError: capacity < 1, an unknown policy.
    """
    _check(capacity)
    order: Policy[Hashable] = Policy(policy)
    inside: set[Hashable] = set()
    hits = []
    for key in trace:
        hits.append(key in inside)
        if key not in inside and len(inside) == capacity:
            inside.remove(order.victim(inside))
        inside.add(key)
        order.use(key)
    return hits


def belady(capacity: int, trace: Sequence[Hashable]) -> list[bool]:
    """The hits of a cache that knows the future: what is needed again last gives way. No policy has more.

    Raises:
        ValueError: capacity < 1.
    """
    _check(capacity)
    later: dict[Hashable, int] = {}
    next_use = [0] * len(trace)
    for n in reversed(range(len(trace))):
        next_use[n] = later.get(trace[n], len(trace))
        later[trace[n]] = n
    inside: dict[Hashable, int] = {}
    hits = []
    for key, following in zip(trace, next_use, strict=True):
        hits.append(key in inside)
        if key not in inside and len(inside) == capacity:
            del inside[max(inside, key=inside.__getitem__)]
        inside[key] = following
    return hits


def _check(capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1 key, got {capacity}")
