"""What every shipped kernel costs, read from the compiler for GPUs that need not be there.

    python -m bench.audit            print the figures of every kernel and configuration
    python -m bench.audit --write    and record them in bench/results/audit.json, which the tests hold every kernel to
    python -m bench.audit --write mlp_forward "trace .* L=3"        only of these kernels

Triton's wheel brings ptxas and cuobjdump, so this needs no GPU; it must not run in a process with TRITON_INTERPRET set.
Instruction counts are static (a loop's body counts once).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

NVIDIA = (80, 90, 100)
AMD = "gfx942"
RECORD = Path(__file__).parent / "results" / "audit.json"

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


@dataclass(frozen=True)
class Report:
    """What one compiled kernel costs on one NVIDIA architecture."""

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

    def figures(self) -> dict[str, float]:
        """What is recorded."""
        return {
            "registers": self.registers,
            "stack": self.stack,
            "shared": self.shared,
            "instructions_an_element": round(self.instructions_an_element, 2),
        }


def compile_nvidia(case: Case, arch: int) -> Report:
    """Compile for compute capability `arch` (90 is 9.0)."""
    built = triton.compile(case.source(), target=GPUTarget("cuda", arch, 32), options=case.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, sass = (_cuobjdump(flag, file.name) for flag in ("--dump-resource-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    opcodes = Counter(m.group(1).split(".")[0] for m in map(_OPCODE.match, sass.splitlines()) if m)
    instructions = sum(opcodes.values()) - opcodes["NOP"]  # NOPs fill the last cache line of the program
    threads = 32 * case.options["num_warps"]
    return Report(
        registers=int(found[1]),
        stack=int(found[2]),
        shared=built.metadata.shared,
        tensor_memory=getattr(built.metadata, "tmem_size", None) or 0,
        instructions_an_element=instructions * threads / case.elements,
        opcodes=opcodes,
        sass=sass,
        ptx=built.asm["ptx"],
        ttir=built.asm["ttir"],
    )


def ttir(case: Case, arch: int = 90) -> str:
    """A kernel in Triton's own terms, inlined and simplified: what it computes, without the minute of a compilation."""
    target = GPUTarget("cuda", arch, 32)
    backend, source, context = make_backend(target), case.source(), ir.context()
    options, stages = backend.parse_options(dict(case.options)), {}
    ir.load_dialects(context)
    backend.load_dialects(context)
    backend.add_stages(stages, options, source.language)
    rules = backend.get_codegen_implementation(options), backend.get_module_map()
    return str(stages["ttir"](source.make_ir(target, options, *rules, context), {}))


def compile_amd(case: Case, arch: str = AMD) -> int:
    """Compile for an AMD GPU; the shared memory it takes, in bytes."""
    return int(_amd(case, arch).metadata.shared)


def spills_amd(case: Case, arch: str = AMD) -> int:
    """How many vector registers an AMD GPU would spill."""
    found = re.search(r"\.vgpr_spill_count:\s*(\d+)", _amd(case, arch).asm["amdgcn"])
    assert found
    return int(found[1])


def _amd(case: Case, arch: str) -> Any:
    return triton.compile(case.source(), target=GPUTarget("hip", arch, 64), options=case.options)


def _cuobjdump(flag: str, path: str) -> str:
    return subprocess.run([_TOOLS / "cuobjdump", flag, path], capture_output=True, text=True, check=True).stdout


def recorded() -> Iterator[tuple[str, str, Callable[[], dict[str, float]]]]:
    """What is recorded, as (architecture, name, how its figures are made).

    Every kernel that is not in the launch table, every entry there for a plain network, and chains.
    """
    from bench import audit_chain, audit_mlp, audit_plain, audit_whole

    architectures = (*(f"sm_{arch}" for arch in NVIDIA), AMD)
    compiled = ((architecture, case) for case in audit_plain.cases() for architecture in architectures)
    for architecture, case in itertools.chain(compiled, audit_mlp.plain(), audit_whole.plain()):
        yield architecture, case.name, functools.partial(figures, case, architecture)
    yield from audit_chain.plain()


def figures(case: Case, architecture: str) -> dict[str, float]:
    """What is recorded of a case on an architecture, "sm_90" or the like."""
    if architecture == AMD:
        return {"shared": compile_amd(case)}
    return compile_nvidia(case, int(architecture.removeprefix("sm_"))).figures()


@functools.cache
def record() -> dict[str, Any]:
    """What was recorded, and with which Triton."""
    return dict(json.loads(RECORD.read_text()))


def risen(name: str, architecture: str, made: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The figures above the recorded ones; none where the record is of another Triton.

    Raises:
        KeyError: the kernel is not in the record.
    """
    if triton.__version__ != record()["triton"]:
        return {}
    before = record()["kernels"][name][architecture]
    return {key: (before[key], value) for key, value in made.items() if value > before[key]}


def _text(found: dict[str, Any]) -> str:
    """As JSON, with a line for each kernel on each architecture."""
    kernels = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(architecture)}: {json.dumps(row)}" for architecture, row in by.items())
        + "\n  }"
        for name, by in found["kernels"].items()
    ]
    return f'{{\n "triton": {json.dumps(found["triton"])},\n "kernels": {{\n' + ",\n".join(kernels) + "\n }\n}\n"


def main(argv: list[str] | None = None) -> int:
    """Print, and with --write record, the figures of every case."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="regular expressions: only the kernels whose names match one")
    parser.add_argument("--write", action="store_true", help=f"record the figures in {RECORD.name}")
    given = parser.parse_args(argv)
    everything = list(recorded())
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for _, name, _ in everything}
    if given.names:  # the others stay as they are
        for architecture, name, _ in everything:
            if architecture in record()["kernels"].get(name, {}):
                rows[name][architecture] = record()["kernels"][name][architecture]
    for architecture, name, figures in everything:
        if given.names and not any(re.search(wanted, name) for wanted in given.names):
            continue
        made = rows[name][architecture] = figures()
        print(f"{name:32} {architecture:<7}", *(f"{k}={v:g}" for k, v in made.items()), flush=True)
    if given.write:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(_text({"triton": triton.__version__, "kernels": {k: row for k, row in rows.items() if row}}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
