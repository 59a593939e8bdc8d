"""How the operator stands in PyTorch's dispatcher, and its compiled form. Run without the shape-checking import hook,
whose wrappers the compiler does not trace."""

import pytest
import torch

from gated.kernels.gmoe_em import Points, Statistics, cpu, gmoe_em


def problem(segments: int, points: int, k: int = 2, length: int = 32, dtype=torch.float64, d: int = 1):
    gen = torch.Generator().manual_seed(segments + points)
    random = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)  # noqa: E731
    offsets = torch.arange(segments + 1) * points
    blocks = Points.pack(random(segments * points, d), random(segments * points), offsets, length=length)
    of_experts = [random(segments, k), random(segments, k, d), random(segments, k, d), random(segments, k)]
    return blocks, [*of_experts, random(segments, k).exp(), random(segments).exp()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("segments", "points"), [(2, 50), (3, 0), (1, 7)])
def test_the_operator_is_registered_properly(segments, points, dtype):
    blocks, p = problem(segments, points, 3, dtype=dtype)
    torch.library.opcheck(torch.ops.gated.gmoe_em.default, (*blocks, *p, 2, "slope", "tanh", False))


# Inductor's own call of the C++ compiler does not survive a space in the path of the environment.
COMPILES = " " not in torch.__file__


def test_compiled_equals_uncompiled_at_all_sizes_with_one_compilation():
    """Blocks that are as many as they are long, single blocks and single points too."""
    cpu.compiled_statistics.cache_clear()
    if not COMPILES:
        with pytest.warns(RuntimeWarning, match="no effect"):
            gmoe_em(problem(1, 9)[0], *problem(1, 9)[1], compiled=True)
    count = lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: E731
    before, made = count(), []
    for segments, points, length in [(4, 100, 32), (2, 999, 64), (1, 1024, 32), (1, 9, 32), (5, 1, 1), (3, 0, 8)]:
        blocks, p = problem(segments, points, length=length)
        got, want = gmoe_em(blocks, *p, compiled=True), gmoe_em(blocks, *p)
        for name, a, b in zip(Statistics._fields, got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=name)
        made.append(count() - before)
    assert set(made) == {1} or (not COMPILES and len(set(made)) == 1)


@pytest.mark.parametrize(
    ("k", "d", "dtype", "form"),
    [
        (2, 2, torch.float32, {"top_k": 1, "rank": "slope", "activation": "square"}),
        (3, 1, torch.float64, {"top_k": 2, "rank": "slope", "activation": "tanh"}),
        (3, 1, torch.float64, {"top_k": 2, "rank": "logit", "activation": "tanh"}),
    ],
)
def test_each_form_of_the_gate_is_traced_for_itself(monkeypatch, k, d, dtype, form):
    """The traced operations as they are, without the seconds of machine code, for two sets of sizes."""
    cpu.compiled_statistics.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    for segments, points, length in [(4, 100, 32), (3, 400, 150)]:
        blocks, p = problem(segments, points, k, length, dtype, d)
        got, want = gmoe_em(blocks, *p, **form, compiled=True), gmoe_em(blocks, *p, **form)
        exact = 1e-11 if dtype == torch.float64 else 1e-5
        for name, a, b in zip(Statistics._fields, got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=exact, atol=exact * float(1 + b.abs().max()), msg=name)
    cpu.compiled_statistics.cache_clear()


def test_without_a_compiler_it_says_so_once_and_gives_the_same(monkeypatch):
    cpu.compiled_statistics.cache_clear()

    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    blocks, p = problem(2, 100)
    with pytest.warns(RuntimeWarning, match=r"no effect.*no compiler here") as caught:
        got = [gmoe_em(blocks, *p, compiled=True) for _ in range(2)]
    assert len(caught) == 1
    for a, b, c in zip(*got, gmoe_em(blocks, *p), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)
    cpu.compiled_statistics.cache_clear()


def test_compiles_inside_a_program():
    blocks, p = problem(2, 40)

    def likelihood(*p):
        return gmoe_em(blocks, *p).log_likelihood * 2

    with torch.no_grad():
        got = torch.compile(likelihood, backend="aot_eager")(*p)
        torch.testing.assert_close(got, likelihood(*p))
