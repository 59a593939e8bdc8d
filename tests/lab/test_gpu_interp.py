"""The GPU section with a true Triton kernel, in its interpreter (TRITON_INTERPRET=1, which `make kernels` sets)."""

from __future__ import annotations

import json
import os

import pytest
import torch

from gated.kernels.topk_gate import naive_topk_gate
from gated.lab import gpu


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    from gated.kernels.topk_gate import gpu as kernel

    monkeypatch.setenv("GATED_FULL", "gpu")
    monkeypatch.setattr(gpu, "_gpu", lambda: "cpu")
    monkeypatch.setattr(gpu, "_folder", lambda: tmp_path)
    return kernel


@pytest.mark.parametrize("wrong", [False, True])
def test_the_section_runs_a_triton_kernel(kernel, tmp_path, wrong):
    def work(device, T, N, k):
        logits = torch.randn(T, N, generator=torch.Generator().manual_seed(0))
        torch_topk = {"torch.topk": lambda: logits.topk(k)}
        ours, reference = lambda: kernel.forward(logits, k - wrong, True), lambda: naive_topk_gate(logits, k)
        return gpu.Work(ours, reference, torch_topk, uncompared={"torch.topk": "no places, no sorting"})

    options = {"check": {"T": 20, "N": 6, "k": 2}, "sizes": [{"T": 9, "N": 5, "k": 2}], "tolerance": 1e-5, "rounds": 6}
    if wrong:
        with pytest.raises(AssertionError, match="topk_gate differs"):
            gpu.section("toy", "topk_gate", work, **options)
        return
    gpu.section("toy", "topk_gate", work, **options)
    entry = json.loads((tmp_path / "gpu_toy.json").read_text())["topk_gate"]
    assert entry["value"]["difference"] <= 1e-5 and entry["value"]["rows"][0]["peer"] == "torch.topk"
