"""What the authors of Pre-gated MoE measured, and the constants that explain it.

The figures are the raw measurements behind the paper's figures, published by its authors
(github.com/kaleid-liner/FasterTransformer, folder performance_data). The models are Switch Transformers in float32
on one A100 behind PCIe 4. Times are milliseconds, memory is GB (10^9 bytes), speed is tokens per second with batch 1
unless said otherwise. A row holds the designs of `COLUMNS` in their order; None where the model did not fit, or where
no figure is at hand.

Source: Hwang et al. 2024, arXiv 2308.12066, table I and figures 10 to 12, 14 and 15.
"""

from dataclasses import dataclass, replace

from gated.pregated.simulate import Design, Timing, block_latency, tokens_per_time

COLUMNS: tuple[Design, ...] = ("resident", "pre_gated", "on_demand", "prefetch_all")


@dataclass(frozen=True)
class Model:
    """One of the paper's models: its shape, and the constants of a step that explain its measured latencies."""

    num_experts: int
    blocks: int
    dim: int
    hidden: int
    timing: Timing

    @property
    def expert_bytes(self) -> int:
        """Two float32 matrices of dim x hidden."""
        return 8 * self.dim * self.hidden

    def latency(self, design: Design, active: float | int = 1) -> float:
        """Mean milliseconds of a layer with a mixture block."""
        return block_latency(design, self.timing, self.blocks, active, self.num_experts)

    def speed(self, design: Design, *, encoder_experts: float | int = 0.0) -> float:
        """Tokens per second; `encoder_experts` as each encoder block copies them, once for 256 output tokens."""
        encoder = 0.0 if design == "resident" else self.blocks * encoder_experts
        return 1000 * tokens_per_time(
            self.latency(design), self.timing, self.blocks, encoder_experts=encoder, output_tokens=256
        )

    def fitted_encoder_experts(self, on_demand_speed: float | int) -> float:
        """The distinct experts a block of the encoder must copy to explain `on_demand`'s speed, at most all of them.

        The one constant of the speeds that was not measured; fitted on one design, it is used to predict the others.
        """
        missing = 1000 / on_demand_speed - 1000 / self.speed("on_demand")
        return min(float(self.num_experts), max(0.0, missing * 256 / (self.blocks * self.timing.expert)))


def _base(num_experts: int) -> Model:
    # T is the resident latency; F (24.1 GB/s, not the nominal 32) the slope of prefetch_all over E; delta what is
    # left of pre_gated. T_d and the head were chosen for the resident speed of 142 tokens per second.
    timing = Timing(block=0.947, dense=0.20, expert=8 * 768 * 3072 / 24.1e6, overhead=0.05, head=0.16)
    return Model(num_experts, 6, 768, 3072, timing)


# never ran resident: all of its constants were chosen to fit its own latencies and speeds
_LARGE = Timing(block=1.20, dense=0.28, expert=8 * 1024 * 4096 / 24.7e6, overhead=0.05, head=0.20)
MODELS: dict[str, Model] = {f"Base-{n}": _base(n) for n in (8, 16, 32, 64, 128, 256)}
MODELS["Large-128"] = Model(128, 12, 1024, 4096, _LARGE)
SSD = Model(128, 12, 1024, 4096, replace(_LARGE, expert=7.706 - _LARGE.block - _LARGE.overhead))
"""Large-128 with its experts on a disk; the copy time is what on_demand's measured 7.706 ms a layer leaves."""

Row = tuple[float | None, ...]
LATENCY: dict[str, Row] = {
    "Base-8": (0.946, 1.128, 1.887, 6.727),
    "Base-16": (None, 1.156, 1.894, 12.75),
    "Base-32": (None, 1.121, 1.745, 27.25),
    "Base-64": (0.947, 1.129, 1.778, 51.03),
    "Base-128": (0.946, 1.127, 1.790, 101.59),
    "Base-256": (0.962, 1.157, 1.818, 199.7),
    "Large-128": (None, 1.388, 2.631, 173.5),
}
"""Milliseconds of a decoder layer with a mixture block (figure 10)."""

SPEED: dict[str, Row] = {
    "Base-8": (129, 112, 79, 24),
    "Base-64": (142, 113, 78, 3),
    "Base-128": (142, 109, 76, 2),
    "Base-256": (140, 103, 73, 1),
    "Large-128": (None, 42, 26, 0),
}
"""Tokens per second (figure 11), rounded to whole numbers by the authors' program."""

MEMORY: dict[str, Row] = {
    "Base-8": (2.484, 1.616, 1.597, 1.880),
    "Base-64": (9.405, 2.195, 2.176, 4.573),
    "Base-128": (17.30, 2.845, 2.826, 7.639),
    "Base-256": (33.14, 4.185, 4.166, 13.81),
    "Large-128": (56.9, 5.468, 5.435, 13.99),
}
"""Peak GB (figure 12). The other designs differ from pre_gated by whole experts and appear to be computed."""

ACTIVE: dict[int, Row] = {
    1: (1.019, 1.198, 1.849, 50.16),
    4: (1.022, 3.172, 4.168, 50.72),
    16: (1.474, 12.61, 13.94, 50.32),
    32: (2.654, 25.45, 27.48, 50.60),
    64: (4.908, 52.87, 55.09, 52.64),
}
"""Milliseconds of a layer of Base-64 at batch 64 when so many experts are forced to be active (figure 14)."""

BATCHES = (1, 2, 4, 8, 16, 32)
BATCH_SPEED: dict[str, dict[str, tuple[int, ...]]] = {
    "Base-128": {
        "resident": (142, 287, 577, 1113, 2122, 3912),
        "pre_gated": (109, 184, 291, 407, 614, 813),
        "on_demand": (76, 131, 222, 360, 548, 781),
    },
    "Large-128": {"pre_gated": (42, 51, 63, 80, 109, 125), "on_demand": (26, 37, 57, 83, 118, 161)},
}
"""Tokens per second over the batch sizes; not in the paper."""

SSD_SPEED = {"pre_gated": 11, "on_demand": 9}
"""Tokens per second of Large-128 with its experts on a disk (figure 16)."""

CACHE_SHARE = (0.01, 0.03, 0.05, 0.10, 0.20)
CACHE_HITS = (0.03, 0.10, 0.18, 0.38, 0.73)
CACHE_SPEED = {"pre_gated": (46, 48, 47, 48, 49), "on_demand": (28, 29, 30, 33, 40)}
"""Tokens per second of Large-128 with a least-recently-used cache for a share of the experts, and its hit rates
(figure 15)."""
