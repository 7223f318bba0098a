"""Programs of passes, a part of the source: what is done to a tile is written down once and then done to every tile.

A step names one of the passes and its arrays. An array is a slot, the address of something that all tiles share or of
which every tile has its rows, and an offset in it; so a program is good for other arrays of the same shapes.
"""

PROGRAM = r"""
enum { PRODUCT, JETS, PULL, CONTRACT, SPREAD, ROW_PRODUCTS, MIX, TOTAL, NUMBER, SIGNS, NORMALS };

typedef struct { float *at; u64 row; } Slot; /* row: from a sample to the next; 0 for what all tiles share */
typedef struct { u64 slot, offset; } Ref;    /* of floats */
typedef struct { u64 pass, many, sizes[8]; double scales[2]; Ref refs[7]; } Step; /* many rows for every sample */

/* out = left l a + right r b, rows of n: a, b and out step from row to row; l and r, one a row, may be null, and b. */
static void mix(u64 rows, u64 n, float left, const float *l, u64 l_step, const float *a, u64 a_step, float right,
                const float *r, u64 r_step, const float *b, u64 b_step, float *out, u64 step) {
  for (u64 i = 0; i < rows; i++, a += a_step, b += b_step, out += step) {
    const float of_a = l ? left * l[i * l_step] : left, of_b = r ? right * r[i * r_step] : right;
    if (b) EACH out[j] = MADD(of_a, a[j], of_b * b[j]);
    else EACH out[j] = of_a * a[j];
  }
}

/* total += sum_i w_i a_i over rows of n; a weight null is 1. */
static void total_rows(u64 rows, u64 n, const float *a, u64 a_step, const float *w, u64 w_step, float *total) {
  for (u64 k = 0; k < n; k += COLUMNS) {
    float sum[COLUMNS] = {0};
    const u64 width = n - k < COLUMNS ? n - k : COLUMNS;
    for (u64 i = 0; i < rows; i++) {
      const float weight = w ? w[i * w_step] : 1.0f, *ai = a + i * a_step + k;
      for (u64 j = 0; j < width; j++) sum[j] = MADD(weight, ai[j], sum[j]);
    }
    for (u64 j = 0; j < width; j++) total[k + j] += sum[j];
  }
}

/* sum a b, or of a alone where b is null; of contiguous rows of n. */
static double sum_of(u64 rows, u64 n, const float *a, const float *b) {
  double sum[8] = {0}, all = 0.0;
  u64 i = 0;
  for (; i + 8 <= rows * n; i += 8)
    for (int q = 0; q < 8; q++) sum[q] += b ? (double)a[i + q] * (double)b[i + q] : (double)a[i + q];
  for (; i < rows * n; i++) all += b ? (double)a[i] * (double)b[i] : (double)a[i];
  for (int q = 0; q < 8; q++) all += sum[q];
  return all;
}

/* The steps for the samples [begin, end), `tile` at a time. Returns 0, or 1 if there was no memory. */
int run_program(const Step *steps, u64 count, const Slot *slots, u64 begin, u64 end, u64 tile, double *numbers, u32 k0,
                u32 k1, u64 first) {
  for (u64 row = begin; row < end; row += tile)
    for (const Step *s = steps; s < steps + count; s++) {
      const u64 samples = end - row < tile ? end - row : tile, rows = samples * s->many, *n = s->sizes;
      const float one = (float)s->scales[0], other = (float)s->scales[1];
      float *p[7];
      for (int i = 0; i < 7; i++) {
        const Slot slot = slots[s->refs[i].slot];
        p[i] = slot.at ? slot.at + s->refs[i].offset + row * slot.row : 0;
      }
      switch (s->pass) {
        case PRODUCT:
          if (product(n[0] ? n[0] : rows, n[1], n[2] ? n[2] : rows, p[0], n[3], n[4], p[1], n[5], n[6], p[2],
                      one != 0.0f, p[3], n[7])) return 1;
          break;
        case JETS: jets((u32)n[0], (u32)n[1], rows, n[2], p[0], p[1], p[2], p[3], p[4], p[5]); break;
        case PULL: pull(rows, n[0], p[0], p[1], p[2], p[3], p[4], one, p[5], p[6]); break;
        case CONTRACT: contract(rows, n[0], n[1], p[0], p[1], (int)n[2], p[2]); break;
        case SPREAD: spread(rows, n[0], n[1], one, p[0], p[1], (int)n[2], p[2], p[3], p[4]); break;
        case ROW_PRODUCTS: row_products(rows, n[0], p[0], p[1], p[2]); break;
        case MIX: mix(rows, n[0], one, p[2], n[1], p[0], n[2], other, p[3], n[3], p[1], n[4], p[4], n[5]); break;
        case TOTAL: total_rows(rows, n[0], p[0], n[1], p[1], n[2], p[2]); break;
        case NUMBER: numbers[n[1]] += sum_of(rows, n[0], p[0], p[1]); break;
        case SIGNS:
          signs(p[0], 0, samples * ((n[0] + 127) / 128), n[0], k0, k1, (u32)n[1], (u32)n[2], first + row);
          break;
        default:
          langevin(0, 0, p[0], 0, samples * ((n[0] + 3) / 4), n[0], 0, 0, 0, k0, k1, (u32)n[1], (u32)n[2], first + row);
      }
    }
  return 0;
}
"""
