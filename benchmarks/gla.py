"""The hot loop of the GLA chapter beside its peers: time, its growth with the length, and decoding.

Cost model, forward, a step and head: 4KV + C(K + V) operations in chunks of C = 64, against T(K + V) for causal
attention; the backward costs 2.5 times that, ours one recomputation more. The peers are the definition in a Python
loop over time (also with its step compiled), PyTorch's causal scaled_dot_product_attention, which computes something
else, and, where it is installed, the reference recurrence of flash-linear-attention: a loop over time that its tests
compare kernels with, and all of it that runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from gated.kernels.gla import chunk_gla, fused_recurrent_gla, naive_recurrent_gla
from gated.lab import bench

HEADS, CHANNELS = 4, 64


def inputs(batch: int, time: int, gradients: bool) -> list[Tensor]:
    gen = torch.Generator().manual_seed(0)
    q, k, v, z = (torch.randn(batch, time, HEADS, CHANNELS, generator=gen) for _ in range(4))
    return [y.requires_grad_(gradients) for y in (q, k, v, logsigmoid(z) / 16)]


def attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True)


def chunked(*qkvg: Tensor) -> Tensor:
    return chunk_gla(*qkvg)[0]


def recurrence(*qkvg: Tensor) -> Tensor:
    return naive_recurrent_gla(*qkvg)[0]


def compiled_recurrence() -> Callable[..., Tensor]:
    """Compiled for the shapes of its first call alone, however many shapes were compiled before."""
    torch.compiler.reset()

    @partial(torch.compile, dynamic=False)
    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        state = g.exp().unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
        return state, CHANNELS**-0.5 * (q.unsqueeze(-2) @ state).squeeze(-2)

    def run(*qkvg: Tensor) -> Tensor:
        state, outputs = qkvg[0].new_zeros(len(qkvg[0]), HEADS, CHANNELS, CHANNELS), []
        for qkvg_t in zip(*(y.unbind(1) for y in qkvg), strict=True):
            state, o = step(state, *qkvg_t)
            outputs.append(o)
        return torch.stack(outputs, 1)

    return run


def reference_of_fla() -> dict[str, Callable[..., Tensor]]:
    try:
        from fla.ops.gla.naive import naive_recurrent_gla as theirs
    except ImportError:
        return {}
    return {"flash-linear-attention, its reference recurrence": lambda *qkvg: theirs(*qkvg)[0]}


def once(form: Callable[..., Tensor], qkvg: list[Tensor], gradients: bool) -> Tensor | tuple[Tensor, ...]:
    if not gradients:
        with torch.no_grad():
            return form(*qkvg)
    wanted = qkvg[:3] if form is attention else qkvg
    return torch.autograd.grad(form(*qkvg).sum(), wanted)


def races(report: bench.Report, quick: bool) -> None:
    attentions = {"causal scaled_dot_product_attention": attention}
    loops = {"step-by-step recurrence": recurrence}
    for gradients in (False, True):
        case = "forward and backward" if gradients else "forward"
        settings = [(1, time) for time in ((1024, 2048, 4096) if quick else (512, 1024, 2048, 4096, 8192))]
        settings += [] if quick else [(4, 2048)]
        for batch, time in settings:
            qkvg = inputs(batch, time, gradients)
            forms = {"chunk_gla": chunked} | attentions
            if (batch, time) == (1, 2048):
                forms |= loops
                if not quick:
                    forms |= reference_of_fla() | {"step-by-step recurrence, step compiled": compiled_recurrence()}
            cases: dict[str, Callable[[], object]] = {
                name: partial(once, form, qkvg, gradients) for name, form in forms.items()
            }
            apart = dict.fromkeys(attentions, "softmax attention, another function")
            if (batch, time) == (1, 2048):
                for name, g in closed_gates(qkvg[0]).items():
                    other = [*qkvg[:3], g.requires_grad_(gradients)]
                    cases[f"the same with gates {name}"] = partial(once, chunked, other, gradients)
                    apart[f"the same with gates {name}"] = "other gates"
            rounds = 6 if quick else 9 if (batch, time) == (1, 2048) else 12
            for result in report.run(cases, (1,) if quick else (1, 2), rounds=rounds, warmup=1, uncompared=apart):
                report.race(case, {"B": batch, "T": time, "H": HEADS, "K": CHANNELS, "V": CHANNELS}, result)


def closed_gates(like: Tensor) -> dict[str, Tensor]:
    """Gates that forget fast: the leaves of a chunk shrink until their decay fits, and that costs time."""
    z = torch.randn(like.shape, generator=torch.Generator().manual_seed(1))
    return {"temperature 1": logsigmoid(z), "uniform in (-20, 0)": -20 * torch.sigmoid(z)}


def growth(report: bench.Report, quick: bool) -> None:
    times = [768 * 2**i for i in range(4 if quick else 6)]  # none of them a race's above
    for gradients in (False, True):
        # One race over all lengths: a slow minute of the machine then falls on all of them alike.
        cases = {str(time): partial(once, chunked, inputs(1, time, gradients), gradients) for time in times}
        case = "chunk_gla, forward and backward" if gradients else "chunk_gla, forward"
        for result in report.run(cases, (1,) if quick else (1, 2), rounds=6 if quick else 9, warmup=1, min_ms=1):
            ms = [result.median(str(time)) for time in times]
            report.scaling(case, times, ms, threads=result.threads, settled=True)


def decoding(report: bench.Report) -> None:
    """One more token after a context of any length: the state is all that there is."""
    contexts = [1024, 4096, 16384]
    cases: dict[str, Callable[[], object]] = {}
    for time in contexts:
        with torch.no_grad():
            _, state = chunk_gla(*inputs(1, time, False), output_final_state=True)
            qkvg = [y[:, -1:].clone() for y in inputs(1, time, False)]
        cases[str(time)] = partial(decode, qkvg, state)
    (result,) = report.run(cases, rounds=15)
    ms = [result.median(str(time)) for time in contexts]
    report.scaling("fused_recurrent_gla, one token after T", contexts, ms, settled=True)


def decode(qkvg: list[Tensor], state: Tensor) -> object:
    with torch.no_grad():
        return fused_recurrent_gla(*qkvg, initial_state=state, output_final_state=True)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("gla", tries=1 if quick else 3)
    races(report, quick)
    growth(report, quick)
    decoding(report)
    return report.rows
