import pytest

from gated.pregated.measure import measure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": ()}, "ratios must hold numbers above 0"),
        ({"ratios": (1.0, 0.0)}, "ratios must hold numbers above 0"),
        ({"rounds": 0}, "rounds must be at least 1 and tokens at least 4, got 0"),
        ({"tokens": 3}, "tokens at least 4, got 6, 3"),
        ({"k": (1, 2)}, r"k must be one number or one for each of the 3 ratios, got \[1, 2\]"),
        ({"k": 9}, "k must be at most num_experts = 8"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(**arguments)
