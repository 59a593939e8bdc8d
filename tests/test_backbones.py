"""The plain networks against published integers, closed forms, and PyTorch's own transformer layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gated.backbones import PatchEmbedding, ResidualBlock, ResNet, Shortcut, TransformerBlock, ViT, macs


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def cifar(n: int) -> ResNet:
    return ResNet((n, n, n), (16, 32, 64), in_channels=3, num_classes=10)


@pytest.mark.parametrize(
    ("n", "cost", "size"),
    [(3, 40_551_040, 269_722), (5, 68_862_592, 464_154), (9, 125_485_696, 853_018), (18, 252_887_680, 1_727_962)],
)
def test_cifar_resnets_have_the_known_macs_and_parameters(n, cost, size):
    net = cifar(n)
    assert macs(net, torch.zeros(1, 3, 32, 32)) == cost
    assert parameters(net) == size


def test_blocks_of_a_cifar_resnet_cost_the_same_but_do_not_weigh_the_same():
    shapes = [(16, 16, 1, 32), (32, 32, 1, 16), (64, 64, 1, 8), (16, 32, 2, 32), (32, 64, 2, 16)]
    blocks = [ResidualBlock(*shape[:3]) for shape in shapes]
    cost = [macs(block, torch.zeros(1, s[0], s[3], s[3])) for block, s in zip(blocks, shapes, strict=True)]
    assert cost == [4_718_592] * 3 + [3_538_944] * 2
    assert [parameters(block) for block in blocks[:3]] == [4_672, 18_560, 73_984]


def test_the_small_network_on_odd_sizes_has_the_macs_of_a_count_by_hand():
    net = ResNet((4, 4, 4), (8, 16, 32), in_channels=1, num_classes=10)
    sizes = [14, 7, 4]
    by_hand = 9 * 8 * 14**2 + 320
    for stage, (width, size) in enumerate(zip((8, 16, 32), sizes, strict=True)):
        by_hand += 8 * 9 * width**2 * size**2
        if stage:
            by_hand -= 9 * (width * width - width // 2 * width) * size**2
    assert macs(net, torch.zeros(1, 1, 14, 14)) == by_hand == 2_870_240
    assert macs(net, torch.zeros(3, 1, 14, 14)) == 3 * by_hand
    assert [tuple(f.shape[1:]) for f in net.features(torch.zeros(1, 1, 14, 14))] == [
        (width, size, size) for width, size in zip((8, 16, 32), sizes, strict=True) for _ in range(4)
    ]


MLP = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
x, q = torch.randn(5, 4), torch.randn(2, 3, 16, 8)


@pytest.mark.parametrize(
    ("model", "args", "cost"),
    [
        (MLP, (x,), 5 * (4 * 8 + 8 * 3)),
        (nn.Conv1d(4, 6, 3, groups=2), (torch.randn(2, 4, 10),), 2 * 8 * 6 * 2 * 3),
        (nn.GRU(4, 8), (torch.randn(3, 2, 4),), 3 * 2 * 3 * 8 * (4 + 8)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (q[0],), 48 * (4 * 8**2 + 4 * 16 * 8)),
        (nn.Embedding(9, 4), (torch.tensor([1, 2]),), 0),
        (torch.matmul, (x, torch.randn(4)), 20),
        (lambda a: torch.einsum("ij,ij->", a, a.T.contiguous().T), (x,), 20),
        (lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), (q,), 2 * 2 * 3 * 16 * 16 * 8),
        (lambda q: F.scaled_dot_product_attention(q, q, q[..., :5]), (q,), 2 * 3 * 16 * 16 * (8 + 5)),
    ],
)
def test_macs_are_counted_by_hand(model, args, cost):
    assert macs(model, *args) == cost


def test_an_operator_without_a_formula_is_not_free():
    @torch.library.custom_op("gated_test::square", mutates_args=())
    def square(a: torch.Tensor) -> torch.Tensor:
        return a @ a.T

    with pytest.raises(ValueError, match=r"gated_test\.square"):
        macs(square, x)
    formulas = {torch.ops.gated_test.square: lambda shape, **_: 2 * shape[0] ** 2 * shape[1]}
    assert macs(square, x, formulas=formulas) == 5 * 5 * 4
    with pytest.raises(ValueError, match="mkldnn_rnn"):
        macs(nn.LSTM(4, 8), torch.randn(3, 2, 4))
    with pytest.raises(ValueError, match="trilinear"):
        macs(nn.Bilinear(4, 4, 2), x, x)


def test_macs_leave_the_module_as_it_was():
    net = cifar(1)
    net.blocks[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    macs(net, torch.randn(4, 3, 8, 8))
    assert net.training and net.blocks[1].training and not net.blocks[0].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_block_is_its_shortcut_plus_its_branch():
    torch.manual_seed(0)
    block, x = ResidualBlock(4, 6, stride=2).eval(), torch.randn(2, 4, 7, 5)
    with torch.no_grad():
        short = torch.zeros(2, 6, 4, 3)
        for row in range(4):
            for column in range(3):
                short[:, :4, row, column] = x[:, :, 2 * row, 2 * column]
        assert torch.equal(block.shortcut(x), short)
        conv, norm, _, conv2, norm2 = block.branch
        hidden = F.conv2d(x, conv.weight, stride=2, padding=1) / (1 + norm.eps) ** 0.5
        branch = F.conv2d(hidden.clamp(min=0), conv2.weight, padding=1) / (1 + norm2.eps) ** 0.5
        assert torch.allclose(block(x), (short + branch).clamp(min=0), atol=1e-5)
    assert torch.equal(Shortcut(4, 4)(x), x)


def test_features_are_what_the_head_reads_and_come_lazily():
    torch.manual_seed(0)
    net, x = cifar(1).eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        *_, last = net.features(x)
        assert torch.equal(net.head(last), net(x))
    ran = []
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    next(net.features(x))
    assert ran == [0]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_equals_pytorchs_encoder_layers(pool):
    torch.manual_seed(0)
    vit = ViT(
        image_size=8, patch_size=4, in_channels=2, num_classes=3, dim=8, depth=2, heads=2, mlp_dim=12, pool=pool
    ).eval()
    x = torch.randn(5, 2, 8, 8)
    tokens = torch.stack([vit.embed.proj(patch)[..., 0, 0] for row in x.split(4, 2) for patch in row.split(4, 3)], 1)
    if pool == "cls":
        nn.init.normal_(vit.embed.cls)
        tokens = torch.cat([vit.embed.cls.expand(5, 1, 8), tokens], 1)
    tokens = tokens + vit.embed.position
    features = list(vit.features(x))
    for block, feature in zip(vit.blocks, features, strict=True):
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        layer.self_attn.in_proj_weight.data, layer.self_attn.in_proj_bias.data = (
            block.qkv_proj.weight.data,
            block.qkv_proj.bias.data,
        )
        layer.self_attn.out_proj.load_state_dict(block.o_proj.state_dict())
        layer.linear1.load_state_dict(block.mlp[0].state_dict())
        layer.linear2.load_state_dict(block.mlp[3].state_dict())
        tokens = layer(tokens)
        assert torch.allclose(feature, tokens, atol=1e-5)
    read = vit.norm(tokens)[:, 0] if pool == "cls" else vit.norm(tokens).mean(1)
    assert torch.allclose(vit(x), vit.head(read), atol=1e-5)
    assert torch.allclose(vit.summary(features[-1]), read, atol=1e-5)


@pytest.mark.parametrize(("depth", "size"), [(4, 2_139_914), (5, 2_667_018), (6, 3_194_122)])
def test_vit_without_cls_and_final_norm_has_the_parameters_of_its_closed_form(depth, size):
    vit = ViT(
        image_size=32, patch_size=4, in_channels=3, num_classes=10, dim=256, depth=depth, heads=8, mlp_dim=512,
        pool="mean", final_norm=False,
    )  # fmt: skip
    assert parameters(vit) == size
    n, d = 64, 256
    block = 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * 512
    assert macs(vit, torch.zeros(1, 3, 32, 32)) == depth * block + n * 48 * d + d * 10


def test_vit_block_with_cls_costs_its_closed_form():
    n, d = 197, 256
    assert macs(TransformerBlock(d, 4, 2 * d), torch.zeros(1, n, d)) == n * 8 * d**2 + 2 * n**2 * d
    assert PatchEmbedding(224, 16, 3, d).tokens == n


def test_networks_follow_the_dtype_of_their_input():
    net = cifar(1).double()
    vit = ViT(image_size=8, patch_size=4, in_channels=3, num_classes=3, dim=8, depth=1, heads=2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert net(x).dtype == vit(x).dtype == torch.float64
