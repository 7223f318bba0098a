"""Does a test fail when a line is wrong? Each mutant is one wrong line; each must be killed by the tests named for it.

    python tests/mutants.py            apply every mutant to a copy of the tree and run its tests
    python tests/mutants.py philox     only those whose file or name contains the word

The mutants stand in `mutant_table.py`, each with the bug class of docs/reliability.md that it is one of. The tests
named there are first run as they are: a test that fails anyway kills nothing. No GPU is needed. Exit status 1 if a
mutant survives or no longer applies.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
WORKERS = 2  # trees that are mutated and tested at the same time
LIMIT = 300  # seconds: a mutant may make a loop endless


def run(tree: Path, tests: tuple[str, ...]) -> tuple[int, str | None]:
    """Exit status of pytest in the tree, and the first test that failed; 124 for one that did not come to an end."""
    interpreted = tests[0].startswith("tests/kernels")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TRITON_INTERPRET": "1" if interpreted else "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not gpu",
        *tests,
    ]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return 124, "no end"
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, failed[0] if failed else None


def killed(mutant: Mutant, tree: Path) -> str | None:
    """The test that fails, or None if the mutant survives; the file of the copy is put right again."""
    file = tree / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise LookupError(f"{mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
    try:
        file.write_text(text.replace(mutant.old, mutant.new))
        status, test = run(tree, mutant.tests)
    finally:
        file.write_text(text)
    return test if status in (1, 2, 124) else None


def report(mutant: Mutant, tree: Path) -> bool:
    """Whether the mutant is killed; a line on how."""
    began = time.monotonic()
    try:
        test = killed(mutant, tree)
        verdict = "killed" if test else "SURVIVED"
    except LookupError as error:
        test, verdict = str(error), "STALE"
    name = f"{mutant.bug:>2} {mutant.file}: {mutant.name}"
    print(f"{verdict:9} {name}  {test or ''}  {time.monotonic() - began:.0f} s", flush=True)
    return verdict == "killed"


def main(words: list[str]) -> int:
    """Run the mutants whose file or name contains one of the words, or all."""
    chosen = [m for m in MUTANTS if not words or any(w in m.file or w in m.name for w in words)]
    with tempfile.TemporaryDirectory() as folder:
        ignore = shutil.ignore_patterns(".git", ".venv*", "out", ".*_cache", ".cache", ".hypothesis", "__pycache__")
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(WORKERS):
            tree = Path(folder) / f"tree{number}"
            shutil.copytree(ROOT, tree, ignore=ignore)
            free.put(tree)

        def with_a_tree(job: Callable[[Path], Any]) -> Any:
            tree = free.get()
            try:
                return job(tree)
            finally:
                free.put(tree)

        with ThreadPoolExecutor(WORKERS) as pool:
            lanes: dict[str, set[str]] = {}
            for mutant in chosen:
                lanes.setdefault(mutant.lane, set()).update(mutant.tests)
            sound = pool.map(lambda tests: with_a_tree(lambda tree: run(tree, tuple(sorted(tests)))), lanes.values())
            if broken := [test for status, test in sound if status != 0]:
                print(f"these tests fail without any mutant: {broken}")
                return 1
            verdicts = list(pool.map(lambda mutant: with_a_tree(lambda tree: report(mutant, tree)), chosen))
    survivors = verdicts.count(False)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed, all of these without a GPU")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
