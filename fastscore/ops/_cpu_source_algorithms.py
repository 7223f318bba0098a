"""Algorithms in C that run whole chains towards any target.

A thread takes a block of 64 chains through all its steps, features first, so that the block never leaves the cache. The
bits of a chain do not depend on the batch that it is in, nor on how its steps are cut.
"""

ALGORITHMS = r"""
/* Zeros, on a boundary of vectors; null where there is no memory. */
static float *scratch(size_t count) {
  const size_t size = (count * sizeof(float) + 63) / 64 * 64;
  float *made = aligned_alloc(64, size);
  if (made) memset(made, 0, size);
  return made;
}

/* The positions that are kept on the way: those after steps first, first + thin, ..., `count` of them, in states
   [*, count, dim]. */
typedef struct { float *states; int first, thin; u64 count; } Path;

/* Keep the n positions of rows row, ..., a block, if those after so many steps are kept. */
static void keep(const Path *path, int steps, const float *restrict block, u64 row, int n, int dim) {
  if (steps < path->first || (steps - path->first) % path->thin) return;
  const u64 index = (u64)((steps - path->first) / path->thin);
  if (index >= path->count) return;
  float *to = path->states + (row * path->count + index) * (u64)dim;
  for (int i = 0; i < n; i++, to += path->count * (u64)dim)
    for (int d = 0; d < dim; d++) to[d] = block[d * W + i];
}

/* Rows row, ... of x [*, dim], features first; the last of n rows is repeated. */
static void take(const float *x, u64 row, int n, int dim, float *restrict block) {
  for (int i = 0; i < W; i++)
    for (int d = 0; d < dim; d++) block[d * W + i] = x[(row + (u64)(i < n ? i : n - 1)) * dim + d];
}

static void give(const float *restrict block, u64 row, int n, int dim, float *x) {
  for (int i = 0; i < n; i++)
    for (int d = 0; d < dim; d++) x[(row + (u64)i) * dim + d] = block[d * W + i];
}

/* e = normals [dim][W] of the chains. */
static void normal_block(Key key, const u64 *chain, int dim, float *restrict e) {
  const int groups = (dim + 3) / 4, n_lanes = dim < 4 ? dim : 4;
  u64 group[W];
  float made[4 * W];
  for (int g = 0; g < groups; g++) {
    for (int i = 0; i < W; i++) group[i] = (u64)g;
    normals(key, chain, group, n_lanes, made);
    for (int lane = 0, d = g; lane < n_lanes && d < dim; lane++, d += groups)
      memcpy(e + (size_t)d * W, made + lane * W, W * sizeof(float));
  }
}

/* n_steps Langevin steps of rows [begin, end) of x [*, dim] towards a target; a and c are [n_steps, dim].
   Returns 0, or 1 if there was no memory for it (nothing is done then). */
int target_chain(float *x, u64 begin, u64 end, int n_steps, const float *a, const float *c, int clamp, float low,
                 float high, u32 k0, u32 k1, u32 step, u32 stream, u64 first_chain, const Path *path,
                 const Target *target) {
  const int dim = target->source.dim;
  const size_t size = (size_t)dim * W;
  float *state = scratch(3 * size + target->work);
  if (!state) return 1;
  float *s = state + size, *e = s + size, *work = e + size;
  u64 chain[W];
  for (u64 row = begin; row < end; row += W) {
    const int n = end - row < W ? (int)(end - row) : W;
    for (int i = 0; i < W; i++) chain[i] = first_chain + row + (u64)i;
    take(x, row, n, dim, state);
    for (int k = 0; k < n_steps; k++) {
      target->source.score(&target->source, row, n, state, work, s);
      normal_block((Key){k0, k1, step + (u32)k, stream}, chain, dim, e);
      for (int d = 0; d < dim; d++) {
        const float ad = a[(size_t)k * dim + d], cd = c[(size_t)k * dim + d];
        float *xd = state + d * W;
        for (int i = 0; i < W; i++) xd[i] = xd[i] + ad * s[d * W + i] + cd * e[d * W + i];
        if (clamp)
          for (int i = 0; i < W; i++) xd[i] = xd[i] < low ? low : (xd[i] > high ? high : xd[i]);
      }
      keep(path, k + 1, state, row, n, dim);
    }
    give(state, row, n, dim, x);
  }
  free(state);
  return 0;
}

/* The score at rows [begin, end) of x, to s, and log p, to value, if that is not null; returns as `target_chain`. */
int target_value(const float *x, float *s, float *value, u64 begin, u64 end, const Target *target) {
  const int dim = target->source.dim;
  float *state = scratch((2 * (size_t)dim + 1) * W + target->work);
  if (!state) return 1;
  float *score = state + (size_t)dim * W, *log_prob = score + (size_t)dim * W, *work = log_prob + W;
  for (u64 row = begin; row < end; row += W) {
    const int n = end - row < W ? (int)(end - row) : W;
    take(x, row, n, dim, state);
    target->source.score(&target->source, row, n, state, work, score);
    give(score, row, n, dim, s);
    if (!value) continue;
    target->log_prob(target, state, work, log_prob);
    memcpy(value + row, log_prob, (size_t)n * sizeof(float));
  }
  free(state);
  return 0;
}

/* n_steps of BAOAB: rows [begin, end) of positions x, velocities v and the scores s at x; half = a / 2, damped =
   exp(-gamma a) and renew = sqrt((1 - damped^2) T) are [n_steps, dim]; returns as `target_chain`. */
int underdamped_chain(float *x, float *v, float *s, u64 begin, u64 end, int n_steps, const float *half,
                      const float *damped, const float *renew, u32 k0, u32 k1, u32 step, u32 stream, u64 first_chain,
                      const Path *path, const Target *target) {
  const int dim = target->source.dim;
  const size_t size = (size_t)dim * W;
  float *position = scratch(4 * size + target->work);
  if (!position) return 1;
  float *velocity = position + size, *score = velocity + size, *e = score + size, *work = e + size;
  u64 chain[W];
  for (u64 row = begin; row < end; row += W) {
    const int n = end - row < W ? (int)(end - row) : W;
    for (int i = 0; i < W; i++) chain[i] = first_chain + row + (u64)i;
    take(x, row, n, dim, position); take(v, row, n, dim, velocity); take(s, row, n, dim, score);
    for (int k = 0; k < n_steps; k++) {
      normal_block((Key){k0, k1, step + (u32)k, stream}, chain, dim, e);
      for (int d = 0; d < dim; d++) {
        const size_t at = (size_t)k * dim + d;
        const float h = half[at], kept = damped[at], renewed = renew[at];
        float *xd = position + d * W, *vd = velocity + d * W, *sd = score + d * W, *ed = e + d * W;
        for (int i = 0; i < W; i++) {
          const float kicked = vd[i] + h * sd[i], drifted = xd[i] + h * kicked;
          vd[i] = kept * kicked + renewed * ed[i];
          xd[i] = drifted + h * vd[i];
        }
      }
      target->source.score(&target->source, row, n, position, work, score);
      for (int d = 0; d < dim; d++) {
        const float h = half[(size_t)k * dim + d];
        for (int i = 0; i < W; i++) velocity[d * W + i] += h * score[d * W + i];
      }
      keep(path, k + 1, position, row, n, dim);
    }
    give(position, row, n, dim, x); give(velocity, row, n, dim, v); give(score, row, n, dim, s);
  }
  free(position);
  return 0;
}

/* Whether log p is NaN or +inf, or finite with a score that is not: the density is no number there. */
static void undefined(int dim, const float *restrict log_prob, const float *restrict score, u32 *restrict lost) {
  u32 steep[W] = {0};
  for (int d = 0; d < dim; d++)
    for (int i = 0; i < W; i++) steep[i] |= (u32)infinite_or_nan(score[d * W + i]);
  for (int i = 0; i < W; i++)
    lost[i] |= (u32)(log_prob[i] != log_prob[i]) | (u32)(log_prob[i] == INFINITY) |
               (steep[i] & (u32)!infinite_or_nan(log_prob[i]));
}

/* value -= sum_d (to - from - a score)^2 / (4 a): a logarithm of the density of a proposal, up to a constant. */
static void transition(int dim, const float *a, const float *restrict from, const float *restrict score,
                       const float *restrict to, float *restrict value) {
  memset(value, 0, W * sizeof(float));
  for (int d = 0; d < dim; d++)
    for (int i = 0; i < W; i++) {
      const float y = (to[d * W + i] - from[d * W + i]) - a[d] * score[d * W + i];
      value[i] -= y * y / (4.0f * a[d]);
    }
}

/* Accept or refuse proposals `to` of a block of chains in place: states, their log p, scores, numbers accepted; a is
   [dim]. A state whose density is no number, here or there, is lost. */
static void judge(int dim, const float *a, Key uniforms, const u64 *chain, float *restrict state, float *restrict p,
                  float *restrict score, float *restrict count, const float *restrict to, const float *restrict to_p,
                  const float *restrict to_score) {
  const u64 group[W] = {0};
  float forth[W], back[W];
  u32 w[4 * W], accept[W], lost[W] = {0};
  transition(dim, a, state, score, to, forth);
  transition(dim, a, to, to_score, state, back);
  words(uniforms, chain, group, w);
  undefined(dim, p, score, lost);
  undefined(dim, to_p, to_score, lost);
  for (int d = 0; d < dim; d++)
    for (int i = 0; i < W; i++) lost[i] |= (u32)infinite_or_nan(to[d * W + i]);
  for (int i = 0; i < W; i++)
    accept[i] = logarithm(((float)w[i] + 0.5f) * 0x1p-32f) <= to_p[i] - p[i] + back[i] - forth[i];
  for (int d = 0; d < dim; d++)
    for (int i = 0; i < W; i++) {
      const size_t j = (size_t)d * W + i;
      state[j] = lost[i] ? NAN : (accept[i] ? to[j] : state[j]);
      score[j] = accept[i] ? to_score[j] : score[j];
    }
  for (int i = 0; i < W; i++) { p[i] = accept[i] ? to_p[i] : p[i]; count[i] += (float)accept[i]; }
}

/* `judge` of rows [begin, end) of a batch, whose density is anybody's; returns as `target_chain`. */
int metropolis(float *x, float *log_prob, float *s, float *accepted, const float *to_x, const float *to_log_prob,
               const float *to_s, u64 begin, u64 end, int dim, const float *a, u32 k0, u32 k1, u32 step, u32 stream,
               u64 first_chain) {
  const size_t size = (size_t)dim * W;
  float *state = scratch(4 * size);
  if (!state) return 1;
  float *score = state + size, *to = score + size, *to_score = to + size, p[W], to_p[W], count[W];
  u64 chain[W];
  for (u64 row = begin; row < end; row += W) {
    const int n = end - row < W ? (int)(end - row) : W;
    for (int i = 0; i < W; i++) chain[i] = first_chain + row + (u64)i;
    take(to_x, row, n, dim, to); take(to_s, row, n, dim, to_score); take(x, row, n, dim, state);
    take(s, row, n, dim, score); take(log_prob, row, n, 1, p); take(to_log_prob, row, n, 1, to_p);
    take(accepted, row, n, 1, count);
    judge(dim, a, (Key){k0, k1, step, stream}, chain, state, p, score, count, to, to_p, to_score);
    give(state, row, n, dim, x); give(score, row, n, dim, s);
    give(p, row, n, 1, log_prob); give(count, row, n, 1, accepted);
  }
  free(state);
  return 0;
}

/* n_steps of the Metropolis-adjusted Langevin algorithm: rows [begin, end) of states x with their log p, scores s and
   numbers of proposals accepted; a and c = sqrt(2 a) are [n_steps, dim], `uniforms` the stream of the acceptances;
   returns as `target_chain`. */
int mala_chain(float *x, float *log_prob, float *s, float *accepted, u64 begin, u64 end, int n_steps, const float *a,
               const float *c, u32 uniforms, u32 k0, u32 k1, u32 step, u32 stream, u64 first_chain,
               const Path *path, const Target *target) {
  const int dim = target->source.dim;
  const size_t size = (size_t)dim * W;
  float *state = scratch(5 * size + target->work);
  if (!state) return 1;
  float *score = state + size, *to = score + size, *to_score = to + size, *e = to_score + size, *work = e + size;
  float p[W], to_p[W], count[W];
  u64 chain[W];
  for (u64 row = begin; row < end; row += W) {
    const int n = end - row < W ? (int)(end - row) : W;
    for (int i = 0; i < W; i++) chain[i] = first_chain + row + (u64)i;
    take(x, row, n, dim, state); take(s, row, n, dim, score);
    take(log_prob, row, n, 1, p); take(accepted, row, n, 1, count);
    for (int k = 0; k < n_steps; k++) {
      const float *ak = a + (size_t)k * dim, *ck = c + (size_t)k * dim;
      normal_block((Key){k0, k1, step + (u32)k, stream}, chain, dim, e);
      for (int d = 0; d < dim; d++)
        for (size_t j = (size_t)d * W; j < (size_t)(d + 1) * W; j++) to[j] = state[j] + ak[d] * score[j] + ck[d] * e[j];
      target->source.score(&target->source, row, n, to, work, to_score);
      target->log_prob(target, to, work, to_p);
      judge(dim, ak, (Key){k0, k1, step + (u32)k, uniforms}, chain, state, p, score, count, to, to_p, to_score);
      keep(path, k + 1, state, row, n, dim);
    }
    give(state, row, n, dim, x); give(score, row, n, dim, s);
    give(p, row, n, 1, log_prob); give(count, row, n, 1, accepted);
  }
  free(state);
  return 0;
}
"""
