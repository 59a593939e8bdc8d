"""What is refused on a GPU alone, shown with PyTorch's fake tensors: they say that they are there, and hold nothing."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gated.kernels.barrier_qp import barrier_qp
from gated.kernels.gla import chunk_gla, fused_recurrent_gla
from gated.kernels.gmoe_em import Points, gmoe_em
from gated.kernels.grouped_gemm import grouped_gemm
from gated.kernels.langevin_scan import langevin_scan
from gated.kernels.topk_gate import topk_gate


def on(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, device=device, dtype=dtype)


def em(x: torch.Tensor):
    whole = torch.empty(3, device=x.device, dtype=torch.int64)
    points = Points(x.unsqueeze(1), x, whole, whole, 2)
    slope, number = x.new_empty(2, 4, 1), x.new_empty(2, 4)
    return gmoe_em(points, number, slope, slope, number, number, x.new_empty(2))


CALLS = {
    "a is": lambda x: barrier_qp(x.unsqueeze(-1).expand(3, 8, 2), x, limit=1.0),
    "q is": lambda x: chunk_gla(*[x.view(1, 3, 1, 8)] * 4),
    "q is float64": lambda x: fused_recurrent_gla(*[x.view(1, 3, 1, 8)] * 3),
    "points are": em,
    "x is": lambda x: grouped_gemm(x, x.new_empty(2, 8, 5), torch.empty(3, dtype=torch.int64, device=x.device)),
    "z0 is": lambda x: langevin_scan(x, x, x.unsqueeze(1), stiffness=x.select(0, 0), step=0.1, decay=0.5),
    "logits is": lambda x: topk_gate(x, 2),
}


def passes(call, *given) -> None:
    """Nothing is refused. Beyond the checks a PyTorch without CUDA cannot index what says that it is on a GPU."""
    with contextlib.suppress(RuntimeError):
        call(*given)


@pytest.mark.parametrize("name", CALLS)
def test_float64_is_refused_on_a_gpu_and_nowhere_else(name):
    with FakeTensorMode():
        with pytest.raises(ValueError, match=rf"^{name}.* on a GPU"):
            CALLS[name](on("cuda", torch.float64, 3, 8))
        passes(CALLS[name], on("cuda", torch.float32, 3, 8))
        CALLS[name](on("meta", torch.float64, 3, 8))


@pytest.mark.parametrize(("shape", "refused"), [((8,), True), ((3, 5, 8), True), ((3, 5), False), ((), False)])
def test_a_matrix_on_a_gpu_takes_one_decay_for_all_coordinates(shape, refused):
    def call(matrix: torch.Tensor):
        start, noise, decay = (on("cuda", torch.float32, *size) for size in ((3, 8), (3, 5, 8), shape))
        return langevin_scan(start, start, noise, stiffness=matrix, step=0.1, decay=decay)

    with FakeTensorMode():
        passes(call, on("cuda", torch.float32, 8))
        if refused:
            with pytest.raises(ValueError, match=r"^decay must be the same"):
                call(on("cuda", torch.float32, 8, 8))
        else:
            passes(call, on("cuda", torch.float32, 8, 8))
