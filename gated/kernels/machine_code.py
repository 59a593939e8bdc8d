"""Formulas as machine code, through PyTorch's Inductor, for the CPU paths that `compiled=True` asks for. Ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def machine_code(
    formulas: Callable[..., list[Tensor]], example: list[Any], **config: object
) -> Callable[..., Sequence[Tensor]] | None:
    """`formulas` of tensors with the ranks and dtypes of `example`, whatever their sizes. None, and a warning, where
    that cannot be had.

    Not through `torch.compile`, whose look at its inputs would take as long as the arithmetic, in every call. One
    function, one thread: what is compiled here takes less time than two threads need to meet.

    Args:
        example: sizes that are to stay free must differ from all that are not.
        config: patches of Inductor's configuration.
    """
    # Inductor is imported here, since that takes as long as importing torch itself, and few compile.
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(formulas, tracing_mode="symbolic")(*example)
    # asserting the size of each input takes a tenth of a short call, and callers make their inputs themselves
    patches: dict[str, object] = {
        "max_fusion_size": 1_000_000,
        "cpp.threads": 1,
        "size_asserts": False,
        "alignment_asserts": False,
    }
    patches |= config
    try:
        from torch._inductor import standalone_compile

        return standalone_compile(graph, example, options={"config_patches": patches})
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"compiled=True has no effect: the compilation failed ({reason}). It needs PyTorch 2.8, a C++ "
            "compiler, and an environment whose path has no space in it.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
