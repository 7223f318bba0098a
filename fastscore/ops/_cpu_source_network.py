"""Networks in C, the third part of the source: a whole multilayer perceptron on a few chains, from the cache.

A group of G chains, two vectors wide, goes through all layers before the next one does: its activations stay in the
first-level cache, and the weights stream through once a group. They come packed in panels of R outputs,
`[bias of R, then for every input the R weights]`, which one kernel of R x 2 accumulators multiplies; what follows a
product (a shift, the activation, the residual) is done in registers. An energy's score comes back down through the
transposed weights, `-dE/dx = W_1' (d_1 a_1)`, `a_{l-1} = W_l' (d_l a_l)`, with the slopes `d_l` kept on the way up.
"""

NETWORK = r"""
enum { R = 6 };
enum { LINEAR, SILU, TANH, SOFTPLUS, GELU_TANH, SOFTSIGN, GELU };

static inline vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* exp(x), x held to [-88.2, 89], where it is 0 and infinite; NaN stays NaN. */
static inline vf exp_of(vf x) {
  x = SMALLER(ALL(89.0f), LARGER(ALL(-88.2f), x));
  const vf shifted = FMA(x, ALL(1.44269504089f), ALL(12582912.0f)), n = shifted - ALL(12582912.0f);
  const vf r = FMA(n, ALL(2.12194440e-4f), FMA(n, ALL(-0.693359375f), x));
  vf p = FMA(ALL(1.9875691500e-4f), r, ALL(1.3981999507e-3f));
  p = FMA(p, r, ALL(8.3334519073e-3f));
  p = FMA(p, r, ALL(4.1665795894e-2f));
  p = FMA(p, r, ALL(1.6666665459e-1f));
  p = FMA(p, r, ALL(5.0000001201e-1f));
  p = FMA(p, r * r, r) + ALL(1.0f);
  return p * (vf)(((vi)shifted + 127) << 23);
}

/* tanh(x): an odd polynomial (Cephes, S. Moshier: tanhf.c) below 0.625, 1 - 2 / (exp(2 |x|) + 1) above. */
static inline vf tanh_of(vf x) {
  const vi sign = (vi)x & (int32_t)0x80000000u;
  const vf size = (vf)((vi)x & 0x7FFFFFFF), y = x * x;
  vf p = FMA(ALL(-5.70498872745e-3f), y, ALL(2.06390887954e-2f));
  p = FMA(p, y, ALL(-5.37397155531e-2f));
  p = FMA(p, y, ALL(1.33314422036e-1f));
  p = FMA(p, y, ALL(-3.33332819422e-1f));
  const vf large = ALL(1.0f) - ALL(2.0f) / (exp_of(size + size) + ALL(1.0f));
  return choose(size < ALL(0.625f), FMA(p * y, x, x), (vf)((vi)large | sign));
}

/* log(1 + exp(x)) = max(x, 0) + log1p(y), y = exp(-|x|) in (0, 1]: log(1 + y) at u = 1 + y, rounded, plus the rest. */
static inline vf softplus_of(vf x) {
  const vf y = exp_of((vf)((vi)x | (int32_t)0x80000000u)), u = ALL(1.0f) + y;
  const vi exponent = ((vi)u - 0x3F3504F3) & -0x800000;
  const vf f = (vf)((vi)u - exponent) - ALL(1.0f), z = f * f;
  vf p = FMA(ALL(7.0376836292e-2f), f, ALL(-1.1514610310e-1f));
  p = FMA(p, f, ALL(1.1676998740e-1f));
  p = FMA(p, f, ALL(-1.2420140846e-1f));
  p = FMA(p, f, ALL(1.4249322787e-1f));
  p = FMA(p, f, ALL(-1.6668057665e-1f));
  p = FMA(p, f, ALL(2.0000714765e-1f));
  p = FMA(p, f, ALL(-2.4999993993e-1f));
  p = FMA(p, f, ALL(3.3333331174e-1f));
  const vf n = __builtin_convertvector(exponent >> 23, vf);
  vf log = FMA(p * z, f, FMA(ALL(-0.5f), z, f)) + n * ALL(0.693147181f);
  log = log + (y - (u - ALL(1.0f))) / u;
  return choose(x > ALL(0.0f), x + log, log);
}

/* z P(z) and its slope P(z) + z p(z), as `gelu` among the layers has them. */
static inline vf gelu_of(vf z, vf *slope) {
  const vf y = SMALLER(ALL(13.28f), LARGER(ALL(-13.28f), z));
  const vf y2 = y * y, p = ALL(0.398942280f) * exp_of(ALL(-0.5f) * y2);
  const vf w = ALL(1.0f) / FMA(ALL(0.4f), (vf)((vi)y & 0x7FFFFFFF), ALL(1.0f));
  vf tail = FMA(ALL(0.174295768f), w, ALL(-0.476170570f)), near = FMA(ALL(-6.80949051e-6f), y2, ALL(1.11041125e-4f));
  tail = FMA(tail, w, ALL(0.273019046f));
  tail = FMA(tail, w, ALL(0.134631053f));
  tail = FMA(tail, w, ALL(0.349698007f));
  tail = FMA(tail, w, ALL(0.398625612f));
  tail = FMA(tail, w, ALL(0.400057286f)) * w * p;
  near = FMA(near, y2, ALL(-1.18383719e-3f));
  near = FMA(near, y2, ALL(9.97228269e-3f));
  near = FMA(near, y2, ALL(-6.64902106e-2f));
  near = FMA(near, y2, ALL(0.398942262f));
  const vf far = choose(y < ALL(0.0f), tail, ALL(1.0f) - tail);
  const vf c = choose(y2 < ALL(1.5f), FMA(near, y, ALL(0.5f)), far);
  if (slope) *slope = FMA(y, p, c);
  return z * c;
}

/* phi(z), and phi'(z) if it is asked for. */
INLINE vf activate(vf z, int kind, vf *slope) {
  switch (kind) {
    case SILU: {
      const vf d = ALL(1.0f) + exp_of(-z);
      if (slope) {
        const vf s = ALL(1.0f) / d;
        *slope = s * FMA(LARGER(ALL(-87.0f), z), ALL(1.0f) - s, ALL(1.0f));
      }
      return z / d;
    }
    case TANH: {
      const vf t = tanh_of(z);
      if (slope) *slope = ALL(1.0f) - t * t;
      return t;
    }
    case SOFTPLUS:
      if (slope) *slope = ALL(1.0f) / (ALL(1.0f) + exp_of(-z));
      return softplus_of(z);
    case GELU_TANH: {
      const vf y = SMALLER(ALL(10.0f), LARGER(ALL(-10.0f), z)), y2 = y * y;
      const vf t = tanh_of(ALL(0.797884561f) * FMA(ALL(0.044715f) * y2, y, y)), s = ALL(0.5f) * (ALL(1.0f) + t);
      if (slope) {
        const vf inner = ALL(0.797884561f) * FMA(ALL(0.134145f), y2, ALL(1.0f));
        *slope = FMA(ALL(0.5f) * y * (ALL(1.0f) - t * t), inner, s);
      }
      return z * s;
    }
    case GELU: return gelu_of(z, slope);
    case SOFTSIGN: {
      const vf r = ALL(1.0f) / (ALL(1.0f) + (vf)((vi)z & 0x7FFFFFFF));
      if (slope) *slope = r * r;
      return z * r;
    }
    default: return z;
  }
}

/* out [n_out][G] = phi(W h + b (+ shift)) (+ h) for one group of chains; h is [n_in][G], shift [n_out][rows]; the
   slopes phi'(W h + b (+ shift)) where there is room for them. */
static void layer(const float *w, const vf *restrict h, int n_in, int n_out, int kind, int residual, const float *shift,
                  u64 rows, vf *restrict out, vf *restrict slopes) {
  for (int m = 0; m < n_out; m += R) {
    vf sum[R][2];
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = ALL(w[r]);
    w += R;
    for (int k = 0; k < n_in; k++, w += R) {
      const vf h0 = h[2 * k], h1 = h[2 * k + 1];
      for (int r = 0; r < R; r++) {
        const vf each = ALL(w[r]);
        sum[r][0] = FMA(each, h0, sum[r][0]);
        sum[r][1] = FMA(each, h1, sum[r][1]);
      }
    }
    vf made[R][2]; /* of its own: a sum that is addressed by a variable is kept in memory by some compilers */
    for (int r = 0; r < R; r++)
      for (int half = 0; half < 2; half++) made[r][half] = sum[r][half];
    for (int r = 0; r < R && m + r < n_out; r++)
      for (int half = 0; half < 2; half++) {
        vf z = made[r][half], added;
        if (shift) { memcpy(&added, shift + (u64)(m + r) * rows + half * V, sizeof added); z += added; }
        z = activate(z, kind, slopes ? &slopes[2 * (m + r) + half] : 0);
        out[2 * (m + r) + half] = residual ? z + h[2 * (m + r) + half] : z;
      }
  }
}

/* What a chain needs of a network: its packed panels; the numbers of inputs and outputs of its layers, `sizes`; shifts
   [sum of all outputs][rows] of the layers' preactivations and scales [3][rows] (of the input, of the output, of the
   input added to it) for every chain, or null; rows is a multiple of G. Of an energy, layers before `turn` are the
   hidden ones, the others their transposes on the way down, and `top` and `base` are minus the output's weights and
   bias: log p is `top . h + base`, which is left behind the layers in the scratch. */
typedef struct { int n_layers, widest; const int *sizes, *kinds, *residuals; const float *packed, *shifts, *scales;
                 u64 rows; int turn; const float *top; float base; } Network;

/* value = top . h + base of one group of chains. */
static void turned(const vf *restrict h, const Network *net, int width, float *restrict value) {
  vf sum[2] = {ALL(net->base), ALL(net->base)};
  for (int m = 0; m < width; m++)
    for (int half = 0; half < 2; half++) sum[half] = FMA(ALL(net->top[m]), h[2 * m + half], sum[half]);
  memcpy(value, sum, sizeof sum);
}

/* h *= slopes, each unit times its weight in `top` if that is not null. */
static void bend(vf *restrict h, const vf *restrict slopes, const float *top, int width) {
  for (int m = 0; m < width; m++)
    for (int half = 0; half < 2; half++) h[2 * m + half] = (top ? ALL(top[m]) : h[2 * m + half]) * slopes[2 * m + half];
}

static void network_score(const Source *source, u64 row, int n, const float *x, float *work, float *s) {
  const Network *net = source->constants;
  const int dim = source->dim, turn = net->turn;
  const size_t layer_size = (size_t)net->widest * G;
  for (int from = 0; from < n; from += G) {
    float *h = work, *out = h + layer_size, *slopes = out + layer_size;
    const float *w = net->packed, *shift = net->shifts ? net->shifts + row + from : 0;
    const float *scale = net->scales ? net->scales + row + from : 0;
    for (int d = 0; d < dim; d++)
      for (int i = 0; i < G; i++) h[d * G + i] = scale ? scale[i] * x[d * W + from + i] : x[d * W + from + i];
    for (int l = 0; l < net->n_layers; l++) {
      const int n_in = net->sizes[l], n_out = net->sizes[l + 1], up = l < turn;
      if (turn && l == turn) {
        turned((vf *)h, net, n_in, work + (2 + turn) * layer_size + from);
        bend((vf *)h, (vf *)(slopes + (turn - 1) * layer_size), net->top, n_in);
      }
      layer(w, (vf *)h, n_in, n_out, net->kinds[l], net->residuals[l], !turn || up ? shift : 0, net->rows, (vf *)out,
            up ? (vf *)(slopes + l * layer_size) : 0);
      if (turn && !up && l + 1 < net->n_layers)
        bend((vf *)out, (vf *)(slopes + (net->n_layers - 2 - l) * layer_size), 0, n_out);
      w += (size_t)(n_out + R - 1) / R * R * (size_t)(n_in + 1);
      if (shift && (!turn || up)) shift += (u64)n_out * net->rows;
      float *other = h; h = out; out = other;
    }
    for (int d = 0; d < dim; d++)
      for (int i = 0; i < G; i++) {
        const float value = h[d * G + i];
        s[d * W + from + i] =
            scale ? scale[net->rows + i] * value + scale[2 * net->rows + i] * x[d * W + from + i] : value;
      }
  }
}

/* How many outputs a panel has. */
int network_panel(void) { return R; }
"""
