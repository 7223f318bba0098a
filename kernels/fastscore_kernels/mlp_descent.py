"""Networks layer by layer (`mlp_layers`): down, from gradients in the output and the form to all others."""

from typing import Any, cast

import torch

from fastscore_kernels.jet_layers import Jet, descend
from fastscore_kernels.mlp_ascent import Tape, layer_of, meeting, middle
from fastscore_kernels.products import accumulate, product

Key = tuple[str, int]
Gradients = dict[Key, torch.Tensor]


class Descent:
    """The way down of some samples: gradients, added to those of the batch."""

    def __init__(self, mlp: Any, shifts: Any, form: Any, rows: slice, tape: Tape, gradients: Gradients) -> None:
        self.mlp, self.shifts, self.form, self.rows, self.tape = mlp, shifts, form, rows, tape
        self.gradients = gradients
        self.on_slopes: dict[int, torch.Tensor] = {}

    def product(self, key: Key, left: Any, right: Any) -> None:
        """Add `left' right`, summed over samples and tangents."""
        if key in self.gradients and left is not None:
            accumulate(self.gradients[key], left, right)

    def total(self, key: Key, found: torch.Tensor | None) -> None:
        """Add a sum."""
        if key in self.gradients and found is not None:
            self.gradients[key].add_(found)

    def rest(self, at: int, dz: torch.Tensor | None, sums: torch.Tensor | None) -> None:
        """The gradients that are those of a layer's input, or their sum."""
        self.product(("weight", at), dz, self.tape.below[at].value)
        self.total(("bias", at), sums)
        if ("shift", at) in self.gradients:
            self.gradients["shift", at][self.rows] = 0 if dz is None else dz

    def run(self, on_out: torch.Tensor | None, on_values: Any, scale: float) -> None:
        """From the output to x."""
        mlp, tape, form, p = self.mlp, self.tape, self.form, self.tape.p
        self.rest(mlp.depth, on_out, None if on_out is None else on_out.sum(0))
        above = Jet(None if on_out is None else product(on_out, mlp.weights[-1]))  # type: ignore[arg-type]
        g, on_laplacian = self.top(on_values, scale)
        if on_laplacian is not None:
            above = above._replace(laplacian=on_laplacian)
        for at in range(mlp.depth - 1, -1, -1):
            taken = (g, p) if at == meeting(mlp, form) and tape.met is not None else None
            layer, z, slope = layer_of(mlp, self.shifts, form, self.rows, at), tape.z[at], self.on_slopes.get(at)
            dz, sums, on_squares = descend(layer, z, above, slope, taken)
            self.rest(at, dz.value, sums)
            self.total(("form", 0), on_squares)
            if at:
                straight = above if mlp.residuals[at] else None
                if straight is not None and taken is not None and p is not None:
                    straight = straight._replace(tangents=g.unsqueeze(2) * p)
                above = self.below(at, dz, straight)
            elif tape.probes is not None:
                self.product(("form", 0), dz.tangents, tape.probes)
        if ("x", 0) in self.gradients:
            self.gradients["x", 0][self.rows] = product(dz.value, mlp.weights[0])

    def top(self, on_values: Any, scale: float) -> tuple[Any, torch.Tensor | None]:
        """The gradient in the form, `[n, K]`, and in the Laplacian of the last hidden layer."""
        tape, form, kind = self.tape, self.form, self.form.kind
        if kind == "value":
            return None, None
        if kind == "laplacian":
            on_score, on_laplacian = on_values
            g, last = -on_score, form.parameters[3]
            if tape.met is None:  # one hidden layer, whose tangents are the same for all samples
                through = product(g, form.parameters[2])
                self.on_slopes[0] = through * last
                self.product(("form", 2), g, tape.slopes[0] * last)
                self.total(("form", 3), (through * tape.slopes[0]).sum(0, keepdim=True))
            else:
                self.product(("form", 3), g.reshape(1, -1, 1), tape.met.flatten(0, 1))
            self.product(("form", 3), on_laplacian.unsqueeze(1), tape.below[-1].laplacian)
            return g.contiguous(), on_laplacian.unsqueeze(1) * last
        (given,) = on_values
        if kind == "along":
            key, last, bent = ("form", self.mlp.depth), form.parameters[-1], tape.below[-1].laplacian
            self.product(key, given.reshape(1, -1, 1), cast(torch.Tensor, tape.met).flatten(0, 1))
            if bent is None:
                return given, None
            self.product(key, torch.ones_like(tape.out), bent)
            return given, last.expand(len(bent), -1).contiguous()
        n = len(tape.out)
        g = tape.out.new_full((n, 1), scale) if given is None else given if scale == 1 else given * scale
        if tape.probes is not None:
            g = g.expand(n, form.columns).contiguous()
            self.product(("form", self.mlp.depth), g.unsqueeze(2) * tape.probes, tape.met)
            return g, None
        if kind == "bilinear" and form.direct:
            self.on_slopes[0] = g * form.parameters[-1]
            self.total(("form", len(form.parameters) - 1), product(g.t(), tape.slopes[0]).squeeze(0))
        if kind == "tangents":
            last, outward = self.mlp.depth - 1, form.parameters[1]
            assert tape.met is not None
            flat = tape.met.flatten(1)
            self.on_slopes[last] = product(flat, outward).mul_(g)
            self.product(("form", 1), flat, g * tape.slopes[last])
            if self.mlp.residuals[last] and ("form", 3) in self.gradients:
                self.total(("form", 3), product(g.t(), flat).view(form.parameters[3].shape))
        return g.expand(n, form.columns).contiguous(), None

    def below(self, at: int, dz: Jet, straight: Jet | None) -> Jet:
        """Through a layer's matrix product (and past it), with the gradients of what tangents were multiplied by."""
        mlp, form, tape = self.mlp, self.form, self.tape
        under = tape.below[at]

        def through(change: torch.Tensor | None, weight: Any, past: torch.Tensor | None) -> Any:
            if change is None:
                return past
            found = change @ weight
            return found if past is None else found.add_(past)

        value = through(dz.value, mlp.weights[at], None if straight is None else straight.value)
        laplacian = tangents = None
        if dz.laplacian is not None:
            key = ("form", middle(form, at))
            self.product(key, dz.laplacian, under.laplacian)
            laplacian = through(dz.laplacian, form.parameters[key[1]], None if straight is None else straight.laplacian)
        if dz.tangents is None:
            return Jet(value)
        if at == 1 and tape.probes is None:
            self.inward(dz.tangents, None if straight is None else straight.tangents)
        else:
            key = ("form", middle(form, at))
            self.product(key, dz.tangents, under.tangents)
            tangents = through(dz.tangents, form.parameters[key[1]], None if straight is None else straight.tangents)
        return Jet(value, tangents, laplacian)

    def inward(self, change: torch.Tensor, past: torch.Tensor | None) -> None:
        """To the slopes of the first layer, which all D tangents of the second are one product of."""
        form, slope, kind = self.form, self.tape.slopes[0], self.form.kind
        at = 1 if kind == "laplacian" else 0
        flat = change.flatten(1)
        found = flat @ form.parameters[at]
        self.product(("form", at), flat, slope)
        if past is not None and kind != "bilinear":
            found += (past * form.parameters[2]).sum(1)
            self.total(("form", 2), (past * slope.unsqueeze(1)).sum(0))
        self.on_slopes[0] = self.on_slopes[0] + found if 0 in self.on_slopes else found
