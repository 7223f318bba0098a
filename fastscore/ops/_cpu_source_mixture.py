"""A Gaussian mixture's score in C, on a block of chains, features first; and where any score comes from, `Source`."""

MIXTURE = r"""
/* Where the scores of a block come from: `score` of the W states x [dim][W] of chains row, row + 1, ... goes to s. */
typedef struct Source { void (*score)(const struct Source *, u64 row, int n, const float *x, float *work, float *s);
                        int dim; const void *constants; } Source;

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
    const float *mean = m->means + (size_t)k * D;
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
    for (int i = 0; i < W; i++) {
      weight[i] = m->n_components == 1 ? 1.0f : exponential(logit[i] - top[i]); /* of one, also where it underflows */
      total[i] += weight[i];
    }
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
