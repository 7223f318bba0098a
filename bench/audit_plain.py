"""The audit's cases of the kernels that take their tiles from sizes: steps, noise, layers of jets, and the like."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from bench.audit import Case

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
_COUNTERS = {"first_chain": "i64", "key_low": "i32", "key_high": "i32", "step": "i32"}
_SIZES = {"n_chains": "i32", "n_features": "i32", "n_groups": "i32"}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _langevin()
    yield from _metropolis()
    yield from _noise()
    yield from _jets()
    yield from _contractions()


def _langevin() -> Iterator[Case]:
    from fastscore_kernels.langevin import langevin_step_kernel
    from fastscore_kernels.launch import tile_counters

    for dtype in _DTYPES:
        compute = "*fp64" if dtype == "fp64" else "*fp32"
        pointers = dict.fromkeys(("out_ptr", "x_ptr", "score_ptr"), f"*{dtype}")
        for features in (4096, 64, 2):
            _, options = tile_counters(1 << 20, -(-features // 4), _DTYPES[dtype])
            warps = {"num_warps": options.pop("num_warps")}
            aligned = ("out_ptr", "x_ptr", "score_ptr", *(("n_features", "n_groups") if features % 64 == 0 else ()))
            yield Case(
                name=f"langevin_step {dtype} D={features}",
                kernel=langevin_step_kernel,
                signature={**pointers, "step_size_ptr": compute, "temperature_ptr": compute, **_SIZES, **_COUNTERS},
                constexprs={"STEP_ON_DEVICE": False, "PER_FEATURE": False, "LANES": min(4, features), **options},
                elements=options["BLOCK_CHAINS"] * options["BLOCK_GROUPS"] * min(4, features),
                aligned=aligned,
                options=warps,
            )


def _metropolis() -> Iterator[Case]:
    from fastscore_kernels.metropolis import accept_kernel, tiles

    pointers = [name for name in accept_kernel.arg_names if name.endswith("_ptr")]
    sizes = {name: type_ for name, type_ in _SIZES.items() if name != "n_groups"}
    for dtype, features, each in itertools.product(("fp32", "fp64"), (4096, 64, 2), (False, True)):
        options = tiles(1 << 20, features)
        warps = {"num_warps": options.pop("num_warps")}
        yield Case(
            name=f"metropolis {dtype} D={features}" + each * " a=D",
            kernel=accept_kernel,
            signature={**dict.fromkeys(pointers, f"*{dtype}"), **sizes, **_COUNTERS},
            constexprs={"STREAM": 1, "PER_FEATURE": each, **options},
            elements=options["ROWS"] * options["FEATURES"],
            aligned=(*pointers, *(("n_features",) if features % 64 == 0 else ())),
            options=warps,
        )


def _noise() -> Iterator[Case]:
    from fastscore_kernels.launch import tile_counters
    from fastscore_kernels.noise import RADEMACHER_TILE, mixed_kernel, normal_kernel, rademacher_kernel

    for dtype, (kernel, features) in itertools.product(
        ("fp32", "bf16", "fp64"), ((normal_kernel, 4096), (rademacher_kernel, 4096), (rademacher_kernel, 2))
    ):
        signs = kernel is rademacher_kernel
        bits = {"BITS": min(32, features)} if signs else {}
        tile = RADEMACHER_TILE // bits["BITS"] if signs else None
        _, options = tile_counters(1 << 20, -(-features // (128 if signs else 4)), _DTYPES[dtype], tile)
        warps = {"num_warps": options.pop("num_warps")}
        yield Case(
            name=f"{kernel.__name__.removesuffix('_kernel')} {dtype} D={features}",
            kernel=kernel,
            signature={"out_ptr": f"*{dtype}", **_SIZES, **_COUNTERS},
            constexprs={"STREAM": 2, "LANES": 4 if features == 4096 else 1, **bits, **options},
            elements=options["BLOCK_CHAINS"] * options["BLOCK_GROUPS"] * min(features, 128 if signs else 4),
            aligned=("out_ptr", *(("n_features", "n_groups") if features == 4096 else ())),
            options=warps,
        )

    _, options = tile_counters(1 << 20, 16, torch.float32)
    warps = {"num_warps": options.pop("num_warps")}
    yield Case(
        name="mixed noise fp32 D=64",
        kernel=mixed_kernel,
        signature={**dict.fromkeys(("out_ptr", "x_ptr", "alpha_ptr", "beta_ptr"), "*fp32"), **_SIZES, **_COUNTERS},
        constexprs={"STREAM": 4, "LANES": 4, "ALPHAS": True, "BETAS": False, **options},
        elements=options["BLOCK_CHAINS"] * options["BLOCK_GROUPS"] * 4,
        aligned=("out_ptr", "x_ptr", "n_features", "n_groups"),
        options=warps,
    )


def _contractions() -> Iterator[Case]:
    from fastscore_kernels import contraction

    for kernel in (contraction.contraction_kernel, contraction.pullback_kernel):
        pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
        for kind, dtype in (("rademacher", "fp32"), ("normal", "fp32"), ("normal", "bf16"), ("normal", "fp64")):
            sums = "*fp64" if dtype == "fp64" else "*fp32"
            small = ("squares_ptr", "forms_ptr", "on_squares_ptr", "on_forms_ptr")
            _, given = contraction.launched(1 << 20, 4096, kind, _DTYPES[dtype], 0, 0, 0)
            options = {name: given[name] for name in kernel.arg_names if name.isupper()}
            yield Case(
                name=f"{kernel.__name__.removesuffix('_kernel')} {kind} {dtype} D=4096",
                kernel=kernel,
                signature={
                    **{name: sums if name in small else f"*{dtype}" for name in pointers},
                    **dict.fromkeys((*_SIZES, "n_probes"), "i32"),
                    **{"first_probe" if name == "step" else name: type_ for name, type_ in _COUNTERS.items()},
                },
                constexprs=options,
                elements=options["BLOCK_CHAINS"] * options["BLOCK_GROUPS"] * options["LANES"] * options["BITS"],
                aligned=(*pointers, "n_features"),
                options={"num_warps": given["num_warps"]},
            )


def _jets() -> Iterator[Case]:
    """What the layers of networks need; an element is a unit of a sample, with its tangents."""
    from fastscore_kernels.jet_layers import launch_options
    from fastscore_kernels.jets import backward_kernel, forward_kernel

    def case(name: str, kernel: Any, columns: int, absent: str, shared: bool = False, activation: str = "silu") -> Case:
        options = launch_options(256)
        missing = {f"{word}_ptr" for word in absent.split()}
        pointers = [name for name in kernel.arg_names if name.endswith("_ptr") and name not in missing]
        sizes = {"H": 256, "K": columns, "PHI": activation, "SHARED": shared}
        return Case(
            name=f"jets {name} H=256",
            kernel=kernel,
            signature={**dict.fromkeys(pointers, "*fp32"), "n_rows": "i32"},
            constexprs={**dict.fromkeys(missing), **sizes, "ROWS": options["ROWS"], "UNITS": options["UNITS"]},
            elements=options["ROWS"] * options["UNITS"],
            aligned=tuple(pointers),
            options={"num_warps": options["num_warps"]},
        )

    below = "h_below hd_below hl_below"
    yield case("forward value", forward_kernel, 1, f"hd hl form zd zl q c p {below}")
    yield case("forward estimate K=1", forward_kernel, 1, f"d hl zl q c {below}")
    yield case("forward energy K=16 residual", forward_kernel, 16, "d q c", shared=True)
    yield case("backward value", backward_kernel, 1, "dzd dzl dq_sums zd zl q c dhd dhl g p")
    yield case("backward estimate K=1", backward_kernel, 1, "dzl dq_sums zl q c dd dhd dhl")
    for activation in ("silu", "gelu_tanh"):
        name = f"backward energy K=16 {activation}"
        yield case(name, backward_kernel, 16, "dq_sums q c g p dd", activation=activation)
    yield case("forward curvature K=2", forward_kernel, 2, f"d q {below}", shared=True)
    yield case("backward curvature K=2", backward_kernel, 2, "dq_sums q dd dhd", shared=True, activation="gelu_tanh")
