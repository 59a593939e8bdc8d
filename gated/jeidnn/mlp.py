"""A residual MLP for vectors: the smallest backbone on which exits can be studied."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import check_sizes


class MLPBlock(nn.Module):
    """x + W_2 GELU(W_1 LN(x)); 2 d h multiply-adds a row."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.act, self.down = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return x + self.down(self.act(self.up(self.norm(x))))


class ResidualMLP(nn.Module):
    """Linear embedding, `depth` blocks, LayerNorm, linear head.

    Arguments:
        in_features, num_classes: of the vectors, and of the answer.
        dim, depth: width of the residual stream, number of blocks.
        hidden: width inside a block; default 2 dim.

    Raises:
        ValueError: inputs of another width or dtype; sizes below 1.

    Example:
        >>> ResidualMLP(in_features=20, num_classes=10)(torch.randn(3, 20)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, dim: int = 64, depth: int = 6, hidden: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, num_classes=num_classes, dim=dim, depth=depth)
        hidden = 2 * dim if hidden is None else hidden
        check_sizes(hidden=hidden)
        self.in_features = in_features
        self.embed = nn.Linear(in_features, dim)
        self.blocks = nn.ModuleList(MLPBlock(dim, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def features(self, x: Float[Tensor, "batch features"]) -> Iterator[Float[Tensor, "batch dim"]]:
        """What leaves each block, in order; lazily."""
        if x.ndim != 2 or x.shape[1] != self.in_features or not x.is_floating_point():
            raise ValueError(
                f"x must be floating point, shape (batch, {self.in_features}); got {x.dtype} {tuple(x.shape)}"
            )
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
            yield x

    def summary(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """What a head reads after any block: the final norm, which all exits share."""
        return self.norm(z)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        *_, z = self.features(x)
        return self.head(self.summary(z))
