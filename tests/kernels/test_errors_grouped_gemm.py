"""Bad input to the grouped matrix product: a ValueError that names the argument."""

import pytest
import torch

from gated.kernels.grouped_gemm import grouped_gemm

X, W, O = torch.ones(5, 3), torch.ones(2, 3, 4), torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"x": torch.ones(5)}),
        ("x", {"x": torch.ones(1, 5, 3)}),
        ("x", {"x": torch.ones(5, 3, dtype=torch.int64)}),
        ("x", {"x": [[1.0]]}),
        ("weight", {"weight": torch.ones(3, 4)}),
        ("weight", {"weight": torch.ones(2, 4, 3)}),
        ("weight", {"weight": W.double()}),
        ("weight", {"weight": W.to("meta")}),
        ("weight", {"weight": torch.ones(0, 3, 4), "offsets": torch.tensor([0])}),
        ("weight", {"weight": None}),
        ("offsets", {"offsets": O.int()}),
        ("offsets", {"offsets": O.float()}),
        ("offsets", {"offsets": O[1:]}),
        ("offsets", {"offsets": O[None]}),
        ("offsets", {"offsets": [0, 2, 5]}),
        ("offsets", {"offsets": torch.tensor([1, 2, 5])}),
        ("offsets", {"offsets": torch.tensor([0, 2, 4])}),
        ("offsets", {"offsets": torch.tensor([0, 2, 6])}),
        ("offsets", {"offsets": torch.tensor([0, 6, 5])}),
        ("offsets", {"offsets": torch.tensor([0, -1, 5])}),
        ("row_weight", {"row_weight": torch.ones(4)}),
        ("row_weight", {"row_weight": torch.ones(5, 1)}),
        ("row_weight", {"row_weight": torch.ones(5).double()}),
        ("row_weight", {"row_weight": 2.0}),
    ],
)
def test_names_the_argument(name, change):
    given = {"x": X, "weight": W, "offsets": O} | change
    with pytest.raises(ValueError, match=rf"^{name} must"):
        grouped_gemm(given["x"], given["weight"], given["offsets"], row_weight=given.get("row_weight"))


def test_what_is_legal_is_not_refused():
    assert grouped_gemm(X, W, O).eq(3).all()
    assert grouped_gemm(X, W, torch.tensor([0, 0, 5]), row_weight=torch.zeros(5)).eq(0).all()
    assert grouped_gemm(X[:, :0], W[:, :0], O).eq(0).all()
    assert grouped_gemm(X, W[:, :, :0], O).shape == (5, 0)
