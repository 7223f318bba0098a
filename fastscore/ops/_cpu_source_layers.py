"""Layers in training, a part of the source: the passes over a layer between its matrix products.

One pass reads what it needs once and writes what is asked for once; in torch every operation is a pass. Arrays are
contiguous `[rows, width]`; an output may be one of the inputs of its own loop, so loops are vectorised by saying that
no iteration needs another (`EACH`) rather than that no two arrays overlap.
"""

LAYERS = r"""
enum { COLUMNS = 64, ROWS = 64 };

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MADD(a, b, c) __builtin_fmaf(a, b, c)
#else
#define MADD(a, b, c) ((a) * (b) + (c))
#endif

/* A function's value and its first three derivatives; what is not stored is not computed. */
typedef struct { float value, first, second, third; } Jet;

/* e^x for x in [-88.3, 89]: 0 below -87.7, infinite above 88.4; NaN stays NaN. */
static inline float bounded_exponential(float x) {
  float shifted = MADD(x, 1.44269504089f, 12582912.0f), n = shifted - 12582912.0f;
  float r = MADD(n, 2.12194440e-4f, MADD(n, -0.693359375f, x)), p = 1.9875691500e-4f;
  p = MADD(p, r, 1.3981999507e-3f);
  p = MADD(p, r, 8.3334519073e-3f);
  p = MADD(p, r, 4.1665795894e-2f);
  p = MADD(p, r, 1.6666665459e-1f);
  p = MADD(p, r, 5.0000001201e-1f);
  p = MADD(p, r * r, r) + 1.0f;
  return p * as_float((as_bits(shifted) + 127u) << 23);
}

/* Comparisons in this order keep a NaN. */
static inline float from_below(float z) { return -87.0f > z ? -87.0f : z; }
static inline float bounded(float z) { z = -89.0f > z ? -89.0f : z; return 87.0f < z ? 87.0f : z; }

/* The sigmoid s of a bounded y, and 1 - s: from the exponential where the difference would lose digits. Far below, s is
   0, so that z s is NaN for -inf, as torch's. */
typedef struct { float s, c; } Sigmoid;
static inline Sigmoid sigmoid(float y) {
  float e = bounded_exponential(-y), s = 1.0f / (1.0f + e);
  return (Sigmoid){s, y < 1.0f ? 1.0f - s : e * s};
}

static inline Jet silu(float z) {
  float y = bounded(z);
  Sigmoid x = sigmoid(y);
  float s1 = x.s * x.c, m = x.c - x.s;
  float third = s1 * MADD(y, MADD(-6.0f, s1, 1.0f), 3.0f * m);
  return (Jet){z * x.s, MADD(y, s1, x.s), s1 * MADD(y, m, 2.0f), third};
}

static inline Jet softplus(float z) {
  Sigmoid x = sigmoid(bounded(z));
  float e = bounded_exponential(from_below(-fabsf(z))), w = e / (2.0f + e), w2 = w * w;
  float s1 = x.s * x.c, p = 1.0f / 13.0f; /* log(1 + e) = 2 artanh(w), w <= 1/3 */
  p = MADD(p, w2, 1.0f / 11.0f);
  p = MADD(p, w2, 1.0f / 9.0f);
  p = MADD(p, w2, 1.0f / 7.0f);
  p = MADD(p, w2, 1.0f / 5.0f);
  p = MADD(p, w2, 1.0f / 3.0f);
  p = MADD(p * w2, w, w);
  return (Jet){MADD(2.0f, p, z > 0.0f ? z : 0.0f), x.s, s1, s1 * (x.c - x.s)};
}

static inline Jet hyperbolic_tangent(float z) {
  Sigmoid x = sigmoid(bounded(2.0f * z));
  float z2 = z * z, p = -5.70498872745e-3f, q = 4.0f * x.s * x.c;
  p = MADD(p, z2, 2.06390887954e-2f);
  p = MADD(p, z2, -5.37397155531e-2f);
  p = MADD(p, z2, 1.33314422036e-1f);
  p = MADD(p, z2, -3.33332819422e-1f);
  float t = z2 < 0.390625f ? MADD(p * z2, z, z) : x.s - x.c; /* the difference would cancel near 0 */
  return (Jet){t, q, -2.0f * t * q, q * MADD(6.0f * t, t, -2.0f)};
}

static inline Jet softsign(float z) {
  float r = 1.0f / (1.0f + fabsf(z)), r2 = r * r, bend = z > 0.0f ? -2.0f : (z < 0.0f ? 2.0f : 0.0f);
  return (Jet){z * r, r2, bend * (r2 * r), 6.0f * (r2 * r2)};
}

/* z P(z), P and p the normal distribution and density: P near 0 is odd about 1/2, in the tails p times Mills' ratio, a
   polynomial of w = 1 / (1 + 0.4 |z|) (both fitted, for the least relative error, to 1e-8 and 5e-8). */
static inline Jet gelu(float z) {
  float y = -13.28f > z ? -13.28f : z; /* where the exponential is 0, as the sigmoid above */
  y = 13.28f < y ? 13.28f : y;
  float y2 = y * y, p = 0.398942280f * bounded_exponential(-0.5f * y2);
  float w = 1.0f / MADD(0.4f, fabsf(y), 1.0f), tail = 0.174295768f, near = -6.80949051e-6f;
  tail = MADD(tail, w, -0.476170570f);
  tail = MADD(tail, w, 0.273019046f);
  tail = MADD(tail, w, 0.134631053f);
  tail = MADD(tail, w, 0.349698007f);
  tail = MADD(tail, w, 0.398625612f);
  tail = MADD(tail, w, 0.400057286f) * w * p;
  near = MADD(near, y2, 1.11041125e-4f);
  near = MADD(near, y2, -1.18383719e-3f);
  near = MADD(near, y2, 9.97228269e-3f);
  near = MADD(near, y2, -6.64902106e-2f);
  near = MADD(near, y2, 0.398942262f);
  float c = y2 < 1.5f ? MADD(near, y, 0.5f) : (y < 0.0f ? tail : 1.0f - tail);
  return (Jet){z * c, MADD(y, p, c), p * (2.0f - y2), p * (y * (y2 - 4.0f))};
}

/* z s(v) with the sigmoid s and v = sqrt(8 / pi) (z + 0.044715 z^3). */
static inline Jet gelu_tanh(float z) {
  float y = -10.1f > z ? -10.1f : z;
  y = 10.1f < y ? 10.1f : y;
  float y2 = y * y, v1 = 1.59576912f * MADD(0.134145f, y2, 1.0f), v2 = 0.428128974f * y;
  Sigmoid x = sigmoid(bounded(1.59576912f * y * MADD(0.044715f, y2, 1.0f)));
  float t1 = x.s * x.c, t2 = t1 * (x.c - x.s), t3 = t1 * MADD(-6.0f, t1, 1.0f); /* of s, in v */
  float s1 = t1 * v1, s2 = MADD(t2 * v1, v1, t1 * v2);
  float s3 = MADD(t3 * v1 * v1, v1, MADD(3.0f * t2 * v1, v2, 0.428128974f * t1));
  return (Jet){z * x.s, MADD(y, s1, x.s), MADD(y, s2, 2.0f * s1), MADD(y, s3, 3.0f * s2)};
}

#if defined(__clang__)
#define EACH _Pragma("clang loop vectorize(assume_safety)") for (u64 j = 0; j < n; j++)
#else
#define EACH _Pragma("GCC ivdep") for (u64 j = 0; j < n; j++)
#endif
#define JETS(phi)                                                                                                      \
  static void phi##_jets(u32 order, u64 n, const float *z, const float *b, float *h, float *d, float *c, float *t) {   \
    if (order == 0) EACH h[j] = phi(z[j] + b[j]).value;                                                                \
    if (order == 1) EACH { Jet y = phi(z[j] + b[j]); h[j] = y.value; d[j] = y.first; }                                 \
    if (order == 2) EACH { Jet y = phi(z[j] + b[j]); h[j] = y.value; d[j] = y.first; c[j] = y.second; }                \
    if (order == 3)                                                                                                    \
      EACH { Jet y = phi(z[j] + b[j]); h[j] = y.value; d[j] = y.first; c[j] = y.second; t[j] = y.third; }              \
  }
JETS(silu)
JETS(softplus)
JETS(hyperbolic_tangent)
JETS(softsign)
JETS(gelu)
JETS(gelu_tanh)

/* h, phi'(z), phi''(z), phi'''(z) up to `order`, of z + b, one row of b for all. */
void jets(u32 activation, u32 order, u64 rows, u64 n, const float *z, const float *b, float *h, float *d, float *c,
          float *t) {
  void (*const known[])(u32, u64, const float *, const float *, float *, float *, float *, float *) = {
      silu_jets, softplus_jets, hyperbolic_tangent_jets, softsign_jets, gelu_jets, gelu_tanh_jets};
  for (u64 r = 0, at = 0; r < rows; r++, at += n)
    known[activation](order, n, z + at, b, h + at, d + at, c + at, t + at);
}

/* d = d a + scale (s c + u t) in place, without the parts that are null (a; s and c, but not with a; u and t); the new
   d's column sums are added to `total` if it is not null, block by block, for fewer roundings. */
void pull(u64 rows, u64 width, const float *a, const float *s, const float *c, const float *u, const float *t,
          float scale, float *d, float *total) {
  for (u64 r = 0; r < rows; r += ROWS)
    for (u64 k = 0; k < width; k += COLUMNS) {
      const u64 last = rows - r < ROWS ? rows : r + ROWS, n = width - k < COLUMNS ? width - k : COLUMNS;
      float sum[COLUMNS] = {0};
      for (u64 i = r; i < last; i++) {
        const u64 at = i * width + k;
        const float *ai = a + at, *si = s + at, *ci = c + at, *ui = u + at, *ti = t + at;
        float *di = d + at;
        if (a && !s) EACH { di[j] *= ai[j]; sum[j] += di[j]; }
        else if (a && !u) EACH { di[j] = MADD(di[j], ai[j], scale * (si[j] * ci[j])); sum[j] += di[j]; }
        else if (a) EACH { di[j] = MADD(di[j], ai[j], scale * MADD(si[j], ci[j], ui[j] * ti[j])); sum[j] += di[j]; }
        else if (!u) EACH { di[j] = scale * (si[j] * ci[j]); sum[j] += di[j]; }
        else EACH { di[j] = scale * MADD(si[j], ci[j], ui[j] * ti[j]); sum[j] += di[j]; }
      }
      if (total) for (u64 j = 0; j < n; j++) total[k + j] += sum[j];
    }
}

/* out[r] = sum_k a[r][k] b[r][k]: a and b [rows, count, n], out [rows, n]; a `shared` b is one [count, n] for all. */
void contract(u64 rows, u64 count, u64 n, const float *a, const float *b, int shared, float *out) {
  for (u64 r = 0; r < rows; r++, out += n) {
    const float *right = shared ? b : b + r * count * n;
    for (u64 k = 0; k < count; k++, a += n, right += n) {
      if (k) EACH out[j] = MADD(a[j], right[j], out[j]);
      else EACH out[j] = a[j] * right[j];
    }
  }
}

/* out[r][k] = scale a[r][k] d[r], and + b[r][k] e[r] where b is not null: a, b and out [rows, count, n], d and e
   [rows, n]; out may be a or b; a `shared` a is one [count, n] for all. */
void spread(u64 rows, u64 count, u64 n, float scale, const float *a, const float *d, int shared, const float *b,
            const float *e, float *out) {
  for (u64 r = 0; r < rows; r++)
    for (u64 k = 0; k < count; k++) {
      const u64 at = (r * count + k) * n;
      const float *ak = a + (shared ? k * n : at), *dr = d + r * n, *bk = b + at, *er = e + r * n;
      float *o = out + at;
      if (b) EACH o[j] = MADD(bk[j], er[j], scale * (ak[j] * dr[j]));
      else EACH o[j] = scale * (ak[j] * dr[j]);
    }
}

/* out[r] = a[r] . b[r]. */
void row_products(u64 rows, u64 width, const float *a, const float *b, float *out) {
  for (u64 r = 0; r < rows; r++) {
    float sum[32] = {0}, total = 0.0f;
    const float *left = a + r * width, *right = b + r * width;
    u64 j = 0;
    for (; j + 32 <= width; j += 32)
      for (int i = 0; i < 32; i++) sum[i] = MADD(left[j + i], right[j + i], sum[i]);
    for (; j < width; j++) total = MADD(left[j], right[j], total);
    for (int i = 0; i < 8; i++) total += (sum[i] + sum[i + 8]) + (sum[i + 16] + sum[i + 24]);
    out[r] = total;
  }
}
"""
