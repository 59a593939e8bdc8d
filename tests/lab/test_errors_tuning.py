"""Bad input to the searches: a ValueError that names the argument."""

import pytest

from gated.lab import tuning
from gated.lab.tuning import Listed, Range, Tpe

SPACE = {"a": Range(-1, 3), "b": Range(1e-4, 1.0, log=True), "k": Range(0, 3, whole=True)}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: tuning.draws({"a": Range(1, 1)}, 3, 0), "space"),
        (lambda: tuning.draws({"a": Range(0, 1, log=True)}, 3, 0), "space"),
        (lambda: tuning.draws({"a": Range(0, float("inf"))}, 3, 0), "space"),
        (lambda: Tpe({}, 0), "space"),
        (lambda: tuning.grid(SPACE, {"a": 3}), "points"),
        (lambda: tuning.grid({"a": SPACE["a"]}, {"a": 0}), "points"),
        (lambda: tuning.search(lambda s: [], [Listed([])], 0), "trials"),
        (lambda: tuning.search(lambda s: [], [Tpe(SPACE, 0)], 4, together=2), "together"),
        (lambda: tuning.search(lambda s: [], [Listed([])], 4, together=0), "together"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()
