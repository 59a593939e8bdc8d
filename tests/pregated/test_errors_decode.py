import pytest
import torch

from gated.pregated.decode import decode
from gated.pregated.layers import Experts
from gated.pregated.model import PreGatedDecoder, rewire
from gated.pregated.offload import FastTier, Fetcher, ThreadCopy
from gated.pregated.store import ExpertStore, write_experts

SIZES = {"vocab": 5, "dim": 8, "hidden": 16, "blocks": 3, "num_experts": 4, "heads": 2, "context": 6, "k": 2}
TOKENS = torch.zeros(1, 3, dtype=torch.int64)


@pytest.fixture
def conventional():
    return PreGatedDecoder(**SIZES, look_ahead=0, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(conventional, tmp_path):
    write_experts([layer.experts for layer in conventional.layers], tmp_path / "x")
    with ExpertStore(tmp_path / "x") as store:
        yield store


@pytest.mark.parametrize(
    ("design", "experts"), [("resident", 12), ("on_demand", 2), ("prefetch_all", 8), ("pre_gated", 4)]
)
def test_a_budget_too_small_says_what_is_needed(conventional, store, design, experts):
    """The bytes that it says are enough, and one less is not."""
    model, needed = rewire(conventional, 1), experts * store.expert_bytes
    with pytest.raises(ValueError, match=rf"budget_bytes must be at least {needed} for '{design}' \({experts} experts"):
        decode(model, store, TOKENS, design, budget_bytes=needed - 1)
    decode(model, store, TOKENS, design, budget_bytes=needed)


def test_a_budget_that_only_a_batch_exceeds(conventional, store):
    """Two sequences agree on experts or not; if not, the run says what this layer would take."""
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0], [2, 0, 1]])
    with pytest.raises(ValueError, match=r"budget_bytes must be at least \d+: layer \d takes [34] experts"):
        decode(conventional, store, tokens, "on_demand", budget_bytes=2 * store.expert_bytes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"design": "eager"}, "design must be one of"),
        ({"design": "pre_gated"}, "model must have look_ahead of at least 1"),
        ({"design": "resident", "policy": "lru"}, "policy must be None for the design 'resident'"),
        ({"design": "on_demand", "policy": "mru"}, "policy must be one of"),
        ({"design": "on_demand", "new_tokens": 5}, "must fit the context 6; got 3 and 5"),
        ({"design": "on_demand", "new_tokens": -1}, "new_tokens must be an integer of at least 0"),
        ({"design": "on_demand", "tokens": TOKENS[:, :0]}, "at least one position"),
    ],
)
def test_arguments_that_do_not_fit(conventional, store, arguments, message):
    with pytest.raises(ValueError, match=message):
        decode(conventional, store, **({"tokens": TOKENS} | arguments))


def test_a_guess_needs_a_conventional_model(conventional, store):
    for model in (rewire(conventional, 1), PreGatedDecoder(**SIZES, look_ahead=0, router="hash")):
        with pytest.raises(ValueError, match="model must be conventional"):
            decode(model, store, TOKENS, "look_ahead")


@pytest.mark.parametrize("change", [{"blocks": 2}, {"num_experts": 3}, {"dim": 16}, {"hidden": 8}])
def test_a_store_of_another_model(store, change):
    with pytest.raises(ValueError, match=r"store must hold \(blocks, experts, dim, hidden, dtype\)"):
        decode(PreGatedDecoder(**(SIZES | change), look_ahead=0), store, TOKENS, "on_demand")
    with pytest.raises(ValueError, match="float64"):
        decode(PreGatedDecoder(**SIZES, look_ahead=0).double(), store, TOKENS, "on_demand")


def test_slots(store, tmp_path):
    with pytest.raises(ValueError, match=f"budget_bytes must be at least {store.expert_bytes}, one expert"):
        FastTier(store, store.expert_bytes - 1)
    tier = FastTier(store, 2 * store.expert_bytes)
    tier.hold(0, [1])
    for experts in ([1], [2, 2]):
        with pytest.raises(ValueError, match="distinct and not held"):
            tier.hold(0, experts)
    with pytest.raises(ValueError, match=f"at least {3 * store.expert_bytes}: layer 1 takes 2 experts .* beside 1"):
        tier.hold(1, [0, 1])
    assert tier.live_bytes == store.expert_bytes
    write_experts([Experts(1, 3, 5)], tmp_path / "odd")
    with ExpertStore(tmp_path / "odd") as odd, pytest.raises(ValueError, match="multiple of 64 bytes, got 60"):
        FastTier(odd, 1000)


def test_an_expert_that_the_store_does_not_have(store):
    with Fetcher(FastTier(store, 2 * store.expert_bytes), ThreadCopy(store)) as fetcher:
        ticket = fetcher.submit(0, [9])
        with pytest.raises(RuntimeError, match="layer and expert must lie below 3 and 4, got 0, 9"):
            fetcher.wait(ticket)
        with pytest.raises(RuntimeError, match="no more can be fetched"):
            fetcher.submit(0, [1])
