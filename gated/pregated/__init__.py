"""Pre-gated mixtures of experts: the next block's experts are chosen early, so that they can be fetched in time.

    model.py, layers.py       the decoder whose gates run N layers ahead, and `rewire`
    store.py                  the slow tier: experts in a safetensors file
    offload.py, cache.py      the fast tier, the fetcher and its backends, what a cache keeps
    decode.py                 generation in five designs with one result
    measure.py                the designs against the clock
    simulate.py, published.py  the timing of a step in closed form and as events, and what the authors measured

    model = PreGatedDecoder(vocab=256, dim=64, hidden=256, blocks=4, num_experts=8, look_ahead=1)
    write_experts([layer.experts for layer in model.layers], "experts.safetensors")
    with ExpertStore("experts.safetensors") as store:
        run = decode(without_experts(model), store, prompt, "pre_gated", new_tokens=20)

Source: Hwang et al. 2024, arXiv 2308.12066.
"""

from gated.pregated.decode import Decoded, budget_needed, decode
from gated.pregated.model import PreGatedDecoder, balance_loss, rewire, without_experts
from gated.pregated.offload import FastTier, Fetcher, FetchError, StreamCopy, ThreadCopy
from gated.pregated.store import ExpertStore, StoreError, write_experts

__all__ = [
    "Decoded",
    "ExpertStore",
    "FastTier",
    "FetchError",
    "Fetcher",
    "PreGatedDecoder",
    "StoreError",
    "StreamCopy",
    "ThreadCopy",
    "balance_loss",
    "budget_needed",
    "decode",
    "rewire",
    "without_experts",
    "write_experts",
]
