"""Steps as a graph: replays are the steps of the loop, and what cannot be replayed is stepped as before.

Without a GPU a stand-in records the step and runs it again: what is tested then is the step itself, whose number,
state, step size and temperature have to live on the device.
"""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

from fastscore import annealed_langevin_dynamics, gradient_ascent, langevin_dynamics, use_backend
from fastscore.ops import _dispatch, graph


class Network(nn.Module):
    """Not a chain of layers that a whole-chain kernel takes."""

    def __init__(self, dim=3):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(dim, 8), nn.LayerNorm(8), nn.Linear(8, dim)

    def forward(self, x, cond=None):
        h = self.norm(self.first(x.flatten(1)))
        return self.last(h.sin() if cond is None else (h + cond).sin()).view(x.shape)


class Counting(Network):
    """Another function at every call."""

    calls = 0

    def forward(self, x, cond=None):
        self.calls += 1
        return super().forward(x, cond) * self.calls


@pytest.fixture
def replays(monkeypatch, device):
    """How many replays were made."""
    made = []
    capture = graph._capture

    def counting(step, where):
        replay = capture(step, where) if where.type == "cuda" else step
        return lambda: (made.append(1), replay())

    monkeypatch.setattr(_dispatch, "graphs", lambda where: _dispatch.kernels("langevin", where) is not None)
    monkeypatch.setattr(graph, "_capture", counting)
    return made


def both(score_fn, x, sampler=langevin_dynamics, **options):
    if sampler is langevin_dynamics:
        options = {"seed": 3, **options}
    made = sampler(score_fn, x, **options)
    with use_backend("torch"):
        return made, sampler(score_fn, x, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.02},
        {"step_size": torch.tensor([0.01, 0.02, 0.03]), "temperature": 0.5, "clamp": (-1.0, 1.0)},
        {"step_size": lambda k: 0.05 / (1 + k), "temperature": lambda k: 1.0 / (1 + k)},
        {"step_size": 0.02, "first_step": 2**32 - 20, "first_chain": 2**40},
        {"step_size": 0.02, "cond": torch.linspace(-1, 1, 7)[:, None]},
    ],
    ids=["plain", "a-feature", "schedules", "last-steps", "condition"],
)
def test_replays_are_the_steps_of_the_loop(options, replays, device):
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    made, true = both(Network().to(device), torch.randn(7, 3, device=device), n_steps=20, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert len(replays) == 20 + 2  # and two to check that they are steps


def test_other_shapes_and_dtypes(replays, device):
    made, true = both(Network(12).to(device), torch.randn(5, 3, 4, device=device), step_size=0.02, n_steps=20)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    wide = Network().to(device, torch.float64)
    made, true = both(wide, torch.randn(5, 3, device=device, dtype=torch.float64), step_size=0.02, n_steps=20)
    torch.testing.assert_close(made, true, rtol=1e-12, atol=1e-12)
    made, true = both(
        Network().to(device), torch.randn(7, 3, device=device), gradient_ascent, step_size=0.1, n_steps=20
    )
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert len(replays) == 3 * 22


@pytest.mark.parametrize("layout", ["transposed", "channels last"])
def test_a_start_of_another_layout(layout, replays, device):
    """The state is kept in rows, as the kernel writes it, whatever x is."""
    x = torch.randn(3, 7).t() if layout == "transposed" else torch.randn(5, 3, 2, 2)
    x = (x if layout == "transposed" else x.to(memory_format=torch.channels_last)).to(device)
    made, true = both(Network(x[0].numel()).to(device), x, step_size=0.02, n_steps=20)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert len(replays) == 22


@pytest.mark.parametrize(("scale", "step_size"), [(255.0, 1e-4), (1.0, 1e-9)])
def test_an_empty_graph_is_found_however_small_the_step(scale, step_size, replays, device, monkeypatch):
    monkeypatch.setattr(graph, "_capture", lambda step, where: lambda: None)
    with pytest.warns(RuntimeWarning, match="other values when it is replayed"):
        made, true = both(
            Network().to(device), scale * torch.randn(7, 3, device=device), step_size=step_size, n_steps=20
        )
    torch.testing.assert_close(made, true, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("waits", [True, False])
def test_a_step_that_waits_for_the_device_is_refused(waits, monkeypatch):
    """As torch tells of it; whatever else it warns of does not matter."""
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        assert modes[-1] == "warn"
        warnings.warn("called a synchronizing CUDA operation" if waits else "this and that", stacklevel=2)

    with pytest.raises(RuntimeError, match="waits for the device") if waits else contextlib.nullcontext():
        graph._without_waiting(step)
    assert modes[-1] == "default"


def test_a_ladder_of_noise_levels(replays, device):
    class Told(Network):
        def forward(self, x, sigma):
            return super().forward(x, sigma.log()[:, None]) / sigma[:, None]

    options = {"sigmas": [2.0, 1.0, 0.5], "n_steps_each": 7, "step_size": 0.01}
    net, x = Told().to(device), torch.randn(6, 3, device=device)
    made = annealed_langevin_dynamics(net, x, seed=3, **options)
    with use_backend("torch"):
        true = annealed_langevin_dynamics(net, x, seed=3, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert len(replays) == 23


def test_kept_states_and_a_run_cut_in_two(replays, device):
    net, x = Network().to(device), torch.randn(7, 3, device=device)
    options = {"step_size": 0.02, "thin": 20, "n_steps": 40, "return_trajectory": True}
    made, true = both(net, x, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    second = langevin_dynamics(net, made[:, 0], step_size=0.02, n_steps=20, first_step=20, seed=3)
    assert torch.equal(second, made[:, 1])


def test_what_gives_other_values_when_replayed_is_not(replays, device):
    net = Counting().to(device)
    with pytest.warns(RuntimeWarning, match="Counting cannot be captured in a CUDA graph .*other values"):
        langevin_dynamics(net, torch.randn(4, 3, device=device), step_size=0.02, n_steps=20, seed=0)


def test_what_cannot_be_captured_is_stepped_and_said_once(replays, monkeypatch, device):
    def refuses(step, where):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graph, "_capture", refuses)
    net, x = Network().to(device), torch.randn(4, 3, device=device)
    options = {"step_size": 0.02, "n_steps": 40, "thin": 20, "return_trajectory": True}
    with pytest.warns(RuntimeWarning, match=r"not permitted when stream is capturing\)") as caught:
        made = langevin_dynamics(net, x, seed=3, **options)
    assert len(caught) == 1
    with use_backend("torch"):
        torch.testing.assert_close(made, langevin_dynamics(net, x, seed=3, **options))


@pytest.mark.filterwarnings("ignore:score_fn has .* in training mode:UserWarning")
@pytest.mark.parametrize("kind", ["function", "dropout", "batch-norm", "hook", "short"])
def test_what_is_not_tried(kind, replays, device):
    net = Network().to(device)
    changed = {
        "dropout": lambda: nn.Sequential(net, nn.Dropout(0.1)),
        "batch-norm": lambda: nn.Sequential(net, nn.BatchNorm1d(3)).to(device),
        "function": lambda: lambda x: net(x),
        "hook": lambda: net,
        "short": lambda: net,
    }[kind]()
    if kind == "hook":
        net.register_forward_hook(lambda *_: None)
    steps = graph.SHORTEST - 1 if kind == "short" else 20
    langevin_dynamics(changed, torch.randn(4, 3, device=device), step_size=0.02, n_steps=steps, seed=0)
    assert not replays
