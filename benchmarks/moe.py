"""The hot loops of the experts' chapters beside their peers: expert compute, the fused gate, the dispatches.

Cost model, expert compute: T tokens that take k of N experts with matrices [d, f] and [f, d] cost 4 T k d f operations
forward and twice that backward, whatever N is. One dense product of T k rows costs the same and is the yardstick. What
N adds is one product a group instead of one in all: its call, and d f numbers read for T k / N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gated import moe
from gated.kernels.grouped_gemm import grouped_gemm
from gated.kernels.topk_gate import topk_gate
from gated.lab import bench
from gated.moe import convert
from gated.moe.gates import LinearScore, SoftmaxTopKGate, TopKGate

TOKENS, TAKEN, WIDTH = 2048, 2, 128

DENSE = "dense products of equal operations"

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


# Expert compute: two products and a ReLU between them --------------------------------------------------------------


def sorted_rows(tokens: int, experts: int, hidden: int, skew: float, gradients: bool) -> list[Tensor]:
    """Rows in expert order, both matrices of each expert, offsets; expert i is taken in proportion to i^-skew."""
    gen = torch.Generator().manual_seed(0)
    rows = tokens * TAKEN
    share = torch.arange(1, experts + 1).double() ** -skew
    size = torch.bincount(torch.multinomial(share, rows, replacement=True, generator=gen), minlength=experts)
    x = torch.randn(rows, WIDTH, generator=gen)
    up = torch.randn(experts, WIDTH, hidden, generator=gen) / WIDTH**0.5
    down = torch.randn(experts, hidden, WIDTH, generator=gen) / hidden**0.5
    return [*(y.requires_grad_(gradients) for y in (x, up, down)), torch.cat([size.new_zeros(1), size.cumsum(0)])]


def chain(product: Product, x: Tensor, up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    return product(product(x, up, offsets).relu(), down, offsets)


def dense(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """One product of the same operations: every row through one matrix."""
    return x @ weight


def loop(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return torch.cat([rows @ matrix for rows, matrix in zip(x.split(offsets.diff().tolist()), weight, strict=True)])


def pytorch(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(x, weight, offs=offsets[1:].int())


def padded(x: Tensor, up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    """Every group filled up to the largest, packed once; as many rows of zeros are multiplied as that takes."""
    size = offsets.diff()
    group = torch.repeat_interleave(torch.arange(len(size)), size, output_size=len(x))
    place = torch.arange(len(x)) - offsets[group]
    full = x.new_zeros(len(size), int(size.max()), x.shape[1]).index_put((group, place), x)
    return (torch.bmm(torch.bmm(full, up).relu(), down))[group, place]


def once(form: Callable[..., Tensor], inputs: list[Tensor], gradients: bool) -> object:
    if not gradients:
        with torch.no_grad():
            return form(*inputs)
    y = form(*inputs)
    return torch.autograd.grad(y, inputs[:3], torch.ones_like(y))


def expert_cases(inputs: list[Tensor], gradients: bool, with_dense: bool) -> dict[str, Callable[[], object]]:
    x, up, down, offsets = inputs
    one = [x, *(y[0].detach().clone().requires_grad_(gradients) for y in (up, down)), offsets]
    forms = {"grouped_gemm": partial(chain, grouped_gemm)} | ({DENSE: partial(chain, dense)} if with_dense else {})
    if hasattr(torch.nn.functional, "grouped_mm"):
        forms["torch.nn.functional.grouped_mm"] = partial(chain, pytorch)
    forms |= {"a loop over the groups, then cat": partial(chain, loop), "padded torch.bmm": padded}
    return {name: partial(once, form, one if name == DENSE else inputs, gradients) for name, form in forms.items()}


def expert_races(report: bench.Report, quick: bool) -> None:
    # more tokens at N = 64 show that rows a group, not N, is what a group's own product costs
    settings = [(TOKENS, 16, 256, 0.0), (TOKENS, 64, 256, 0.0)]
    if not quick:
        settings += [(TOKENS, 4, 256, 0.0), (TOKENS, 64, 512, 0.0), (4 * TOKENS, 64, 256, 0.0), (TOKENS, 64, 256, 1.0)]
    for gradients in (False, True):
        case = "experts, forward and backward" if gradients else "experts, forward"
        for tokens, experts, hidden, skew in settings:
            inputs = sorted_rows(tokens, experts, hidden, skew, gradients)
            yardstick = (tokens, hidden) != (TOKENS, 256) or experts == 16  # it has no N, so it is timed once
            cases = expert_cases(inputs, gradients, yardstick)
            sizes = {"T": tokens, "k": TAKEN, "N": experts, "d": WIDTH, "f": hidden}
            why = {DENSE: "one matrix for all rows"} if yardstick else {}
            for result in report.run(cases, (1,) if quick else (1, 2), rounds=6 if quick else 12, uncompared=why):
                report.race(f"{case}, uneven loads" if skew else case, sizes, result)


# The fused gate ----------------------------------------------------------------------------------------------------


def counted(logits: Tensor, k: int) -> tuple[Tensor, ...]:
    """Operator after operator; places by a running sum down a one-hot table of the choices."""
    weights, experts = logits.softmax(1).topk(k)
    chosen = torch.nn.functional.one_hot(experts.flatten(), logits.shape[1])
    place = (chosen.cumsum(0) - 1).gather(1, experts.flatten()[:, None]).view_as(experts)
    offsets = torch.cat([chosen.new_zeros(1), chosen.sum(0).cumsum(0)])
    return weights / weights.sum(1, keepdim=True), experts, place, offsets


def argsorted(logits: Tensor, k: int) -> tuple[Tensor, ...]:
    """Operator after operator; places by a stable sort of the choices."""
    weights, experts = logits.softmax(1).topk(k)
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    offsets = torch.cat([flat.new_zeros(1), torch.bincount(flat, minlength=logits.shape[1]).cumsum(0)])
    place = torch.empty_like(flat).scatter_(0, order, torch.arange(len(flat))) - offsets[flat]
    return weights / weights.sum(1, keepdim=True), experts, place.view_as(experts), offsets


def gate(form: Callable[..., tuple[Tensor, ...]], logits: Tensor, k: int) -> object:
    if not logits.requires_grad:
        with torch.no_grad():
            return form(logits, k)
    weights = form(logits, k)[0]
    return torch.autograd.grad((weights * weights.detach()).sum(), logits)


def gate_races(report: bench.Report, quick: bool) -> None:
    forms = {
        "topk_gate": topk_gate,
        "softmax, topk, one_hot, cumsum": counted,
        "softmax, topk, stable argsort": argsorted,
    }
    settings = [(8, 2), (64, 2)] if quick else [(8, 1), (8, 2), (64, 1), (64, 2), (64, 8), (256, 2), (256, 8)]
    for gradients in (False, True):
        case = "top-k gate, forward and backward" if gradients else "top-k gate, forward"
        for experts, k in settings:
            logits = torch.randn(TOKENS, experts, generator=torch.Generator().manual_seed(0)).requires_grad_(gradients)
            cases = {name: partial(gate, form, logits, k) for name, form in forms.items()}
            for result in report.run(cases, (1,) if quick else (1, 2), rounds=6 if quick else 12, uncompared={}):
                report.race(case, {"T": TOKENS, "N": experts, "k": k}, result)


# The dispatches: a routing, FFN experts, and everything between ---------------------------------------------------


def random_routing(tokens: int, experts: int, gradients: bool) -> moe.Routing:
    gen = torch.Generator().manual_seed(0)
    weights, chosen = torch.randn(tokens, experts, generator=gen).softmax(1).topk(TAKEN)
    return moe.Routing((weights / weights.sum(1, keepdim=True)).requires_grad_(gradients), chosen, experts)


def dispatched(
    dispatch: Callable[..., Tensor], experts: torch.nn.Module, x: Tensor, routing: moe.Routing, gradients: bool
) -> object:
    if not gradients:
        with torch.no_grad():
            return dispatch(x, routing, experts)
    y = dispatch(x, routing, experts)
    slopes = torch.autograd.grad(y, [x, routing.weights, *experts.parameters()], torch.ones_like(y))
    return slopes[:2]  # the others' shapes differ from library to library


def of_transformers(gated: bool, experts: moe.FFNExperts) -> dict[str, tuple[Callable[..., Tensor], torch.nn.Module]]:
    """Hugging Face's experts with our weights in them; only where the library is installed.

    Mixtral's run by `grouped_mm` unless somebody asks for the loop; Switch's are a loop and nothing else.
    """
    try:
        from transformers import MixtralConfig, SwitchTransformersConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersExperts
    except ImportError:
        return {}
    number, width, hidden = experts.num_experts, experts.up.shape[1], experts.down.shape[1]
    layer = moe.MoE(TopKGate(LinearScore(width, number), TAKEN), experts)
    if gated:
        sizes = {"hidden_size": width, "intermediate_size": hidden, "num_local_experts": number}
        config = partial(MixtralConfig, **sizes, num_experts_per_tok=TAKEN)
        named = {
            "transformers, MixtralExperts (grouped_mm, its default)": "grouped_mm",
            "transformers, MixtralExperts (eager loop)": "eager",
        }
        theirs = {name: MixtralExperts(config(experts_implementation=form)) for name, form in named.items()}
        state = convert.mixtral_state(layer)
    else:
        config = SwitchTransformersConfig(d_model=width, d_ff=hidden, num_experts=number, dropout_rate=0.0)
        theirs = {"transformers, SwitchTransformersExperts (eager loop)": SwitchTransformersExperts(config)}
        layer.gate = SoftmaxTopKGate(
            LinearScore(width, number), 1
        )  # the state of a top-1 layer; its experts count here
        state = convert.switch_state(layer)
    for module in theirs.values():
        module.load_state_dict({name[8:]: tensor for name, tensor in state.items() if name.startswith("experts.")})

    def mixtral(x: Tensor, routing: moe.Routing, experts: torch.nn.Module) -> Tensor:
        return experts(x, routing.experts, routing.weights)

    def switch(x: Tensor, routing: moe.Routing, experts: torch.nn.Module) -> Tensor:
        return experts(x, torch.nn.functional.one_hot(routing.experts, routing.num_experts), routing.weights)

    return {name: (mixtral if gated else switch, module) for name, module in theirs.items()}


def dispatch_cases(
    tokens: int, number: int, hidden: int, gated: bool, gradients: bool
) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    experts = moe.FFNExperts(number, WIDTH, hidden, activation="silu" if gated else "relu", gated=gated)
    x = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_(gradients)
    routing = random_routing(tokens, number, gradients)
    forms: dict[str, tuple[Callable[..., Tensor], torch.nn.Module]] = {"sorted": (moe.sorted_dispatch, experts)}
    if not gated:  # the dispatches themselves do not depend on the kind of expert
        forms["loop"] = (moe.loop_dispatch, experts)
        forms["dense masked"] = (moe.dense_dispatch, experts)
        forms["capacity einsum"] = (moe.capacity_dispatch, experts)
    forms |= of_transformers(gated, experts)
    return {
        name: partial(dispatched, dispatch, which.requires_grad_(gradients), x, routing, gradients)
        for name, (dispatch, which) in forms.items()
    }


def dispatch_races(report: bench.Report, quick: bool) -> None:
    """Sorted segments beside the loop, the dense mask, the one-hot products and transformers' experts.

    The loop is ours: it takes the stacked matrices apart once, so that no gradient of the whole stack is made for each
    expert. Nothing is dropped: the buffers of the one-hot products are as large as the largest load. All sparse forms
    share the experts' own arithmetic, 4 T k d f operations, so the wider the experts the closer together they are:
    f = 64 is the grid, and f = 256 shows the other end. At N = k = 2 the dense mask does no work in vain, so that is
    where the crossover against it lies. SwiGLU has three matrices, of about 2/3 the width.
    """
    settings = [(tokens, number, 64) for tokens in (256, 2048) for number in (2, 4, 16, 64)]
    settings += [(TOKENS, 16, 256), (TOKENS, 64, 256)]
    for gradients in (False, True):
        case = "dispatch, forward and backward" if gradients else "dispatch, forward"
        for tokens, number, width in [(256, 16, 64), (TOKENS, 64, 64)] if quick else settings:
            for gated in (False, True):
                hidden = 2 * width // 3 // 4 * 4 if gated else width  # grouped_mm asks for rows of 16 bytes
                cases = dispatch_cases(tokens, number, hidden, gated, gradients)
                if len(cases) == 1:
                    continue
                sizes = {"T": tokens, "k": TAKEN, "N": number, "d": WIDTH, "f": hidden}
                threads, rounds = ((1,), 6) if quick else ((1, 2), 9)
                for result in report.run(cases, threads, rounds=rounds, warmup=1, uncompared={}):
                    report.race(f"{case}, SwiGLU experts" if gated else case, sizes, result)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("moe", tries=1 if quick else 3)
    expert_races(report, quick)
    gate_races(report, quick)
    dispatch_races(report, quick)
    return report.rows
