"""Parts of a batch on several threads: the same result, the same bits, and torch's threads left as they were."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest
import torch

import fastscore
from fastscore.ops import _cpu_threads


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def gradients(net, x, **options):
    loss = fastscore.implicit_score_matching(net, x, **options)
    return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))]


@pytest.mark.parametrize("options", [{"trace": "exact"}, {"trace": "hutchinson", "seed": 5}, {"reduction": "none"}])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_threads_change_nothing_but_rounding(threads, options, depth):
    net, x = fastscore.ScoreMLP(3, 32, depth).double(), torch.randn(5001, 3, dtype=torch.float64)
    if options.get("reduction") == "none":

        def run():
            return [fastscore.implicit_score_matching(net, x, reduction="none").detach()]
    else:

        def run():
            return gradients(net, x, **options)

    made, again = run(), run()
    torch.set_num_threads(1)
    single = run()
    for m, a, s in zip(made, again, single, strict=True):
        assert torch.equal(m, a)
        torch.testing.assert_close(m, s, rtol=1e-11, atol=1e-12)


def test_samples_of_a_network_in_parts(threads):
    net, x = fastscore.ScoreMLP(2, 64, 2).double(), torch.randn(40_001, 2, dtype=torch.float64)
    made = fastscore.langevin_dynamics(net, x, step_size=0.01, n_steps=3, seed=1)
    torch.set_num_threads(1)
    single = fastscore.langevin_dynamics(net, x, step_size=0.01, n_steps=3, seed=1)
    torch.testing.assert_close(made, single, rtol=1e-12, atol=1e-12)


def test_the_number_of_threads_is_left_as_it_was(threads):
    x = torch.zeros(10, 2)

    def run(part):
        assert torch.get_num_threads() == 1
        if part.stop == 10:
            raise ValueError("of a part")

    with pytest.raises(ValueError, match="of a part"):
        _cpu_threads.over(x, 2, run)
    assert torch.get_num_threads() == threads


def test_parts_come_in_their_order(threads):
    parts = _cpu_threads.over(torch.zeros(10, 2), 2, lambda part: part)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(10))
    assert len(parts) == threads


DISMISSED = """
import os
import torch
from fastscore.ops import _cpu_threads

count = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
x = torch.randn(1 << 22)
before = count()
(x + x).sum()
spinning = count() - before
_cpu_threads.parallel(lambda part: None, 4, 1, 1)
alone = count() - before
_cpu_threads.parallel(lambda part: None, 4, 1, 2)
print(spinning, alone, count() - before, (x + x).sum().item() == 2 * x.sum().item())
"""


@pytest.mark.skipif(sys.platform != "linux" or _cpu_threads._omp_pause() is None, reason="no libgomp here")
def test_openmps_threads_are_not_left_spinning_beside_ours():
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", DISMISSED], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert done.stdout.split() == ["2", "2", "1", "True"]  # the one that is left is ours


def test_parts_are_in_the_callers_inference_mode(threads):
    x = torch.zeros(10, 2)
    for mode in (True, False):
        with torch.inference_mode(mode):
            assert set(_cpu_threads.over(x, 2, lambda _: torch.is_inference_mode_enabled())) == {mode}


def seen():
    """The numbers of threads of torch, OpenMP and, if it is there, MKL."""
    torch.zeros(10).sum()
    return set(
        re.findall(r"(?:get_num_threads|(?:omp|mkl)_get_max_threads)\(\) : (\d+)", torch.__config__.parallel_info())
    )


@pytest.mark.skipif(_cpu_threads._setters() == (torch.set_num_threads,), reason="torch's libraries cannot be asked")
def test_only_this_thread_is_alone(threads):
    """One that starts meanwhile has all threads, and leaves them to others when it has been alone itself."""
    x, found = torch.zeros(10, 2), []

    def other():
        found.append(seen())
        with _cpu_threads.alone(x):
            found.append(seen())
        found.append(seen())

    for _ in range(2):  # and after it, again
        with _cpu_threads.alone(x):
            assert seen() == {"1"}
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert seen() == {str(threads)}
    assert found == [{str(threads)}, {"1"}, {str(threads)}] * 2
    assert set().union(*_cpu_threads.over(x, 2, lambda _: seen())) == {"1"}


@pytest.mark.parametrize(("n", "count", "parts"), [(1000, 1, 5), (1000, 2, 5), (1000, 2, 99), (3, 2, 9), (0, 2, 1)])
def test_work_is_cut_into_parts_that_are_done_once(n, count, parts):
    done = []
    _cpu_threads.parallel(done.append, n, 10, count, parts=parts)
    done.sort()
    assert len(done) >= min(parts, -(-n // 10)) and len(done) == len(set(done))
    assert [row for begin, end in done for row in range(begin, end)] == list(range(n))
    assert all(begin % 10 == 0 for begin, _ in done)


def test_an_interrupt_waits_for_one_part():
    done = []

    def run(part):
        done.append(part)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _cpu_threads.parallel(run, 1000, 1, 1, parts=100)
    assert len(done) == 1


@pytest.mark.parametrize("had", [0, 1])
def test_where_no_thread_can_be_had_this_one_does_it_all(monkeypatch, had):
    """As when the interpreter ends, which some threads outlive."""

    class Ending(_cpu_threads.ThreadPoolExecutor):
        def submit(self, *given):
            future = super().submit(*given)
            if len(self._threads) > had:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            return future

    pool, done = Ending(3), []
    monkeypatch.setattr(_cpu_threads, "_pool", lambda *_: pool)
    _cpu_threads.parallel(done.append, 10, 1, 5)
    pool.shutdown()
    assert sorted(done) == [(i, i + 2) for i in range(0, 10, 2)]


def test_a_forked_child_does_not_wait_for_openmps_threads(monkeypatch):
    """Of its parent: one that only imports this after the fork cannot tell by its number."""
    called = []
    monkeypatch.setattr(_cpu_threads, "_omp_pause", lambda: called.append)
    _cpu_threads._dismiss()
    assert called == [1]
    monkeypatch.setattr(_cpu_threads.multiprocessing, "parent_process", lambda: object())
    _cpu_threads._dismiss()
    assert called == [1]
