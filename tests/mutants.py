"""Does a test fail when a line is wrong? Each mutant is one wrong line; each must be killed by the tests named for it.

    python tests/mutants.py            apply every mutant to a copy of the tree and run its tests
    python tests/mutants.py philox     only those whose file or name contains the word

Exit status 1 if a mutant survives, or no longer applies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands once in `file`, becomes `new`; `tests` should fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


NOISE = ("tests/reference/test_philox.py",)
STEP = ("tests/reference/test_langevin.py", "tests/ops/test_langevin.py")
KERNEL = ("tests/kernels/test_philox.py", "tests/kernels/test_noise.py", "tests/kernels/test_langevin.py")
PHILOX = "fastscore/reference/philox.py"
TRITON = "kernels/fastscore_kernels/philox.py"
FUSED = "kernels/fastscore_kernels/langevin.py"
OPS = "fastscore/ops/langevin.py"

MUTANTS = [
    Mutant("multiplier", PHILOX, "0xD2511F53", "0xD2511F55", NOISE),
    Mutant("weyl", PHILOX, "0xBB67AE85", "0xBB67AE87", NOISE),
    Mutant("nine rounds", PHILOX, "_ROUNDS = 10", "_ROUNDS = 9", NOISE),
    Mutant("chain above 2^32 dropped", PHILOX, "stream + 256 * (chain >> 32)", "stream", NOISE),
    Mutant("stream dropped", PHILOX, "stream + 256 * (chain >> 32)", "256 * (chain >> 32)", NOISE),
    Mutant("seed above 2^32 dropped", PHILOX, "(seed >> 32) & MASK", "0", NOISE),
    Mutant("lanes interleaved", PHILOX, "lanes += [r * cos, r * sin]", "lanes += [r * sin, r * cos]", NOISE),
    Mutant("sign of a bit", PHILOX, "1 - 2 * bits", "-1 + 2 * bits", NOISE),
    Mutant("formula of the noise scale", "fastscore/reference/langevin.py", "2.0 * temperature", "temperature", STEP),
    Mutant("sign of the drift", "fastscore/reference/langevin.py", "+ a * score", "- a * score", STEP),
    Mutant("gradient to the score", OPS, "(a * g).to", "g.to", STEP),
    Mutant("gradient to the step size", OPS, "/ (2.0 * a))", "/ a)", STEP),
    Mutant("tangent of the score", OPS, "total + a * dscore", "total + dscore", STEP),
    Mutant("triton: round", TRITON, "tl.static_range(10)", "tl.static_range(9)", KERNEL),
    Mutant("triton: chain above 2^32", TRITON, "(chain >> 32) << 8", "(chain >> 32) * 0", KERNEL),
    Mutant("triton: cosine's sign", TRITON, "(turned + 0x40000000) & 0x80000000", "turned & 0x80000000", KERNEL),
    Mutant("triton: u near 1", TRITON, "upper & (exponent == 0), -t, f", "upper & (exponent == 7), -t, f", KERNEL),
    Mutant("triton: swapped lanes", TRITON, "return r * cos, r * sin,", "return r * sin, r * cos,", KERNEL),
    Mutant("triton: noise scale", FUSED, "two_t = 2.0 *", "two_t = 1.0 *", KERNEL),
    Mutant("triton: sign of the drift", FUSED, "x + a * s", "x - a * s", KERNEL),
    Mutant("triton: mask of the last lane", FUSED, "inside & (feature < n_features)", "inside", KERNEL),
    Mutant("triton: mask of the rows", TRITON, "(rows < n_chains - first_row) & (groups", "(groups", KERNEL),
    Mutant("triton: mask of the groups", TRITON, "& (groups < n_groups)", "", KERNEL),
    Mutant("triton: first chain dropped", FUSED, "chain = first_chain + first_row", "chain = first_row", KERNEL),
    Mutant(
        "triton: 32-bit rows", TRITON, ".to(tl.int64) * BLOCK_CHAINS", " * BLOCK_CHAINS", ("tests/audit/test_audit.py",)
    ),
    Mutant("triton: step size of one feature for all", FUSED, "step_size_ptr + feature", "step_size_ptr", KERNEL),
]


def killed(mutant: Mutant, tree: Path) -> str | None:
    """The test that fails, or None if the mutant survives; the file is put right again."""
    file = tree / mutant.file
    text = file.read_text()
    if mutant.old not in text:
        return None
    file.write_text(text.replace(mutant.old, mutant.new, 1))
    interpreted = mutant.tests[0].startswith("tests/kernels")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    file.write_text(text)
    failed = [line.split()[1] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if run.returncode in (1, 2) and failed else None


def main(words: list[str]) -> int:
    """Run the mutants whose file or name contains one of the words, or all."""
    chosen = [m for m in MUTANTS if not words or any(w in m.file or w in m.name for w in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", "out", ".*_cache", "__pycache__"))
        for mutant in chosen:
            test = killed(mutant, tree)
            survivors += test is None
            print(f"{'killed' if test else 'SURVIVED':9} {mutant.file}: {mutant.name}  {test or ''}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
