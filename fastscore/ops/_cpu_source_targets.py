"""Targets in C: one object for every score, with its log density where that is known; a function fills in each kind."""

TARGETS = r"""
/* A source of scores of its own constants, the scratch it works in, and log p of the W states x whose scores it made
   last, or null. */
typedef struct Target {
  Source source; size_t work; void (*log_prob)(const struct Target *, const float *x, float *work, float *value);
  union { Mixture mixture; Network network; struct { float barrier, log_normaliser; } wells; } of;
} Target;

/* log(x) of a normal number x > 0, NaN of NaN: -2 log(1 + f) = f P(f), as the noise has it. */
static inline float logarithm(float x) {
  const int32_t u = (int32_t)as_bits(x), exponent = (u - 0x3F3504F3) & -0x800000;
  const float f = as_float((u32)(u - exponent)) - 1.0f;
  float p = 0.20213528246422405f;
  p = p * f + -0.32445048767948886f;
  p = p * f + 0.34501696392269265f;
  p = p * f + -0.3980034641012609f;
  p = p * f + 0.499398165516169f;
  p = p * f + -0.6667011735653527f;
  p = p * f + 1.0000073026645644f;
  p = p * f + -1.9999998906458825f;
  return x == x ? (float)exponent * (float)(0.6931471805599453 * 0x1p-23) - 0.5f * (p * f) : x;
}

static inline int infinite_or_nan(float x) { return (as_bits(x) & 0x7F800000u) == 0x7F800000u; }

/* logsumexp_k of the logits that `mixture_score` left at the beginning of its scratch. */
static void mixture_log_prob(const Target *target, const float *x, float *work, float *restrict value) {
  const int n = target->of.mixture.n_components;
  float top[W], total[W] = {0};
  (void)x;
  for (int i = 0; i < W; i++) top[i] = -INFINITY;
  for (int k = 0; k < n; k++)
    for (int i = 0; i < W; i++) {
      const float logit = work[(size_t)k * W + i];
      top[i] = logit > top[i] || logit != logit ? logit : top[i]; /* a NaN stays */
    }
  for (int k = 0; k < n; k++)
    for (int i = 0; i < W; i++) total[i] += exponential(work[(size_t)k * W + i] - top[i]);
  for (int i = 0; i < W; i++) value[i] = infinite_or_nan(top[i]) ? top[i] : top[i] + logarithm(total[i]);
}

/* -4 b x (x - 1) (x + 1) in every coordinate: x^2 - 1 would lose its digits near the wells. */
static void double_well_score(const Source *source, u64 row, int n, const float *x, float *work, float *restrict s) {
  const float slope = -4.0f * *(const float *)source->constants;
  (void)row, (void)n, (void)work;
  for (int j = 0; j < source->dim * W; j++) s[j] = slope * x[j] * ((x[j] - 1.0f) * (x[j] + 1.0f));
}

/* -sum_d (b (x_d^2 - 1)^2 + log Z). */
static void double_well_log_prob(const Target *target, const float *x, float *work, float *restrict value) {
  (void)work;
  memset(value, 0, W * sizeof(float));
  for (int d = 0; d < target->source.dim; d++)
    for (int i = 0; i < W; i++) {
      const float y = (x[d * W + i] - 1.0f) * (x[d * W + i] + 1.0f);
      value[i] += -target->of.wells.barrier * (y * y) - target->of.wells.log_normaliser;
    }
}

static void network_log_prob(const Target *target, const float *x, float *work, float *restrict value) {
  const Network *net = &target->of.network;
  (void)x;
  memcpy(value, work + (2 + (size_t)net->turn) * (size_t)net->widest * G, W * sizeof(float));
}

size_t target_size(void) { return sizeof(Target); }

void mixture_target(Target *to, int n_components, int dim, int full, const float *means, const float *inverse,
                    const float *log_scale) {
  to->of.mixture = (Mixture){n_components, full, means, inverse, log_scale};
  to->source = (Source){mixture_score, dim, &to->of.mixture};
  to->work = (size_t)n_components * (size_t)(dim + 1) * W;
  to->log_prob = mixture_log_prob;
}

void double_well_target(Target *to, int dim, float barrier, float log_normaliser) {
  to->of.wells.barrier = barrier; to->of.wells.log_normaliser = log_normaliser;
  to->source = (Source){double_well_score, dim, &to->of.wells.barrier};
  to->work = 0;
  to->log_prob = double_well_log_prob;
}

void network_target(Target *to, int n_layers, const int *sizes, const int *kinds, const int *residuals,
                    const float *packed, const float *shifts, const float *scales, u64 rows, int turn,
                    const float *top, float base) {
  int widest = 0;
  for (int l = 0; l <= n_layers; l++) widest = sizes[l] > widest ? sizes[l] : widest;
  to->of.network = (Network){n_layers, widest, sizes, kinds, residuals, packed, shifts, scales, rows, turn, top, base};
  to->source = (Source){network_score, sizes[0], &to->of.network};
  to->work = (2 + (size_t)turn) * (size_t)widest * G + W;
  to->log_prob = turn ? network_log_prob : 0;
}
"""
