"""The networks that several papers gate, plain: a residual CNN, a small vision transformer, and what they cost.

    ResNet(blocks_per_stage, widths, in_channels=, num_classes=)      He et al. 2016, arXiv 1512.03385, section 4.2
    ViT(image_size=, patch_size=, ...)                                Dosovitskiy et al. 2021, arXiv 2010.11929
    macs(model, *args)                                                multiply-adds of one call

Both networks are a chain of blocks between an input map and a head, with the same three names: `blocks`, `head` and
`features(x)`, which yields what leaves each block. A gate finds its place between them without hooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from gated.gates._validation import check_choice, check_floats, check_number, check_sizes

Pool = Literal["cls", "mean"]


def macs(
    model: Callable[..., Any], *args: Any, formulas: Mapping[Any, Callable[..., int]] | None = None, **kwargs: Any
) -> int:
    """Multiply-adds of one call `model(*args, **kwargs)` in convolutions, matrix products and attention, forward only.

    Counted by `torch.utils.flop_counter` (2 FLOP a multiply-add) for the whole batch given: biases, norms, activations,
    lookups and element-wise products count nothing, and attention counts its whole square also when it is causal. A
    module is called in evaluation mode and left as it was. A custom or fused operator hides what it computes: unless it
    has a formula (by `torch.utils.flop_counter.register_flop_formula`, or in `formulas`: operator -> FLOPs from the
    shapes), this raises `ValueError` instead of counting it as free.

    Example:
        >>> macs(torch.nn.Linear(10, 20), torch.randn(3, 10))
        600
    """
    training = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    counter = FlopCounterMode(display=False, custom_mapping={**_FORMULAS, **(formulas or {})})
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # in evaluation mode nn.MultiheadAttention would be one operator
    for m in training:
        m.training = False
    try:
        with torch.no_grad(), counter, _Known({*flop_registry, *_FORMULAS, *(formulas or {})}):
            model(*args, **kwargs)
    finally:
        for m, mode in training.items():
            m.training = mode
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2


class _Known(TorchDispatchMode):
    """Refuses operators whose cost nothing tells."""

    def __init__(self, known: set[Any]) -> None:
        super().__init__()
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        hidden = func.namespace not in ("aten", "prim", "prims") or packet in _FUSED
        if hidden and packet not in self.known:
            raise ValueError(f"model calls {func}, whose MACs are unknown: give its FLOPs in formulas")
        return func(*args, **(kwargs or {}))


# products of one matrix and a vector, and the CPU's attention, are not in PyTorch's registry
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: 4 * math.prod(q) * k[-2],
    torch.ops.aten.mv: lambda a, x, **_: 2 * math.prod(a),
    torch.ops.aten.addmv: lambda y, a, x, **_: 2 * math.prod(a),
    torch.ops.aten.dot: lambda a, b, **_: 2 * math.prod(a),
}
_FUSED = {
    torch.ops.aten.mkldnn_rnn_layer,
    torch.ops.aten._transformer_encoder_layer_fwd,
    torch.ops.aten._native_multi_head_attention,
    torch.ops.aten._thnn_fused_lstm_cell,
    torch.ops.aten._trilinear,
}


# The residual CNN --------------------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """S(x): every `stride`-th pixel of x, and zeros as the new channels. No parameters (option A of He et al. 2016).

    Raises:
        ValueError: fewer channels out than in; sizes below 1.

    Example:
        >>> Shortcut(2, 3, stride=2)(torch.ones(1, 2, 4, 4)).sum((2, 3)).tolist()
        [[4.0, 4.0, 0.0]]
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
        if out_channels < in_channels:
            raise ValueError(f"out_channels must be at least in_channels={in_channels}, got {out_channels}")
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels_out h w"]:
        check_floats(f"batch {self.in_channels} height width", x=x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        new = self.out_channels - self.in_channels
        return F.pad(x, (0, 0, 0, 0, 0, new)) if new else x


class ResidualBlock(nn.Module):
    """y = ReLU(S(x) + F(x)), F = BN(conv3x3(ReLU(BN(conv3x3(x))))), S a `Shortcut`.

    `branch` is F, a Sequential of (conv, norm, relu, conv, norm); `shortcut` is S. Only the first convolution has the
    stride. The convolutions have no bias.

    Example:
        >>> ResidualBlock(4, 8, stride=2)(torch.randn(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.shortcut = Shortcut(in_channels, out_channels, stride)
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels_out h w"]:
        return F.relu(self.shortcut(x) + self.branch(x))


class ResNet(nn.Module):
    """The residual network for small images: stem, blocks in stages, mean over pixels, linear classifier.

    Arguments:
        blocks_per_stage: number of blocks in each stage. (n, n, n) with widths (16, 32, 64) is ResNet-(6n + 2) of
            He et al. 2016 for CIFAR.
        widths: channels of each stage. Never fewer than the stage before, because the shortcut adds zeros.
        in_channels, num_classes: of the images, and of the answer.

    The first block of each stage but the first halves height and width (rounded up). Convolutions start at
    He's normal values (fan out). Images of any size fit. `stem` is conv3x3, BN, ReLU, so that all blocks see values
    >= 0; `head` is pooling and classifier. Raises ValueError for sizes that do not fit.

    Example:
        >>> net = ResNet((1, 1), (8, 16), in_channels=3, num_classes=10)
        >>> net(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, blocks_per_stage: Sequence[int], widths: Sequence[int], *, in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        if len(blocks_per_stage) != len(widths) or not widths:
            raise ValueError(
                f"widths must have one entry for each stage of blocks_per_stage={tuple(blocks_per_stage)}, "
                f"and at least one; got {tuple(widths)}"
            )
        check_sizes(in_channels=in_channels, num_classes=num_classes)
        for name, values in {"blocks_per_stage": blocks_per_stage, "widths": widths}.items():
            for value in values:
                check_sizes(**{name: value})
        self.in_channels = in_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        before = widths[0]
        for stage, (number, width) in enumerate(zip(blocks_per_stage, widths, strict=True)):
            for i in range(number):
                self.blocks.append(ResidualBlock(before, width, stride=2 if stage and not i else 1))
                before = width
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Iterator[Float[Tensor, "batch channels_out h w"]]:
        """The feature map that leaves each block, in order; lazily, so that a caller who stops early saves the rest.

        Raises ValueError if x is not a batch of images with `in_channels` channels.
        """
        _check_images(x, self.in_channels)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            yield x

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """One logit for each class. Raises ValueError as `features`."""
        _check_images(x, self.in_channels)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


# The vision transformer --------------------------------------------------------------------------------------------


class TransformerBlock(nn.Module):
    """x' = x + Attention(LN(x)), then x' + W_2 GELU(W_1 LN(x')): pre-norm, all tokens see all tokens.

    Attention(x) = concat_h(softmax(Q K^T / sqrt(D)) V) W_O with D = dim / heads. All linear maps have a bias.
    4 n d^2 + 2 n^2 d + 2 n d mlp_dim multiply-adds for n tokens of width d.

    Raises:
        ValueError: a width that the heads do not divide, a dropout outside [0, 1).

    Example:
        >>> TransformerBlock(dim=8, heads=2, mlp_dim=16)(torch.randn(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads, mlp_dim=mlp_dim)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}, got {dim}")
        check_number("dropout", dropout, "[0, 1)")
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv_proj, self.o_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def attention(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch tokens {self.o_proj.in_features}", x=x)
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.mlp(self.mlp_norm(x))


class PatchEmbedding(nn.Module):
    """Tokens of an image: W patch + b in row-major order, a CLS token before them if asked, plus a position each.

    Args:
        cls: whether a CLS token stands first.

    Raises:
        ValueError: an image that the patches do not divide, or of another size.

    Example:
        >>> PatchEmbedding(image_size=8, patch_size=4, in_channels=3, dim=6)(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 5, 6])
    """

    def __init__(self, image_size: int, patch_size: int, in_channels: int, dim: int, cls: bool = True) -> None:
        super().__init__()
        check_sizes(image_size=image_size, patch_size=patch_size, in_channels=in_channels, dim=dim)
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size={patch_size}, got {image_size}")
        self.image_size, self.in_channels = image_size, in_channels
        self.tokens = (image_size // patch_size) ** 2 + bool(cls)
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if cls else None
        self.position = nn.Parameter(torch.empty(1, self.tokens, dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Raises ValueError for another number of channels, or images of another size than the positions are for."""
        _check_images(x, self.in_channels)
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"x must have images of {self.image_size} x {self.image_size}, got {tuple(x.shape[2:])}")
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1)
        return tokens + self.position


class ViT(nn.Module):
    """A small vision transformer: patches with learned positions, pre-norm blocks, a norm, a linear head.

    Arguments:
        image_size, patch_size: of square images and patches, in pixels; the number of tokens is fixed by them.
        in_channels, num_classes: of the images, and of the answer.
        dim, depth, heads: width, number of blocks, heads of each.
        mlp_dim: hidden width of the feed-forward half; default 2 dim.
        pool: what the head reads. "cls": the first token, which is no patch. "mean": the mean over the patches;
            there is no CLS token then.
        final_norm: whether a LayerNorm stands before the head.
        dropout: probability, after attention and in the feed-forward half.

    Raises ValueError for sizes that do not fit.

    Example:
        >>> net = ViT(image_size=8, patch_size=4, in_channels=3, num_classes=10, dim=16, depth=2, heads=2)
        >>> net(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        in_channels: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        pool: Pool = "cls",
        final_norm: bool = True,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, depth=depth)
        check_choice("pool", pool, get_args(Pool))
        self.pool = pool
        self.embed = PatchEmbedding(image_size, patch_size, in_channels, dim, cls=pool == "cls")
        hidden = 2 * dim if mlp_dim is None else mlp_dim
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if final_norm else nn.Identity()
        self.head = nn.Linear(dim, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Iterator[Float[Tensor, "batch tokens dim"]]:
        """The tokens that leave each block, in order, before the final norm; lazily.

        Raises ValueError for images of another size or number of channels.
        """
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
            yield x

    def summary(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """What the head reads: the normalised CLS token, or the mean of the normalised patches."""
        return self.norm(tokens[:, 0]) if self.pool == "cls" else self.norm(tokens).mean(1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """One logit for each class. Raises ValueError as `features`."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.summary(x))


def _check_images(x: Tensor, in_channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != in_channels or not x.is_floating_point():
        raise ValueError(
            f"x must be a floating-point tensor [batch, {in_channels}, height, width], got {x.dtype} {tuple(x.shape)}"
        )
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have images of at least one pixel, got {tuple(x.shape)}")
