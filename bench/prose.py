"""The numbers in the texts: every sentence that tells a measurement, and the record that it tells.

A sentence stands here as it does in its file, with {} in the place of each number; `python -m bench.report` writes the
numbers, and with --check tells where they differ. A sentence that is not found, or found twice, is an error.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

Sentence = tuple[str, str, list[str]]
"""A file, a sentence and its numbers."""


def sentences() -> Iterator[Sentence]:
    """All of them."""
    yield from (("docs/landau.md", *told) for told in landau(_record("landau")))
    yield from (("docs/science.md", *told) for told in science(_record("science"), _record("cpu")))


def landau(results: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """What the solve of `examples/landau.py` came to."""
    solution, timing = results["solution"], results["timing"]
    settings, history, seconds = solution["settings"], solution["history"], timing["seconds_per_step"]
    exact, end = _bkw(), history["t"][-1]
    short = 1 - history["fourth_moment"][-1] / exact.fourth_moment(end)
    low = exact.entropy(end) - history["entropy"][-1]
    yield (
        "{} particles, {} steps in time, {} training steps at each",
        [f"{settings[name]:,}" for name in ("particles", "steps", "loss_steps")],
    )
    yield "the fourth moment ends {}% too small and the entropy {} too low", [f"{100 * short:.2g}", f"{low:.1g}"]
    errors = [_above(100 * error, 1) for error in (max(history["score_error"]), history["score_error"][-1])]
    yield "The score is within {}% in the root mean square at worst, at the start, and within {}% at the end", errors
    yield "The velocities of the particles are within {}%", [_above(100 * max(history["velocity_error"]), 0)]
    spent = [f"{solution['seconds'][name]:.0f}" for name in ("everything", "training")]
    yield "The solve took {} seconds, {} of them in training steps", spent
    names = ("fastscore", "vmap(jacrev)", "loop of autograd.grad")
    each = [f"{1e3 * seconds[name]:.0f}" for name in names]
    whole = [f"{timing['seconds_extrapolated'][name]:.0f}" for name in names]
    yield "one takes {} ms with fastscore, {} ms with the trace of `vmap(jacrev)`, and {} ms with one call", each
    yield "{} of them would take {}, {} and {} seconds", [f"{settings['steps'] * settings['loss_steps']:,}", *whole]


def science(results: dict[str, Any], cpu: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """What `bench.science` found."""
    found = {name: part["found"] for name, part in results.items()}
    yield from _descent(found["descent"], {case["name"]: case["rows"] for case in cpu["cases"]})
    yield from _noise(found["noise"])
    sigma, variance = found["small_sigma"]["sigma"], found["small_sigma"]["variance"]
    plain = [float(f"{variance['denoising'][sigma.index(s)]:.2g}") for s in (0.1, 0.01)]
    yield "At sigma = 0.1 denoising's has {} times the variance, at 0.01 {} times", [f"{v:,.0f}" for v in plain]
    pairs = max(variance["denoising, pairs +e and -e"])
    yield "the variance is then at most {} times that of the exact loss", [f"{pairs:.3g}"]
    ula = found["ula"]
    chains = [f"{ula['chains']:,}", f"{100 * ula['relative_standard_error']:.1g}"]
    yield "{} chains follow that law (the standard error of a variance is {}% of it)", chains


def _descent(found: dict[str, Any], cpu: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    names = ("exact", "Hutchinson, 1 probe", "sliced, variance-reduced (double backward)")
    goal = [f"{found['seconds_to'][name]['0.1']:.2g}" for name in names]
    yield (
        "A relative Fisher divergence of 0.1 takes {} seconds of exact steps, {} with one probe of Hutchinson's, {} of",
        goal,
    )
    deep = cpu["B=4096 D=8 L=3 H=128"]
    both = [f"{deep[name]['ratio']:.1f}" for name in ("fastscore, exact", "fastscore, Hutchinson")]
    yield "({} denoising steps against {} in eight dimensions)", both
    yield "it stays above {}.", [_below(min(found["curves"]["denoising, sigma = 0.3"]), 2)]
    yield "0.03 is above {} all the way", [_below(min(found["curves"]["denoising, sigma = 0.03"]), 1)]


def _noise(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    variance, seconds = found["variance"], found["seconds_per_step"]

    def at_equal_time(name: str) -> list[float]:
        return [variance[d][name] * seconds[d][name] / seconds[d]["exact"] for d in variance]

    probe, reduced = "Hutchinson, 1 probe", "sliced, variance-reduced (double backward)"
    alike = statistics.mean(row[probe] for row in variance.values())
    yield "an estimate by one probe has {} times the variance of the exact loss in 2, 8 and 64", [f"{alike:.2g}"]
    plain = [f"{row['sliced (double backward)']:.2g}" for row in variance.values()]
    yield "reduction has {} times in two dimensions, {} in eight and {} in sixty-four", plain
    yield (
        "one probe of Hutchinson's is at {}, {} and {} times the exact loss",
        [f"{value:.2g}" for value in at_equal_time(probe)],
    )
    yield (
        "the reduced form by a double backward at about {}.",
        [f"{statistics.median(at_equal_time(reduced)):.1g}"],
    )


def _below(value: float, digits: int) -> str:
    """The largest number of so many decimals that is not larger."""
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _above(value: float, digits: int) -> str:
    """The least number of so many decimals that is not smaller."""
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def written(text: str, sentence: str, numbers: list[str]) -> str:
    """`text` with these numbers in the sentence, wherever its lines are broken.

    Raises:
        ValueError: the sentence does not stand there exactly once.
    """
    words = r"\s+".join(re.escape(word).replace(r"\{\}", r"(\d[\d.,]*\d|\d)") for word in sentence.split())
    found = list(re.finditer(words, text))
    if len(found) != 1:
        raise ValueError(f"found {len(found)} times: {sentence}")
    for group, number in reversed(list(enumerate(numbers, start=1))):
        begin, end = found[0].span(group)
        text = text[:begin] + number + text[end:]
    return text


def files() -> Iterator[tuple[Path, str]]:
    """Every file that tells a measurement, and what it ought to say."""
    texts: dict[str, str] = {}
    for name, sentence, numbers in sentences():
        texts[name] = written(texts.get(name) or (ROOT / name).read_text(), sentence, numbers)
    yield from ((ROOT / name, text) for name, text in texts.items())


def _record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _bkw() -> Any:
    """The exact solution, `examples/bkw.py`."""
    spec = importlib.util.spec_from_file_location("bkw", ROOT / "examples" / "bkw.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
