"""Matrix products, a part of the source: what a network's tile needs, on one thread, at nearly the processor's peak.

Products with weights have a short side of a few hundred, and what precedes and follows them is in the cache: a general
library spends longer on getting ready. A block of R rows by two vectors stays in registers while a panel of the right
side, packed so that it is read in order, streams by (Goto & van de Geijn 2008, Anatomy of high-performance matrix
multiplication). An element is a sum of sums of `DEPTH` terms, each in their order, whatever rows are beside it.
"""

PRODUCTS = r"""
#if defined(__AVX512F__)
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
#define FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define LARGER(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b))) /* b where either is NaN */
#define SMALLER(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
enum { MROWS = 8 };
#elif defined(__AVX2__) && defined(__FMA__)
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
#define FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define LARGER(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define SMALLER(a, b) ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
enum { MROWS = 6 };
#else
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
#define FMA(a, b, c) ((a) * (b) + (c))
#define LARGER(a, b) choose((a) > (b), a, b)
#define SMALLER(a, b) choose((a) < (b), a, b)
enum { MROWS = 6 };
#endif
#define ALL(x) ((x) - (vf){0})
#define INLINE static inline __attribute__((always_inline))
enum { V = sizeof(vf) / 4, G = 2 * V, DEPTH = 128, BREADTH = 256, HEIGHT = 96 };

/* An operand: element (i, j) is at[i * row + j * column]. */
typedef struct { const float *at; u64 row, column; } Operand;

/* c = a panel (+ what `from` has: c itself, or one row of biases where `step`, from row to row, is 0), `rows` by
   `vectors`, of which the first `width` columns are there; a panel has a row of vectors for every term. */
INLINE void block(const int rows, const int vectors, u64 width, u64 depth, Operand a, const float *panel,
                  const float *from, u64 step, float *c, u64 row) {
  vf sum[MROWS][2];
  for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vf){0};
  for (u64 k = 0; k < depth; k++, panel += vectors * V) {
    vf right[2];
    for (int j = 0; j < vectors; j++) memcpy(&right[j], panel + j * V, sizeof(vf));
    for (int r = 0; r < rows; r++) {
      const vf left = ALL(a.at[(u64)r * a.row + k * a.column]);
      for (int j = 0; j < vectors; j++) sum[r][j] = FMA(left, right[j], sum[r][j]);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < vectors; j++) {
      const u64 there = width - (u64)j * V < V ? width - (u64)j * V : V;
      float *to = c + (u64)r * row + j * V;
      const float *added = from + (u64)r * step + j * V;
      if (there == V) {
        vf start = {0};
        if (from) memcpy(&start, added, sizeof start);
        start += sum[r][j];
        memcpy(to, &start, sizeof start);
      } else
        for (u64 q = 0; q < there; q++) to[q] = (from ? added[q] : 0.0f) + sum[r][j][q];
    }
}

/* The same for up to HEIGHT rows. */
INLINE void column(const int vectors, u64 width, u64 rows, u64 depth, Operand a, const float *panel, const float *from,
                   u64 step, float *c, u64 row) {
#define DOWN(n)                                                                                                        \
  for (; rows >= (n); rows -= (n), a.at += (n) * a.row, c += (n) * row, from = from ? from + (n) * step : 0)           \
    if (a.column == 1) block(n, vectors, width, depth, (Operand){a.at, a.row, 1}, panel, from, step, c, row);          \
    else block(n, vectors, width, depth, (Operand){a.at, 1, HEIGHT}, panel, from, step, c, row);
  DOWN(MROWS) DOWN(4) DOWN(2) DOWN(1)
}

/* c = a b (+ bias, a row of n, where it is not null; + c where `add`): a [m, k], b [k, n], c [m, n] with rows of c
   `row` apart. Returns 0, or 1 if there was no memory for it (nothing is done then). */
int product(u64 m, u64 n, u64 k, const float *left, u64 a_row, u64 a_column, const float *right, u64 b_row,
            u64 b_column, const float *bias, int add, float *c, u64 row) {
  float *panels = aligned_alloc(64, (BREADTH + HEIGHT) * DEPTH * sizeof(float));
  if (!panels) return 1;
  float *packed = panels + BREADTH * DEPTH;
  for (u64 start = 0; start < k; start += DEPTH)
    for (u64 first = 0; first < n; first += BREADTH) {
      const u64 depth = k - start < DEPTH ? k - start : DEPTH, breadth = n - first < BREADTH ? n - first : BREADTH;
      float *to = panels;
      for (u64 j = 0; j < breadth; j += G) {
        const u64 width = breadth - j < G ? breadth - j : G, room = width > V ? G : V;
        for (u64 i = 0; i < depth; i++, to += room) {
          const float *line = right + (start + i) * b_row + (first + j) * b_column;
          if (width == G && b_column == 1) memcpy(to, line, G * sizeof(float));
          else for (u64 q = 0; q < room; q++) to[q] = q < width ? line[q * b_column] : 0.0f;
        }
      }
      for (u64 top = 0; top < m; top += HEIGHT) {
        const u64 height = m - top < HEIGHT ? m - top : HEIGHT;
        Operand a = {left + top * a_row + start * a_column, a_row, a_column};
        if (a_column != 1) { /* the rows of a term together */
          for (u64 i = 0; i < depth; i++)
            for (u64 r = 0; r < height; r++) packed[i * HEIGHT + r] = a.at[r * a_row + i * a_column];
          a = (Operand){packed, 1, HEIGHT};
        }
        const float *panel = panels;
        for (u64 j = 0; j < breadth; j += G) {
          const u64 width = breadth - j < G ? breadth - j : G, step = add || start ? row : 0;
          float *out = c + top * row + first + j;
          const float *from = step ? out : (bias ? bias + first + j : 0);
          if (width == G) column(2, G, height, depth, a, panel, from, step, out, row);
          else if (width > V) column(2, width, height, depth, a, panel, from, step, out, row);
          else if (width == V) column(1, V, height, depth, a, panel, from, step, out, row);
          else column(1, width, height, depth, a, panel, from, step, out, row);
          panel += depth * (width > V ? G : V);
        }
      }
    }
  free(panels);
  return 0;
}
"""
