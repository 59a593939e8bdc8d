"""What a compiled Triton kernel holds: registers, spills, shared memory and instructions, read from its binary."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
FIGURES = ("registers", "spills", "shared_bytes", "matrix_instructions", "instructions", "exponentials")


def read_cuda(kernel: Any) -> dict[str, int]:
    """Figures of a cubin: resource usage and machine code from cuobjdump, spilled bytes from ptxas."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    arch = re.search(r"^\.target (sm_\w+)", kernel.asm["ptx"], re.M)
    assert arch, "the PTX names no target"

    def call(tool: str, *arguments: str) -> str:
        done = subprocess.run([tools / tool, *arguments], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout + done.stderr

    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"])
        usage = call("cuobjdump", "--dump-resource-usage", str(cubin))
        spilled = call("ptxas", "-v", f"--gpu-name={arch[1]}", str(ptx), "-o", str(Path(folder, "again.cubin")))
        code = call("cuobjdump", "-sass", str(cubin))
    count = Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)(?:\.EX2)?", code, re.M))
    exps = len(re.findall(r"\bMUFU\.EX2", code))
    registers = re.search(r"REG:(\d+)", usage)
    spill = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", spilled)
    assert registers and spill and count, "the binary tools' output has changed"
    return {
        "registers": int(registers[1]),
        "spills": int(spill[1]) + int(spill[2]),
        "shared_bytes": kernel.metadata.shared,
        "matrix_instructions": count["HGMMA"] + count["HMMA"],
        "instructions": sum(count.values()),
        "exponentials": exps,
    }


def read_hip(kernel: Any) -> dict[str, int]:
    """Figures of AMD code, from the assembler text; spills count registers of 4 bytes in each of 64 lanes."""
    code = kernel.asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found, f"no {name} in the AMD code"
        return int(found[1])

    return {
        "registers": field("vgpr_count"),
        "spills": field("vgpr_spill_count") + field("sgpr_spill_count"),
        "shared_bytes": kernel.metadata.shared,
        "matrix_instructions": len(re.findall(r"^\s+v_mfma", code, re.M)),
        "instructions": len(re.findall(r"^\s+(?:[vs]|ds|global|buffer|flat)_", code, re.M)),
        "exponentials": len(re.findall(r"^\s+v_exp_f32", code, re.M)),
    }


def compiled(function: Any, values: dict[str, Any], target: str, warps: int, stages: int) -> dict[str, int]:
    """Compile `function` with `values` (a type for a pointer or scalar, else a constant) and read the binary."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in function.params]
    constant = {parameter.name for parameter in function.params if parameter.is_constexpr}
    types = {n: v for n, v in values.items() if isinstance(v, str) and n not in constant}
    source = ASTSource(
        fn=function,
        signature={n: types.get(n, "constexpr") for n in names},
        constexprs={n: values.get(n) for n in names if n not in types},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if types.get(n, "").startswith("*")},
    )
    kernel = triton.compile(
        source, target=GPUTarget(*TARGETS[target]), options={"num_warps": warps, "num_stages": stages}
    )
    return read_cuda(kernel) if target.startswith("sm_") else read_hip(kernel)
