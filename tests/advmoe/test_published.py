"""Costs of the published architectures: figures counted independently, and a network that was really built."""

import pytest
import torch

from gated.advmoe import ARCHITECTURES, MoEResNet18, costs, image_router
from gated.backbones import macs

FIGURES = {  # GMAC: dense, width 1/2, active, executed; millions of parameters: dense, half, routed; savings in %
    "ResNet-18": (0.5554, 0.1393, 0.1923, 0.339, 11.174, 2.798, 5.835, 65, 39),
    "WRN-28-10": (5.2433, 1.3109, 1.3515, 2.662, 36.48, 9.13, 18.51, 74, 49),
    "VGG-16-BN": (0.3138, 0.0791, 0.1196, 0.1975, 15.31, 4.01, 7.96, 62, 37),
    "DenseNet-BC-40": (0.0724, 0.0183, 0.0588, None, 0.176, 0.046, None, 19, None),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table(name):
    dense, half, active, executed, p_dense, p_half, p_moe, saving, executed_saving = FIGURES[name]
    got = costs(name)
    for cost, want in ((got.dense, dense), (got.half, half), (got.active, active)):
        assert cost.macs / 1e9 == pytest.approx(want, abs=0.5e-4)
    for cost, want in ((got.dense, p_dense), (got.half, p_half)):
        assert cost.params / 1e6 == pytest.approx(want, abs=0.5e-2)
    assert round(100 * got.saving) == saving
    assert got.router == (40_550_528, 269_202)
    if executed is None:
        assert got.executed is None and got.executed_saving is None
        return
    assert got.executed.macs / 1e9 == pytest.approx(executed, abs=0.5e-3)
    assert got.active.params / 1e6 == pytest.approx(p_moe, abs=0.5e-2)
    assert round(100 * got.executed_saving) == executed_saving


def test_resnet18_is_the_network_that_we_build():
    model = MoEResNet18(10)
    x = torch.randn(1, 3, 32, 32)
    got = costs("ResNet-18")
    assert macs(model, x) == got.active.macs
    assert sum(p.numel() for p in model.parameters()) == got.active.params == 5_834_652
    assert sum(p.numel() for p in model.expert_parameters()) == 5_565_450
    assert macs(model.router, x) == got.router.macs
    assert sum(p.numel() for p in image_router(2).parameters()) == sum(p.numel() for p in model.router_parameters())
    dense = MoEResNet18(10, num_experts=1, ratio=1)
    assert (macs(dense, x), sum(p.numel() for p in dense.parameters())) == got.dense
    widths = [m.weight.shape[1] for m in model.modules() if type(m).__name__ == "MoEConv"]
    assert sorted(widths) == sorted([32] * 4 + [64] * 4 + [128] * 4 + [256] * 4)


def test_more_experts_cost_nothing_but_memory_and_the_router():
    two, four = costs("ResNet-18", num_experts=2), costs("ResNet-18", num_experts=4)
    assert four.active.macs - two.active.macs == four.router.macs - two.router.macs == 128
    assert four.executed.macs > 1.5 * two.executed.macs
    assert four.active.params > 1.8 * two.active.params
