"""Collisions in a plasma: the homogeneous Landau equation, solved with particles whose score is learned on the way.

    python examples/landau.py            # 25,600 particles, 100 time steps: minutes
    python examples/landau.py --quick    # 2,500 particles, 10 time steps: seconds

Figures go to out/landau.json, and the picture out/landau.png is drawn from them (with matplotlib).

The density f(t, v) of velocities changes by collisions as

    df/dt = div_v  int A(v - w) (f(w) grad f(v) - f(v) grad f(w)) dw,    A(z) = C (|z|^2 I - z z'),

for Maxwell molecules. With the score s = grad log f it is the continuity equation of particles that move by

    dv_i/dt = U_i = -1/N sum_j A(v_i - v_j) (s(v_i) - s(v_j)).

Nobody knows s, but implicit score matching learns it from the particles themselves: before every step in time, some
steps of Adam on `mean |s|^2 + 2 div s`, from the last step's network. That is the score-based particle method of Huang
and Wang (arXiv:2405.05187) and of Ilin, Hu and Wang (arXiv:2405.10392), of the deterministic particle method of
Carrillo, Hu, Wang and Wu (arXiv:1910.03080). Almost all of its time goes into that loss. Two things differ here: the
sum over pairs is taken by moments, exactly and in O(N), and a step in time conserves energy to rounding, not to O(dt).

How good the result is, Bobylev, Krook and Wu's exact solution tells (bkw.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

import bkw
import fastscore
import landau_picture


class Score(torch.nn.Module):
    """The Maxwellian's score, -v, and a network for the departure from it; its last layer is small to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.departure = fastscore.ScoreMLP(dim=2, width=32, depth=4)

    def forward(self, v: Tensor) -> Tensor:
        """The score `[N, 2]` at v `[N, 2]`."""
        return self.departure(v) - v


Loss = Callable[[Score, Tensor], Tensor]


def quiet_start(n: int) -> Tensor:
    """n particles `[n, 2]` of f(0, .), spread evenly: speeds at its quantiles, directions a golden angle apart."""
    index = torch.arange(n, dtype=torch.float64)
    low, high = torch.zeros(n, dtype=torch.float64), torch.full((n,), 60.0, dtype=torch.float64)
    for _ in range(60):  # bisection: at t = 0, x = |v|^2 is distributed as 1 - (1 + x) exp(-x)
        x = (low + high) / 2
        above = 1 - (1 + x) * torch.exp(-x) > (index + 0.5) / n
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    angle = index * math.pi * (3 - math.sqrt(5))
    return low.sqrt().unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)


def collide(v: Tensor, s: Tensor) -> Tensor:
    """`U_i = -1/N sum_j A(v_i - v_j) (s_i - s_j)` `[N, D]` in O(N).

    A is quadratic in v_i - v_j, so that the sum over j multiplies out into moments of the particles: with w and t for
    the velocity and score of particle j and E for the mean over j,

        E |v - w|^2 (s - t)           = |v|^2 (s - E t) - 2 (v.E w) s + 2 E (v.w) t + E|w|^2 s - E |w|^2 t,
        E (v - w) ((v - w).(s - t))   = (v.s - v.E t - E w.s + E w.t) v - (v.s) E w + E w (v.t) + E w (w.s) - E w (w.t).
    """
    n = len(v)
    mean_w, mean_t = v.mean(0), s.mean(0)
    ww, wt = v.t() @ v / n, v.t() @ s / n  # E w w', E w t'
    squares, dots = v.square().sum(1, keepdim=True), (v * s).sum(1, keepdim=True)
    along = squares * (s - mean_t) - 2 * (v @ mean_w).unsqueeze(1) * s + 2 * v @ wt
    along = along + ww.trace() * s - (squares * s).mean(0)
    onto = (dots - (v @ mean_t + s @ mean_w).unsqueeze(1) + wt.trace()) * v - dots * mean_w
    onto = onto + v @ wt.t() + s @ ww - (dots * v).mean(0)
    return -bkw.C * (along - onto)


def advance(v: Tensor, s: Tensor, dt: float) -> Tensor:
    """One step in time `v' = v + dt U((v + v') / 2, s)`, by fixed-point iteration.

    Momentum and energy are conserved to rounding whatever s is: with A at the midpoints u_i, the sum over i of u_i.U_i
    pairs off into (u_i - u_j).A(u_i - u_j) = 0, and |v'|^2 - |v|^2 = 2 dt u.U. Euler's method gains dt^2 |U|^2 a step.
    """
    moved = v
    for _ in range(50):
        last, moved = moved, v + dt * collide((v + moved) / 2, s)
        if bool((moved - last).abs().max() < 1e-13):
            return moved
    raise RuntimeError(f"the iteration for a step in time does not converge: dt = {dt} is too large")


def with_fastscore(network: Score, v: Tensor) -> Tensor:
    """The package's exact loss."""
    loss = fastscore.implicit_score_matching(network, v, trace="exact", convention="fisher")
    assert isinstance(loss, Tensor)
    return loss


def with_jacrev(network: Score, v: Tensor) -> Tensor:
    """As users of the method write it today: the trace of every particle's Jacobian."""
    parameters = dict(network.named_parameters())

    def jacobian(v: Tensor) -> Tensor:
        return jacrev(lambda v: functional_call(network, parameters, (v,)))(v)

    traces = vmap(jacobian)(v).diagonal(dim1=1, dim2=2).sum(1)
    return (network(v).square().sum(1) + 2 * traces).mean()


def with_loop(network: Score, v: Tensor) -> Tensor:
    """One call of autograd a dimension."""
    v = v.detach().requires_grad_()
    s = network(v)
    columns = [torch.autograd.grad(s[:, i].sum(), v, create_graph=True)[0][:, i] for i in range(v.shape[1])]
    return (s.square().sum(1) + 2 * torch.stack(columns).sum(0)).mean()


LOSSES: dict[str, Loss] = {"fastscore": with_fastscore, "vmap(jacrev)": with_jacrev, "loop of autograd.grad": with_loop}


def learn(network: Score, optimizer: torch.optim.Optimizer, loss: Loss, v: Tensor, steps: int) -> None:
    """Some steps of Adam on all particles."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, v).backward()
        optimizer.step()


def fit_initial_score(network: Score, v: Tensor, steps: int) -> None:
    """The initial density is given, so that its score is, too: the first network is fitted to it directly."""
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = v[torch.randint(len(v), (2048,))]
        optimizer.zero_grad()
        fastscore.explicit_score_matching(network, rows, target=bkw.score(0.0, rows)).backward()
        optimizer.step()
        decay.step()


def solve(options: argparse.Namespace) -> dict[str, Any]:
    """Particles from t = 0 to `steps * dt`, and what is known about them at every time."""
    torch.manual_seed(0)
    begun, training, history = time.perf_counter(), 0.0, []
    network, start = Score(), quiet_start(options.particles)
    fit_initial_score(network, start.float(), options.fit_steps)
    # Decay of the weights pulls towards the Maxwellian, and keeps the network from learning the particles by heart.
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=1.0)
    v, dissipated = start, bkw.entropy(0.0)
    for k in range(options.steps + 1):
        points, before = v.float(), time.perf_counter()
        learn(network, optimizer, with_fastscore, points, options.loss_steps)
        training += time.perf_counter() - before
        with torch.no_grad():
            s = network(points).double()
        history.append(observe(k * options.dt, v, s) | {"entropy": dissipated})
        if k % max(1, options.steps // 10) == 0:
            print("  ".join(f"{name} {value:.4g}" for name, value in history[-1].items()), flush=True)
        if k < options.steps:
            dissipated += options.dt * float((s * collide(v, s)).sum(1).mean())  # d/dt int f log f = E s.U
            v = advance(v, s, options.dt)
    return {
        "settings": {name: value for name, value in vars(options).items() if isinstance(value, (int, float))},
        "machine": machine(),
        "seconds": {"training": round(training, 1), "everything": round(time.perf_counter() - begun, 1)},
        "history": {name: [float(f"{row[name]:.6g}") for row in history] for name in history[0]},
        "speeds": [speeds(0.0, start), speeds(options.steps * options.dt, v)],
    }


def observe(t: float, v: Tensor, s: Tensor) -> dict[str, float]:
    """Conserved quantities, and errors against the exact solution at time t."""

    def error(found: Tensor, exact: Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    energies = v.square().sum(1)
    return {
        "t": t,
        "momentum": float(v.mean(0).norm()),
        "energy": float(energies.mean()),
        "fourth_moment": float(energies.square().mean()),
        "score_error": error(s, bkw.score(t, v)),
        "velocity_error": error(collide(v, s), bkw.velocity(t, v)),
    }


def speeds(t: float, v: Tensor) -> dict[str, Any]:
    """The density at time t from a histogram of speeds |v|, at the middles of its bins, and the exact one beside it."""
    edges = torch.linspace(0, 4, 33, dtype=torch.float64)
    counts = torch.histogram(v.norm(dim=1), edges).hist
    found = counts / (len(v) * math.pi * edges.square().diff())
    middles = (edges[1:] + edges[:-1]) / 2
    exact = bkw.density(t, middles)
    return {"t": t} | {
        name: [round(x, 6) for x in values.tolist()]
        for name, values in {"r": middles, "found": found, "exact": exact}.items()
    }


def race(options: argparse.Namespace) -> dict[str, Any]:
    """The losses on the same particles: that they agree, and the seconds of a training step with each."""
    torch.manual_seed(0)
    network, v = Score(), quiet_start(options.particles).float()
    fit_initial_score(network, v, options.fit_steps // 10)
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)  # the work of a step, at the same parameters
    for _ in range(options.rounds + 1):
        for name, loss in LOSSES.items():  # in turns, so that a busy machine disturbs all alike
            begun = time.perf_counter()
            learn(network, optimizer, loss, v, 1)
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    steps = options.steps * options.loss_steps
    return {
        "machine": machine(),
        "particles": options.particles,
        "disagreement": disagreement(network.double(), v[:1000].double()),
        "seconds_per_step": {name: round(median, 5) for name, median in medians.items()},
        "seconds_extrapolated": {name: round(steps * median, 1) for name, median in medians.items()},
    }


def disagreement(network: Score, v: Tensor) -> float:
    """The largest relative difference of the losses' gradients: a few roundings, for all are exact."""
    parameters = list(network.parameters())
    found = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss(network, v), parameters)]) for loss in LOSSES.values()
    ]
    return max(float((other - found[0]).norm() / found[0].norm()) for other in found[1:])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "processor": next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fastscore": fastscore.__version__,
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
    }


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="2,500 particles, 10 time steps, 10 training steps each")
    parser.add_argument("--part", choices=("all", "solution", "timing", "picture"), default="all")
    parser.add_argument("--particles", type=int, default=25_600)
    parser.add_argument("--steps", type=int, default=100, help="steps in time")
    parser.add_argument("--dt", type=float, default=0.05, help="length of a step in time")
    parser.add_argument("--loss-steps", type=int, default=50, help="training steps before every step in time")
    parser.add_argument("--fit-steps", type=int, default=2000, help="training steps on the given initial score")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the comparison of the losses")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(given)
    if options.part == "picture" and not (options.out / "landau.json").exists():
        parser.error(f"--part picture draws what is in {options.out / 'landau.json'}, which is not there")
    if options.quick:
        options.particles, options.steps, options.loss_steps, options.fit_steps, options.rounds = 2500, 10, 10, 300, 3
    return options


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Compute the parts asked for, keep the others as they are in out/landau.json, and draw the picture."""
    options = arguments(given)
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "landau.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    if options.part in ("all", "timing"):
        results["timing"] = race(options)
        print(json.dumps(results["timing"], indent=1))
    if options.part in ("all", "solution"):
        results["solution"] = solve(options)
    record.write_text(json.dumps(results, indent=1) + "\n")
    if {"solution", "timing"} <= set(results):
        landau_picture.draw(results, options.out / "landau.png")
    return results


if __name__ == "__main__":
    main()
