"""The fused networks, compiled ahead of time: every entry of the launch table on the GPUs it names."""

from __future__ import annotations

import re

import pytest

from bench import audit, audit_mlp
from fastscore_kernels import table

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, audit.AMD: 64 * 1024}
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC"}
OPERATIONS = [f"{family}_{name}" for family in ("mlp", "dual") for name in ("forward", "upper", "lower")]
QUICK = {"sm_90": r"mlp_\w+ \w+ H=256 D=16 L=2 residual|dual_\w+ (tf32x3|bf16) H=256 D=16 L=2"}
QUICK["sm_90"] += r"|dual_lower tf32 H=64 D=16 L=2 normal"  # the tightest
QUICK[audit.AMD] = r"mlp_\w+ ieee H=256 D=16 L=2 residual"


def _cases():
    for architecture, case in audit_mlp.cases():
        quick = architecture in QUICK and re.fullmatch(QUICK[architecture], case.name)
        marks = () if quick else pytest.mark.slow
        yield pytest.param(architecture, case, id=f"{architecture} {case.name}".replace(" ", "-"), marks=marks)


@pytest.mark.parametrize(("architecture", "case"), list(_cases()))
def test_every_entry(architecture, case):
    """No spill, no local memory, shared memory that fits, tensor cores, no atomics, 64-bit rows, stated precision."""
    if architecture == audit.AMD:
        assert audit.compile_amd(case) <= SHARED_LIMIT[architecture]
        return
    report = audit.compile_nvidia(case, int(architecture[3:]))
    assert report.stack == 0
    assert not report.opcodes["LDL"] + report.opcodes["STL"]
    assert report.shared <= SHARED_LIMIT[architecture]
    assert sum(n for name, n in report.opcodes.items() if name.startswith(TENSOR_CORES[architecture]))
    assert not re.search(r"\btrap;", report.ptx), "the compiler gave up and says so at run time only"
    assert not re.search(r"\b(atom|red)\.", report.ptx), "an atomic: the order of additions would vary"
    check_ttir(report.ttir, case)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS[:3])
@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine"])
def test_every_activation_fits(activation, operation):
    """The table was chosen with SiLU; the others may not spill in its tiles either."""
    for entry in table.entries():
        if entry["operation"] == operation and "sm_90" in entry["architectures"] and entry["dim"] == 16:
            case = audit_mlp.case(entry, activation=activation)
            assert audit.compile_nvidia(case, 90).stack == 0, case.name


def check_ttir(ttir, case):
    """Every product states its precision; every multiplication of the first row of a program is 64 bits wide."""
    precision = case.constexprs["PRECISION"]
    dots = re.findall(r"tt\.dot .*", ttir)
    assert dots
    if precision == "bf16":
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
