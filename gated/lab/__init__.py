"""What only the notebooks and the tests need: data, training, claims, timing, plots, cards, explorables.

Nothing in `gated` outside this folder imports from it. Install its needs with `pip install gated[lab]`.
"""
