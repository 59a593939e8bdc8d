"""The gating unit beside its operator-by-operator form, and NiNformer beside the networks that it is compared with.

Cost model of the unit, for B images: B (2 n T d + 2 n d C + n d^2) MACs. Written operator by operator, what stands
around the products reads and writes arrays of B T d, B n C and B n d numbers again and again, 7 B n d for product and
residual sum alone. Fused (`gated.ninformer.fused`), a few images at a time run in the cache, GELU in place, and one
pass of 4 B n d comes last. The five products alone, into arrays made beforehand, stand beside both. What is added
to them is most where few tokens meet a wide hidden layer: T d numbers then come from products of inner length n.
With gradients every hidden array has to be kept; only that last pass remains.

Blocks of different kinds are compared without gradients and all operator by operator, so that MACs, with which the
peers are named (in units of ours), meet time on equal terms. Networks are compared as they run for a user, which for
NiNformer and Mixer alike means the fused form in inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gated import ninformer
from gated.lab import bench
from gated.ninformer import DIGITS, RELEASED, NiNBlock, Sizes

COARSE = replace(RELEASED, image=(3, 32, 32), patch=8, tokens=16)
FINE = replace(RELEASED, image=None, patch=1, tokens=196)
Form = Callable[[Tensor], Tensor]
Cases = dict[str, Callable[[], object]]
ALONE = "its matrix products alone"
PEERS: dict[str, ninformer.Kind] = {"Mixer": "mixer", "ViT (SDPA)": "vit", "gMLP": "gmlp"}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def block(kind: ninformer.Kind, sizes: Sizes) -> nn.Module:
    torch.manual_seed(0)
    return ninformer.build(kind, sizes, 1).blocks[0].eval()


def inferences(
    forms: Mapping[str, Form], x: Tensor, mode: Callable[[], AbstractContextManager] = torch.no_grad
) -> Cases:
    def run(form: Form) -> Tensor:
        with mode():
            return form(x)

    return {name: partial(run, form) for name, form in forms.items()}


def training(form: Form, parameters: list[nn.Parameter], x: Tensor) -> tuple[Tensor, ...]:
    y = form(x)
    return torch.autograd.grad(y, parameters, torch.ones_like(y))


def trainings(forms: Mapping[str, Form], parameters: list[nn.Parameter], x: Tensor) -> Cases:
    return {name: partial(training, form, parameters, x) for name, form in forms.items()}


def race(
    report: bench.Report,
    case: str,
    sizes: dict[str, int],
    cases: Cases,
    threads: Sequence[int] = (1,),
    uncompared: str | None = None,
) -> bench.Race:
    """Rows for each number of threads; gives the first race. `uncompared` is why no peer can be compared."""
    why = {ALONE: "it leaves out the rest"} if ALONE in cases else {}
    why = why if uncompared is None else dict.fromkeys(list(cases)[1:], uncompared)
    # 10 ms a measurement: the small sizes take less than a scheduler's slice
    found = report.run(cases, threads, rounds=12, min_ms=10.0, uncompared=why)
    for result in found:
        report.race(case, sizes, result)
    return found[0]


# The unit ------------------------------------------------------------------------------------------------------------


def chain(nin: NiNBlock, x: Tensor) -> Tensor:
    """As the equations stand: every operator writes its own array."""
    value, gate = nin.value_and_gate(nin.norm(x))
    product = value * gate
    return x + product


def last_pass(nin: NiNBlock, x: Tensor) -> Tensor:
    """As `NiNBlock` computes it with gradients: product and sum in one."""
    value, gate = nin.value_and_gate(nin.norm(x))
    return torch.addcmul(x, value, gate)


def unit_races(report: bench.Report, quick: bool) -> None:
    settings = [(RELEASED, 16), (COARSE, 32), (DIGITS, 128)]
    if not quick:
        settings += [(RELEASED, 64), (FINE, 8), (DIGITS, 1024)]
    for sizes, batch in settings:
        nin = block("ninformer", sizes)
        assert isinstance(nin, NiNBlock)
        x = random(batch, sizes.tokens, sizes.dim)
        parts = [p for part in (nin.norm, nin.gate, nin.value) for p in part.parameters()]
        named = {
            "B": batch, "n": sizes.tokens, "d": sizes.dim, "T": sizes.token_hidden, "C": sizes.channel_hidden
        }  # fmt: skip
        peers: dict[str, Form] = {"operator by operator": partial(chain, nin)}
        if not quick and sizes in (RELEASED, COARSE) and batch <= 32:
            torch.compiler.reset()
            peers["operator by operator, torch.compile"] = torch.compile(partial(chain, nin), dynamic=False)
        threads = (1,) if quick or sizes is not RELEASED else (1, 2)
        forms: dict[str, Form] = {"fused": nin.fused_unit, **peers, ALONE: products(nin, x)}
        race(report, "gating unit, inference", named, inferences(forms, x), threads)
        if batch <= 32 or sizes is DIGITS:
            cases = trainings({"one last pass": partial(last_pass, nin)} | peers, parts, x)
            race(report, "gating unit, forward and backward", named, cases, threads)


def products(nin: NiNBlock, x: Tensor) -> Form:
    """The unit's matrix products and nothing else."""
    assert isinstance(nin.gate, ninformer.MixerBlock) and nin.gate.token_mlp is not None
    assert isinstance(nin.value, nn.Linear)
    tokens, channels = nin.gate.token_mlp, nin.gate.channel_mlp
    left = [w.detach().expand(len(x), -1, -1) for w in (tokens.up.weight, tokens.down.weight)]
    right = [w.detach().mT for w in (channels.up.weight, channels.down.weight, nin.value.weight)]
    hidden, result = torch.bmm(left[0], x), torch.empty_like(x)
    rows = result.flatten(0, 1)
    wide = rows @ right[0]

    def run(x: Tensor) -> Tensor:
        torch.bmm(left[0], x, out=hidden)
        torch.bmm(left[1], hidden, out=result)
        torch.mm(x.flatten(0, 1), right[0], out=wide)
        torch.mm(wide, right[1], out=rows)
        torch.mm(x.flatten(0, 1), right[2], out=rows)
        return result

    return run


# Blocks over the number of tokens ------------------------------------------------------------------------------------


def block_races(report: bench.Report, quick: bool) -> None:
    """Inference, T = n, d and 512 hidden entries along the tokens; as many images as make 1024 tokens."""
    numbers = (16, 64) if quick else (16, 64, 196, 640, 1024)
    for hidden in ("512",) if quick else ("512", "d", "n"):
        ms: dict[str, list[float]] = {}
        for n in numbers:
            wide = {"512": 512, "d": 256, "n": n}[hidden]
            sizes = replace(RELEASED, image=None, patch=1, tokens=n, token_hidden=wide)
            batch = max(1, 1024 // n)
            x = random(batch, n, sizes.dim)
            ours = ninformer.block_macs("ninformer", sizes)
            forms: dict[str, Form] = {"NiNformer": block("ninformer", sizes)}
            # the others have no T: they are timed once
            for name, kind in PEERS.items() if hidden == "512" else [("Mixer", PEERS["Mixer"])]:
                share = ninformer.block_macs(kind, sizes) / ours
                forms[f"{name}, {share:.2f} of our MACs"] = block(kind, sizes)
            named = {"B": batch, "n": n, "d": sizes.dim, "T": wide, "C": sizes.channel_hidden, "F": sizes.ffn_hidden}
            result = race(report, "block, inference", named, inferences(forms, x), uncompared="another block")
            for name in forms:
                ms.setdefault(name.split(",")[0], []).append(result.median(name) / batch)
        if not quick and hidden == "512":  # a time per image
            for name, times in ms.items():
                case = f"block of {name}, T = 512, one image"
                report.scaling(case, list(numbers), np.array(times), over="n", settled=True)


# Networks ------------------------------------------------------------------------------------------------------------


def network_races(report: bench.Report, quick: bool) -> None:
    """Inference and a training step of whole networks, against Mixer at equal depth and at equal parameters."""
    settings = [(DIGITS, 2, 128)] if quick else [(DIGITS, 2, 128), (RELEASED, 4, 16)]
    for sizes, depth, batch in settings:
        assert sizes.image is not None
        x = random(batch, *sizes.image)
        budget = ninformer.network("ninformer", sizes, depth)
        equal = min(
            ninformer.matched_depths("mixer", sizes, budget),
            key=lambda layers: abs(ninformer.network("mixer", sizes, layers).params - budget.params),
        )
        nets = {f"NiNformer, {depth} blocks": ninformer.build("ninformer", sizes, depth)}
        for layers, what in ((equal, "equal parameters"), (depth, "equal depth")):
            share = ninformer.network("mixer", sizes, layers).macs / budget.macs
            name = f"Mixer, {layers} blocks ({what}), {share:.2f} of our MACs"
            nets[name] = ninformer.build("mixer", sizes, layers)
        named = {"B": batch, "n": sizes.tokens, "d": sizes.dim, "params": budget.params}
        threads, why = (1,) if quick or sizes is not RELEASED else (1, 2), "another network"
        for net in nets.values():
            net.eval()
        race(report, "network, inference", named, inferences(nets, x, torch.inference_mode), threads, why)
        for net in nets.values():
            net.train()
        cases: Cases = {name: partial(training, net, list(net.parameters()), x) for name, net in nets.items()}
        race(report, "network, forward and backward", named, cases, threads, why)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("ninformer", tries=1 if quick else 3)
    unit_races(report, quick)
    block_races(report, quick)
    network_races(report, quick)
    return report.rows
