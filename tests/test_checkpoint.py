"""Checkpoints: the bits of a run that was never stopped, and a refusal of everything else."""

from __future__ import annotations

import json
import os
import pickle
import random
import stat
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastscore
from fastscore import CheckpointError, checkpoint, noise, targets

MIXTURE = targets.GaussianMixture.ring()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Without waiting for the disk, at some 10 ms a file; what would have been waited for."""
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(stat.filemode(os.fstat(fd).st_mode)[0]))
    return flushed


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return noise.normal((5, 2), seed=3, stream=noise.Stream.INITIAL, dtype=dtype)


def quartic(x: Tensor) -> Tensor:
    return -0.25 * x.square().square().sum(1) - x.square().sum(1)


class Score:
    """-x - x^3, row by row the same bits; Ctrl-C at call `at`."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.calls = at, 0

    def __call__(self, x: Tensor, *_: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return -x - x * x * x


def langevin(score: Any, x: Tensor, n_steps: int = 12, **options: Any) -> Any:
    return fastscore.langevin_dynamics(score, x, **{"step_size": 0.1, "n_steps": n_steps, "seed": 7} | options)


def ascent(score: Any, x: Tensor, n_steps: int = 12, **options: Any) -> Any:
    return fastscore.gradient_ascent(score, x, step_size=0.1, n_steps=n_steps, **options)


def mala(score: Any, x: Tensor, n_steps: int = 12, **options: Any) -> Any:
    return fastscore.mala(quartic, x, step_size=0.4, n_steps=n_steps, seed=7, score_fn=score, **options)


def underdamped(score: Any, x: Tensor, n_steps: int = 12, **options: Any) -> Any:
    return fastscore.underdamped_langevin(score, x, step_size=0.1, n_steps=n_steps, seed=7, **options)


def annealed(score: Any, x: Tensor, n_steps: int = 12, **options: Any) -> Any:
    return fastscore.annealed_langevin_dynamics(
        score, x, sigmas=[2.0, 1.0, 0.5], n_steps_each=n_steps // 3, step_size=0.01, seed=7, **options
    )


def whole(score: Any, x: Tensor, n_steps: int = 12, **options: Any) -> Any:
    """A mixture, whose chains are made many steps at a time."""
    return langevin(MIXTURE.score, x, n_steps, **options)


SAMPLERS = {f.__name__: f for f in (langevin, ascent, mala, underdamped, annealed, whole)}
interruptible = pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "whole"])


def same(a: Any, b: Any) -> bool:
    """Whether two outputs, with or without diagnostics, are equal to the bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return same(a[0], b[0]) and a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("outputs", [{}, {"return_trajectory": True, "return_diagnostics": True}], ids=["last", "all"])
@interruptible
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str, outputs: Any, dtype: Any, tmp_path: Path) -> None:
    run, x = SAMPLERS[name], start(dtype)
    options: dict[str, Any] = outputs | {"first_chain": 9, "burn_in": 3, "thin": 2}
    expected = run(Score(), x, **options)
    first = 2 if name in ("mala", "underdamped") else 1  # these look at the score before the first step
    for at in range(first, first + 12):
        options |= {"checkpoint": tmp_path / f"{at}.safetensors", "checkpoint_every": 5}
        with pytest.raises(fastscore.Interrupted):
            run(Score(at), x, **options)
        assert same(run(Score(), torch.zeros_like(x), **options), expected), at  # where it starts is in the file


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_finished_run_gives_its_result_again_and_can_be_made_longer(name: str, tmp_path: Path) -> None:
    run, x = SAMPLERS[name], start()
    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "return_trajectory": True, "return_diagnostics": True}
    short = run(Score(), x, **options)
    assert same(run(Score(), x, **options), short)
    if name != "annealed":
        assert same(run(Score(), x, 21, **options), run(Score(), x, 21, **options | {"checkpoint": None}))
        with pytest.raises(CheckpointError, match=r"does not fit this run: step must be in \[0, 13\), got 21"):
            run(Score(), x, **options)


def test_an_interrupt_of_a_second_part_goes_on_too(tmp_path: Path) -> None:
    half = langevin(Score(), start(), 6)
    options: dict[str, Any] = {"first_step": 6, "n_steps": 6, "checkpoint": str(tmp_path / "run")}
    with pytest.raises(fastscore.Interrupted):
        langevin(Score(3), half, **options)
    assert torch.equal(langevin(Score(), half, **options), langevin(Score(), start()))


def test_frozen_chains_stay_frozen(tmp_path: Path) -> None:
    class Breaks(Score):
        def __call__(self, x: Tensor) -> Tensor:
            return torch.where(x > 1.2, torch.nan, super().__call__(x))

    options: dict[str, Any] = {"on_nonfinite": "freeze", "return_diagnostics": True, "n_steps": 30}
    expected = langevin(Breaks(), start(), **options)
    assert 0 < int((expected[1]["first_nonfinite"] >= 0).sum()) < 5
    with pytest.raises(fastscore.Interrupted):
        langevin(Breaks(20), start(), checkpoint=tmp_path / "run", **options)
    assert same(langevin(Breaks(), start(), checkpoint=tmp_path / "run", **options), expected)


def test_the_file_is_written_when_it_is_said_to_be(tmp_path: Path, quick: list[str]) -> None:
    path, steps = tmp_path / "run", []

    def score(x: Tensor) -> Tensor:
        steps.append(checkpoint.read(path)[0]["step"] if path.exists() else 0)
        return -x

    langevin(score, start(), 10, checkpoint=path, checkpoint_every=4)
    assert quick == ["-", "d"] * 3  # the file before it is renamed, its folder after
    assert steps == [0] * 4 + [4] * 4 + [8] * 2
    about, tensors = checkpoint.read(path, "chain")
    assert (about["step"], about["seed"], about["algorithm"], about["stream"]) == (10, 7, "Langevin", 1)
    assert torch.equal(tensors["state.0"], langevin(lambda x: -x, start(), 10))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_that_breaks_leaves_the_last_good_state(tmp_path: Path) -> None:
    class Breaks(Score):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) / float(self.calls != 8)

    with pytest.raises(fastscore.NonFiniteError):
        langevin(Breaks(), start(), checkpoint=tmp_path / "run", checkpoint_every=3)
    assert checkpoint.read(tmp_path / "run")[0]["step"] == 6
    assert torch.equal(langevin(Score(), start(), checkpoint=tmp_path / "run"), langevin(Score(), start()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 8}, "seed 7, this one has 8"),
        ({"first_chain": 1}, "first_chain 0, this one has 1"),
        ({"thin": 2}, "thin 1, this one has 2"),
        ({"burn_in": 2}, "burn_in"),
        ({"first_step": 1}, "first_step"),
        ({"on_nonfinite": "freeze"}, "on_nonfinite 'raise', this one has 'freeze'"),
        ({"return_trajectory": True}, "return_trajectory"),
        ({"return_diagnostics": True}, "return_diagnostics"),
        ({"step_size": 0.2}, r"step_size '0.1', this one has '0.2'"),
        ({"step_size": torch.tensor([0.1, 0.2])}, "step_size"),
        ({"step_size": lambda k: 0.1}, "this one has 'a function'"),
        ({"temperature": 0.5}, "temperature"),
        ({"clamp": (-1, 1)}, r"clamp None, this one has \['-1.0', '1.0'\]"),
        ({"cond": torch.zeros(5)}, "cond None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_of_other_arguments_is_refused(options: Any, named: str, tmp_path: Path) -> None:
    langevin(Score(), start(), checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match=named):
        langevin(Score(), start(), checkpoint=tmp_path / "run", **options)
    langevin(Score(), start(), checkpoint=tmp_path / "run")


def test_other_algorithms_shapes_and_streams_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    mala(Score(), start(), checkpoint=path)
    with pytest.raises(CheckpointError, match="algorithm 'Mala', this one has 'Underdamped'"):
        underdamped(Score(), start(), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"shape \[5, 2\], this one has \[4, 2\]"):
        mala(Score(), start()[:4], checkpoint=path)
    with pytest.raises(CheckpointError, match="dtype"):
        mala(Score(), start(torch.float64), checkpoint=path)
    with pytest.raises(CheckpointError, match="is the checkpoint of a 'chain', expected that of a 'network'"):
        fastscore.load_network(path)
    monkeypatch.setattr(fastscore.samplers.saved, "STREAM_VERSION", 2)
    with pytest.raises(CheckpointError, match="stream 1, this one has 2"):
        mala(Score(), start(), checkpoint=path)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="is of format 1, this version of fastscore reads format 2"):
        checkpoint.read(path)


def altered(path: Path, about: dict[str, Any], **tensors: Tensor) -> None:
    """Write the checkpoint anew, with a right checksum and other contents."""
    held, kept = checkpoint.read(path)
    checkpoint.write(
        path, held.pop("kind"), held | about, {k: v for k, v in kept.items() if k not in tensors} | tensors
    )


@pytest.mark.parametrize("step", [-1, 1.5, "3", None, True, 2**40])
def test_a_step_that_is_none_is_refused(step: Any, tmp_path: Path) -> None:
    langevin(Score(), start(), checkpoint=tmp_path / "run")
    altered(tmp_path / "run", {"step": step})
    with pytest.raises(CheckpointError, match="does not fit this run: step must be"):
        langevin(Score(), start(), checkpoint=tmp_path / "run")


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for wrong, said in ((torch.zeros(5, 3), "shape"), (start(torch.float64), "dtype|torch.float")):
        langevin(Score(), start(), checkpoint=path)
        altered(path, {}, **{"state.0": wrong})
        with pytest.raises(CheckpointError, match=f"does not fit this run: state.0 .*({said})"):
            langevin(Score(), start(), checkpoint=path)
        path.unlink()
    checkpoint.write(path, "chain", {}, {})
    with pytest.raises(CheckpointError, match="was written by a run with algorithm None"):
        langevin(Score(), start(), checkpoint=path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path, got int"),
        ({"checkpoint": ""}, ValueError, "checkpoint must be a file in a folder that exists, got ''"),
        ({"checkpoint": "absent/run"}, ValueError, "checkpoint must be a file in a folder that exists"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1, got 0"),
        ({"checkpoint_every": 2.0}, TypeError, "checkpoint_every must be an int"),
    ],
)
def test_bad_files_are_refused_before_any_work(options: Any, error: Any, message: str) -> None:
    score = Score()
    with pytest.raises(error, match=message):
        langevin(score, start(), **options)
    assert score.calls == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cond_dim", [0, 2])
@pytest.mark.parametrize("kind", [fastscore.ScoreMLP, fastscore.EnergyMLP])
def test_a_network_comes_back_to_the_bit(kind: Any, cond_dim: int, dtype: torch.dtype, tmp_path: Path) -> None:
    net = kind(3, width=7, depth=3, activation="softplus", cond_dim=cond_dim).to(dtype)
    drawn = torch.random.get_rng_state()
    fastscore.save_network(tmp_path / "net.safetensors", net)
    found = fastscore.load_network(tmp_path / "net.safetensors")
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert type(found) is kind and str(found) == str(net)
    cond = torch.randn(4, 2, dtype=dtype) if cond_dim else None
    x = torch.randn(4, 3, dtype=dtype)
    assert torch.equal(found(x, cond), net(x, cond))
    assert all(p.requires_grad and p.is_leaf for p in found.parameters())
    # Plain safetensors can read it, too.
    assert safetensors.torch.load_file(tmp_path / "net.safetensors").keys() == net.state_dict().keys()


def test_training_goes_on_from_a_loaded_network(tmp_path: Path) -> None:
    data, net = MIXTURE.sample(64, seed=0), fastscore.ScoreMLP(2, width=8)

    def train(net: Any) -> Tensor:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            fastscore.implicit_score_matching(net, data).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    train(net)
    fastscore.save_network(tmp_path / "net", net)
    assert torch.equal(train(fastscore.load_network(tmp_path / "net")), train(net))


@pytest.mark.parametrize(
    "about",
    [
        {"class": "Unknown"},
        {"class": None},
        {"activation": "relu"},
        {"activation": "unheard"},
        {"width": 9},
        {"width": 0},
        {"depth": 1},
        {"depth": "two"},
        {"dim": float(2)},
        {"cond_dim": 1},
    ],
    ids=str,
)
def test_an_unknown_network_is_refused(about: dict[str, Any], tmp_path: Path) -> None:
    fastscore.save_network(tmp_path / "net", fastscore.ScoreMLP(2, width=8))
    altered(tmp_path / "net", about)
    with pytest.raises(CheckpointError, match="holds no network that fastscore knows"):
        fastscore.load_network(tmp_path / "net")


def test_other_modules_are_not_saved(tmp_path: Path) -> None:
    class Mine(fastscore.ScoreMLP):
        pass

    for other in (torch.nn.Linear(2, 2), Mine(2), lambda x: x):
        with pytest.raises(TypeError, match="network must be a ScoreMLP or an EnergyMLP, got"):
            fastscore.save_network(tmp_path / "net", other)
    assert list(tmp_path.iterdir()) == []


CHANGES = {
    "wrapped": lambda net: net.layers.__setitem__(1, nn.Sequential(net.layers[1])),
    "weight_norm": lambda net: parametrizations.weight_norm(net.layers[1]),
    "prune": lambda net: prune.l1_unstructured(net.layers[1], "weight", 0.5),
    "no bias": lambda net: setattr(net.layers[1], "bias", None),
    "subclass": lambda net: net.layers.__setitem__(1, type("Mine", (nn.Linear,), {})(8, 8)),
    "resized": lambda net: net.layers.__setitem__(1, nn.Linear(8, 9)),
    "condition": lambda net: setattr(net.condition, "embed", nn.Sequential(net.condition.embed)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_could_not_be_loaded_is_not_saved(change: str, tmp_path: Path) -> None:
    net = fastscore.ScoreMLP(2, width=8, cond_dim=1)
    CHANGES[change](net)
    name = r"condition\.embed" if change == "condition" else r"layers\.1"
    with pytest.raises(TypeError, match=rf"network is not as ScoreMLP builds it \({name}.*undo this first"):
        fastscore.save_network(tmp_path / "net", net)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", [True, False])
def test_tied_weights_are_saved_one_by_one(layer: bool, tmp_path: Path) -> None:
    net, x = fastscore.ScoreMLP(2, width=8, depth=3), torch.randn(4, 2)
    if layer:
        net.layers[2] = net.layers[1]
    else:
        net.layers[2].weight = net.layers[1].weight
    fastscore.save_network(tmp_path / "net", net)
    assert torch.equal(fastscore.load_network(tmp_path / "net")(x), net(x))


def good(folder: Path) -> bytes:
    langevin(Score(), start(), checkpoint=folder / "good", return_trajectory=True)
    return (folder / "good").read_bytes()


def test_a_thousand_damaged_files_are_refused(tmp_path: Path) -> None:
    data, dice, path = good(tmp_path), random.Random(0), tmp_path / "bad"
    for case in range(1000):
        bad = bytearray(data)
        match case % 4:
            case 0:
                bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
            case 1:
                del bad[dice.randrange(len(bad)) :]
            case 2:
                at = dice.randrange(len(bad))
                bad[at : at + dice.randrange(1, 64)] = dice.randbytes(dice.randrange(64))
            case 3:
                bad += dice.randbytes(dice.randrange(1, 9))
        path.write_bytes(bad)
        if bytes(bad) != data:
            with pytest.raises(CheckpointError):
                checkpoint.read(path)


@pytest.mark.parametrize("where", ["header", "length", "tensors"])
def test_a_forged_file_with_a_right_checksum_is_refused(where: str, tmp_path: Path) -> None:
    # Whoever can write a checksum can write any numbers; but what cannot be read must be a CheckpointError.
    data, path = good(tmp_path), tmp_path / "bad"
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    forged = {
        "header": [
            b"[" * 100_000,
            b"{}",
            b'{"__metadata__":{"fastscore":"{}"}}',
            b'{"__metadata__":{"fastscore":"["}}',
        ],
        "length": [json.dumps(header | {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()],
        "tensors": [json.dumps(header | {"state.0": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()],
    }[where]
    for text in forged:
        mark = b'"sha256":"' + b"0" * 64 + b'"'
        text = text if b"sha256" in text else text + mark
        blank = checkpoint._CHECKSUM.sub(mark, text)
        body = struct.pack("<Q", len(blank)) + blank + data[end:]
        path.write_bytes(body.replace(b"0" * 64, checkpoint.hashlib.sha256(body).hexdigest().encode()))
        with pytest.raises(CheckpointError, match="is not a checkpoint of fastscore"):
            checkpoint.read(path)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_a_pickle_in_disguise_runs_nothing(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "run"
    payload = Payload(canary)
    disguises = [pickle.dumps(payload, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    torch.save(payload, path)
    disguises.append(path.read_bytes())
    torch.save(payload, path, _use_new_zipfile_serialization=False)
    disguises.append(path.read_bytes())
    disguises += [struct.pack("<Q", len(pickled)) + pickled for pickled in disguises[:2]]
    disguises.append(disguises[0] + good(tmp_path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", disguises[2])
    disguises.append(path.read_bytes())
    for disguise in disguises:
        path.write_bytes(disguise)
        with pytest.raises(CheckpointError):
            langevin(Score(), start(), checkpoint=path)
        with pytest.raises(CheckpointError):
            fastscore.load_network(path)
    assert not canary.exists()
    pickle.loads(disguises[2])
    assert canary.exists()  # the payload was a live one


def broken(*_: object, **__: object) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("fault", ["open", "write", "fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "net"
    fastscore.save_network(path, fastscore.ScoreMLP(2, width=8))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if fault == "write":  # a file that may not grow: the system's own error
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        elif fault == "open":
            patch.setattr(checkpoint, "open", broken, raising=False)
        else:
            patch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[fault], broken)
        try:
            with pytest.raises(OSError, match="File too large" if fault == "write" else "Input/output error"):
                fastscore.save_network(path, fastscore.ScoreMLP(2, width=8))
        finally:
            if fault == "write":
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["net"]
    fastscore.save_network(path, fastscore.ScoreMLP(2, width=8))
    assert path.read_bytes() != before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder" / "within").mkdir(parents=True)
    for place in (tmp_path / "absent" / "net", tmp_path / "folder"):
        with pytest.raises(OSError, match=place.name):
            fastscore.save_network(place, fastscore.ScoreMLP(2))
    with pytest.raises(FileNotFoundError, match="absent"):
        fastscore.load_network(tmp_path / "absent")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    fresh, old, other = (tmp_path / name for name in (".net[1].ab.part", ".net[1].cd.part", ".net1.cd.part"))
    for left in (fresh, old, other):
        left.write_bytes(b"half")
    for left in (old, other):
        os.utime(left, (time.time() - 7200,) * 2)
    fastscore.save_network(tmp_path / "net[1]", fastscore.ScoreMLP(2))
    assert fresh.exists() and other.exists() and not old.exists()
