"""What the gate's figure says of each regime: a title, an equation, and two sentences."""

from __future__ import annotations

from gated.lab.explorables.drawing import (
    formula,
    frac,
    row,
    sup,
    total,
)


def _exp(index: str) -> str:
    return sup("e", f"z_{index} / τ")


_ALL, _OPEN = row(total("j"), _exp("j")), row(total("j ∈ K"), _exp("j"))
REGIMES: dict[str, tuple[str, str, str]] = {
    "dense": (
        "Dense: a softmax",
        formula("w_i =", frac(_exp("i"), _ALL)),
        "Every expert gets a share and every logit a gradient. The temperature τ says how hard the choice is.",
    ),
    "sparse": (
        "Sparse: top-k, then softmax",
        formula("w_i =", frac(_exp("i"), _OPEN), ", i ∈ K"),
        "Only the set K of the k largest logits is open, and its weights sum to 1. Outside K the gradient is "
        "exactly zero: an expert that is not chosen cannot learn to be chosen.",
    ),
    "truncated": (
        "Sparse: softmax, then top-k",
        formula("w_i =", frac(_exp("i"), _ALL), ", i ∈ K"),
        "The softmax sees all experts; then all but the k largest weights are cut. What is left sums to less than 1, "
        "and the logit of a shut expert still moves the open ones, through the denominator.",
    ),
    "argmax": (
        "The argmax limit, τ → 0",
        formula("w_i ≈", sup("e", "− ( max z − z_i ) / τ")),
        "One expert takes all. The others fall off exponentially in their gap to the best, and so does every "
        "gradient: the choice is nearly made, and nearly deaf.",
    ),
    "uniform": (
        "The uniform limit, τ → ∞",
        formula("w_i ≈", frac("1", "k"), "+", frac("z_i − z̄", "k τ")),
        "The k open experts get nearly equal shares, whatever the logits say (z̄ is the mean of theirs). What is left "
        "of the logits, and of the gradient, shrinks as 1/τ.",
    ),
    "hard": (
        "Hard: one expert",
        formula("w_i = [ i = argmax z ] ,", frac("∂ w", "∂ z"), "= 0"),
        "With k = 1 the softmax of a single logit is 1. The temperature no longer matters, and no gradient reaches "
        "any logit: this gate cannot be learned without a trick.",
    ),
    "switch": (
        "One expert, scaled by its probability",
        formula("w_i = p_i [ i = argmax z ] , p_i =", frac(_exp("i"), _ALL)),
        "The Switch Transformer’s gate. One expert runs, but its output is scaled by its softmax probability, so a "
        "gradient survives: it lifts the chosen logit and lowers all others, or the reverse.",
    ),
    "noisy": (
        "Noisy",
        formula("w̄ =", frac("1", "R"), total("r"), "w ( z + ν ε_r )"),
        "Each token draws its own noise. Bars are the mean over R = 256 draws, thin lines the middle four fifths. "
        "Entropy and effective experts are those of one draw, then averaged: with k = 1 each draw opens one. "
        "Near rivals now win at times and get tokens. They get a gradient too, unless it is top-1 then softmax.",
    ),
}
