"""Does a test fail when a line is wrong? Each mutant is one wrong line; each must be killed by the tests named for it.

    python tests/mutants.py            apply every mutant to a copy of the tree and run its tests
    python tests/mutants.py philox     only those whose file or name contains the word

The mutants stand in `mutant_table.py` and `mutant_lines.py`, each with the bug class of docs/reliability.md that it is
one of. The tests named there are first run as they are: a test that fails anyway kills nothing. No GPU is needed. Exit
status 1 if a mutant survives or no longer applies, or if a word names none.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mutant_lines import MORE
from mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
WORKERS = 2  # trees that are mutated and tested at the same time
LIMIT = 300  # seconds: a mutant may make a loop endless
IGNORED = shutil.ignore_patterns(".git", ".venv*", "out", ".*_cache", ".cache", ".hypothesis", "__pycache__")

# Every run of pytest is a process forked from one that has imported torch: that import takes longer than most runs.
PROCESSES = multiprocessing.get_context("forkserver")


class FirstFailure:
    """A plugin that remembers the first test that failed, or could not be collected."""

    test: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """After every phase of a test."""
        if report.failed and self.test is None:
            self.test = report.nodeid

    pytest_collectreport = pytest_runtest_logreport


def session(tree: Path, tests: tuple[str, ...], answer: Any) -> None:
    """In a process of its own: run pytest in the tree; answer with its exit status and the first test that failed."""
    interpreted = tests[0].startswith("tests/kernels")
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "kernels")]
    sys.dont_write_bytecode = True
    os.environ.update(
        PYTHONPATH=f"{tree}{os.pathsep}{tree / 'kernels'}",
        PYTHONDONTWRITEBYTECODE="1",
        TRITON_INTERPRET="1" if interpreted else "0",
    )
    with (tree / "log").open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        import pytest

        first = FirstFailure()
        options = ["-qx", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *tests]
        status = pytest.main(options, plugins=[first])
        import fastscore

        assert Path(fastscore.__file__).is_relative_to(tree), "the tests are not those of the tree"
    answer.send((int(status), first.test or (f"pytest ended with status {int(status)}" if status else None)))


def run(tree: Path, tests: tuple[str, ...], limit: float = LIMIT) -> tuple[int, str | None]:
    """Exit status of pytest in the tree and the first test that failed; 124 if it had no end, 128 + n for signal n."""
    answer, of_child = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=session, args=(tree, tests, of_child))
    process.start()
    of_child.close()
    try:
        if not answer.poll(limit):
            return 124, "does not come to an end"
        return answer.recv()  # type: ignore[no-any-return]
    except EOFError:
        process.join()
        if (code := process.exitcode or 0) < 0:
            return 128 - code, f"died of signal {-code}"
        return 125, (tree / "log").read_text()[-500:]
    finally:
        process.kill()
        process.join()


def report(mutant: Mutant, tree: Path) -> bool:
    """Whether the mutant is killed; a line on how. The file of the copy is put right again."""
    began, file = time.monotonic(), tree / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        verdict, test = "STALE", f"{mutant.old!r} stands there {text.count(mutant.old)} times"
    else:
        file.write_text(text.replace(mutant.old, mutant.new))
        status, test = run(tree, mutant.tests)
        file.write_text(text)
        verdict = "killed" if status in (1, 2, 124) or status > 128 else "SURVIVED"
    seconds = time.monotonic() - began
    print(f"{verdict:9} {mutant.bug:>2} {mutant.file}: {mutant.name}  {test or ''}  {seconds:.0f} s", flush=True)
    return verdict == "killed"


def main(words: list[str]) -> int:
    """Run the mutants whose file or name contains one of the words, or all."""
    os.environ["OMP_NUM_THREADS"] = "1"
    PROCESSES.set_forkserver_preload(["torch", "numpy", "pytest"])
    told = {w: [m for m in (*MUTANTS, *MORE) if w in m.file or w in m.name] for w in words}
    if unknown := [w for w, found in told.items() if not found]:
        print(f"no mutant has in its file or name: {', '.join(unknown)}")
        return 1
    chosen = [m for m in (*MUTANTS, *MORE) if not words or any(m in found for found in told.values())]
    lanes: dict[str, set[str]] = {}
    for mutant in chosen:
        lanes.setdefault(mutant.lane, set()).update(mutant.tests)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(WORKERS):
            free.put(Path(shutil.copytree(ROOT, Path(folder) / f"tree{number}", ignore=IGNORED)))

        def with_a_tree(job: Callable[[Path], Any]) -> Any:
            tree = free.get()
            try:
                return job(tree)
            finally:
                free.put(tree)

        sound = pool.map(
            lambda tests: with_a_tree(lambda tree: run(tree, tuple(sorted(tests)), 10 * LIMIT)), lanes.values()
        )
        if broken := [test for status, test in sound if status != 0]:
            print(f"these tests fail without any mutant: {broken}")
            return 1
        verdicts = list(pool.map(lambda mutant: with_a_tree(lambda tree: report(mutant, tree)), chosen))
    print(f"{sum(verdicts)} of {len(chosen)} killed, without a GPU")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
