"""What a kernel of the fused networks should cost on an H200, from its machine code: a time for each of four limits.

    python -m bench.roofline         ns a sample of every kernel of H = 128, and the step of 2^20 samples they add up to

Instructions are counted as they are executed: the body of a loop times its trips. The largest of the four times is the
expected one if the others hide behind it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

from bench import audit, audit_mlp, audit_whole

# An H200: multiprocessors and clock; bytes a second, read and write, as measured; and a clock and multiprocessor's
# multiply-adds in TF32, results of the special-function unit, and lane-instructions issued.
_SMS, _HERTZ, _BANDWIDTH = 132, 1.98e9, 4.3e12
_TENSOR, _SPECIAL, _ISSUE = 1024, 16, 128

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Za-z0-9_.]+)\s*([^;]*);")


def executed(sass: str, trips: list[int] | int) -> Counter[str]:
    """Instructions a warp executes, by full opcode; `trips` of the loops in the order of their beginnings, or of all.

    Raises:
        ValueError: there are other loops than that.
    """
    code = [(int(m[1], 16), m[2], m[3]) for m in map(_LINE.match, sass.splitlines()) if m]
    ends = [(int(target, 16), at) for at, name, rest in code if name == "BRA" for target in re.findall(r"0x\w+", rest)]
    loops = sorted((target, at) for target, at in ends if target < at)
    if isinstance(trips, int):
        trips = [trips] * len(loops)
    if len(loops) != len(trips):
        raise ValueError(f"{len(loops)} loops, expected {len(trips)}")
    counts: Counter[str] = Counter()
    for at, name, _ in code:
        times = 1
        for (start, end), count in zip(loops, trips, strict=True):
            times *= count if start <= at <= end else 1
        counts[name] += times if name != "NOP" else 0
    return counts


def limits(case: audit.Case, counts: Counter[str], bytes_a_sample: int) -> dict[str, float]:
    """Nanoseconds a sample by limit, with every multiprocessor busy."""
    warps, clocks = case.options["num_warps"], _SMS * _HERTZ * 1e-9
    lanes = 32 * warps / case.elements
    products = 0.0
    for name, count in counts.items():
        if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):
            m, n, k = map(int, shape.groups())
            products += count * m * n * k * (warps / 4) / case.elements
    special = sum(count for name, count in counts.items() if name.startswith("MUFU"))
    return {
        "tensor": products / _TENSOR / clocks,
        "special": special * lanes / _SPECIAL / clocks,
        "issue": sum(counts.values()) * lanes / _ISSUE / clocks,
        "memory": bytes_a_sample / _BANDWIDTH * 1e9,
    }


def entry(operation: str, dim: int, width: int = 128) -> dict[str, Any]:
    """What the table gives an H200 in TF32, at these sizes."""
    from fastscore_kernels import table

    for found in table.entries():
        if (
            (found["operation"], found["precision"]) == (operation, "tf32")
            and "sm_90" in found["architectures"]
            and found["width"] >= width
            and found["dim"] >= dim
        ):
            return {**found, "width": width, "dim": dim}
    raise LookupError(f"no entry for {operation}, width {width}, dim {dim}")


def layered(depth: int, dim: int, parts: int, passes: int, width: int, size: int) -> dict[str, float]:
    """Limits, in ns a sample, of a step of training layer by layer; nothing is compiled.

    Args:
        depth: L.
        dim: D.
        parts: rows that go through every product for each sample: the value, K tangents along probes, a Laplacian.
        passes: how often the D tangents of a layer are read or written.
        width: H.
        size: bytes of a number: 4, products in TF32; or 2, in bfloat16 at twice the rate.
    """
    layers = list(itertools.pairwise([dim, *[width] * depth, dim]))
    moved = passes * dim * width
    for low, high in layers:
        moved += parts * 2 * (low + high)  # the product, and the gradient of its weights
    for low, high in layers[:-1]:
        moved += parts * 5 * high  # z to h; z and dh to dz
        moved += parts * (high + low) if low != dim else 0  # dz to the dh below
    products = 3 * parts * sum(low * high for low, high in layers) + passes // 4 * dim * width**2
    clocks = _SMS * _HERTZ * 1e-9
    return {"tensor": products / (_TENSOR * 4 / size) / clocks, "memory": size * moved / _BANDWIDTH * 1e9}


def print_layered(width: int) -> None:
    """What a step along one probe with two hidden layers on chip should cost, and steps layer by layer."""
    # Arrays of [B, H]: six written above, two read and two written below, eight read for the gradients of weights.
    print(f"estimate L=2 K=1 tf32, on chip: at least {18 * 4 * width / _BANDWIDTH * 2**20 * 1e3:.2f} ms, by memory")
    steps = {"denoising L=4 D=2": (4, 2, 1, 0), "estimate L=2 D=2 K=1": (2, 2, 2, 0)}
    steps |= {"estimate L=3 D=64 K=1": (3, 64, 2, 0), "exact L=3 D=2": (3, 2, 1, 12), "exact L=3 D=16": (3, 16, 1, 12)}
    steps |= {"energy L=2 D=2": (2, 2, 2, 8), "energy L=3 D=16": (3, 16, 2, 19)}
    for name, (depth, dim, parts, passes) in steps.items():
        for size, dtype in ((4, "tf32"), (2, "bf16")):
            found = layered(depth, dim, parts, passes, width, size)
            limiter = max(found, key=lambda k: found[k])
            print(f"{name} {dtype}, layer by layer: {found[limiter] * 2**20 * 1e-6:.2f} ms expected, limit: {limiter}")


def print_whole(width: int) -> None:
    """What values of whole networks should cost in one launch, and the same layer by layer, which memory limits."""
    for operation, depth in (("trace_3", 3), ("energy_2", 2), ("energy_3", 3)):
        for dim in (2, 16):
            case = audit_whole.case(entry(operation, dim, width))
            report = case.compile("sm_90")
            found = limits(case, executed(report.sass, dim), 4 * (2 * dim + 1))
            limiter = max(found, key=lambda k: found[k])
            passes = 4 * (depth - 2) + (2 if operation.startswith("energy") else 0)
            layers = passes * dim * 4 * width / _BANDWIDTH * 1e9
            print(f"{case.name:36}", *(f"{k}={t:.2f}ns" for k, t in found.items()), f"limit: {limiter};", end=" ")
            print(f"tangents layer by layer: at least {layers:.2f}ns, by memory")


def main() -> int:
    """Print every limit of every kernel, and what a whole step of exact implicit score matching adds up to."""
    width = 128
    for dim in (2, 16, 64):
        total = 0.0
        # Values a sample: x, score and trace; x, ds, g and five [B, H]; x and three [B, H].
        values = {"mlp_forward": 2 * dim + 1, "mlp_upper": 2 * dim + 1 + 5 * width, "mlp_lower": dim + 3 * width}
        for operation, moved in values.items():
            found = entry(operation, dim, width)
            case = audit_mlp.case(found)
            report = case.compile("sm_90")
            projections = [-(-dim // 32)] if operation != "mlp_forward" and dim > 32 else []
            trips = [width // found["options"]["UNITS"], *projections]
            if operation == "mlp_forward" and found["options"]["BLOCK"] < width:
                trips = [width // found["options"]["BLOCK"], *trips]
            found_limits = limits(case, executed(report.sass, trips), 4 * moved)
            if operation != "mlp_forward" and (blocks := width // found["options"]["BLOCK"]) > 1:
                found_limits = {k: t * (blocks if k != "memory" else 1) for k, t in found_limits.items()}
            limiter = max(found_limits, key=lambda k: found_limits[k])
            total += found_limits[limiter]
            print(f"{case.name:36}", *(f"{k}={t:.2f}ns" for k, t in found_limits.items()), f"limit: {limiter}")
        products = {"tensor": 2 * width * width / _TENSOR / (_SMS * _HERTZ * 1e-9), "memory": 24e9 * width / _BANDWIDTH}
        total += max(products.values())
        print(f"weight gradients (cuBLAS), D={dim}", *(f"{k}={t:.2f}ns" for k, t in products.items()))
        print(f"one step of 2^20 samples, D={dim}: {total * 2**20 * 1e-6:.2f} ms expected")
    print_layered(width)
    print_whole(width)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
