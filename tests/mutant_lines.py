"""Wrong lines that were once made at random, in every layer above the kernels: the second table of `mutants.py`.

Of some nine hundred mutants of one token each, these are of the kinds that no test, or one by accident, had noticed, and
of the lines that others stand on.
"""

# ruff: noqa: E501

from __future__ import annotations

from mutant_table import Mutant

LOSSES, TERMS, DIVERGENCE = "fastscore/losses.py", "fastscore/_terms.py", "fastscore/divergence.py"
FORMS, METRICS, TARGETS = "fastscore/_forms.py", "fastscore/metrics.py", "fastscore/targets/mixture.py"
GRAPH, REPLAY = "fastscore/ops/graph.py", "tests/kernels/test_graph.py::"
JUDGE, J = "kernels/fastscore_kernels/metropolis.py", "tests/kernels/test_metropolis.py::"
COMPILED_CHAINS, RULE = "fastscore/ops/_cpu_source_algorithms.py", "fastscore/reference/metropolis.py"
MALA, BAOAB, CHAINS = "fastscore/samplers/mala.py", "fastscore/samplers/underdamped.py", "fastscore/samplers/chain.py"
CHECKPOINT, BUILD = "fastscore/checkpoint.py", "fastscore/ops/_cpu_build.py"
STEP_C, MIXTURE_C = "fastscore/ops/_cpu_source.py", "fastscore/ops/_cpu_source_mixture.py"
LAYERS_C, NETWORK_C = "fastscore/ops/_cpu_source_layers.py", "fastscore/ops/_cpu_source_network.py"

L, D, U = "tests/test_losses.py::", "tests/test_divergence.py::", "tests/test_divergence_inputs.py::"
T, G, X = "tests/test_targets.py::", "tests/test_samplers_corrected.py::", "tests/ops/test_cpu_chain.py::"
K, R, Y = "tests/test_checkpoint.py::", "tests/test_arguments.py::", "tests/ops/test_cpu_layers.py::"

# fmt: off

IN_LOSSES = [
    Mutant(48, "sliced: sum of the probes", LOSSES, "0.5 * projected.square() / n_probes", "0.5 * projected.square()", (L + "test_sliced_loss_and_gradients_against_brute_force",)),
    Mutant(47, "denoising: sign of the noise", LOSSES, "residual = level * wide(score) + e if", "residual = level * wide(score) - e if", (L + "test_denoising_loss_by_its_definition",)),
    Mutant(14, "denoising: asked in float32", LOSSES, "(wide(x) + level * e).to(x.dtype)", "(wide(x) + level * e)", (L + "test_the_denoised_score_is_asked_in_the_dtype_of_x",)),
    Mutant(50, "sliced: a flag of any kind", LOSSES, "    _checks.flag(\"return_terms\", return_terms)\n    how = Request(\"hutchinson\"", "    how = Request(\"hutchinson\"", (R + "test_a_bad_value_is_refused_by_name",)),
    Mutant(48, "errors added, not their squares", TERMS, "stderr.square().sum().sqrt()", "stderr.sum()", (L + "test_reduced_terms",)),
    Mutant(12, "a noise level keeps its dtype", TERMS, "sigma.to(wide(x).dtype)", "sigma", (L + "test_the_denoised_score_is_asked_in_the_dtype_of_x",)),
    Mutant(20, "laplacian: sign of the score", DIVERGENCE, "Laplacian(found.aux[0], -found.value", "Laplacian(found.aux[0], found.value", (D + "test_laplacian_and_all_gradients",)),
    Mutant(20, "jacobian: transposed", DIVERGENCE, "stacked.permute(1, 2, 0) if", "stacked.permute(1, 0, 2) if", (D + "test_jacobian_and_all_gradients",)),
    Mutant(12, "a weight keeps its dtype", DIVERGENCE, "how.weight.to(x.dtype)", "how.weight", (U + "test_a_weight_of_another_dtype_is_rounded_to_that_of_x",)),
    Mutant(46, "an estimate in one piece", DIVERGENCE, "{\"chunk_size\": how.chunk_size,", "{\"chunk_size\": None,", (U + "test_a_chunk_has_at_most_the_rows_it_is_allowed",)),
    Mutant(24, "an error with a graph", DIVERGENCE, "_standard_error(found.kept.detach())", "_standard_error(found.kept)", (D + "test_hutchinson_and_all_gradients",)),
    Mutant(20, "weighted trace: transposed", FORMS, "unsqueeze(2), weight)", "unsqueeze(2), weight.mT)", (D + "test_weighted_trace",)),
    Mutant(46, "stein: the dimension's term", METRICS, "x.shape[1] - 3 + 3 * q", "x.shape[1] - 2 + 3 * q", ("tests/test_metrics.py::test_stein_discrepancy_against_its_definition",)),
    Mutant(46, "stein: the diagonal stays", METRICS, "            if unbiased:  #", "            if False:  #", ("tests/test_metrics.py::test_stein_discrepancy_against_its_definition",)),
]

IN_TARGETS = [
    Mutant(47, "mixture: all of the square", TARGETS, "0.5 * z.square().sum(1)", "z.square().sum(1)", (T + "test_mixture_log_prob_is_scipys",)),
    Mutant(47, "mixture: the factor transposed", TARGETS, "_product(inverse.mT, weighted)", "_product(inverse, weighted)", (T + "test_mixture_score_is_the_gradient_of_log_prob",)),
    Mutant(46, "mixture: the wrong triangle", TARGETS, "self._means.t(), upper=False", "self._means.t(), upper=True", (T + "test_lipschitz_of_a_covariance_that_all_share",)),
    Mutant(47, "double well: its force", "fastscore/targets/double_well.py", "-4 * self.barrier", "-2 * self.barrier", (T + "test_double_well_is_normalised_and_its_score_a_gradient",)),
    Mutant(50, "ring: another radius", TARGETS, "radius: float = 4.0", "radius: float = 4.5", ("tests/house/test_defaults.py::test_a_default_is_that_of_its_name",)),
    Mutant(46, "the gain of another normal", "fastscore/_layers.py", "torch.exp(-0.5 * z * z)", "torch.exp(-0.505 * z * z)", ("tests/test_networks.py::test_the_gain_of_the_initialisation_is_that_of_a_normal",)),
    Mutant(21, "reader: a gain without the shift", "fastscore/_reading/algebra.py", ", shifts=tuple(_product(recorder, u, by) for u in symbol.shifts)", "", ("tests/test_reader.py::test_random_architectures",)),
    Mutant(21, "reader: the second gain alone", "fastscore/_reading/algebra.py", "gain = by if moved.gain is None else _product(recorder, moved.gain, by)", "gain = by", ("tests/test_reader_wild.py::test_values_and_gradients_are_those_of_autograd",)),
    Mutant(21, "reader: a residual of two gains", "fastscore/_reading/rules.py", " or one.gain != other.gain", "", ("tests/test_reader_declined.py::test_declined_without_comparing_values",)),
]

IN_CHAINS = [
    Mutant(47, "mala: a proposal without its drift", RULE, "(y - x - a * score).square()", "(y - x).square()", (G + "test_detailed_balance_holds_pointwise",)),
    Mutant(47, "mala: the score of the refused", RULE, "torch.where(taken.view(row), to.score, score)", "to.score", ("tests/test_properties.py::test_properties[mala-0]", G + "test_a_proposal_is_accepted_exactly_when_its_uniform_says_so")),
    Mutant(49, "mala: no density, no alarm", RULE, ".masked_fill(lost.view(row), torch.nan)", "", ("tests/ops/test_metropolis.py::test_where_the_density_is_no_number",)),
    Mutant(47, "triton: metropolis without the way back", JUDGE, "forth * forth - back * back", "forth * forth", (J + "test_values",)),
    Mutant(18, "triton: metropolis refuses an infinite proposal", JUDGE, "(tl.max(far, 1, keep_dims=True) > 0) | ", "", (J + "test_where_the_density_is_no_number",)),
    Mutant(5, "triton: metropolis past the last feature", JUDGE, "mask = there & (feature < n_features)\n        at = start + (rows * n_features + feature)\n        x, s, to_x, to_s = _loaded(x_ptr, score_ptr, to_x_ptr, to_score_ptr, at, mask)\n        tl.store", "mask = there & (feature < n_features + 1)\n        at = start + (rows * n_features + feature)\n        x, s, to_x, to_s = _loaded(x_ptr, score_ptr, to_x_ptr, to_score_ptr, at, mask)\n        tl.store", (J + "test_values",)),
    Mutant(38, "triton: metropolis's uniforms of another chain", JUDGE, "first_chain + row, tl.zeros", "row, tl.zeros", (J + "test_values",)),
    Mutant(38, "compiled metropolis: uniforms of another chain", COMPILED_CHAINS, "chain[i] = first_chain + row + (u64)i;\n    take(to_x", "chain[i] = row + (u64)i;\n    take(to_x", ("tests/ops/test_metropolis.py::test_values",)),
    Mutant(10, "graph: a state that is not rows", GRAPH, "x.clone(memory_format=torch.contiguous_format)", "x.clone()", (REPLAY + "test_a_start_of_another_layout",)),
    Mutant(52, "graph: small steps are not looked at", GRAPH, "1e-3 * moved.abs().nan_to_num().max()", "1e-3 * start.abs().max()", (REPLAY + "test_an_empty_graph_is_found_however_small_the_step",)),
    Mutant(15, "gelu: a NaN is clipped to a number", "kernels/fastscore_kernels/activations.py", "tl.maximum(z, -limit, propagate_nan=tl.PropagateNan.ALL)", "tl.maximum(z, -limit)", ("tests/audit/test_mlp.py::test_a_clipped_nan_stays_one",)),
    Mutant(20, "a backward of another backend", "fastscore/ops/_dispatch.py", "if ctx.backend == _config.backend():", "if True:", ("tests/kernels/test_backend.py::test_the_backward_of_another_thread",)),
    Mutant(49, "annealing: a denoising that is not looked at", "fastscore/samplers/chain.py", 'if self.on_nonfinite == "ignore" or not made.numel():', "if True:", ("tests/test_samplers_faults.py::test_the_last_denoising_is_guarded",)),
    Mutant(47, "mala: a given score forgotten", MALA, "score_fn or getattr(log_prob, \"score\", None)", "getattr(log_prob, \"score\", None)", (G + "test_mala_takes_a_density_a_score_or_a_target",)),
    Mutant(47, "baoab: half a kick", BAOAB, "UnderdampedState(x, v + half * score, score)", "UnderdampedState(x, v, score)", (G + "test_one_baoab_step_is_its_formula",)),
    Mutant(35, "a leap over what is to be kept", "fastscore/ops/chain.py", "skipped = max(0, -((self.first - 1 - begin) // self.thin))", "skipped = 0", (X + "test_what_is_kept_may_be_further_apart_than_a_leap",)),
    Mutant(49, "a frozen chain is not the first", "fastscore/samplers/finite.py", "self.first_bad = torch.where(bad", "self.first_bad = torch.where(~bad", ("tests/test_samplers_faults.py::test_every_sampler_keeps_a_bad_chain_apart",)),
    Mutant(53, "a checksum not looked at", CHECKPOINT, "if digest.hexdigest().encode() != found[1]:", "if False:", (K + "test_a_thousand_damaged_files_are_refused",)),
    Mutant(53, "half a file left behind", CHECKPOINT, "        part.unlink(missing_ok=True)\n", "", (K + "test_a_failed_write_leaves_what_was_there",)),
    Mutant(55, "everybody compiles", BUILD, "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", ("tests/test_faults.py::test_processes_on_one_cold_cache_compile_once_and_all_find_a_whole_library",)),
]

IN_C = [
    Mutant(16, "compiled: a term of the exponential", MIXTURE_C, "  p = p * r + 1.3981999507e-3f;\n", "", (X + "test_a_mixtures_exponentials_are_as_accurate_as_pytorchs",)),
    Mutant(15, "compiled: a clamp hides a NaN", COMPILED_CHAINS, "xd[i] < low ? low : (xd[i] > high ? high : xd[i])", "xd[i] > low ? (xd[i] < high ? xd[i] : high) : low", (X + "test_a_clamp_does_not_hide_a_bad_chain",)),
    Mutant(29, "compiled: one step's noise in all", COMPILED_CHAINS, "step + (u32)k, stream}, chain, dim, e);\n      for (int d = 0; d < dim; d++) {\n        const float ad", "step, stream}, chain, dim, e);\n      for (int d = 0; d < dim; d++) {\n        const float ad", (X + "test_chains_towards_a_mixture_are_the_generic_ones",)),
    Mutant(42, "compiled: signs of another word", STEP_C, "32 * word, count", "32 * (3 - word), count", (X + "test_signs_are_the_references_bits",)),
    Mutant(52, "compiled: states kept a step late", COMPILED_CHAINS, "      }\n      keep(path, k + 1, state", "      }\n      keep(path, k, state", ("tests/ops/test_cpu_target.py::test_states_are_kept_inside_one_run_of_the_kernel",)),
    Mutant(20, "compiled: residual of a network", NETWORK_C, "residual ? z + h[2 * (m + r) + half] : z", "z", ("tests/ops/test_cpu_network.py::test_the_value_is_as_accurate_as_pytorchs",)),
    Mutant(31, "compiled: sums of one block only", LAYERS_C, "total[k + j] += sum[j];", "total[k + j] = sum[j];", (Y + "test_pull",)),
    Mutant(20, "compiled: softsign'''", LAYERS_C, "6.0f * (r2 * r2)", "3.0f * (r2 * r2)", (Y + "test_jets_err_at_most_twice_as_much_as_torch",)),
]

IN_REVIEWS = [
    Mutant(15, "triton: metropolis forgets a bad score", JUDGE, "steep |= ", "steep = ", (J + "test_where_the_density_is_no_number",)),
    Mutant(12, "triton: metropolis's uniforms in float32", JUDGE, "word.to(p.dtype)", "word.to(tl.float32)", (J + "test_a_uniform_of_float64_keeps_its_digits",)),
    Mutant(5, "triton: noise in the gaps of a chain", "kernels/fastscore_kernels/chain.py", "x = tl.where(exists, x + a * s + tl.sqrt(2.0 * t * a) * e, 0.0)", "x = x + a * s + tl.sqrt(2.0 * t * a) * e", ("tests/kernels/test_chain.py::test_a_score_sees_zeros_in_the_gaps",)),
    Mutant(16, "triton: a sine's last digits", "kernels/fastscore_kernels/activations.py", " - turns * _LOW", "", ("tests/kernels/test_mlp_layers.py::test_activations_at_0_and_far_from_it",)),
    Mutant(15, "triton: softsign'' at 0", "kernels/fastscore_kernels/activations.py", "tl.where(z > 0.0, -cubed, tl.where(z < 0.0, cubed, 0.0))\n    else:\n        tl.static_assert", "tl.where(z > 0.0, -cubed, cubed)\n    else:\n        tl.static_assert", ("tests/kernels/test_mlp_layers.py::test_activations_at_0_and_far_from_it",)),
    Mutant(5, "triton: rows past the last are read", "kernels/fastscore_kernels/langevin.py", "tl.load(x_ptr + start + offs, mask=mask, other=0.0).to(COMPUTE)\n        s =", "tl.load(x_ptr + start + offs, mask=feature < n_features, other=0.0).to(COMPUTE)\n        s =", ("tests/kernels/test_langevin.py",)),
    Mutant(12, "bfloat16 products summed in bfloat16", "kernels/fastscore_kernels/products.py", "left.float() @ right.float()", "(left @ right).float()", ("tests/kernels/test_mlp_narrow.py::test_products_of_bfloat16_are_summed_in_float32",)),
    Mutant(35, "a ladder keeps what is in memory", "fastscore/samplers/annealed.py", "keep.part(k - first, until - first)", "keep.part(k, until)", ("tests/ops/test_cpu_target.py::test_a_leap_over_a_ladder_keeps_what_it_is_asked_for",)),
    Mutant(39, "denoising: second derivatives of row 0", "fastscore/ops/mlp_denoising.py", "int(Stream.DATA), self.first_chain)\n        return self.square", "int(Stream.DATA), 0)\n        return self.square", ("tests/ops/test_mlp_denoising.py::test_second_derivatives",)),
    Mutant(49, "float16's infinity passes", "fastscore/samplers/finite.py", "65520.0 if", "math.inf if", ("tests/test_samplers_faults.py::test_a_chain_that_leaves_float16_is_frozen_and_flagged",)),
    Mutant(17, "a long mean in float32", "fastscore/samplers/saved.py", "else torch.float64", "else torch.float32", ("tests/test_samplers_faults.py::test_moments_are_wide_and_means_of_long_chains_exact",)),
]

MORE = [*IN_LOSSES, *IN_TARGETS, *IN_CHAINS, *IN_C, *IN_REVIEWS]
