"""What the Triton kernels compile to, without a GPU: `python tools/kernels.py --out build/kernels.json`.

Each kernel is compiled ahead of time for two NVIDIA targets and one AMD target, exactly as the package launches it
(same tile sizes, warps and stages), and read back from the binary: registers, spilled bytes, shared memory, matrix
instructions, all instructions (static counts: a loop's body counts once). A new family is an entry of `FAMILIES`.

For `gla`, flash-linear-attention's kernels for the same step are compiled by the same code with tiles of 64 and 2
stages, at 4 warps, or at 8 where 4 spill registers and 8 spill fewer; its autotuner may find better ones on a GPU. A
row that sums several launches takes the largest of their registers and shared memory and the sum of the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from binaries import FIGURES, TARGETS, compiled

ROOT = Path(__file__).resolve().parent.parent
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}  # bytes a block may use
HEADS = 4

# name of the step -> our kernel, its constants, and the peer's kernels that do the same work (module, name, constants)
Steps = dict[str, tuple[str, dict[str, Any], list[tuple[str, str, dict[str, Any]]]]]


class Family(NamedTuple):
    """A folder of gated/kernels: what its gpu.py launches, and with what."""

    dtype: str
    types: dict[str, str]  # parameters that are no constants, by name, the same in all steps; constants win
    sizes: list[dict[str, int]]  # every step is compiled for each; constants too, and a row's sizes. "K" is one of them
    steps: Steps
    plan: Callable[..., dict[str, int]] = lambda gpu, kernel, sizes, hip: gpu.plan(kernel, **sizes, hip=hip)


def pointers(names: str, dtype: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"*{dtype}")


CHUNK_H, GLA = "fla.ops.common.chunk_h", "fla.ops.gla.chunk"
GLA_STEPS: Steps = {
    "write, forward": (
        "_write",
        {"REVERSE": False},
        [
            ("fla.ops.utils.cumsum", "chunk_local_cumsum_vector_kernel", {"o": "*fp32"}),
            (CHUNK_H, "chunk_fwd_kernel_h", {"g": None}),
        ],
    ),
    "read, forward": (
        "_read",
        {"REVERSE": False},
        [
            (GLA, "chunk_gla_fwd_A_kernel_intra_sub_inter", {}),
            (GLA, "chunk_gla_fwd_A_kernel_intra_sub_intra", {"BK": "K"}),
            (GLA, "chunk_gla_fwd_kernel_o", {}),
        ],
    ),
    "write, backward": ("_write", {"REVERSE": True}, [(CHUNK_H, "chunk_bwd_kernel_dh", {"g": None})]),
    "read, backward": ("_read", {"REVERSE": True}, [(GLA, "chunk_gla_bwd_kernel_dv", {})]),
    "gradients": (
        "_grad",
        {},
        [
            (GLA, "chunk_gla_bwd_kernel_dA", {}),
            (GLA, "chunk_gla_bwd_kernel_intra", {"dq": "*fp32", "dk": "*fp32"}),
            (
                GLA,
                "chunk_gla_bwd_kernel_inter",
                {"h": "*fp32", "dq": "*fp32", "dk": "*fp32", "dq2": "*fp32", "dk2": "*fp32"},
            ),
        ],
    ),
    "recurrence": (
        "_step",
        {},
        [
            (
                "fla.ops.common.fused_recurrent",
                "fused_recurrent_fwd_kernel",
                {"g": None, "o": "*fp32", "scale": "fp32"},
            )
        ],
    ),
}
WHOLE = {
    "forward, all launches": ["write, forward", "read, forward"],
    "backward, all launches": ["write, forward", "write, backward", "read, backward", "gradients"],
}
FAMILIES = {
    "gla": Family(
        "bf16",
        pointers("q k v x y o out do states dstates dq dk", "bf16")
        | pointers("g dg start final", "fp32")
        | {"offsets": "*i32", "scale": "fp32", "H": "i32"},
        [{"K": 64, "V": 64}, {"K": 128, "V": 128}],
        GLA_STEPS,
    ),
    "topk_gate": Family(
        "fp32",
        pointers("logits weights", "fp32")
        | pointers("experts position offsets", "i64")
        | {"count": "*i32"}
        | dict.fromkeys(("T", "tiles", "parts", "choices", "size"), "i32"),
        [{"N": 8, "K": 2}, {"N": 64, "K": 2}, {"N": 160, "K": 6}, {"N": 256, "K": 8}],
        {"scores": ("_score", {"RENORMALISE": True}, []), "scan": ("_scan", {}, []), "positions": ("_place", {}, [])},
        lambda gpu, kernel, sizes, hip: gpu.plan(kernel, sizes["N"]),
    ),
    # about so many rows a group; matrices [K, N] as they are stored, and the transposed view that the backward reads
    "grouped_gemm": Family(
        "bf16",
        pointers("x weight r y dy dw", "bf16") | {"offsets": "*i64", "G": "i32"},
        [
            {"K": 1024, "N": 4096, "rows": 256, "WK": 4096, "WN": 1},
            {"K": 4096, "N": 1024, "rows": 256, "WK": 1, "WN": 4096},
            {"K": 128, "N": 512, "rows": 16, "WK": 512, "WN": 1},
            {"K": 200, "N": 333, "rows": 40, "WK": 333, "WN": 1},
        ],
        {"product": ("_product", {}, []), "weight gradient": ("_gradient", {}, [])},
        lambda gpu, kernel, sizes, hip: {
            **gpu.plan(kernel, sizes["K"], sizes["N"], sizes["rows"], hip=hip),
            **{"WG": sizes["K"] * sizes["N"], "GROUPS": 64},
        },
    ),
    "gmoe_em": Family(
        "fp32",
        pointers("x y beta0 beta1 a b variance tau", "fp32")
        | pointers("count segment bounds", "i64")
        | pointers("part total", "fp64"),
        [
            {"K": 2, "DIM": 1, "TOP": 2, "LENGTH": 256},
            {"K": 3, "DIM": 1, "TOP": 2, "LENGTH": 256},
            {"K": 4, "DIM": 2, "TOP": 4, "LENGTH": 256},
            {"K": 16, "DIM": 2, "TOP": 2, "LENGTH": 256},
        ],
        {
            "tiles": ("_tile", {"SLOPE": False, "NAME": "identity"}, []),
            "tiles, tanh by slope": ("_tile", {"SLOPE": True, "NAME": "tanh"}, []),
            "totals": ("_total", {}, []),
        },
        lambda gpu, kernel, sizes, hip: gpu.plan(kernel, sizes["K"], sizes["DIM"], sizes["LENGTH"], hip=hip),
    ),
    # K coordinates; a chain's row is one block. Everything that a kernel can do, and the least
    "langevin_scan": Family(
        "fp32",
        pointers("z0 v0 noise sigma decay control stiffness coupling quartic z v", "fp32")
        | pointers("dz dv dz0 dv0 dnoise dsigma ddecay dcontrol dstiffness dcoupling dquartic force", "fp32")
        | {"step": "fp32", "T": "i32"},
        [
            {"K": 64, "COUPLED": 0, "QUARTIC": 0},
            {"K": 280, "COUPLED": 0, "QUARTIC": 0},
            {"K": 64, "COUPLED": 1, "QUARTIC": 1},
            {"K": 280, "COUPLED": 1, "QUARTIC": 1},
        ],
        {
            "forward": ("_walk", {"SCHEME": 2, "CONTROL": True, "VARYING": True}, []),
            "forward, released": ("_walk", {"SCHEME": 0, "CONTROL": False, "VARYING": False}, []),
            "backward": (
                "_back",
                {"SCHEME": 2} | dict.fromkeys(("VARYING", "NOISE", "FRICTION", "CONTROL", "MATRIX"), True),
                [],
            ),
            "backward, released": (
                "_back",
                {"SCHEME": 0} | dict.fromkeys(("VARYING", "NOISE", "FRICTION", "CONTROL", "MATRIX"), False),
                [],
            ),
        },
        lambda gpu, kernel, sizes, hip: {**gpu.plan(kernel, sizes["K"], sizes["COUPLED"] == 1), "D": sizes["K"]},
    ),
    # K rows beside the four limits
    "barrier_qp": Family(
        "fp32",
        pointers("a b c d w u value du da db dc dd dw", "fp32")
        | {"active": "*i64", "feasible": "*i8", "xi": "fp32", "limit": "fp32", "P": "i32"},
        [{"K": 6}, {"K": 12}, {"K": 60}],
        {"forward": ("_solve", {}, []), "backward": ("_adjoint", {}, [])},
        lambda gpu, kernel, sizes, hip: {**gpu.plan(kernel, sizes["K"]), "M": sizes["K"]},
    ),
}
# what flash-linear-attention's parameters mean when they are not the same everywhere: pointers' types, then its flags
PEER = {
    "s": "*fp32",
    "g": "*fp32",
    "gk": "*fp32",
    "A": "*fp32",
    "dA": "*fp32",
    "dg": "*fp32",
    "dh": "*fp32",
    "scale": "fp32",
    "T": "i32",
    "H": HEADS,
    "HV": HEADS,
    "HQ": HEADS,
    "B": 1,
    "NG": 1,
    "BT": 64,
    "BS": 64,
    "BC": 16,
    "NC": 4,
    "BV": 64,
    "HAS_SCALE": True,
    "USE_GK": True,
    "USE_EXP2": True,
}
PEER |= dict.fromkeys(("q", "k", "v", "o", "h", "do", "dq", "dk", "dv"), "*bf16")


def total(figures: list[dict[str, int]]) -> dict[str, int]:
    """Several launches as one: the largest of what is held at a time, the sum of what is executed."""
    return {name: (max if name in ("registers", "shared_bytes") else sum)(f[name] for f in figures) for name in FIGURES}


def row(job: tuple[str, str, str, int]) -> dict[str, Any]:
    """One row: our kernel for a step of a family, and the peer's where there is one, at the family's n-th sizes."""
    name, step, target, number = job
    family = FAMILIES[name]
    kernel, constants, peers = family.steps[step]
    sizes = family.sizes[number]
    logging.disable(logging.WARNING)  # flash-linear-attention says on import that there is no GPU
    gpu = import_module(f"gated.kernels.{name}.gpu")
    values = {**family.types, **sizes, **constants, **family.plan(gpu, kernel, sizes, target.startswith("gfx"))}
    warps, stages = values.pop("num_warps"), values.pop("num_stages")
    result = {
        "kernel": f"{name} {step}",
        "target": target,
        "dtype": family.dtype,
        "sizes": sizes,
        "launches": 1,
        **compiled(getattr(gpu, kernel), values, target, warps, stages),
        "shared_limit": SHARED_LIMIT[target],
        "warps": warps,
    }
    if peers:
        figures = total([peer(*kernel, sizes["K"], target) for kernel in peers])
        result["peer"] = {"name": "flash-linear-attention", "kernels": [k for _, k, _ in peers], **figures}
    return result


def peer(module: str, kernel: str, special: dict[str, Any], size: int, target: str) -> dict[str, int]:
    """flash-linear-attention's kernel at K = V = size in bfloat16 with float32 gates."""
    function = getattr(import_module(module), kernel)
    while not hasattr(function, "params"):  # under the autotuner and the heuristics
        function = function.fn
    special = {n: size if v == "K" else v for n, v in special.items()}
    given = PEER | {"K": size, "V": size, "S": size, "BK": min(64, size)} | special
    flags = {p.name: False for p in function.params if p.is_constexpr and p.name not in given}
    figures = compiled(function, given | flags, target, 4, 2)
    if figures["spills"]:
        figures = min(figures, compiled(function, given | flags, target, 8, 2), key=lambda f: f["spills"])
    return figures


def whole(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a pass of gated linear attention as a whole: the sums over its launches, ours and theirs."""
    table = {(r["kernel"], r["target"], r["sizes"]["K"]): r for r in rows}
    out = []
    for name, steps in WHOLE.items():
        for target in TARGETS:
            for size in (sizes["K"] for sizes in FAMILIES["gla"].sizes):
                parts = [table[f"gla {step}", target, size] for step in steps]
                kernels = [k for p in parts for k in p["peer"]["kernels"]]
                out.append(
                    {
                        **parts[0],
                        "kernel": f"gla {name}",
                        "launches": len(parts),
                        **total(parts),
                        "peer": {
                            "name": "flash-linear-attention",
                            "kernels": kernels,
                            **total([p["peer"] for p in parts]),
                        },
                    }
                )
    return out


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/kernels.json")
    parser.add_argument("--force", action="store_true", help="compile again even if nothing has changed")
    arguments = parser.parse_args()
    versions = {name: installed(name) for name in ("triton", "torch", "fla-core")}
    sources = [ROOT / f"gated/kernels/{name}/gpu.py" for name in FAMILIES]
    text = "".join(
        path.read_text(encoding="utf-8") for path in [*sources, Path(__file__), Path(__file__).with_name("binaries.py")]
    ) + json.dumps(versions)
    digest = hashlib.sha256(text.encode()).hexdigest()
    out: Path = arguments.out
    if not arguments.force and out.exists() and json.loads(out.read_text()).get("digest") == digest:
        print(f"{out}: up to date")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter would take the place of the compiler
    os.environ.setdefault("TRITON_CACHE_DIR", str(out.parent.resolve() / "triton"))  # an interrupted run goes on
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    jobs = [
        (name, step, target, number)
        for name, family in FAMILIES.items()
        for number in range(len(family.sizes))
        for target in TARGETS
        for step in family.steps
    ]
    start, rows = time.time(), []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for number, result in enumerate(pool.imap(row, jobs), 1):
            rows.append(result)
            print(
                f"[{number:2d}/{len(jobs)}] {result['target']:6s} {result['kernel']:20s} {result['sizes']}"
                f" {result['registers']:3d} registers, {result['spills']} spilled, {result['shared_bytes']} B shared, "
                f"{result['matrix_instructions']} matrix instructions",
                flush=True,
            )
    out.write_text(json.dumps({"rows": rows + whole(rows), "versions": versions, "digest": digest}, indent=1) + "\n")
    print(f"{out}: {len(rows)} kernels compiled in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
