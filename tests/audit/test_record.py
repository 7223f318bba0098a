"""Every shipped kernel and configuration, compiled ahead of time for GPUs that need not be there.

Compiling all of them takes an hour, so that is done once for every change of a kernel, and recorded; here the record is
compared with the kernels as they are, and a part of it made again.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter

import pytest
import triton

from bench import audit, audit_record
from bench.audit_hazards import hazards

ENTRIES = list(audit_record.entries())
# One of each kernel on an H100's architecture, the tightest among them, and some on every other.
QUICK = {
    "sm_80": r"langevin_step fp32 D=64|(trace|energy) tf32 H=64 D=64 L=3|mlp_forward tf32 H=64 D=16 L=2",
    "sm_90": r"langevin_step fp32 D=64|normal fp32 D=4096|rademacher fp32 D=4096|mixed noise fp32 D=64"
    r"|(contraction|pullback) normal bf16 D=4096|jets \w+ energy K=16 (residual|silu) H=256"
    r"|mlp_\w+ tf32x3 H=256 D=16 L=2|dual_(forward|upper) tf32 H=64 D=16 L=2|dual_lower tf32 H=64 D=16 L=2 normal"
    r"|estimate tf32 H=64 D=64 L=3|(energy|curvature) tf32x3 H=64 D=64 L=2|trace bf16 H=128 D=64 L=6 residual shifted"
    r"|chain (ring K=8 D=2|ladder gaussian D=16|energy tf32 H=64 L=2)",
    "sm_100": r"langevin_step fp32 D=64|(trace|energy) tf32 H=64 D=64 L=3|mlp_upper tf32 H=64 D=16 L=2",
    audit.AMD: r"langevin_step fp32 D=64|trace ieee H=64 D=64 L=3|mlp_\w+ ieee H=256 D=16 L=2 residual",
}


def made_again(entry):
    quick = re.fullmatch(QUICK[entry.architecture], entry.case.name)
    name = f"{entry.architecture} {entry.case.name}".replace(" ", "-")
    return pytest.param(entry, id=name, marks=() if quick else pytest.mark.slow)


def test_every_shipped_kernel_was_compiled_as_it_is_now():
    assert triton.__version__ == audit_record.record()["triton"]
    stale = [f"{entry.case.name} on {entry.architecture}" for entry in ENTRIES if not entry.is_recorded()]
    assert not stale, "`python -m bench.audit` compiles and records these"


def test_nothing_else_is_recorded():
    found = Counter((entry.case.name, entry.architecture) for entry in ENTRIES)
    assert set(found) == {(name, architecture) for name, row in audit_record.kernels().items() for architecture in row}
    assert set(found.values()) == {1}


@pytest.mark.parametrize("entry", [made_again(entry) for entry in ENTRIES])
def test_the_compiler_makes_what_is_recorded(entry):
    """No spill, no local memory, shared memory that fits, tensor cores, no atomics, stated precision; equal figures."""
    report = entry.case.compile(entry.architecture)
    assert not report.faults()
    assert report.figures().items() <= entry.recorded().items()


PLAIN = """
import triton
import triton.language as tl
import {other} as other

TWO = tl.constexpr(2.0)

@triton.jit
def twice(x):
    return x * TWO

@triton.jit
def kernel(x_ptr):
    tl.store(x_ptr, other.more(twice(tl.load(x_ptr))))
"""
OTHER = """
import triton

@triton.jit
def more(x):
    return x + 1.0
"""


def text_of(directory, plain, other):
    """The kernel's text, of modules with such sources."""
    for name, source in (("other", other), ("plain", plain.format(other="other"))):
        (directory / f"{name}.py").write_text(source)
        spec = importlib.util.spec_from_file_location(name, directory / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return audit.text(module.kernel)


def test_a_row_is_of_one_text(tmp_path, monkeypatch):
    """Of the kernel, of what it calls in any module, and of constants; but not of where they stand."""
    for name in ("other", "plain"):
        monkeypatch.setitem(sys.modules, name, None)
    sources = {
        "as it was": (PLAIN, OTHER),
        "moved": ("# a remark\n" + PLAIN, "\n\n" + OTHER),
        "constant": (PLAIN.replace("2.0", "3.0"), OTHER),
        "callee": (PLAIN.replace("x * TWO", "TWO * x"), OTHER),
        "other module": (PLAIN, OTHER.replace("1.0", "4.0")),
        "itself": (PLAIN.replace("tl.load(x_ptr)", "tl.load(x_ptr + 0)"), OTHER),
    }
    texts = {}
    for at, (name, (plain, other)) in enumerate(sources.items()):
        (tmp_path / str(at)).mkdir()
        texts[name] = text_of(tmp_path / str(at), plain, other)
    assert texts.pop("moved") == texts["as it was"]
    assert len(set(texts.values())) == len(texts) == 5


def test_a_digest_is_of_types_and_launch_options_too():
    case = next(entry.case for entry in ENTRIES)
    changes = ({"options": {"num_warps": 16}}, {"aligned": ()}, {"signature": {}}, {"constexprs": {}})
    found = {audit.Case(**{**vars(case), **change}).made_of() for change in ({}, *changes)}
    assert len(found) == 5
    turned = {name: dict(reversed(getattr(case, name).items())) for name in ("signature", "constexprs")}
    assert audit.Case(**{**vars(case), **turned}).made_of() == case.made_of()


def test_faults_are_found():
    """Of a kernel that has them all, as the compiler would say it."""
    report = audit.Report(
        architecture="sm_90",
        registers=255,
        stack=8,
        shared=228 * 1024,
        tensor_memory=513,
        instructions_an_element=1.0,
        opcodes=Counter(LDL=1, HMMA=2),
        sass="",
        ptx="trap;\n atom.add.f32 ",
        ttir="tt.dot %a, %b : tensor<16x16xf32> * tensor<16x16xf32>",
    )
    assert len(report.faults()) == 9
    assert audit.Amd(shared=65 * 1024, spilled=1).faults() == ["spills", "more shared memory than there is"]


NARROW = {
    "rows": """
    %1 = tt.get_program_id x : i32
    %2 = arith.divsi %1, %blocks : i32
    %3 = arith.muli %2, %n_features : i32
    %4 = tt.addptr %x_ptr, %3 : !tt.ptr<f32>, i32""",
    "rows from a loop": """
    %1:2 = scf.for %k = %c0_i32 to %n_rows step %c1_i32 iter_args(%x = %cst, %at = %c0_i32) -> (f32, i32)  : i32 {
      %2 = arith.muli %at, %n_features : i32
      %3 = arith.extsi %2 : i32 to i64
      %4 = tt.addptr %x_ptr, %3 : !tt.ptr<f32>, i64
      scf.yield %x, %k : f32, i32
    }""",
    "samples": """
    %c2_i32 = arith.constant 2 : i32
    %1 = arith.muli %n_chains, %c2_i32 : i32
    %2 = tt.splat %1 : i32 -> tensor<32xi32>
    %3 = tt.addptr %x_ptr, %2 : tensor<32x!tt.ptr<f32>>, tensor<32xi32>""",
    "blocks": """
    %1 = tt.get_program_id y : i32
    %2 = arith.muli %1, %n_features : i32
    %3 = tt.addptr %x_ptr, %2 : !tt.ptr<f32>, i32""",
}
WIDE = {
    "rows": NARROW["rows"].replace("%2, %n_features : i32", "%2, %n_features : i64"),
    "no address": NARROW["samples"].replace("tt.addptr %x_ptr, %2", "arith.cmpi slt, %n_features, %2"),
    "columns": """
    %1 = tt.get_program_id x : i32
    %2 = arith.remsi %1, %blocks : i32
    %3 = arith.muli %2, %n_features : i32
    %4 = tt.addptr %x_ptr, %3 : !tt.ptr<f32>, i32""",
    "blocks": """
    %c64_i32 = arith.constant 64 : i32
    %1 = tt.get_program_id y : i32
    %2 = arith.muli %1, %c64_i32 : i32
    %3 = tt.addptr %x_ptr, %2 : !tt.ptr<f32>, i32""",
}


@pytest.mark.parametrize("ttir", [pytest.param(ttir, id=name.replace(" ", "-")) for name, ttir in NARROW.items()])
def test_rows_of_32_bits_are_found(ttir):
    """Whatever they went through on their way to an address."""
    assert hazards(ttir) == ["a row's number in 32 bits"]


@pytest.mark.parametrize("ttir", [pytest.param(ttir, id=name.replace(" ", "-")) for name, ttir in WIDE.items()])
def test_what_fits_32_bits_is_no_hazard(ttir):
    assert not hazards(ttir)


def test_products_of_another_precision_are_found():
    """In Triton's own terms, as it would say them."""
    product = "%5 = tt.dot %3, %4, %0, inputPrecision = tf32 : tensor<16x16xf32> * tensor<16x16xf32>"
    narrower = "%5 = tt.dot %3, %4, %0 : tensor<16x16xbf16> * tensor<16x16xbf16> -> tensor<16x16xf32>"
    assert not hazards(product) + hazards(product, "tf32") + hazards(narrower, "bf16x6")
    for ttir, precision in ((product, "tf32x3"), (product, "bf16"), (narrower, "tf32"), (narrower, "ieee")):
        assert hazards(ttir, precision) == ["a product without its precision"]


class Fake:
    """A kernel that costs what it is told to."""

    name = "kernel"

    def __init__(self, shared, spilled=0, as_it_was=""):
        self.report, self.as_it_was = audit.Amd(shared, spilled), as_it_was

    def made_of(self):
        return f"{self.report}"

    def lowered(self, architecture):
        return self.as_it_was

    def compile(self, architecture):
        return self.report


def test_faults_and_what_has_risen_are_not_recorded(tmp_path, monkeypatch):
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({"triton": triton.__version__, "kernels": {}}))
    monkeypatch.setattr(audit_record, "RECORD", path)

    def recorded(case, *options):
        audit_record.record.cache_clear()
        monkeypatch.setattr(audit_record, "entries", lambda: iter([audit_record.Entry(audit.AMD, case)]))
        status = audit_record.main(["--jobs", "1", *options])
        return status, json.loads(path.read_text())["kernels"].get("kernel", {}).get(audit.AMD)

    try:
        assert recorded(Fake(1024, spilled=1)) == (1, None)
        assert recorded(Fake(1024)) == (0, {"shared": 1024, "lowered": "", "made_of": Fake(1024).made_of()})
        assert recorded(Fake(512))[1]["shared"] == 512
        assert recorded(Fake(2048)) == (1, {"shared": 512, "lowered": "", "made_of": Fake(512).made_of()})
        assert recorded(Fake(2048), "--risen")[1]["made_of"] == Fake(2048).made_of()
        # What is lowered to what it was is not compiled, unless everything is.
        assert recorded(Fake(1024, as_it_was="same"))[1]["shared"] == 1024
        assert recorded(Fake(512, as_it_was="same"))[1] == {
            "shared": 1024,
            "lowered": "same",
            "made_of": Fake(512).made_of(),
        }
        assert recorded(Fake(256, as_it_was="same"), "--all")[1]["shared"] == 256
        assert recorded(Fake(128, as_it_was="other"))[1]["shared"] == 128
    finally:
        audit_record.record.cache_clear()
