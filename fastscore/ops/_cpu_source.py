"""The CPU kernels in C, compiled on the user's machine by `fastscore.ops._cpu_build`; the first part of the source.

Noise is `fastscore.reference.philox` operation by operation (contraction to fused multiply-adds is switched off), so it
is the same bits as the reference on every machine; so is a Langevin step. Everything works on blocks of 64 counters or
chains, whole blocks only, so a row's bits do not depend on the batch it is in.
"""

STEP = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#define aligned_alloc(alignment, size) _aligned_malloc(size, alignment)
#define free _aligned_free
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

typedef uint32_t u32;
typedef uint64_t u64;
enum { W = 64 };
typedef struct { u32 k0, k1, step, stream; } Key;

static inline float as_float(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline u32 as_bits(float f) { u32 bits; memcpy(&bits, &f, 4); return bits; }

/* Philox-4x32-10 on W counters. Words stay in 64-bit lanes whose upper halves are left dirty: a widening
   multiplication reads the lower halves only. */
#if defined(__AVX512F__)
typedef u64 lanes __attribute__((vector_size(64)));
#define WIDE(a, b) ((lanes)_mm512_mul_epu32((__m512i)(a), (__m512i)(b)))
#elif defined(__AVX2__)
typedef u64 lanes __attribute__((vector_size(32)));
#define WIDE(a, b) ((lanes)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#else
typedef u64 lanes __attribute__((vector_size(16)));
#define WIDE(a, b) (((a) & 0xffffffffu) * ((b) & 0xffffffffu))
#endif
enum { L = sizeof(lanes) / 8 };

/* The lower halves of a, then of b. */
static inline void narrow(lanes a, lanes b, u32 *w) {
#if defined(__AVX512F__)
  __m256i lower[2] = {_mm512_cvtepi64_epi32((__m512i)a), _mm512_cvtepi64_epi32((__m512i)b)};
  memcpy(w, lower, sizeof lower);
#elif defined(__AVX2__)
  __m256i pairs = (__m256i)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88), lower = _mm256_permute4x64_epi64(pairs, 0xD8);
  memcpy(w, &lower, sizeof lower);
#else
  for (int i = 0; i < L; i++) { w[i] = (u32)a[i]; w[L + i] = (u32)b[i]; }
#endif
}

static void words(Key key, const u64 *chain, const u64 *group, u32 *restrict w) {
  const lanes m0 = (lanes){0} + 0xD2511F53u, m1 = (lanes){0} + 0xCD9E8D57u;
  for (int i = 0; i < W; i += 2 * L) {
    lanes a0, a1, a2 = (lanes){0} + key.step, b0, b1, b2 = a2;
    memcpy(&a0, group + i, sizeof a0); memcpy(&b0, group + i + L, sizeof b0);
    memcpy(&a1, chain + i, sizeof a1); memcpy(&b1, chain + i + L, sizeof b1);
    lanes a3 = key.stream + ((a1 >> 32) << 8), b3 = key.stream + ((b1 >> 32) << 8);
    u32 k0 = key.k0, k1 = key.k1;
    for (int round = 0; round < 10; round++) {
      lanes p0 = WIDE(a0, m0), p1 = WIDE(a2, m1), q0 = WIDE(b0, m0), q1 = WIDE(b2, m1);
      lanes key0 = (lanes){0} + k0, key1 = (lanes){0} + k1;
      a0 = (p1 >> 32) ^ a1 ^ key0; a1 = p1; a2 = (p0 >> 32) ^ a3 ^ key1; a3 = p0;
      b0 = (q1 >> 32) ^ b1 ^ key0; b1 = q1; b2 = (q0 >> 32) ^ b3 ^ key1; b3 = q0;
      k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    narrow(a0, b0, w + i); narrow(a1, b1, w + W + i); narrow(a2, b2, w + 2 * W + i); narrow(a3, b3, w + 3 * W + i);
  }
}

/* Radius and direction apart: of two short chains of operations more run at once than of one long one. */
static void box_muller(const u32 *restrict even, const u32 *restrict odd, float *restrict cosine,
                       float *restrict sine) {
  float radius[W];
  for (int i = 0; i < W; i++) {
    u32 word = even[i], upper = (u32)((int32_t)word >> 31);
    float t = ((float)(int32_t)(word ^ upper) + 0.5f) * 0x1p-32f;
    int32_t u = (int32_t)as_bits(upper ? 1.0f - t : t);
    int32_t exponent = (u - 0x3F3504F3) & -0x800000;
    float f = as_float((u32)(u - exponent)) - 1.0f;
    f = upper && exponent == 0 ? -t : f;
    float p = 0.20213528246422405f;
    p = p * f + -0.32445048767948886f;
    p = p * f + 0.34501696392269265f;
    p = p * f + -0.3980034641012609f;
    p = p * f + 0.499398165516169f;
    p = p * f + -0.6667011735653527f;
    p = p * f + 1.0000073026645644f;
    p = p * f + -1.9999998906458825f;
    radius[i] = sqrtf(p * f - (float)exponent * (float)(1.3862943611198906 * 0x1p-23));
  }
  for (int i = 0; i < W; i++) {
    u32 angle = odd[i], turned = angle + 0x20000000u;
    float a = (float)(int32_t)(angle << 2) * (float)(2.0 * 3.14159265358979323846 * 0x1p-34), y = a * a;
    float s = a * (((-1.9515295891e-4f * y + 8.3321608736e-3f) * y + -1.6666654611e-1f) * y + 1.0f);
    float c = (2.443315711809948e-5f * y + -1.388731625493765e-3f) * y + 4.166664568298827e-2f;
    c = (c * y + -0.5f) * y + 1.0f;
    u32 cb = as_bits(c), sb = as_bits(s), swap = (cb ^ sb) & (u32)((int32_t)(turned << 1) >> 31);
    cosine[i] = radius[i] * as_float(cb ^ swap ^ ((turned + 0x40000000u) & 0x80000000u));
    sine[i] = radius[i] * as_float(sb ^ swap ^ (turned & 0x80000000u));
  }
}

static void normals(Key key, const u64 *chain, const u64 *group, int n_lanes, float *restrict e) {
  u32 w[4 * W];
  words(key, chain, group, w);
  box_muller(w, w + W, e, e + W);
  if (n_lanes > 2) box_muller(w + 2 * W, w + 3 * W, e + 2 * W, e + 3 * W);
}

static inline void move(const float *x, const float *score, const float *e, float a, float c, float *out, u64 count) {
  for (u64 j = 0; j < count; j++) out[j] = x[j] + a * score[j] + c * e[j];
}

/* The counters from group g of a row on: whole stretches of a row at a time. */
static inline void counters(u64 first_chain, u64 row, u64 g, u64 groups, u64 *restrict chain, u64 *restrict group) {
  if (groups == 1) {
    for (u64 i = 0; i < W; i++) { chain[i] = first_chain + row + i; group[i] = 0; }
    return;
  }
  for (u64 i = 0; i < W; row++, g = 0) {
    const u64 run = groups - g < W - i ? groups - g : W - i;
    for (u64 j = 0; j < run; j++) { chain[i + j] = first_chain + row; group[i + j] = g + j; }
    i += run;
  }
}

/* Rows of `width` values from lanes of W. */
static inline void transpose(const float *restrict e, u64 width, float *restrict rows) {
  for (u64 i = 0; i < W; i++)
    for (u64 d = 0; d < width; d++) rows[i * width + d] = e[d * W + i];
}

/* out = x + a score + c e, or e alone where x is null, over rows of `width` features, for the counters [begin, last),
   of which a row has ceil(width / 4); a and c are one number each, or, where `vary` is 1, one for each feature. */
void langevin(const float *x, const float *score, float *out, u64 begin, u64 last, u64 width, u64 vary,
              const float *a, const float *c, u32 k0, u32 k1, u32 step, u32 stream, u64 first_chain) {
  const Key key = {k0, k1, step, stream};
  const u64 groups = (width + 3) / 4;
  const int n_lanes = width < 4 ? (int)width : 4;
  u64 chain[W], group[W];
  float e[4 * W], rows[4 * W];
  for (u64 start = begin; start < last; start += W) {
    const u64 row0 = start / groups, g0 = start % groups, n = last - start < W ? last - start : W;
    counters(first_chain, row0, g0, groups, chain, group);
    normals(key, chain, group, n_lanes, e);
    if (groups == 1) {
      switch (width) { /* constants, so that each is vectorised */
        case 1: transpose(e, 1, rows); break;
        case 2: transpose(e, 2, rows); break;
        case 3: transpose(e, 3, rows); break;
        default: transpose(e, 4, rows);
      }
      const u64 base = row0 * width, count = n * width;
      if (!x) { memcpy(out + base, rows, count * sizeof(float)); continue; }
      if (!vary) { move(x + base, score + base, rows, *a, *c, out + base, count); continue; }
      for (u64 i = 0; i < count; i++)
        out[base + i] = x[base + i] + a[i % width] * score[base + i] + c[i % width] * rows[i];
      continue;
    }
    for (u64 i = 0, r = row0, from = g0; i < n; r++, from = 0) {
      const u64 run = groups - from < n - i ? groups - from : n - i;
      for (int lane = 0; lane < n_lanes; lane++) {
        const u64 d = lane * groups + from, base = r * width + d;
        const u64 count = d >= width ? 0 : (width - d < run ? width - d : run);
        const float *noise = e + lane * W + i;
        if (!x) memcpy(out + base, noise, count * sizeof(float));
        else if (!vary) move(x + base, score + base, noise, *a, *c, out + base, count);
        else for (u64 j = 0; j < count; j++)
          out[base + j] = x[base + j] + a[d + j] * score[base + j] + c[d + j] * noise[j];
      }
      i += run;
    }
  }
}

/* Ask for large pages under an array that is written to for the first time: page by page costs more than arithmetic. */
void enlarge(char *begin, u64 size) {
#ifdef MADV_HUGEPAGE
  const u64 page = 1u << 21, from = ((u64)begin + page - 1) / page * page;
  if (from + page <= (u64)begin + size) madvise((void *)from, ((u64)begin + size - from) / page * page, MADV_HUGEPAGE);
#else
  (void)begin, (void)size;
#endif
}

/* out = signs, rows of `width` features, for the counters [begin, last), of which a row has ceil(width / 128). */
void signs(float *out, u64 begin, u64 last, u64 width, u32 k0, u32 k1, u32 step, u32 stream, u64 first_chain) {
  const Key key = {k0, k1, step, stream};
  const u64 groups = (width + 127) / 128;
  u64 chain[W], group[W];
  u32 w[4 * W];
  for (u64 start = begin; start < last; start += W) {
    const u64 n = last - start < W ? last - start : W;
    for (u64 i = 0; i < W; i++) {
      chain[i] = first_chain + (start + i) / groups; group[i] = (start + i) % groups;
    }
    words(key, chain, group, w);
    for (u64 i = 0; i < n; i++)
      for (u64 word = 0; word < 4; word++) {
        const u64 d = 128 * group[i] + 32 * word, count = d >= width ? 0 : (width - d < 32 ? width - d : 32);
        float *row = out + (start + i) / groups * width + d;
        const u32 bits = w[word * W + i];
        for (u64 j = 0; j < count; j++) row[j] = 1.0f - 2.0f * (float)(bits >> j & 1);
      }
  }
}
"""
