"""What every shipped kernel costs, read from the compiler for GPUs that need not be there.

    python -m bench.audit            compile and record what bench/results/audit.json has not as it is now; a kernel
                                     that is lowered to what it was, though its text has changed, is not compiled
    python -m bench.audit --all      compile everything again
    python -m bench.audit --all mlp_forward "trace .* L=3"        only these kernels

A fault, such as a spill, is never recorded, a figure that has risen only with --risen. The tests hold every kernel to
the record: none may be missing there, or be of another text.
Triton's wheel brings ptxas and cuobjdump, so this needs no GPU; it must not run in a process with TRITON_INTERPRET set.
Instruction counts are static (a loop's body counts once).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from bench.audit_hazards import hazards, placeless

AMD = "gfx942"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", AMD)
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, AMD: 64 * 1024}
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC"}

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_OPCODE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)")


@dataclass(frozen=True)
class Case:
    """One kernel with one set of argument types and launch options."""

    name: str
    kernel: Any
    signature: dict[str, Any]
    """Types by argument; of a tuple of arguments, a tuple."""
    constexprs: dict[Any, Any]
    """Values by argument; in a tuple of arguments, by the indices of tuple and place."""
    elements: int
    """What one program works on, in the unit its cost is quoted in (state elements, samples, ...)."""
    aligned: tuple[Any, ...] = ()
    """Arguments divisible by 16, named as in `constexprs`."""
    options: dict[str, int] = field(default_factory=lambda: {"num_warps": 4})

    def source(self) -> ASTSource:
        """The kernel with its argument types, ready for the compiler."""
        names = list(self.kernel.arg_names)
        paths = [(names.index(a),) if isinstance(a, str) else a for a in self.aligned]
        attrs = {path: [["tt.divisibility", 16]] for path in paths}
        constants = (name for name in self.constexprs if isinstance(name, str))
        signature = {**self.signature, **dict.fromkeys(constants, "constexpr")}
        return ASTSource(fn=self.kernel, signature=signature, constexprs=self.constexprs, attrs=attrs)

    def made_of(self) -> str:
        """What its machine code depends on, as a digest."""
        return digest(self.kernel, self.signature, self.constexprs, self.aligned, self.options)

    def lowered(self, architecture: str) -> str:
        """What the compiler proper would be given, as a digest: a change that is not this kernel's leaves it."""
        return hashlib.sha256(placeless(ttir(self, architecture)).encode()).hexdigest()[:16]

    def compile(self, architecture: str) -> Report | Amd:
        """What the compiler makes of it for an architecture."""
        built = triton.compile(self.source(), target=target(architecture), options=self.options)
        return read(built, self.elements, self.precision)

    @property
    def precision(self) -> str:
        """What its products are made in; "" where it says nothing of them."""
        return str(self.constexprs.get("PRECISION", ""))


@dataclass(frozen=True)
class Report:
    """What one compiled kernel costs on one NVIDIA architecture."""

    architecture: str
    registers: int
    stack: int
    """Bytes of local memory a thread: spills, or the slow path of a precise function; 0 is the aim."""
    shared: int
    tensor_memory: int
    """Columns of the tensor memory of sm_100, of 512."""
    instructions_an_element: float
    opcodes: Counter[str]
    sass: str
    ptx: str
    ttir: str
    precision: str = ""

    def figures(self) -> dict[str, float]:
        """What is recorded."""
        return {
            "registers": self.registers,
            "stack": self.stack,
            "shared": self.shared,
            "instructions_an_element": round(self.instructions_an_element, 2),
        }

    def faults(self) -> list[str]:
        """What no shipped kernel may have."""
        tensor_cores = any(name.startswith(TENSOR_CORES[self.architecture]) for name in self.opcodes)
        found = {
            "local memory": self.stack,
            "spills": self.opcodes["LDL"] + self.opcodes["STL"],
            "more shared memory than there is": self.shared > SHARED_LIMIT[self.architecture],
            "more tensor memory than there is": self.tensor_memory > 512,
            "the compiler gave up and left a kernel that stops": re.search(r"\btrap;", self.ptx),
            "an atomic: the order of additions would vary": re.search(r"\b(atom|red)\.", self.ptx),
            "products without tensor cores": "tt.dot " in self.ttir and not tensor_cores,
            "next to nothing was compiled": sum(self.opcodes.values()) < 100,
        }
        return [what for what, there in found.items() if there] + hazards(self.ttir, self.precision)


class Amd(NamedTuple):
    """What one compiled kernel costs on an AMD GPU."""

    shared: int
    spilled: int
    """Vector registers."""

    def figures(self) -> dict[str, float]:
        """What is recorded."""
        return {"shared": self.shared}

    def faults(self) -> list[str]:
        """What no shipped kernel may have."""
        found = {"spills": self.spilled, "more shared memory than there is": self.shared > SHARED_LIMIT[AMD]}
        return [what for what, there in found.items() if there]


def target(architecture: str) -> GPUTarget:
    """As Triton names it."""
    return GPUTarget("hip", AMD, 64) if architecture == AMD else GPUTarget("cuda", int(architecture[3:]), 32)


def read(built: Any, elements: int, precision: str = "") -> Report | Amd:
    """The costs of a compiled kernel: a program works on so many elements, with products in this precision."""
    if "cubin" not in built.asm:
        spilled = re.search(r"\.vgpr_spill_count:\s*(\d+)", built.asm["amdgcn"])
        assert spilled
        return Amd(int(built.metadata.shared), int(spilled[1]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, sass = (_cuobjdump(flag, file.name) for flag in ("--dump-resource-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    opcodes = Counter(m.group(1).split(".")[0] for m in map(_OPCODE.match, sass.splitlines()) if m)
    instructions = sum(opcodes.values()) - opcodes["NOP"]  # NOPs fill the last cache line of the program
    return Report(
        architecture=f"sm_{built.metadata.target.arch}",
        registers=int(found[1]),
        stack=int(found[2]),
        shared=built.metadata.shared,
        tensor_memory=getattr(built.metadata, "tmem_size", None) or 0,
        instructions_an_element=instructions * 32 * built.metadata.num_warps / elements,
        opcodes=opcodes,
        sass=sass,
        ptx=built.asm["ptx"],
        ttir=built.asm["ttir"],
        precision=precision,
    )


def ttir(case: Case, architecture: str = "sm_90") -> str:
    """A kernel in Triton's own terms, inlined and simplified: what it computes, without the minute of a compilation."""
    aim = target(architecture)
    backend, source, context = make_backend(aim), case.source(), ir.context()
    options, stages = backend.parse_options(dict(case.options)), {}
    ir.load_dialects(context)
    backend.load_dialects(context)
    backend.add_stages(stages, options, source.language)
    rules = backend.get_codegen_implementation(options), backend.get_module_map()
    return str(stages["ttir"](source.make_ir(aim, options, *rules, context), {}))


def digest(kernel: Any, *given: object) -> str:
    """The text of a kernel and of all that it calls, with whatever else its machine code depends on."""
    in_order = [sorted(one.items(), key=repr) if isinstance(one, dict) else one for one in given]
    return hashlib.sha256(repr((text(kernel), in_order)).encode()).hexdigest()[:16]


@functools.cache
def text(kernel: Any) -> str:
    """The source of a kernel and of all that it calls, and the constants they read; where it stands does not matter."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        one = waiting.pop()
        name = f"{one.__module__}.{one.__qualname__}"
        if name in found:
            continue
        found[name] = one.src
        for node in ast.walk(one.parse()):
            value = _value(node, one.get_capture_scope())
            if isinstance(value, triton.JITFunction):
                waiting.append(value)
            elif isinstance(value, tl.constexpr):
                found[f"{name}: {ast.unparse(node)}"] = repr(value.value)
    return repr(sorted(found.items()))


def _value(node: ast.AST, scope: dict[str, Any]) -> Any:
    """What a name, or a name in a module, stands for in a kernel's text."""
    if isinstance(node, ast.Attribute) and isinstance(module := _value(node.value, scope), ModuleType):
        return getattr(module, node.attr, None)
    return scope.get(node.id) if isinstance(node, ast.Name) else None


def _cuobjdump(flag: str, path: str) -> str:
    return subprocess.run([_TOOLS / "cuobjdump", flag, path], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    from bench.audit_record import main

    raise SystemExit(main())
