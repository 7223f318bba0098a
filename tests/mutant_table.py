"""The wrong lines of `mutants.py`: what becomes of which line, of which bug class, and which tests should then fail."""

# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands once in `file`, becomes `new`; one of `tests` should fail then."""

    bug: int
    """Its class in docs/reliability.md."""
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def lane(self) -> str:
        """Kernels are interpreted, compiled or left alone: a process each."""
        first = self.tests[0].split("/")[1]
        return first if first in ("kernels", "audit") else "plain"


P, M, C = "tests/reference/test_philox.py::", "tests/ops/test_mlp.py::", "tests/kernels/test_chain.py::"
S, F, E = "tests/test_samplers.py::", "tests/test_samplers_faults.py::", "tests/test_errors.py::"
D, U, L = "tests/test_divergence.py::", "tests/test_divergence_inputs.py::", "tests/test_samplers_laws.py::"
K, G = "tests/kernels/test_mlp.py::", "tests/test_samplers_corrected.py::"
Q = "tests/test_samplers_calls.py::"

NOISE = (P + "test_random123", P + "test_words_at_the_edges_of_32_bits", P + "test_stream_version_1_is_frozen")
STEP = ("tests/reference/test_langevin.py", "tests/ops/test_langevin.py")
PHILOX = "fastscore/reference/philox.py"
OPS = "fastscore/ops/langevin.py"
KERNELS = "kernels/fastscore_kernels/"
ROUNDS = ("tests/kernels/test_philox.py", "tests/kernels/test_noise.py")
FUSED_STEP = ("tests/kernels/test_langevin.py",)
TRITON = "kernels/fastscore_kernels/philox.py"
FUSED = "kernels/fastscore_kernels/langevin.py"
CHAIN = "kernels/fastscore_kernels/chain.py"
COMPILED, T = "fastscore/ops/_cpu_source_algorithms.py", "tests/ops/test_cpu_target.py::"
KERNEL_MLP = (K + "test_values_and_all_gradients_match_brute_force",)
MLP = (M + "test_values_and_all_gradients",)
FORMS = "fastscore/ops/mlp_forms.py"
LAPLACIAN = "fastscore/ops/mlp_laplacian.py"
FUNCTIONS = "fastscore/ops/mlp_functions.py"
TILES = "fastscore/ops/mlp_tile.py"
PROGRAM = "fastscore/ops/_cpu_program.py"
CP = "tests/ops/test_cpu_program.py::"
ACTIVATIONS = ("tests/reference/test_activations.py",)
ERRORS = (E + "test_a_bad_argument_is_named_before_any_work", E + "test_a_bad_answer_of_the_score_is_named")
WIDE = ("tests/audit/test_audit.py::test_rows_are_addressed_in_64_bits",)
RULES = ("tests/house/test_rules.py",)
TRACE = (D + "test_hutchinson_and_all_gradients", D + "test_hutchinson_mean_and_variance_are_their_formulas")

# fmt: off

IN_THE_NOISE = [
    Mutant(45, "multiplier", PHILOX, "0xD2511F53", "0xD2511F55", NOISE),
    Mutant(45, "weyl", PHILOX, "0xBB67AE85", "0xBB67AE87", NOISE),
    Mutant(45, "nine rounds", PHILOX, "_ROUNDS = 10", "_ROUNDS = 9", NOISE),
    Mutant(2, "chain above 2^32 dropped", PHILOX, "stream + 256 * (chain >> 32)", "stream", NOISE),
    Mutant(38, "stream dropped", PHILOX, "stream + 256 * (chain >> 32)", "256 * (chain >> 32)", NOISE),
    Mutant(41, "seed above 2^32 dropped", PHILOX, "(seed >> 32) & MASK", "0", NOISE),
    Mutant(42, "lanes swapped", PHILOX, "lanes += [r * cos, r * sin]", "lanes += [r * sin, r * cos]", (P + "test_layout_of_normals", P + "test_stream_version_1_is_frozen")),
    Mutant(42, "lanes copied", PHILOX, "lanes += [r * cos, r * sin]", "lanes += [r * cos, r * cos]", (P + "test_no_copied_lanes", P + "test_stream_version_1_is_frozen")),
    Mutant(43, "tail cut at 5.68", PHILOX, "log = polynomial(f", "log = 0.9999 * polynomial(f", (P + "test_normals_of_extreme_words", P + "test_the_tail_is_not_cut_and_has_no_atoms")),
    Mutant(44, "u may be 0", PHILOX, "(w0.to(dtype) + 0.5)", "w0.to(dtype)", (P + "test_uniforms",)),
    Mutant(45, "sign of a bit", PHILOX, "1 - 2 * bits", "-1 + 2 * bits", (P + "test_layout_of_signs", P + "test_stream_version_1_is_frozen")),
    Mutant(45, "triton: round", TRITON, "tl.static_range(10)", "tl.static_range(9)", ROUNDS),
    Mutant(2, "triton: chain above 2^32", TRITON, "(chain >> 32) << 8", "(chain >> 32) * 0", ROUNDS),
    Mutant(41, "triton: seed above 2^32", TRITON, "zero + key_high.to(tl.uint32)", "zero", ROUNDS),
    Mutant(2, "triton: step dropped", TRITON, "zero + step.to(tl.uint32)", "zero", ROUNDS),
    Mutant(43, "triton: cosine's sign", TRITON, "(turned + 0x40000000) & 0x80000000", "turned & 0x80000000", ROUNDS),
    Mutant(44, "triton: u near 1", TRITON, "upper & (exponent == 0), -t, f", "upper & (exponent == 7), -t, f", ROUNDS),
    Mutant(42, "triton: swapped lanes", TRITON, "return r * cos, r * sin,", "return r * sin, r * cos,", ROUNDS),
    Mutant(5, "triton: mask of the rows", TRITON, "(rows < n_chains - first_row) & (groups", "(groups", FUSED_STEP),
    Mutant(6, "triton: mask of the groups", TRITON, "& (groups < n_groups)", "", ROUNDS),
    Mutant(1, "triton: 32-bit rows", TRITON, ".to(tl.int64) * BLOCK_CHAINS", " * BLOCK_CHAINS", WIDE),
]

IN_THE_STEP = [
    Mutant(47, "formula of the noise scale", "fastscore/reference/langevin.py", "2.0 * temperature", "temperature", STEP),
    Mutant(47, "sign of the drift", "fastscore/reference/langevin.py", "+ a * score", "- a * score", STEP),
    Mutant(23, "gradient to the score", OPS, "(a * g).to", "g.to", STEP),
    Mutant(23, "gradient to the step size", OPS, "/ (2.0 * a))", "/ a)", STEP),
    Mutant(22, "tangent of the score", OPS, "total + a * dscore", "total + dscore", STEP),
    Mutant(22, "every slice of a vmap its own noise", OPS, "_noise(x[0], *counters)", "_noise(x, *counters)", STEP),
    Mutant(29, "other noise in the backward", OPS, "ctx.counters = inputs", "ctx.counters = (*inputs[:5], 7, 0)", STEP),
    Mutant(47, "triton: noise scale", FUSED, "two_t = 2.0 *", "two_t = 1.0 *", FUSED_STEP),
    Mutant(47, "triton: sign of the drift", FUSED, "x + a * s", "x - a * s", FUSED_STEP),
    Mutant(6, "triton: mask of the last lane", FUSED, "inside & (feature < n_features)", "inside", FUSED_STEP),
    Mutant(39, "triton: first chain dropped", FUSED, "chain = first_chain + first_row", "chain = first_row", FUSED_STEP),
    Mutant(38, "triton: chains counted in a block", FUSED, "first_chain + first_row + rows", "first_chain + rows", FUSED_STEP),
    Mutant(50, "triton: one step size for all", FUSED, "step_size_ptr + feature", "step_size_ptr", FUSED_STEP),
    Mutant(7, "triton: strides ignored", FUSED, "x.contiguous(), score.contiguous()", "x, score", FUSED_STEP),
    Mutant(25, "triton: the input written to", FUSED, "torch.empty((n_chains, n_features), dtype=x.dtype, device=x.device)", "x", FUSED_STEP),
    Mutant(12, "a step size rounded to float32", "fastscore/ops/noise.py", "value, dtype=computed(x.dtype)", "value, dtype=torch.float32", (L + "test_ula_after_k_steps_has_its_exact_law", "tests/ops/test_langevin.py")),
    Mutant(3, "triton: a grid of any size", "kernels/fastscore_kernels/launch.py", "programs >= 2**31", "programs >= 2**62", FUSED_STEP),
    Mutant(5, "triton: a masked load of anything", FUSED, "mask=feature < n_features, other=0.0", "mask=feature < n_features", RULES),
    Mutant(13, "triton: a product of any precision", "kernels/fastscore_kernels/chain_scores.py", "input_precision=PRECISION, out_dtype", "out_dtype", RULES),
    Mutant(47, "triton: every level the first's precisions", "kernels/fastscore_kernels/chain_scores.py", "at[3].to(tl.int64) * params[3]", "at[3].to(tl.int64) * 0", ("tests/kernels/test_samplers.py::test_annealing_towards_a_mixture",)),
    Mutant(5, "a target of any dimension", "fastscore/samplers/arguments.py", " and x.shape[1] == owner.dim", "", ("tests/kernels/test_samplers.py::test_a_target_of_another_dimension_is_refused",)),
    Mutant(4, "contraction: features past the last", "kernels/fastscore_kernels/contraction.py", "p = tl.load(products_ptr + (k * plane + start) + offs, mask=mask, other=0.0)", "p = tl.load(products_ptr + (k * plane + start) + offs, mask=mask, other=1.0)", ("tests/kernels/test_contraction.py::test_values",)),
    Mutant(8, "contraction: a plane of 32 bits", "kernels/fastscore_kernels/contraction.py", "start, plane = first_row * n_features, tl.cast(n_chains, tl.int64) * n_features\n    sample", "start, plane = first_row * n_features, n_chains + n_features\n    sample", ("tests/kernels/test_contraction.py::test_values",)),
    Mutant(1, "contraction: a block of 32 bits", KERNELS + "contraction.py", "block = (tl.program_id(0) % tl.cdiv(n_groups, BLOCK_GROUPS)).to(tl.int64)", "block = tl.program_id(0) % tl.cdiv(n_groups, BLOCK_GROUPS)", WIDE),
    Mutant(1, "contraction: a probe's number of 32 bits", KERNELS + "contraction.py", "tl.cast(k, tl.int64) * n_chains", "k * n_chains", WIDE),
    Mutant(1, "jets: a block of 32 bits", "kernels/fastscore_kernels/jets.py", "(tl.program_id(1).to(tl.int64) * n_rows + first) * K", "(tl.program_id(1) * n_rows + first) * K", WIDE),
    Mutant(29, "contraction: probes of the program, not of the sample", "kernels/fastscore_kernels/contraction.py", "chain, bits = first_chain + first_row + rows, tl.arange(0, BITS)[None, None, :]\n    start, plane = first_row * n_features, tl.cast(n_chains, tl.int64) * n_features\n    sample", "chain, bits = first_chain + rows, tl.arange(0, BITS)[None, None, :]\n    start, plane = first_row * n_features, tl.cast(n_chains, tl.int64) * n_features\n    sample", ("tests/kernels/test_contraction.py::test_the_batch_and_the_probes_may_be_split", "tests/kernels/test_contraction.py::test_values")),
    Mutant(48, "contraction: half of the squares", "kernels/fastscore_kernels/contraction.py", "total = 0.5 * tl.sum(tl.sum(squares, 2), 1)", "total = tl.sum(tl.sum(squares, 2), 1)", ("tests/kernels/test_contraction.py::test_values",)),
    Mutant(20, "whole networks: residual tangent", "kernels/fastscore_kernels/mlp_whole_forward.py", "t = slopes[layer] * q + t if RESIDUALS[layer] else slopes[layer] * q\n        if PROBE", "t = slopes[layer] * q\n        if PROBE", ("tests/kernels/test_mlp_whole.py::test_values_match_brute_force",)),
    Mutant(4, "whole networks: rows past the last", "kernels/fastscore_kernels/mlp_whole_forward.py", "inside = (rows < n_rows - first) & (units[:, None] < N)", "inside = (rows < n_rows - first) | (units[:, None] < N)", ("tests/kernels/test_mlp_whole.py::test_values_match_brute_force",)),
    Mutant(29, "whole networks: probes of the program, not of the sample", "kernels/fastscore_kernels/mlp_whole_forward.py", "first_chain + first + rows, features, D, PROBE, k))\n            t =", "first_chain + rows, features, D, PROBE, k))\n            t =", ("tests/kernels/test_mlp_whole.py::test_values_match_brute_force",)),
    Mutant(20, "energies in compiled code: slopes of another layer", "fastscore/ops/_cpu_source_network.py", "(net->n_layers - 2 - l) * layer_size", "(turn - 1) * layer_size", ("tests/ops/test_cpu_network.py::test_every_shape_of_an_energy",)),
    Mutant(20, "energies in compiled code: sign", "fastscore/ops/_cpu_network.py", "top=-mlp.weights[-1][0]", "top=mlp.weights[-1][0]", ("tests/ops/test_cpu_network.py::test_every_shape_of_an_energy",)),
    Mutant(48, "whole networks: every probe the first", "kernels/fastscore_kernels/mlp_whole_forward.py", "features, D, PROBE, k))\n            t =", "features, D, PROBE, 0))\n            t =", ("tests/kernels/test_mlp_whole.py::test_values_match_brute_force",)),
    Mutant(48, "whole networks: an energy's every probe the first", "kernels/fastscore_kernels/mlp_whole_forward.py", "features, D, PROBE, k))\n                q =", "features, D, PROBE, 0))\n                q =", ("tests/kernels/test_mlp_whole.py::test_values_match_brute_force[curvature-2-of-8]",)),
    Mutant(20, "whole networks: what the first layer bends along a probe", "kernels/fastscore_kernels/mlp_whole_forward.py", "laplacian = tl.sum(curvatures[0] * q * q, 0)\n", "laplacian = 0.0 * tl.sum(curvatures[0] * q * q, 0)\n", ("tests/kernels/test_mlp_whole.py::test_values_match_brute_force[curvature-2-of-8]",)),
    Mutant(20, "mala of a network: another score", "fastscore/samplers/analytic.py", "and found.descends(other)", "", ("tests/ops/test_cpu_network.py::test_log_densities_that_are_not_compiled",)),
    Mutant(47, "mala of a network: its output's bias", "fastscore/ops/_cpu_source_network.py", "{ALL(net->base), ALL(net->base)}", "{ALL(0.0f), ALL(0.0f)}", ("tests/ops/test_cpu_network.py::test_the_log_density_of_an_energy",)),
    Mutant(47, "mala of a network: sign", "fastscore/samplers/analytic.py", "-reading.out_scale[0]", "reading.out_scale[0]", ("tests/ops/test_cpu_network.py::test_the_log_density_of_an_energy",)),
    Mutant(33, "triton: tuned at run time", TRITON, "@triton.jit\ndef philox(", "@triton.autotune([], [])\n@triton.jit\ndef philox(", RULES),
]

IN_NETWORKS = [
    Mutant(20, "second derivative through the tiles", FUNCTIONS, "if torch.is_grad_enabled() or transformed(upstream)", "if transformed(upstream)", (M + "test_second_derivative_with_constant_upstream",)),
    Mutant(23, "upstream gradient forgotten", FUNCTIONS, "gradient * upstream for", "gradient for", (M + "test_a_loss_scales_with_its_upstream_and_backs_up_twice",)),
    Mutant(48, "sum of the probes", FUNCTIONS, "else weights.trace / of_loss.count", "else weights.trace", (M + "test_values_and_all_gradients", M + "test_a_loss_scales_with_its_upstream_and_backs_up_twice")),
    Mutant(29, "probes of a tile, not of the row", "fastscore/ops/mlp_problem.py", "self.first_sample + rows.start", "self.first_sample", (M + "test_an_estimate_does_not_depend_on_the_split",)),
    Mutant(24, "a gradient nobody asked for", FUNCTIONS, "if need and key[0] != \"C\"", "if key[0] != \"C\"", (M + "test_every_subset_of_what_requires_grad",)),
    Mutant(14, "sums in half precision", "fastscore/reference/contraction.py", "return x.float() if", "return x if", ("tests/test_losses.py::test_half_precision_sums_in_float32", U + "test_half_precision_sums_in_float32")),
    Mutant(20, "slope for curvature", TILES, "(slopes[layer], jets[layer][2])", "(slopes[layer], jets[layer][1])", MLP),
    Mutant(20, "third derivative dropped", TILES, "bent.append((curvatures[layer], jets[layer][3]))", "pass", MLP),
    Mutant(32, "threads' gradients lost", TILES, "totals[0].add_(other)", "pass", ("tests/ops/test_cpu_threads.py::test_threads_change_nothing_but_rounding",)),
    Mutant(9, "outputs with the strides of a view", TILES, "total.t() if key in self.flipped", "total if key in self.flipped", MLP),
    Mutant(20, "trace: residual term", FORMS, "mlp_passes.mix(through, through, below, scratch)", "pass", MLP),
    Mutant(23, "trace: weights of the samples", FORMS, "[through, _weighted(self.carried, g, scratch)]", "[through, self.carried]", MLP),
    Mutant(48, "probes: residual tangent", FORMS, "_add(tangents, self.tangents[-1], scratch)", "pass", MLP),
    Mutant(9, "program: step of a condition's rows", PROGRAM, "t.stride(0)) for t in self.batch", "t[0].numel()) for t in self.batch", (CP + "test_conditions_that_all_rows_share_or_none_do",)),
    Mutant(25, "program: one address, two arrays", "fastscore/ops/mlp_programs.py", " or _ambiguous(mlp, x, shifts):", ":", (CP + "test_a_condition_that_shares_memory_with_what_it_is_added_to",)),
    Mutant(25, "program: of any tied weights", PROGRAM, "t.stride(), met.setdefault(t.data_ptr(), i))", "t.stride(), 0)", (CP + "test_tied_weights_have_a_program_of_their_own",)),
    Mutant(4, "program: rows of the last tile", "fastscore/ops/_cpu_source_program.py", "end - row < tile ? end - row : tile", "tile", (CP + "test_any_number_of_rows",)),
    Mutant(29, "program: noise of the tile, not of the row", "fastscore/ops/_cpu_source_program.py", "(u32)n[1], (u32)n[2], first + row);\n          break;", "(u32)n[1], (u32)n[2], first);\n          break;", (CP + "test_values_without_gradients",)),
    Mutant(23, "program: weights of the samples", "fastscore/ops/_cpu_source_program.py", "w ? w[i * w_step] : 1.0f", "1.0f", (CP + "test_points_and_gradients_of_any_layout",)),
    Mutant(20, "trace around a narrow layer: its slopes in the gradient of the exit", "fastscore/ops/mlp_circuit.py", "change.mul_(slopes[self.start].unsqueeze(2))", "pass", MLP),
    Mutant(20, "trace around a narrow layer: what enters is residual", "fastscore/reference/mlp.py", "if mlp.residuals[first]:", "if False:", ("tests/reference/test_mlp.py",)),
    Mutant(20, "laplacian: factor 2", LAPLACIAN, "scale=2.0, plus=plus", "scale=1.0, plus=plus", MLP),
    Mutant(20, "laplacian: what the score adds", LAPLACIAN, "found.append(slope)", "found.append(slopes[layer] if slopes[layer] is not None else slope)", MLP),
    Mutant(47, "denoising of an energy: upstream in the energy", "fastscore/ops/mlp_denoising.py", "return (None, (e,)) if values else (e, ())", "return (None, (-e,)) if values else (e, ())", ("tests/ops/test_mlp_denoising.py::test_loss_and_gradients",)),
    Mutant(47, "denoising: the noise of the tile", "fastscore/ops/mlp_denoising.py", 'Noise("normal", residual.seed, residual.first_chain)', 'Noise("normal", residual.seed, 0)', ("tests/ops/test_mlp_denoising.py::test_loss_and_gradients",)),
    Mutant(20, "compiled: curvature", "fastscore/ops/_cpu_source_layers.py", "if (a && !u) EACH { di[j] = MADD(di[j], ai[j], scale * (si[j] * ci[j]))", "if (a && !u) EACH { di[j] = MADD(di[j], ai[j], scale * si[j])", ("tests/ops/test_cpu_layers.py::test_pull",)),
    Mutant(20, "compiled: silu'''", "fastscore/ops/_cpu_source_layers.py", "MADD(-6.0f, s1, 1.0f), 3.0f * m)", "MADD(-6.0f, s1, 1.0f), m)", ("tests/ops/test_cpu_layers.py::test_jets_err_at_most_twice_as_much_as_torch",)),
    Mutant(17, "gelu overflows", "fastscore/reference/activations.py", "z.clamp(-39, 39)", "z", ACTIVATIONS),
    Mutant(20, "silu''", "fastscore/reference/activations.py", "2 * s1 + z * s2", "s1 + z * s2", ACTIVATIONS),
    Mutant(46, "the residual of the oracle", "fastscore/reference/mlp.py", "cotangents + leaving if mlp.residuals[final] else cotangents", "cotangents", ("tests/reference/test_mlp.py",)),
    Mutant(8, "an expanded gradient", "fastscore/ops/mlp_problem.py", "gradient.contiguous() for gradient", "gradient for gradient", (K + "test_strided_inputs_and_gradients",)),
    Mutant(23, "triton: upstream of the trace", "kernels/fastscore_kernels/mlp_backward.py", "keep(gd2_ptr, g * d2", "keep(gd2_ptr, d2", KERNEL_MLP),
    Mutant(6, "triton: rows past the end", "kernels/fastscore_kernels/mlp_forward.py", "trace, mask=rows < n_rows - first", "trace, mask=rows < ROWS", KERNEL_MLP),
    Mutant(21, "a changed network read from its layers", "fastscore/reader.py", "if \"forward\" in net.__dict__ or not all(plain(layer) and layer.bias is not None for layer in net.layers):", "if False:", ("tests/test_compile.py::test_a_changed_network_is_not_read_from_its_layers",)),
]

JETS, UP, DOWN = KERNELS + "jets.py", KERNELS + "mlp_ascent.py", KERNELS + "mlp_descent.py"
LAYERED = "tests/kernels/test_mlp_layers.py::test_values_and_all_gradients_match_brute_force"
PROBE, DUAL = ("tests/kernels/test_probes.py",), "tests/kernels/test_mlp_dual.py::"
DUAL_VALUES = (DUAL + "test_values_and_all_gradients_match_brute_force",)
CONTRACTED = "tests/kernels/test_contraction.py::"

IN_KERNELS = [
    Mutant(13, "bf16 not rounded", KERNELS + "mlp_tiles.py", "a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)", "pass", ("tests/audit/test_mlp.py::test_products_and_rows_are_what_the_table_says",)),
    Mutant(1, "networks: 32-bit rows", KERNELS + "mlp_forward.py", "first = tl.program_id(0).to(tl.int64) * ROWS", "first = tl.program_id(0) * ROWS", ("tests/audit/test_mlp.py::test_products_and_rows_are_what_the_table_says",)),
    Mutant(6, "jets: mask of the units", JETS, "(rows < n_rows - first) & (units[None, :] < H)", "(rows < n_rows - first)", (LAYERED + "[trace-3]",)),
    Mutant(20, "jets: slope for curvature", JETS, "hl = e * q", "hl = d * q", (LAYERED + "[energy-1]",)),
    Mutant(20, "jets: half of the mixed term", JETS, "dzd += 2.0 * e * dhl * weighed", "dzd += e * dhl * weighed", (LAYERED + "[energy-2]",)),
    Mutant(23, "jets: upstream of a second derivative", JETS, "squared *= numbers(c_ptr, first, n_rows, k, ROWS, K)", "pass", (LAYERED + "[curvature-2-residual]",)),
    Mutant(23, "jets: upstream of a second derivative, on the way back", JETS, "weighed = zd if c_ptr is None else zd * numbers(c_ptr, first, n_rows, k, ROWS, K)", "weighed = zd", (LAYERED + "[curvature-2-residual]",)),
    Mutant(47, "along: sign of the score", KERNELS + "mlp_along.py", "x.new_full((len(x), 1), -1.0)", "x.new_full((len(x), 1), 1.0)", (LAYERED + "[curvature-1]",)),
    Mutant(20, "along: the score bends", KERNELS + "mlp_along.py", "torch.cat((g, nothing), 1)", "torch.cat((g, nothing + 1), 1)", (LAYERED + "[curvature-1]",)),
    Mutant(48, "networks: every probe the first", KERNELS + "mlp.py", "layers._replace(number=number)", "layers", (DUAL + "test_several_probes_add_up",)),
    Mutant(29, "networks: the last probe's gradient in samples alone", KERNELS + "mlp.py", "gradients[key][part] += spare[key][part]", "gradients[key][part] = spare[key][part]", (DUAL + "test_several_probes_add_up",)),
    Mutant(20, "jets: third derivative dropped", JETS, "dz += dhl * q * activations.third(z, PHI)", "pass", (LAYERED + "[energy-1]",)),
    Mutant(20, "jets: residual tangent", JETS, "hd += tangent(hd_below_ptr, first, n_rows, k, units, ROWS, H, K)", "pass", (LAYERED + "[estimate-3-residuals]",)),
    Mutant(32, "jets: one block's form over another's", JETS, "start = (tl.program_id(1).to(tl.int64) * n_rows + first) * K", "start = first * K", (LAYERED + "[estimate-2-two-blocks]",)),
    Mutant(23, "jets: upstream of the form", JETS, "dhd = g * weights_of_form", "dhd = weights_of_form", (LAYERED + "[estimate-2]",)),
    Mutant(6, "jets: units left out", KERNELS + "jet_layers.py", 'triton.cdiv(width, options["UNITS"])), options', "1), options", (LAYERED + "[trace-3-two-blocks]",)),
    Mutant(47, "layers: sign of the score", UP, "(-forms, product(cast", "(forms, product(cast", (LAYERED + "[energy-2]",)),
    Mutant(20, "layers: residual of the form", UP, "weights += form.parameters[3]", "pass", (LAYERED + "[trace-3-residual-3]",)),
    Mutant(20, "layers: what h_1 adds to the trace", UP, "values = (values[0] + product(slopes[0], form.parameters[-1].unsqueeze(1)),)", "pass", (LAYERED + "[trace-2-too-wide-residual]",)),
    Mutant(23, "layers: upstream of the last slopes", DOWN, "product(flat, outward).mul_(g)", "product(flat, outward)", (LAYERED + "[trace-3]",)),
    Mutant(20, "layers: residual past the form", DOWN, "straight = straight._replace(tangents=g.unsqueeze(2) * p)", "pass", (LAYERED + "[estimate-6-residual-6]",)),
    Mutant(20, "layers: residual at the first slopes", DOWN, "found += (past * form.parameters[2]).sum(1)", "pass", (LAYERED + "[trace-3-residual-2]",)),
    Mutant(32, "layers: sums that start anywhere", KERNELS + "products.py", "torch.zeros(sum(sizes)", "torch.empty(sum(sizes)", (LAYERED + "[trace-3]",)),
    Mutant(20, "networks: the probe's curvature", KERNELS + "mlp_backward.py", "dz2 += g * carried * e2", "dz2 += g * carried * d2", DUAL_VALUES),
    Mutant(20, "networks: curvature of the first layer", KERNELS + "mlp_backward.py", "dz1 += bent", "dz1 += 0 * bent", DUAL_VALUES),
    Mutant(23, "networks: upstream of the probe", KERNELS + "mlp_backward.py", "keep(hd2_ptr, g * d2 * carried", "keep(hd2_ptr, d2 * carried", DUAL_VALUES),
    Mutant(38, "networks: every tile the first's probes", KERNELS + "mlp_forward.py", "first_chain + first + tl.arange(0, ROWS)", "first_chain + tl.arange(0, ROWS)", DUAL_VALUES),
    Mutant(29, "networks: every chunk the first's probes", KERNELS + "mlp.py", "self.probe.first + rows.start", "self.probe.first", (DUAL + "test_chunks_of_the_batch_add_up",)),
    Mutant(20, "chains: residual of the reverse pass", KERNELS + "chain_mlp.py", "a = below + a if RESIDUALS[DEPTH - back] else below", "a = below", (C + "test_networks",)),
    Mutant(42, "probes: swapped lanes", KERNELS + "probes.py", "tl.where(lane % 2 == 0, cos, sin)", "tl.where(lane % 2 == 0, sin, cos)", PROBE),
    Mutant(45, "probes: another word's bits", KERNELS + "probes.py", "tl.where(at == 1, w1, tl.where", "tl.where(at == 1, w2, tl.where", PROBE),
    Mutant(32, "contraction: one block's sum over another's", KERNELS + "contraction.py", "at = (block * n_probes + k) * n_chains + first_row", "at = k * n_chains + first_row", (CONTRACTED + "test_values",)),
    Mutant(38, "contraction: every probe the first", KERNELS + "contraction.py", "probe = first_probe + k", "probe = first_probe", (CONTRACTED + "test_values",)),
    Mutant(6, "contraction: mask of the features", KERNELS + "contraction.py", "s = tl.load(score_ptr + start + (rows[:, :, None] * n_features + feature), mask=mask, other=0.0)", "s = tl.load(score_ptr + start + (rows[:, :, None] * n_features + feature), mask=inside[:, :, None], other=0.0)", (CONTRACTED + "test_values",)),
    Mutant(23, "contraction: upstream of the squares", KERNELS + "contraction.py", "g * s.to(g.dtype)", "s.to(g.dtype)", (CONTRACTED + "test_gradients",)),
    Mutant(20, "contraction: a launch inside the backward", "fastscore/ops/contraction.py", "if torch.is_grad_enabled() or transformed(given)", "if transformed(given)", (CONTRACTED + "test_second_derivatives",)),
]

IN_TRACES = [
    Mutant(48, "hutchinson: sum of the probes", "fastscore/divergence.py", "found, found.kept.mean(0)", "found, found.kept.sum(0)", TRACE),
    Mutant(48, "standard error of one probe", "fastscore/divergence.py", "(k * (k - 1))", "k", TRACE),
    Mutant(4, "a loss of no rows", "fastscore/losses.py", "    scale = scale_of(convention, reduction)\n    _checks.batch(\"x\", x, allow_empty=False)\n    _checks.flag(\"return_terms\", return_terms)\n    how = Request(trace", "    scale = scale_of(convention, reduction)\n    _checks.flag(\"return_terms\", return_terms)\n    how = Request(trace", ERRORS),
    Mutant(24, "x detached", "fastscore/_products.py", "return x.view_as(x)", "return x.detach().requires_grad_()", (D + "test_layers_that_forward_mode_gets_wrong_or_refuses", "tests/test_transforms.py::test_gradients_to_second_order")),
    Mutant(27, "a foreign operator in forward mode", "fastscore/_watch.py", "func in _LEFT_TO_REVERSE or _foreign(func)", "func in _LEFT_TO_REVERSE", (D + "test_exact_trace_and_all_gradients",)),
    Mutant(29, "probes of a piece, not of the row", "fastscore/_forms.py", "right = directions(x, first, start, stop)", "right = directions(x, 0, start, stop)", (U + "test_probes_depend_on_seed_probe_and_row_alone",)),
]

IN_SAMPLERS = [
    Mutant(19, "a state in half precision", "fastscore/samplers/algorithm.py", "return LangevinState(x.detach().to(computed(x.dtype), copy=True))", "return LangevinState(x.detach().clone())", (L + "test_small_steps_are_not_lost_in_a_narrow_state",)),
    Mutant(52, "a resumed chain starts anew", "fastscore/samplers/chain.py", "step = run.first_step + k", "step = k", (S + "test_stopping_anywhere_and_going_on_gives_the_same_bits",)),
    Mutant(52, "a leap starts anew", "fastscore/samplers/chain.py", "algorithm.leap(state, run.first_step + k, n, keep)", "algorithm.leap(state, k, n, keep)", ("tests/ops/test_cpu_chain.py::test_chains_have_the_same_bits_however_they_are_cut",)),
    Mutant(39, "every part the first", "fastscore/samplers/langevin.py", "        first_chain=first_chain,\n        dtype=x.dtype,\n", "        first_chain=0,\n        dtype=x.dtype,\n", (S + "test_every_split_of_the_batch_gives_the_same_bits",)),
    Mutant(49, "a chain that breaks is not told of", "fastscore/samplers/finite.py", "if self.policy != \"raise\":", "if True:", (F + "test_raise_names_chain_and_step",)),
    Mutant(18, "one bad row freezes all", "fastscore/samplers/finite.py", "bad = ~self._finite(new)", "bad = ~self._finite(new).all().expand(len(new[0]))", (F + "test_freeze_keeps_the_last_finite_state_and_leaves_the_others_alone",)),
    Mutant(49, "the last bad step, not the first", "fastscore/samplers/finite.py", "bad & (self.first_bad < 0), k", "bad, k", (F + "test_the_first_bad_step_is_kept_where_a_chain_stays_broken",)),
    Mutant(35, "what is kept, one late", "fastscore/ops/chain.py", "divmod(steps - self.first, self.thin)", "divmod(steps - 1 - self.first, self.thin)", (S + "test_what_is_kept_is_every_thin_th_state_after_the_burn_in",)),
    Mutant(47, "mala: the reverse proposal", "fastscore/reference/metropolis.py", "to.log_prob - log_prob + back - forth", "to.log_prob - log_prob", (G + "test_a_proposal_is_accepted_exactly_when_its_uniform_says_so", G + "test_detailed_balance_holds_pointwise")),
    Mutant(47, "baoab: friction", "fastscore/samplers/underdamped.py", "-2.0 * self.friction * a", "-self.friction * a", (G + "test_one_baoab_step_is_its_formula",)),
    Mutant(47, "annealing: the ladder's step sizes", "fastscore/samplers/annealed.py", "(sigma / self.sigmas[-1]) ** 2 for", "(sigma / self.sigmas[-1]) for", (L + "test_annealed_step_sizes_follow_the_ladder",)),
    Mutant(47, "annealing: Tweedie's formula", "fastscore/samplers/annealed.py", "levels[-1] ** 2 * algorithm", "levels[-1] * algorithm", (L + "test_denoising_is_tweedies_formula",)),
    Mutant(52, "triton: a chain's noise starts anew", CHAIN, "first_step + k, first_chain + chains", "k, first_chain + chains", (C + "test_cuts_in_time_and_in_the_batch_change_no_bit",)),
    Mutant(15, "triton: a clamp hides a NaN", CHAIN, "tl.where(x < low, low, tl.where(x > high, high, x))", "tl.where(x > low, tl.where(x < high, x, high), low)", (C + "test_a_clamp_takes_in_infinity_and_leaves_a_nan",)),
    Mutant(47, "compiled mala: the reverse proposal", COMPILED, "<= to_p[i] - p[i] + back[i] - forth[i]", "<= to_p[i] - p[i]", (T + "test_chains_are_the_generic_ones", "tests/ops/test_metropolis.py::test_values")),
    Mutant(47, "compiled baoab: the last kick", COMPILED, "velocity[d * W + i] += h * score[d * W + i]", "velocity[d * W + i] += score[d * W + i]", (T + "test_chains_are_the_generic_ones",)),
    Mutant(18, "compiled mala: a lost chain is refused", COMPILED, "state[j] = lost[i] ? NAN : (accept", "state[j] = (accept", (T + "test_a_bad_chain_is_found_inside_a_leap",)),
    Mutant(18, "compiled mala: an infinite proposal is refused", COMPILED, "lost[i] |= (u32)infinite_or_nan(to[d * W + i]);", ";", (T + "test_mala_loses_a_chain_whose_proposal_is_not_finite",)),
    Mutant(39, "compiled: every part the first", COMPILED, "chain[i] = first_chain + row + (u64)i;\n    take(x, row, n, dim, state); take(s", "chain[i] = row + (u64)i;\n    take(x, row, n, dim, state); take(s", (T + "test_chains_have_the_same_bits_however_they_are_cut",)),
    Mutant(35, "what a leap keeps, one late", "fastscore/ops/chain.py", "return self.first - self.thin", "return self.first", ("tests/kernels/test_samplers.py::test_kept_states_leave_inside_a_launch",)),
    Mutant(47, "the start has the noise of the steps", "fastscore/samplers/dynamics.py", "\"stream\": Stream.INITIAL", "\"stream\": Stream.LANGEVIN", (Q + "test_start_is_a_draw_of_the_initial_stream",)),
    Mutant(47, "dynamics: a temperature of the scale", "fastscore/samplers/dynamics.py", "else noise_scale * noise_scale", "else noise_scale", (Q + "test_noise_scale_is_the_root_of_the_temperature",)),
    Mutant(46, "mala: a rate over what is kept", "fastscore/samplers/mala.py", "max(1, n_steps)", "max(1, n_steps - burn_in)", (G + "test_the_acceptance_rate_is_over_all_steps_with_a_burn_in_too",)),
    Mutant(47, "mala: exp(+E)", "fastscore/samplers/mala.py", "-log_prob(*given)", "log_prob(*given)", (G + "test_mala_takes_an_energy_network_for_what_it_is",)),
    Mutant(49, "a velocity that is not finite", "fastscore/samplers/finite.py", "else (state[0], velocity)", "else state[:1]", (F + "test_a_velocity_lost_at_the_last_step_is_found",)),
    Mutant(35, "a ladder: the first row's label for all", "fastscore/samplers/analytic.py", "1 if same_for_all(reading) else None", "1", (Q + "test_a_ladder_of_conditions",)),
    Mutant(35, "triton: the first row's label for all", "fastscore/samplers/whole.py", "cond is None and same_for_all(reading)", "cond is None", (Q + "test_a_kernel_is_told_each_rows_own_label",)),
    Mutant(41, "a refused call draws a seed", "fastscore/samplers/dynamics.py", "chain.Run(**kept).seeded(seed, generator).seed", "chain.Run(n_steps=0).seeded(seed, generator).seed", (Q + "test_a_refused_call_draws_nothing",)),
    Mutant(50, "baoab: the limit of the first order", "fastscore/samplers/arguments.py", "target._stiffness(a ** (order / 2))", "target._stiffness(a.sqrt())", (Q + "test_warned_of_is_what_diverges",)),
    Mutant(49, "a frozen chain goes on in a path", "fastscore/samplers/chain.py", "settled[0].unsqueeze(1), path)", "path, path)", ("tests/kernels/test_samplers.py::test_frozen_chains_stay_on_the_path",)),
]

IN_ARGUMENTS = [
    Mutant(41, "a bool for a seed", "fastscore/_checks.py", "if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):", "if not isinstance(value, (int, numbers.Integral)):", ERRORS),
    Mutant(50, "a step size of NaN", "fastscore/_checks.py", "not math.isfinite(value) or value < 0", "value < 0", ERRORS),
    Mutant(50, "a step size of 0", "fastscore/_checks.py", "or (positive and value == 0)", "", ERRORS),
    Mutant(10, "tensors of two devices", "fastscore/_checks.py", "if a.device != b.device:", "if False:", ERRORS),
    Mutant(49, "an integer score", "fastscore/_checks.py", "if not score.is_floating_point():", "if False:", ERRORS),
]

MUTANTS = [*IN_THE_NOISE, *IN_THE_STEP, *IN_NETWORKS, *IN_KERNELS, *IN_TRACES, *IN_SAMPLERS, *IN_ARGUMENTS]
