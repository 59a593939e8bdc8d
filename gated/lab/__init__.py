"""What only the notebooks and the tests need: data, training, claims, timing, plots, cards, explorables.

Nothing in `gated` outside this folder imports from it. Its needs are the extra `gated[lab]`.
"""
