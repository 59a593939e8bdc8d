import pytest

from gated.pregated.simulate import (
    Timing,
    block_latency,
    distinct_experts,
    on_link,
    peak_memory,
    simulate_step,
    tokens_per_time,
)

TIMING = Timing(block=1.0, dense=0.5, expert=2.0)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: Timing(block=0.0, dense=1.0, expert=1.0), "block"),
        (lambda: Timing(block=1.0, dense=-1.0, expert=1.0), "dense"),
        (lambda: Timing(block=1.0, dense=1.0, expert=float("nan")), "expert"),
        (lambda: block_latency("eager", TIMING, 6), "design"),
        (lambda: block_latency("pre_gated", TIMING, 0), "blocks"),
        (lambda: block_latency("pre_gated", TIMING, 6, -1), "active"),
        (lambda: block_latency("prefetch_all", TIMING, 6, 4, 2), "num_experts"),
        (lambda: block_latency("look_ahead", TIMING, 6, hit_rate=1.5), "hit_rate"),
        (lambda: simulate_step("pre_gated", TIMING, []), "blocks"),
        (lambda: simulate_step("pre_gated", TIMING, [1], look_ahead=0), "look_ahead"),
        (lambda: simulate_step("pre_gated", [TIMING], [1, 1]), "timing"),
        (lambda: peak_memory("resident", [1], 1, -1), "expert_bytes"),
        (lambda: tokens_per_time(1.0, TIMING, 4, output_tokens=0), "output_tokens"),
        (lambda: distinct_experts(-1, 4), "tokens"),
        (lambda: on_link(TIMING, 1, 0), "bandwidth"),
    ],
)
def test_bad_input_names_the_argument(call, name):
    with pytest.raises(ValueError, match=name):
        call()
