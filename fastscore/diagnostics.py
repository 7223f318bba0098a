"""Whether chains can be trusted: effective sample sizes, split R-hat, and chains that are broken, stuck or copies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore import _checks

R_HAT, ESS, ACCEPTANCE = 1.01, 400, 0.1
"""Beyond these `Diagnosis.problems` speaks: the first two are of Vehtari et al. (2021), sections 4.1 and 4.2."""


class Diagnosis(NamedTuple):
    """What `diagnose` found; `problems()` says it in words.

    Attributes:
        r_hat: Rank-normalised split R-hat a feature, `[*event]`, 1 where the chains agree; NaN where fewer than two
            are finite, or all their states are equal.
        ess_bulk: Effective number of independent draws a feature, for means, `[*event]`.
        ess_tail: The same for the 5% and 95% quantiles, `[*event]`.
        nonfinite: Chains with a state that is not finite, or frozen because the next was not, `[B]`, bool.
        stuck: Chains that never moved, `[B]`, bool.
        duplicated: Chains equal to the bit to one before them, as two processes with one seed make them, `[B]`, bool.
        acceptance_rate: `[B]` for a sampler that refuses proposals, else None.
        unmoved: Features that moved in no finite chain, `[*event]`, bool: their effective sample sizes mean nothing.
    """

    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    nonfinite: Tensor
    stuck: Tensor
    duplicated: Tensor
    acceptance_rate: Tensor | None
    unmoved: Tensor

    def problems(self) -> list[str]:
        """One sentence for everything that is wrong; empty where nothing was found."""
        n, found = len(self.stuck), []
        for name in ("nonfinite", "stuck", "duplicated"):
            if bool((flags := getattr(self, name)).any()):
                found.append(f"{int(flags.sum())} of {n} chains {name}, first chain {int(flags.nonzero()[0])}")
        if bool(self.unmoved.any()):
            first, still = self.unmoved.nonzero()[0].tolist(), int(self.unmoved.sum())
            found.append(f"{still} of {self.unmoved.numel()} features never move, first feature {first}")
        if (finite := n - int(self.nonfinite.sum())) < 2:
            found.append(f"r_hat needs 2 finite chains, got {finite}: whether chains agree is not known")
        elif bool((unknown := self.r_hat.isnan() & ~self.unmoved).any()):
            found.append(f"r_hat is not a number for {int(unknown.sum())} of {unknown.numel()} features")
        if bool((self.r_hat > R_HAT).any()):
            found.append(f"r_hat is up to {float(self.r_hat.nan_to_num().max()):.3f}, above {R_HAT}: chains disagree")
        for name in ("ess_bulk", "ess_tail"):
            if bool((sizes := getattr(self, name)).lt(ESS).any()):
                found.append(f"{name} is down to {float(sizes.min()):.0f}, below {ESS}: run longer, or more chains")
        if self.acceptance_rate is not None and bool((low := self.acceptance_rate < ACCEPTANCE).any()):
            found.append(
                f"{int(low.sum())} of {n} chains accept fewer than {ACCEPTANCE:.0%}: a smaller step_size helps"
            )
        return found


def diagnose(trajectory: Tensor, diagnostics: Mapping[str, Tensor] | None = None) -> Diagnosis:
    """Split R-hat and effective sample sizes of chains, by ArviZ, and flags of those that are broken, stuck or copies.

    Rank-normalised split R-hat compares the halves of all chains with each other, the effective sample sizes are those
    of rank-normalised and of indicator draws (Vehtari, Gelman, Simpson, Carpenter & Bürkner, Bayesian Analysis 16(2),
    2021, equations 4, 14 and section 4.3). Chains that are not finite are left out of all three.

    Args:
        trajectory: `[B, n, *event]`, as a sampler gives it with `return_trajectory=True`; n at least 4.
        diagnostics: what it gives besides with `return_diagnostics=True`.

    Raises:
        ImportError: ArviZ is not installed; it comes with the extra "diagnostics".
        TypeError: trajectory is not a floating point tensor.
        ValueError: trajectory has fewer than 3 dimensions, no chains, or fewer than 4 states of each.

    Example:
        >>> path = torch.randn(4, 1000, 2, generator=torch.Generator().manual_seed(0))
        >>> diagnose(path).problems()
        []
    """
    _checks.batch("trajectory", trajectory, allow_empty=False)
    if trajectory.dim() < 3 or trajectory.shape[1] < 4:
        raise ValueError(f"trajectory must have shape [B, n, *event] with n at least 4, got {list(trajectory.shape)}")
    path = trajectory.detach().flatten(2).to("cpu", torch.float64)
    diagnostics = diagnostics or {}
    nonfinite = ~path.isfinite().all(2).all(1)
    if "first_nonfinite" in diagnostics:
        nonfinite |= diagnostics["first_nonfinite"].cpu() >= 0
    first = {row.numpy().tobytes(): -b for b, row in enumerate(path.flip(0), 1 - len(path))}  # the first of equals
    duplicated = torch.tensor([first[row.numpy().tobytes()] != b for b, row in enumerate(path)])
    r_hat, bulk, tail = (value.view(trajectory.shape[2:]) for value in _arviz(path[~nonfinite]))
    still = (path == path[:, :1]).all(1)  # [B, D]
    unmoved = still[~nonfinite].all(0).view(trajectory.shape[2:]) & ~nonfinite.all()
    acceptance = diagnostics.get("acceptance_rate")
    acceptance = None if acceptance is None else acceptance.cpu()
    return Diagnosis(r_hat, bulk, tail, nonfinite, still.all(1), duplicated, acceptance, unmoved)


def _arviz(path: Tensor) -> list[Tensor]:
    """R-hat and the effective sample sizes, bulk and tail, of chains `[B, n, D]`, each `[D]`."""
    if path.shape[0] == 0:
        return [torch.full((path.shape[2],), torch.nan, dtype=torch.float64)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version at import
        warnings.filterwarnings("ignore", "More chains", UserWarning)  # as is usual here
        warnings.simplefilter("ignore", RuntimeWarning)  # features without a variance, which `unmoved` tells of
        try:
            import arviz
        except ImportError as error:
            raise ImportError(
                'diagnose needs ArviZ, which is not installed: install the extra "diagnostics", or arviz itself'
            ) from error
        data = arviz.convert_to_dataset({"x": path.numpy()})
        sizes = arviz.ess(data, method="bulk"), arviz.ess(data, method="tail")
        # Of one chain ArviZ says NaN too, and logs a warning.
        r_hat = arviz.rhat(data) if path.shape[0] > 1 else sizes[0] * torch.nan
    return [torch.from_numpy(values["x"].to_numpy().copy()) for values in (r_hat, *sizes)]
