"""Gated linear attention: the layer, the softmax layer that it is compared with, and a small language model.

The memory of one head is a matrix S with one row per key channel. Each token lets every row survive in part,
writes one outer product, and reads the result:

    S_t = Diag(alpha_t) S_{t-1} + k_t^T v_t,        o_t = q_t S_t / sqrt(K),        alpha_t in (0, 1]^K.

The gate alpha_t is a function of the token x_t alone, never of S, so the recurrence stays linear in S and can
be computed in chunks (`gated.kernels.gla`). Source: Yang, Wang, Shen, Panda and Kim, "Gated Linear Attention
Transformers with Hardware-Efficient Training", ICML 2024 (arXiv 2312.06635), section 4.

State-dict layout of `GatedLinearAttention(dim=d, heads=H)` with K = key_dim/H and V = value_dim/H; every head
owns a contiguous block of output rows:

    q_proj.weight, k_proj.weight  [key_dim, d]      v_proj.weight, r_proj.weight  [value_dim, d]
    gate.0.weight [gate_rank, d]                    gate.1.weight, gate.1.bias  [G, gate_rank], [G], where
    norm.weight   [V], shared by the heads          G = key_dim (decay="vector") or H (decay="scalar")
    log_rate      [key_dim] (decay="constant")
    o_proj.weight [d, value_dim]                    conv.weight [2 key_dim + value_dim, conv_size]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates import softmax_gate
from gated.gates._validation import (
    check_choice,
    check_count,
    check_float,
    check_floats,
    check_number,
    check_positive,
    check_sizes,
)
from gated.kernels.gla import chunk_gla, fused_recurrent_gla

Decay = Literal["vector", "scalar", "constant", "fixed", "none"]
Mode = Literal["chunk", "recurrent"]


class GLAState(NamedTuple):
    """What a layer carries from one segment to the next: of constant size, however long the past.

    Example:
        >>> layer = GatedLinearAttention(dim=8, heads=2)
        >>> _, state = layer(torch.randn(1, 100, 8))
        >>> state.memory.shape  # as large after 100 tokens as after one
        torch.Size([1, 2, 2, 4])
    """

    memory: Tensor
    """S, [batch, heads, K, V], float32 (float64 for float64 layers)."""
    window: Tensor
    """The last conv_size - 1 inputs of the short convolution, [batch, conv_size - 1, channels]."""


class KVCache(NamedTuple):
    """What softmax attention carries, and what grows by one key and one value with each token.

    Example:
        >>> layer = SoftmaxAttention(dim=8, heads=2)
        >>> _, state = layer(torch.randn(1, 100, 8))
        >>> state.keys.shape
        torch.Size([1, 100, 2, 4])
    """

    keys: Tensor
    """The keys so far, rotated, [batch, time, heads, D]."""
    values: Tensor
    """The values so far, [batch, time, heads, D]."""
    window: Tensor
    """As in `GLAState`."""


def fixed_log_decay(heads: int) -> Float[Tensor, " heads"]:
    """log gamma_h with gamma_h = 1 - 2^(-5-h), h = 0, 1, ...: the decays of RetNet (Sun et al. 2023).

    Example:
        >>> fixed_log_decay(2).exp().tolist()
        [0.96875, 0.984375]
    """
    check_count("heads", heads)
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(heads)))


def rotate(x: Float[Tensor, "batch time heads dim"], start: int = 0) -> Float[Tensor, "batch time heads dim"]:
    """Rotary positions (Su et al. 2021): pair (x_i, x_{i + dim/2}) turns by (start + t) 10000^(-2i/dim).

    Args:
        start: position of the first token.

    Raises:
        ValueError: x without four axes, or an odd width.

    Example:
        >>> x = torch.randn(1, 5, 1, 8)
        >>> torch.allclose(rotate(x).norm(dim=-1), x.norm(dim=-1))  # a rotation keeps lengths
        True
    """
    check_float("x", x)
    if x.ndim != 4 or x.shape[3] % 2:
        raise ValueError(f"x must be [batch, time, heads, dim], dim even, got {tuple(x.shape)}")
    if start is None or isinstance(start, bool | float | str):  # when traced it may be a symbol or a tensor
        raise ValueError(f"start must be an integer; got {start!r}")
    time, half = x.shape[1], x.shape[3] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    position = torch.arange(start, start + time, device=x.device, dtype=torch.float64)
    # Angles in float64: in float32 a position of 10^5 already carries an error of 0.004 radians.
    angle = rearrange(torch.outer(position, frequency), "t i -> t 1 i")
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class ShortConvolution(nn.Module):
    """y_t = swish(sum_j weight[:, j] * x_{t - size + 1 + j}), a causal depth-wise convolution of few tokens.

    It starts near the identity on the newest tap, so that a fresh layer is close to one without convolution.
    size = 0 passes x through unchanged. `weight` is [channels, size], the oldest tap first.

    Raises:
        ValueError: a negative size, a window of another shape.

    Example:
        >>> ShortConvolution(channels=3, size=4)(torch.randn(2, 10, 3))[1].shape
        torch.Size([2, 3, 3])
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("size", size, least=0)
        self.channels, self.size = channels, size
        if size:
            newest = torch.eye(1, size).flip(1)
            self.weight = nn.Parameter(newest + 0.1 * torch.randn(channels, size))

    def forward(
        self, x: Float[Tensor, "batch time channels"], window: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch past channels"]]:
        """(y, the last size - 1 inputs); window: the inputs just before x, zeros when None."""
        check_floats(f"batch time {self.channels}", x=x)
        expected = (x.shape[0], max(self.size - 1, 0), self.channels)
        window = x.new_zeros(expected) if window is None else window
        if window.shape != expected:
            raise ValueError(f"state.window must have shape {expected}, got {tuple(window.shape)}")
        if not self.size:
            return x, window
        time, padded = x.shape[1], torch.cat([window, x], dim=1)
        taps = (self.weight[:, j] * padded[:, j : j + time] for j in range(self.size))
        return F.silu(reduce(torch.add, taps)), padded[:, time:]


class GatedLinearAttention(nn.Module):
    """y = (swish(x W_r) * concat_h RMSNorm(o_h)) W_O, with o_h the gated linear attention of head h.

    Arguments:
        dim: width d of input and output.
        heads: number of heads H.
        key_dim, value_dim: total widths of q, k and of v; default d/2 and d, so that the memory of a layer is
            d^2 / (2H) numbers, as much as the key-value cache of d / (4H) tokens.
        decay: where the log gate g = log alpha comes from. Nothing else in the layer depends on it.
            "vector": logsigmoid(x W_1 W_2 + b) / temperature, one gate per key channel (GLA).
            "scalar": the same map with one output per head.
            "constant": -exp(p), one learned p per key channel, whatever the token. It starts with half-lives
                spread evenly in the logarithm from 1/4 to 64 tokens in each head.
            "fixed": log(1 - 2^(-5-h)) in head h, whatever the token (RetNet's decay, without its rotation).
            "none": 0, nothing is forgotten (linear attention, without feature map and normaliser).
        gate_rank: width of the bottleneck x W_1.
        temperature: tau > 0. At logit 0 a memory's half-life is tau tokens.
        gate_bias: initial value of b.
        conv_size: taps of a causal depth-wise convolution (then swish) on q, k and v; 0 for none.
        norm_eps: epsilon of the norm over the V channels of each head.

    Linear maps start as in `nn.Linear`. Raises ValueError for sizes that do not fit.
    Source: Yang et al. 2024, section 4.4; the norm is RMSNorm and W_r has no bias, as in the authors' code.

    Example:
        >>> layer = GatedLinearAttention(dim=32, heads=2)
        >>> x = torch.randn(1, 20, 32)
        >>> y, state = layer(x)
        >>> torch.allclose(layer(x, mode="recurrent")[0], y, atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        decay: Decay = "vector",
        gate_rank: int = 16,
        temperature: float | int = 16.0,
        gate_bias: float = 0.0,
        conv_size: int = 0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads, gate_rank=gate_rank)
        check_count("conv_size", conv_size, least=0)
        check_number("gate_bias", gate_bias)
        check_number("norm_eps", norm_eps, "[0, inf)")
        key_dim, value_dim = key_dim or dim // 2, value_dim or dim
        for name, given in {"key_dim": key_dim, "value_dim": value_dim}.items():
            if not isinstance(given, int) or given % heads or given < heads:
                raise ValueError(f"{name} must be a positive multiple of heads={heads}, got {given}")
        check_choice("decay", decay, get_args(Decay))
        check_positive("temperature", temperature)
        self.dim, self.heads, self.key_dim, self.value_dim = dim, heads, key_dim, value_dim
        self.decay, self.temperature = decay, temperature
        self.q_proj = nn.Linear(dim, key_dim, bias=False)
        self.k_proj = nn.Linear(dim, key_dim, bias=False)
        self.v_proj = nn.Linear(dim, value_dim, bias=False)
        self.r_proj = nn.Linear(dim, value_dim, bias=False)
        self.o_proj = nn.Linear(value_dim, dim, bias=False)
        self.norm = nn.RMSNorm(value_dim // heads, eps=norm_eps)
        if decay in ("vector", "scalar"):
            outputs = key_dim if decay == "vector" else heads
            up = nn.Linear(gate_rank, outputs)
            nn.init.constant_(up.bias, gate_bias)
            self.gate = nn.Sequential(nn.Linear(dim, gate_rank, bias=False), up)
        if decay == "constant":
            half_life = torch.logspace(-2, 6, key_dim // heads, base=2.0).repeat(heads)
            self.log_rate = nn.Parameter(torch.log(math.log(2) / half_life))
        self.conv = ShortConvolution(2 * key_dim + value_dim, conv_size)

    def log_decay(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time heads key"]:
        """g = log alpha <= 0 for each token, head and key channel, in float32 (float64 for float64 input)."""
        key = self.key_dim // self.heads
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.decay in ("vector", "scalar"):
            g = F.logsigmoid(self.gate(x).to(dtype)) / self.temperature
            if self.decay == "vector":
                return rearrange(g, "b t (h k) -> b t h k", h=self.heads)
            return repeat(g, "b t h -> b t h k", k=key)
        if self.decay == "constant":
            g = rearrange(-self.log_rate.to(dtype).exp(), "(h k) -> h k", h=self.heads)
            return repeat(g, "h k -> b t h k", b=x.shape[0], t=x.shape[1])
        constant = fixed_log_decay(self.heads) if self.decay == "fixed" else torch.zeros(self.heads)
        return repeat(constant.to(x.device, dtype), "h -> b t h k", b=x.shape[0], t=x.shape[1], k=key)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: GLAState | None = None,
        mode: Mode = "chunk",
        cu_seqlens: Int[Tensor, " sequences_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], GLAState]:
        """Mix x over time; returns (y, state after the last token).

        mode: "chunk" (parallel, for training and reading a prompt) or "recurrent" (token by token, for
        generating); the two agree to rounding. state: from an earlier call, to continue where it stopped.
        cu_seqlens: 0 = c_0 < ... < c_N = time, the borders of N sequences packed in one batch row; the memory
        starts afresh (or from state.memory[n]) at each border. Raises ValueError if an argument does not fit.
        """
        check_input(x, self.dim, mode)
        if cu_seqlens is not None and self.conv.size:
            raise ValueError("cu_seqlens needs conv_size=0: the convolution would reach across the borders")
        memory, window = (None, None) if state is None else state
        g = self.log_decay(x)
        qkv, window = self.conv(torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1), window)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        q, k, v = (rearrange(a, "b t (h c) -> b t h c", h=self.heads) for a in (q, k, v))
        attend = chunk_gla if mode == "chunk" else fused_recurrent_gla
        o, memory = attend(q, k, v, g, initial_state=memory, output_final_state=True, cu_seqlens=cu_seqlens)
        assert memory is not None
        o = rearrange(self.norm(o), "b t h v -> b t (h v)")
        return self.o_proj(F.silu(self.r_proj(x)) * o), GLAState(memory, window)


class SoftmaxAttention(nn.Module):
    """Causal softmax attention with rotary positions: the baseline, used like `GatedLinearAttention`.

    y = concat_h(softmax(Q K^T / sqrt(D) + causal mask) V) W_O with D = dim / heads; 4 dim^2 parameters, and
    those of the optional short convolution. Raises ValueError for sizes that do not fit.

    Args:
        conv_size: taps of the short convolution, 0 for none.

    Example:
        >>> y, cache = SoftmaxAttention(dim=32, heads=2)(torch.randn(1, 20, 32))
        >>> y.shape, cache.keys.shape
        (torch.Size([1, 20, 32]), torch.Size([1, 20, 2, 16]))
    """

    def __init__(self, dim: int, heads: int = 4, *, conv_size: int = 0) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads)
        check_count("conv_size", conv_size, least=0)
        if dim % (2 * heads):
            raise ValueError(f"dim must be a multiple of 2 * heads (rotary pairs), got {dim}, heads={heads}")
        self.dim, self.heads = dim, heads
        self.qkv_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.conv = ShortConvolution(3 * dim, conv_size)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: KVCache | None = None, mode: Mode = "chunk"
    ) -> tuple[Float[Tensor, "batch time dim"], KVCache]:
        """Mix x over time; returns (y, cache). Both modes are the same computation."""
        check_input(x, self.dim, mode)
        past = 0 if state is None else state.keys.shape[1]
        qkv, window = self.conv(self.qkv_proj(x), None if state is None else state.window)
        q, k, v = rearrange(qkv, "b t (three h c) -> three b t h c", three=3, h=self.heads)
        q, k = rotate(q, past), rotate(k, past)
        if state is not None:
            k, v = torch.cat([state.keys, k], dim=1), torch.cat([state.values, v], dim=1)
        cache = KVCache(k, v, window)
        q, k, v = (rearrange(a, "b t h c -> b h t c") for a in (q, k, v))
        if past:
            mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool, device=x.device).tril(past)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(rearrange(o, "b h t c -> b t (h c)")), cache


class SwiGLU(nn.Module):
    """(swish(x W_1) * x W_2) W_3: the feed-forward half of a block (Shazeer 2020).

    Example:
        >>> SwiGLU(dim=8, hidden=16)(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        check_sizes(dim=dim, hidden=hidden)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        check_floats(f"*batch {self.up.in_features}", x=x)
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):
    """x' = x + Mixer(RMSNorm(x)), then x' + SwiGLU(RMSNorm(x')).

    Args:
        mixer: what mixes the tokens, such as `GatedLinearAttention`. It is called as mixer(x, state, mode).

    Example:
        >>> block = Block(8, GatedLinearAttention(8, heads=2), mlp_dim=16)
        >>> y, state = block(torch.randn(1, 5, 8))
        >>> y.shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_dim: int) -> None:
        super().__init__()
        check_sizes(dim=dim, mlp_dim=mlp_dim)
        self.mixer_norm, self.mixer = nn.RMSNorm(dim, eps=1e-5), mixer
        self.mlp_norm, self.mlp = nn.RMSNorm(dim, eps=1e-5), SwiGLU(dim, mlp_dim)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: tuple[Any, ...] | None = None, mode: Mode = "chunk"
    ) -> tuple[Float[Tensor, "batch time dim"], tuple[Any, ...]]:
        check_floats(f"batch time {self.mlp.up.in_features}", x=x)
        y, state = self.mixer(self.mixer_norm(x), state, mode)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state


class GLATransformer(nn.Module):
    """A small causal language model: embedding, blocks, norm, and the embedding again as output head (tied).

    Arguments:
        vocab_size: number of symbols. dim: width. layers: number of blocks.
        mlp_dim: hidden width of the SwiGLU, default round(8/3 dim).
        mixer: builds each block's sequence mixer as mixer(dim, **options): `GatedLinearAttention` with any
            decay, or `SoftmaxAttention`. There is no positional embedding outside the mixer.
        options: passed on to mixer, for instance heads=2, decay="scalar".

    Raises:
        ValueError: fewer than 2 symbols, no layer, tokens that are no integers [batch, time], a state of another
            depth; in `generate`, a negative length or a top_k out of range.

    Example:
        >>> model = GLATransformer(vocab_size=50, dim=32, layers=2, heads=2)
        >>> logits, state = model(torch.randint(50, (1, 10)))
        >>> logits.shape
        torch.Size([1, 10, 50])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 128,
        layers: int = 2,
        *,
        mlp_dim: int | None = None,
        mixer: Callable[..., nn.Module] = GatedLinearAttention,
        **options: object,
    ) -> None:
        super().__init__()
        check_count("vocab_size", vocab_size, least=2)
        check_sizes(dim=dim, layers=layers)
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        hidden = round(8 * dim / 3) if mlp_dim is None else mlp_dim
        self.blocks = nn.ModuleList(Block(dim, mixer(dim, **options), hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: tuple[Any, ...] | None = None, mode: Mode = "chunk"
    ) -> tuple[Float[Tensor, "batch time vocab"], tuple[Any, ...]]:
        """Logits of the next token at every position, and the state of every layer after the last one.

        Raises ValueError unless tokens is a non-empty integer [batch, time] and state comes from this model.
        """
        if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.dtype not in (torch.int64, torch.int32):
            given = f"{tokens.dtype} {tuple(tokens.shape)}"
            raise ValueError(f"tokens must be int64 or int32 of shape [batch, time >= 1], got {given}")
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(f"state must hold one entry per layer ({len(self.blocks)}), got {len(state)}")
        x = self.embedding(tokens)
        new_state = []
        for block, old in zip(self.blocks, state or [None] * len(self.blocks), strict=True):
            x, new = block(x, old, mode)
            new_state.append(new)
        return F.linear(self.norm(x), self.embedding.weight), tuple(new_state)

    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "batch time"],
        length: int,
        *,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch time_plus_length"]:
        """The prompt and `length` sampled tokens after it. The prompt is read in chunks, then every token
        costs the same time and memory (with `GatedLinearAttention`). top_k=1 is greedy decoding."""
        if length < 0:
            raise ValueError(f"length must be 0 or more, got {length}")
        if top_k is not None and not 1 <= top_k <= self.embedding.num_embeddings:
            raise ValueError(f"top_k must lie in [1, {self.embedding.num_embeddings}], got {top_k}")
        tokens, state, newest, mode = [prompt], None, prompt, "chunk"
        for _ in range(length):
            logits, state = self(newest, state, mode)
            logits = logits[:, -1]
            if top_k is not None:
                best = logits.topk(top_k, dim=-1)
                logits = torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)
            newest = torch.multinomial(softmax_gate(logits, temperature), 1, generator=generator)
            tokens.append(newest)
            mode = "recurrent"
        return torch.cat(tokens, dim=1)


def check_input(x: Tensor, dim: int, mode: str) -> None:
    """Raise ValueError unless x is floating point [batch, time >= 1, dim] and mode is known."""
    check_float("x", x)
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != dim:
        given = f"{x.dtype} {tuple(x.shape)}"
        raise ValueError(f"x must be floating point [batch, time >= 1, dim={dim}], got {given}")
    check_choice("mode", mode, get_args(Mode))
