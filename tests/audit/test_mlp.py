"""The fused networks, compiled ahead of time: every entry of the launch table on the GPUs it names."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from bench import audit, audit_chain, audit_mlp, audit_whole, tune
from bench.audit_hazards import hazards
from fastscore.ops._cpu_program import Noise
from fastscore.ops.mlp_curvature import Curvature
from fastscore.ops.mlp_forms import Draw, Quadratic, Tangents
from fastscore.ops.mlp_laplacian import Laplacian, Slope
from fastscore.reference.mlp import MLP
from fastscore_kernels import mlp_whole, table

OPERATIONS = [f"{family}_{name}" for family in ("mlp", "dual") for name in ("forward", "upper", "lower")]
HEAVIEST = ("gelu_tanh", "sine", "gelu", "softplus", "softsign", "tanh")  # activations by the registers they take


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("operation", [*OPERATIONS, *dict.fromkeys(e["operation"] for e in audit_whole.entries())])
@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine"])
def test_every_activation_fits(activation, operation, architecture):
    """The table was chosen with SiLU (and GELU, for whole networks); the others may not spill in its tiles either."""
    module = audit_mlp if operation in OPERATIONS else audit_whole
    family, _, depth = operation.partition("_")
    if module is audit_whole and not mlp_whole.fits(family, (activation,) * int(depth), ()):
        pytest.skip("declined")
    for entry in module.entries():
        narrow = module is audit_whole or entry["dim"] == 16
        if entry["operation"] == operation and architecture in entry["architectures"] and narrow:
            case = module.case(entry, activation=activation)
            assert not case.compile(architecture).faults(), case.name


def test_what_takes_too_many_registers_is_declined():
    """Networks of which one layer's activation is heavy at their depth, or of six layers of widths that are odd."""
    assert mlp_whole.fits("trace", ("gelu_tanh",) * 5, (65,) * 5)
    assert not mlp_whole.fits("trace", (*("silu",) * 5, "gelu_tanh"), (64,) * 6)
    assert mlp_whole.fits("trace", ("silu",) * 6, (64,) * 6)
    assert not mlp_whole.fits("trace", ("silu",) * 6, (*(64,) * 5, 65))


def sizes(entry, architecture):
    """The smallest sizes that the table gives an entry, odd ones, of the samples alone too, and the largest."""
    same = [e for e in table.entries() if all(e[key] == entry[key] for key in ("operation", "precision"))]
    tried = list(itertools.takewhile(lambda e: e != entry, (e for e in same if architecture in e["architectures"])))
    width, dim = entry["width"], entry["dim"]
    least = itertools.product((1, *(e["width"] + 1 for e in tried)), (1, *(e["dim"] + 1 for e in tried)))
    left = [(h, d) for h, d in least if not any(h <= e["width"] and d <= e["dim"] for e in tried)]
    small = min((h, d) for h, d in left if h <= width and d <= dim)
    return small, (width - 1, dim - 1), (width, dim - 1), (width, dim)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("operation", [*OPERATIONS, *dict.fromkeys(e["operation"] for e in audit_whole.entries())])
def test_the_heaviest_network_fits_at_every_size(operation, architecture):
    """Residual and shifted, with the activation that takes the most registers of those that are not declined."""
    family, _, depth = operation.partition("_")
    for module in (audit_mlp, audit_whole):
        for entry in module.entries():
            if entry["operation"] != operation or architecture not in entry["architectures"]:
                continue
            for width, dim in sizes(entry, architecture):
                activation, asked = "gelu_tanh", {"residual": family == "mlp"}
                if module is audit_whole:
                    fitting = (a for a in HEAVIEST if mlp_whole.fits(family, (a,) * int(depth), (width,)))
                    activation, asked = next(fitting, None), {"residual": True, "shifted": True}
                if activation is not None:
                    case = module.case({**entry, "width": width, "dim": dim}, activation=activation, **asked)
                    assert not case.compile(architecture).faults(), case.name


@pytest.mark.parametrize("operation", [*OPERATIONS, "trace_3", "estimate_3", "energy_3", "curvature_2"])
def test_products_and_rows_are_what_the_table_says(operation):
    """Read before the compiler proper, so that it is quick: one entry a precision of an sm_90."""
    module = audit_mlp if operation in OPERATIONS else audit_whole
    entries = [entry for entry in table.entries() if entry["operation"] == operation]
    chosen = {entry["precision"]: entry for entry in entries if "sm_90" in entry["architectures"]}
    assert set(chosen) == {"bf16", "tf32", "tf32x3"}
    for entry in chosen.values():
        case = module.case(entry)
        assert not hazards(ttir := audit.ttir(case), case.precision) and "tt.dot " in ttir, case.name


@pytest.mark.parametrize("operation", ["mlp_forward", "trace_3", "energy_2", "curvature_2"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_a_clipped_nan_stays_one(operation, activation):
    """Triton's interpreter always lets it; a GPU does where it is told to."""
    module = audit_mlp if operation in OPERATIONS else audit_whole
    entry = next(entry for entry in table.entries() if entry["operation"] == operation)
    ttir = audit.ttir(module.case(entry, activation=activation))
    assert not re.search(r"arith\.(maxnumf|minnumf)", ttir)
    assert activation == "gelu" or "arith.maximumf" in ttir


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
        grid, given = built.pop()
        with audit_chain.driver("sm_90"):
            made = kernel.warmup(grid=grid, **given)
    finally:
        torch.set_float32_matmul_precision("highest")
    rounding = {"highest": "tf32x3", "high": "tf32"}[precision]
    wanted = {"operation": f"{family}_{depth}", "precision": rounding, "width": width}
    entry = next(e for e in audit_whole.entries() if wanted.items() <= e.items() and "sm_90" in e["architectures"])
    case = audit_whole.case({**entry, "dim": dim}, traced="score" not in name)
    assert made.asm["ptx"] == case.compile("sm_90").ptx


def test_a_measured_tile_that_spills_is_not_adopted():
    entry = next(
        one
        for one in table.entries()
        if (one["operation"], one["precision"], one["width"], one["dim"]) == ("mlp_forward", "tf32", 64, 16)
        and "sm_90" in one["architectures"]
    )
    assert not tune.faults(entry, "sm_90")
    assert any("spills" in one for one in tune.faults({**entry, "options": {**entry["options"], **WIDE}}, "sm_90"))


WIDE = {"ROWS": 128, "BLOCK": 256, "num_warps": 4}
