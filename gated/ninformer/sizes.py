"""Widths and counts that a family of networks shares, and those of the released script and of this book."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from math import prod
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """All widths of a family of networks, so that each of its members can be built and counted.

    Args:
        tokens, dim, outputs: n, d, and the width of the result (classes).
        token_hidden, channel_hidden: T and C, of every Mixer, inner or outer.
        ffn_hidden: F, of the MLP in a NiNformer, ViT or LocalViT block.
        gmlp_hidden: width of gMLP's first map, even; 2 d unless given.
        heads: of attention; a divisor of d where there is attention.
        image, patch: (channels, height, width) and the side of a patch when the input is images; without them the
            input is tokens. `Sizes.of_image` works out `tokens`.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    tokens: int
    dim: int
    outputs: int
    _: KW_ONLY
    token_hidden: int
    channel_hidden: int
    ffn_hidden: int
    gmlp_hidden: int = 0
    heads: int = 4
    image: tuple[int, int, int] | None = None
    patch: int = 1

    def __post_init__(self) -> None:
        if self.gmlp_hidden == 0 and isinstance(self.dim, int):
            object.__setattr__(self, "gmlp_hidden", 2 * self.dim)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "image" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} must be an integer of at least 1; got {value!r}")
        if self.gmlp_hidden % 2:
            raise ValueError(f"gmlp_hidden must be even, its halves are value and gate; got {self.gmlp_hidden}")
        if self.image is not None:
            _check_patch(self.image, self.patch)
            if prod(self.grid) != self.tokens:
                raise ValueError(
                    f"tokens must be {prod(self.grid)} for image={self.image}, patch={self.patch}; got {self.tokens}"
                )

    @classmethod
    def of_image(cls, image: tuple[int, int, int], patch: int, **widths: Any) -> Sizes:
        """The sizes for images (channels, height, width): n = height width / patch^2."""
        _check_patch(image, patch)
        return cls((image[1] // patch) * (image[2] // patch), image=image, patch=patch, **widths)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; tokens that are no patches stand in one row."""
        return (1, self.tokens) if self.image is None else (self.image[1] // self.patch, self.image[2] // self.patch)


def _check_patch(image: tuple[int, int, int], patch: int) -> None:
    if len(image) != 3 or min(image) < 1:
        raise ValueError(f"image must be (channels, height, width), each at least 1; got {image}")
    if patch < 1 or image[1] % patch or image[2] % patch:
        raise ValueError(f"patch must divide the height {image[1]} and the width {image[2]}; got {patch}")


RELEASED = Sizes.of_image(
    (3, 32, 32), 4, dim=256, outputs=10, token_hidden=512, channel_hidden=512, ffn_hidden=512, gmlp_hidden=512
)
"""The authors' script for CIFAR-10, which also sets depth 4 and dropout 0.5."""
DIGITS = Sizes.of_image(
    (1, 8, 8), 2, dim=32, outputs=10, token_hidden=32, channel_hidden=64, ffn_hidden=64, gmlp_hidden=96
)
"""Small enough for scikit-learn's digits on a laptop."""
MNIST = Sizes.of_image(
    (1, 28, 28), 4, dim=48, outputs=10, token_hidden=64, channel_hidden=96, ffn_hidden=96, gmlp_hidden=144
)
"""For a few thousand images of MNIST."""
