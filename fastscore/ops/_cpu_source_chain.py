"""Whole Langevin chains in C, the second part of the source: the one loop, and the score of a Gaussian mixture.

A thread takes a block of 64 chains through all its steps, features first, so that the block never leaves the cache.
"""

CHAIN = r"""
/* Where the scores of a block come from: `score` of the W states x [dim][W] of chains row, row + 1, ... goes to s. */
typedef struct Source { void (*score)(const struct Source *, u64 row, int n, const float *x, float *work, float *s);
                        int dim; const void *constants; } Source;

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

/* n_steps Langevin steps of rows [begin, end) of x [*, dim] along a score; a and c are [n_steps, dim].
   Returns 0, or 1 if there was no memory for it (nothing is done then). */
static int chains(const Source *source, size_t work_size, float *x, u64 begin, u64 end, int n_steps, const float *a,
                  const float *c, int clamp, float low, float high, u32 k0, u32 k1, u32 step, u32 stream,
                  u64 first_chain, const Path *path) {
  const int dim = source->dim, groups = (dim + 3) / 4, n_lanes = dim < 4 ? dim : 4;
  float *state = scratch((2 * (size_t)dim + 4) * W + work_size);
  if (!state) return 1;
  float *s = state + (size_t)dim * W, *e = s + (size_t)dim * W, *work = e + 4 * W;
  u64 chain[W], group[W];
  for (u64 row = begin; row < end; row += W) {
    const int n = end - row < W ? (int)(end - row) : W;
    for (int i = 0; i < W; i++) {
      chain[i] = first_chain + row + (u64)i;
      for (int d = 0; d < dim; d++) state[d * W + i] = x[(row + (u64)(i < n ? i : n - 1)) * dim + d];
    }
    for (int k = 0; k < n_steps; k++) {
      const Key key = {k0, k1, step + (u32)k, stream};
      source->score(source, row, n, state, work, s);
      for (int g = 0; g < groups; g++) {
        for (int i = 0; i < W; i++) group[i] = (u64)g;
        normals(key, chain, group, n_lanes, e);
        for (int lane = 0, d = g; lane < n_lanes && d < dim; lane++, d += groups) {
          const float ad = a[(size_t)k * dim + d], cd = c[(size_t)k * dim + d];
          float *xd = state + d * W;
          for (int i = 0; i < W; i++) xd[i] = xd[i] + ad * s[d * W + i] + cd * e[lane * W + i];
          if (clamp)
            for (int i = 0; i < W; i++) xd[i] = xd[i] < low ? low : (xd[i] > high ? high : xd[i]);
        }
      }
      keep(path, k + 1, state, row, n, dim);
    }
    for (int i = 0; i < n; i++)
      for (int d = 0; d < dim; d++) x[(row + (u64)i) * dim + d] = state[d * W + i];
  }
  free(state);
  return 0;
}

/* exp(x) for x <= 0, zero below -87; NaN stays NaN. */
static inline float exponential(float x) {
  float bounded = x < -87.0f ? -87.0f : x;
  float shifted = bounded * 1.44269504089f + 12582912.0f, n = shifted - 12582912.0f;
  float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r * r + r) + 1.0f;
  p = p * as_float((as_bits(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : p;
}

/* Score of a Gaussian mixture at W points x [dim][W]: z_k = L_k^-1 (x - m_k), s = -sum_k softmax(...)_k L_k^-T z_k. */
typedef struct { int n_components, full; const float *means, *inverse, *log_scale; } Mixture;

static void mixture_score(const Source *source, u64 row, int n, const float *x, float *restrict work,
                          float *restrict s) {
  const Mixture *m = source->constants;
  const int D = source->dim;
  float *joint = work, *z = work + (size_t)m->n_components * W;
  (void)row, (void)n;
  float top[W], total[W];
  for (int i = 0; i < W; i++) { top[i] = -INFINITY; total[i] = 0.0f; }
  for (int k = 0; k < m->n_components; k++) {
    const float *mean = m->means + k * D;
    float *zk = z + (size_t)k * D * W, *logit = joint + (size_t)k * W;
    float square[W];
    memset(square, 0, sizeof square);
    for (int d = 0; d < D; d++) {
      float *zd = zk + d * W;
      if (m->full) {
        const float *inverse = m->inverse + ((size_t)k * D + d) * D;
        memset(zd, 0, W * sizeof(float));
        for (int j = 0; j <= d; j++)
          for (int i = 0; i < W; i++) zd[i] += inverse[j] * (x[j * W + i] - mean[j]);
      } else {
        const float inverse = m->inverse[(size_t)k * D + d];
        for (int i = 0; i < W; i++) zd[i] = inverse * (x[d * W + i] - mean[d]);
      }
      for (int i = 0; i < W; i++) square[i] += zd[i] * zd[i];
    }
    for (int i = 0; i < W; i++) {
      logit[i] = m->log_scale[k] - 0.5f * square[i];
      top[i] = logit[i] > top[i] ? logit[i] : top[i];
    }
  }
  memset(s, 0, (size_t)D * W * sizeof(float));
  for (int k = 0; k < m->n_components; k++) {
    const float *zk = z + (size_t)k * D * W, *logit = joint + (size_t)k * W;
    float weight[W];
    for (int i = 0; i < W; i++) { weight[i] = exponential(logit[i] - top[i]); total[i] += weight[i]; }
    for (int d = 0; d < D; d++) {
      float *sd = s + d * W;
      if (m->full) {
        for (int j = d; j < D; j++) {
          const float inverse = m->inverse[((size_t)k * D + j) * D + d];
          for (int i = 0; i < W; i++) sd[i] -= weight[i] * (inverse * zk[j * W + i]);
        }
      } else {
        const float inverse = m->inverse[(size_t)k * D + d];
        for (int i = 0; i < W; i++) sd[i] -= inverse * (weight[i] * zk[d * W + i]);
      }
    }
  }
  for (int i = 0; i < W; i++) total[i] = 1.0f / total[i];
  for (int d = 0; d < D; d++)
    for (int i = 0; i < W; i++) s[d * W + i] *= total[i];
}
"""
