"""The fused networks, compiled ahead of time: every entry of the launch table on the GPUs it names."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import triton

from bench import audit, audit_mlp, audit_whole
from fastscore.ops._cpu_program import Noise
from fastscore.ops.mlp_curvature import Curvature
from fastscore.ops.mlp_forms import Draw, Quadratic, Tangents
from fastscore.ops.mlp_laplacian import Laplacian, Slope
from fastscore.reference.mlp import MLP
from fastscore_kernels import mlp_whole, table
from tests.audit.test_chain import Target

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, audit.AMD: 64 * 1024}
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC"}
OPERATIONS = [f"{family}_{name}" for family in ("mlp", "dual") for name in ("forward", "upper", "lower")]
QUICK = {"sm_90": r"mlp_\w+ \w+ H=256 D=16 L=2 residual|dual_\w+ (tf32x3|bf16) H=256 D=16 L=2"}
QUICK["sm_90"] += r"|dual_lower tf32 H=64 D=16 L=2 normal"  # the tightest
QUICK[audit.AMD] = r"mlp_\w+ ieee H=256 D=16 L=2 residual|trace ieee H=64 D=64 L=3"
QUICK["sm_90"] += r"|mlp_\w+ tf32x3 H=256 D=16 L=2"
QUICK["sm_90"] += r"|energy tf32 H=64 D=64 L=3 score|curvature tf32x3 H=64 D=64 L=2 normal"
QUICK["sm_90"] += r"|(trace|energy) tf32x3 H=128 D=64 L=3|trace (tf32 H=64|bf16 H=128) D=64 L=6 residual shifted"
QUICK["sm_80"] = QUICK["sm_100"] = r"(trace|energy) tf32 H=64 D=64 L=3"


def _cases():
    for architecture, case in (*audit_mlp.cases(), *audit_whole.cases()):
        quick = architecture in QUICK and re.fullmatch(QUICK[architecture], case.name)
        marks = () if quick else pytest.mark.slow
        yield pytest.param(architecture, case, id=f"{architecture} {case.name}".replace(" ", "-"), marks=marks)


RECORDED = {(architecture, name) for architecture, name, _ in audit.recorded()}


@pytest.mark.parametrize(("architecture", "case"), list(_cases()))
def test_every_entry(architecture, case):
    """No spill, no local memory, shared memory that fits, tensor cores, no atomics, 64-bit rows, stated precision.

    Nor may a recorded figure have risen.
    """
    if architecture == audit.AMD:
        shared = audit.compile_amd(case)
        assert shared <= SHARED_LIMIT[architecture]
        assert not audit.spills_amd(case)
        check_record(architecture, case, {"shared": shared})
        return
    report = audit.compile_nvidia(case, int(architecture[3:]))
    check_record(architecture, case, report.figures())
    assert report.stack == 0
    assert not report.opcodes["LDL"] + report.opcodes["STL"]
    assert report.shared <= SHARED_LIMIT[architecture]
    assert report.tensor_memory <= 512
    assert sum(n for name, n in report.opcodes.items() if name.startswith(TENSOR_CORES[architecture]))
    assert not re.search(r"\btrap;", report.ptx), "the compiler gave up and says so at run time only"
    assert not re.search(r"\b(atom|red)\.", report.ptx), "an atomic: the order of additions would vary"
    check_ttir(report.ttir, case)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("operation", [*OPERATIONS, *dict.fromkeys(e["operation"] for e in audit_whole.entries())])
@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine"])
def test_every_activation_fits(activation, operation, architecture):
    """The table was chosen with SiLU (and GELU, for whole networks); the others may not spill in its tiles either."""
    module = audit_mlp if operation in OPERATIONS else audit_whole
    family, _, depth = operation.partition("_")
    if module is audit_whole and not mlp_whole.fits(family, (activation,) * int(depth)):
        pytest.skip("declined")
    for entry in module.entries():
        narrow = module is audit_whole or entry["dim"] == 16
        if entry["operation"] == operation and architecture in entry["architectures"] and narrow:
            case = module.case(entry, activation=activation)
            assert audit.compile_nvidia(case, int(architecture[3:])).stack == 0, case.name


def check_record(architecture, case, figures):
    risen = audit.risen(case.name, architecture, figures) if (architecture, case.name) in RECORDED else {}
    assert not risen, risen


def check_ttir(ttir, case):
    """Every product states its precision; every multiplication of the first row of a program is 64 bits wide."""
    precision = case.constexprs["PRECISION"]
    dots = re.findall(r"tt\.dot .*", ttir)
    assert dots
    if precision in ("bf16", "bf16x6"):
        assert all(re.search(r"tensor<\w+xbf16> \* tensor<\w+xbf16> -> tensor<\w+xf32>", dot) for dot in dots), dots
    else:
        assert all(re.search(rf"inputPrecision = {precision}\b", dot) for dot in dots), dots
    program = re.search(r"(%\w+) = tt\.get_program_id x : i32", ttir)[1]
    uses = [line for line in ttir.splitlines() if re.search(rf"= .*{program}\b", line) and "get_program_id" not in line]
    assert uses
    assert all("arith.extsi" in line and "i32 to i64" in line for line in uses), uses


@pytest.mark.parametrize("operation", OPERATIONS)
def test_products_and_rows_are_what_the_table_says(operation):
    """Read before the compiler proper, so that it is quick: one entry a precision of an sm_90."""
    entries = [entry for entry in table.entries() if entry["operation"] == operation]
    chosen = {entry["precision"]: entry for entry in entries if "sm_90" in entry["architectures"]}
    assert set(chosen) == {"bf16", "tf32", "tf32x3"}
    for entry in chosen.values():
        case = audit_mlp.case(entry)
        check_ttir(audit.ttir(case), case)


def test_every_operation_has_the_same_sizes():
    """A network that the forward pass takes has launch options for its gradients, too."""
    sizes = {
        operation: {
            (architecture, *(entry[key] for key in ("precision", "width", "dim")))
            for entry in table.entries()
            for architecture in entry["architectures"]
            if entry["operation"] == operation
        }
        for operation in OPERATIONS
    }
    for family in ("mlp", "dual"):
        assert sizes[f"{family}_forward"]
        assert sizes[f"{family}_forward"] == sizes[f"{family}_upper"] == sizes[f"{family}_lower"]


DRAW = Draw(lambda rows: torch.zeros(0), 4, Noise("rademacher", 1, 2**33))
FORMS = {
    "trace": lambda net: Tangents(net, net.weights[0]),
    "estimate": lambda net: Quadratic(net, net.weights[-1], DRAW),
    "energy": Laplacian,
    "energy score": Slope,
    "curvature": lambda net: Curvature(net, DRAW),
}


@pytest.mark.parametrize(("name", "precision"), [("energy", "high"), *((name, "highest") for name in FORMS)])
def test_the_launcher_asks_for_the_audited_kernel(name, precision, monkeypatch):
    """Tuples with and without None go through Triton's own launcher as the cases above say: same machine code."""
    target, before = Target(), triton.runtime.driver._active
    depth, dim, width, family = 3, 2, 64, name.split()[0]
    energy = family in ("energy", "curvature")
    sizes = list(itertools.pairwise((dim, *[width] * depth, 1 if energy else dim)))
    weights = tuple(torch.zeros(n, k) for k, n in sizes)
    net = MLP(weights, tuple(torch.zeros(n) for _, n in sizes), ("silu",) * depth, (False,) * depth)
    x, kernel_name = torch.zeros(32, dim), "energy_kernel" if energy else "trace_kernel"
    kernel, built = getattr(mlp_whole, kernel_name), []
    launches = type("Launches", (), {"__getitem__": lambda _, grid: lambda **given: built.append((grid, given))})()
    monkeypatch.setattr(mlp_whole, kernel_name, launches)
    torch.set_float32_matmul_precision(precision)
    try:
        mlp_whole.evaluate(net, x, (), FORMS[name](net))
        triton.runtime.driver.set_active(target)
        grid, given = built.pop()
        made = kernel.warmup(grid=grid, **given)
    finally:
        triton.runtime.driver.set_active(before)
        torch.set_float32_matmul_precision("highest")
    rounding = {"highest": "tf32x3", "high": "tf32"}[precision]
    wanted = {"operation": f"{family}_{depth}", "precision": rounding, "width": width}
    entry = next(e for e in audit_whole.entries() if wanted.items() <= e.items() and "sm_90" in e["architectures"])
    case = audit_whole.case({**entry, "dim": dim}, traced="score" not in name)
    assert made.asm["ptx"] == audit.compile_nvidia(case, 90).ptx
