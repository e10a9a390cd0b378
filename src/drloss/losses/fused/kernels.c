/* The DR loss and the focal loss on a CPU: one read of the logits forward, one read and one write backward.
 *
 * A candidate has the hardness v = sigmoid(y), where y = x for a negative and y = -x for a positive, w = 1 - v, and the
 * prior o. For the DR loss, with e = exp((v - c) / lambda), the sums of each image and sign are
 *
 *     Z = sum o e,   S = sum o e (v - c),   M = sum o,
 *
 * and, with alpha and beta that the caller computes from them,
 *
 *     dloss/dy = o e (alpha + beta (v - c)) v w.
 *
 * For the focal loss they are
 *
 *     Z = sum o v^gamma softplus(y),   M = sum o,   dloss/dy = alpha o v^gamma (gamma w softplus(y) + v).
 *
 * An infinite logit counts as NaN, unless it is a masked class (minus infinity at a negative). A label outside of
 * -1 .. K counts as -1: no label makes the kernels read or write outside of their arrays.
 *
 * With by_class each class has sums, an alpha and a beta of its own. Where anchors are rows, the lanes of a vector are
 * then of several classes. Every P-th vector has the same ones, P = K / gcd(K, 16), so a run is read in P phases.
 *
 * Work is divided into blocks whose size does not depend on the number of threads. Each block writes its sums into a
 * slot of its own, and the slots are added in order, so the result is the same bits on any number of threads. Within a
 * block, 16 float32 lanes add up at most 4,096 candidates, and these sums are added in double.
 *
 * The file uses GCC's vector extensions (clang has them too), no intrinsics and no torch: it is compiled on the user's
 * machine, see cpu.py.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16
#define BLOCK 32768 /* about so many elements in a block */
#define FLUSH 4096  /* elements added up in float32 */
#define WIDTH 2048  /* positions of a plane in a block */
#define TALL 512    /* least anchors in a block of rows by class, so that its sums need little memory */

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

static inline vf splat(float x) { return x - (vf){0}; }
static inline vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* 2^(x * scale) for results between 2^-126 and 2^126, to 2 units in the last place. The usual NaN stays NaN. */
static inline vf power(vf x, vf scale) {
    vf n = x * scale + 12582912.0f; /* 1.5 * 2^23: rounds to an integer in the low bits */
    vi bits = (vi)n << 23;
    n = n - 12582912.0f;
    vf r = x * scale - n, p = splat(1.535336188e-4f);
    p = p * r + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472028e-1f;
    p = p * r + 1.0f;
    return (vf)((vi)p + bits);
}

#define LOG2E 1.44269504088896341f

/* exp(x) for x <= 87; exp(-87) below -87. */
static inline vf exponential(vf x) { return power(choose(x < splat(-87.0f), splat(-87.0f), x), splat(LOG2E)); }

/* v = sigmoid(y) and w = sigmoid(-y), both to full relative precision; 1.6e-38 at the least. */
static inline void sigmoids(vf y, vf *v, vf *w) {
    y = choose(y < splat(-87.0f), splat(-87.0f), y);
    y = choose(y > splat(87.0f), splat(87.0f), y);
    vf t = power(y, splat(-LOG2E));
    *v = 1.0f / (1.0f + t);
    *w = t * *v;
}

/* Logits are float32 or bfloat16; bf16 is a constant wherever these are used, so that the choice costs nothing. */
#define FIXED static inline __attribute__((always_inline))

FIXED vf load(const void *p, int64_t i, int bf16) {
    if (bf16) {
        vh h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        return (vf)(__builtin_convertvector(h, vu) << 16);
    }
    vf y;
    memcpy(&y, (const float *)p + i, sizeof y);
    return y;
}

FIXED void store(void *p, int64_t i, vf y, int bf16) {
    if (bf16) {
        vu bits = (vu)y;
        vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to the nearest, ties to even */
        vu nan = (vu)(y != y);
        vh h = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), vh);
        memcpy((uint16_t *)p + i, &h, sizeof h);
    } else {
        memcpy((float *)p + i, &y, sizeof y);
    }
}

/* The last, shorter vector of a run: lanes past the end hold 0. */
FIXED vf load_part(const void *p, int64_t i, int64_t n, int bf16) {
    char buffer[4 * LANES] = {0};
    int64_t size = bf16 ? 2 : 4;
    memcpy(buffer, (const char *)p + i * size, (size_t)(n * size));
    return load(buffer, 0, bf16);
}

FIXED void store_part(void *p, int64_t i, vf y, int64_t n, int bf16) {
    char buffer[4 * LANES];
    int64_t size = bf16 ? 2 : 4;
    store(buffer, 0, y, bf16);
    memcpy((char *)p + i * size, buffer, (size_t)(n * size));
}

static const vi COUNT = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const vi ONES = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

/* log(1 + t) for 0 <= t <= 1 to full relative precision: 2 artanh(t / (2 + t)). */
static inline vf log1plus(vf t) {
    vf s = t / (2.0f + t), q = s * s, p = q * (1.0f / 15) + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * (s + s * q * p);
}

typedef struct {
    double z, s, m;
} sums_t;

typedef struct {
    float rate, v0, w0;     /* DR: 1 / lambda; v and w at the shift c, 0 and 1 for none. Focal: gamma */
    float threshold, share; /* hard mining: the prior is 0 below the threshold, times share at it; -inf and 1 */
} sign_t;

/* One pyramid level of one image. */
typedef struct {
    int64_t anchors, classes;
    int64_t places, per_place;         /* planes: anchor s * per_place + b, class k is at (b * classes + k) * places + s;
                                          rows (places = 0): anchor a, class k at a * classes + k */
    const int64_t *labels;             /* [anchors]: 0 background, 1 .. classes; any other is ignored */
    const uint8_t *dense;              /* [anchors * classes]: 0 negative, 1 positive, 2 neither; NULL: use the labels */
    const float *weights[2];           /* of positives and negatives; NULL: uniform */
    int64_t by_anchor[2], by_class[2]; /* strides of the weights */
    const sign_t *signs;               /* of positives and negatives */
    const float *slopes;               /* backward only: alpha and beta of positives, then of negatives, of each class
                                          if by_class_sums */
    int64_t by_class_sums;             /* whether each class has sums and slopes of its own */
} level_t;

enum { TOP, DR_SUMS, DR_SLOPE, FOCAL_SUMS, FOCAL_SLOPE }; /* what a pass computes */

/* Computes this for candidates of one sign and for their weights: of the n elements of x from i on, the vectors that
 * begin every step elements. A candidate of weight 0 is left out, and its gradient is 0. Without weights, shift or
 * threshold the case is plain. With classes the first lane is of class k, the next of the next, and so on around;
 * without, all are of one class, or classes do not matter. */
FIXED void each(const void *x, void *g, int64_t i, int64_t n, int positive, const float *weights, const sign_t *p,
                const float *slopes, sums_t *sums, int task, int bf16, int plain, int64_t step, int64_t k,
                int64_t classes) {
    vf alpha = {0}, beta = {0};
    k = classes ? k % classes : 0;
    int64_t c = k;
    for (int l = 0; (task == DR_SLOPE || task == FOCAL_SLOPE) && l < LANES; l++) {
        alpha[l] = slopes[4 * c];
        beta[l] = slopes[4 * c + 1];
        if (classes && ++c == classes) c = 0;
    }
    const vi flip = (vi){0} + (positive ? (int32_t)0x80000000 : 0);
    const int hard = p->v0 > 0.5f;
    const vf inf = splat(__builtin_inff()), other = positive ? -inf : inf; /* infinite y that are not masked classes */
    vf best = splat(-__builtin_inff());
    const int64_t flush = FLUSH / LANES * step;
    for (int64_t from = 0; from < n; from += flush) {
        int64_t to = from + flush < n ? from + flush : n;
        vf z = {0}, s = {0}, m = {0};
        for (int64_t j = from; j < to; j += step) {
            int64_t left = n - j;
            vi there = left < LANES ? COUNT < (int32_t)left : ONES;
            vf y = left < LANES ? load_part(x, i + j, left, bf16) : load(x, i + j, bf16);
            y = (vf)((vi)y ^ flip);
            y = choose(~(y < inf) | (y == other), splat(__builtin_nanf("")), y); /* the NaN that power() keeps */
            vf o = splat(1.0f), v, w, d, slope, term;
            if (!plain) {
                if (weights) o = left < LANES ? load_part(weights, j, left, 0) : load(weights, j, 0);
                o = choose(y < splat(p->threshold), splat(0.0f), choose(y == splat(p->threshold), o * p->share, o));
                there &= o != splat(0.0f);
            }
            if (task == TOP) {
                best = choose(there & ~(y <= best), y, best); /* a NaN is larger than all */
                continue;
            }
            if (task == FOCAL_SUMS || task == FOCAL_SLOPE) {
                vf t = exponential((vf)((vi)y | (int32_t)0x80000000));
                vf large = 1.0f / (1.0f + t), log = log1plus(t), below = choose(y < splat(-1e30f), splat(-1e30f), y);
                vi negative = y < splat(0.0f);
                v = choose(negative, t * large, large);
                w = choose(negative, large, t * large);
                term = o * exponential(p->rate * (choose(negative, below, splat(0.0f)) - log)); /* log v = -softplus(-y) */
                vf softplus = choose(negative, splat(0.0f), y) + log;
                if (task == FOCAL_SUMS) term = term * softplus;
                else slope = alpha * term * (p->rate * w * choose(softplus > splat(1e30f), splat(0.0f), softplus) + v);
            } else {
                sigmoids(y, &v, &w);
                d = plain ? v : hard ? p->w0 - w : v - p->v0;
                if (plain) term = power(v, splat(p->rate * LOG2E)); /* rate is at most 16 */
                else term = o * exponential(d * p->rate);
                slope = term * v * w * (alpha + beta * d);
            }
            if (task == DR_SLOPE || task == FOCAL_SLOPE) {
                if (!plain) slope = choose(there, slope, splat(0.0f));
                slope = (vf)((vi)slope ^ flip);
                if (left < LANES) store_part(g, i + j, slope, left, bf16);
                else store(g, i + j, slope, bf16);
            } else {
                if (!plain || left < LANES) { /* candidates that are left out may be NaN */
                    term = choose(there, term, splat(0.0f));
                    d = choose(there, d, splat(0.0f));
                    o = choose(there, o, splat(0.0f));
                }
                z += term;
                if (task == DR_SUMS) s += term * d;
                if (!plain || classes) m += o;
            }
        }
        c = k;
        for (int l = 0; (task == DR_SUMS || task == FOCAL_SUMS) && l < LANES; l++) {
            sums[2 * c].z += z[l];
            sums[2 * c].s += s[l];
            sums[2 * c].m += m[l];
            if (classes && ++c == classes) c = 0;
        }
        if (plain && !classes) sums->m += (double)(to - from);
    }
    for (int l = 0; task == TOP && l < LANES; l++)
        if (!(best[l] <= sums->z)) sums->z = best[l];
}

typedef void run_t(const void *, void *, int64_t, int64_t, int, const float *, const sign_t *, const float *, sums_t *,
                   int64_t, int64_t);

static int64_t phases(int64_t classes) {
    int64_t common = LANES;
    while (classes % common) common /= 2;
    return classes / common;
}

/* n consecutive candidates of one sign from element i of x on; k and classes as in each(). */
#define RUN(name, task, bf16)                                                                                          \
    static void name(const void *x, void *g, int64_t i, int64_t n, int positive, const float *weights,                 \
                     const sign_t *signs, const float *slopes, sums_t *sums, int64_t k, int64_t classes) {             \
        const sign_t *p = &signs[!positive];                                                                           \
        sums += !positive;                                                                                             \
        if (slopes) slopes += 2 * !positive;                                                                           \
        int plain = !weights && p->v0 == 0.0f && p->threshold == -__builtin_inff();                                    \
        if ((task == DR_SUMS || task == DR_SLOPE) && classes) {                                                        \
            int64_t step = LANES * phases(classes);                                                                    \
            for (int64_t j = 0; j < step && j < n; j += LANES)                                                         \
                if (plain) each(x, g, i + j, n - j, positive, 0, p, slopes, sums, task, bf16, 1, step, k + j, classes);\
                else each(x, g, i + j, n - j, positive, weights ? weights + j : 0, p, slopes, sums, task, bf16, 0,     \
                          step, k + j, classes);                                                                       \
        } else if (plain) each(x, g, i, n, positive, 0, p, slopes, sums, task, bf16, 1, LANES, 0, 0);                  \
        else each(x, g, i, n, positive, weights, p, slopes, sums, task, bf16, 0, LANES, 0, 0);                         \
    }
#define RUNS(name, task) RUN(name##_f32, task, 0) RUN(name##_bf16, task, 1)
RUNS(top, TOP)
RUNS(dr_sums, DR_SUMS)
RUNS(dr_slope, DR_SLOPE)
RUNS(focal_sums, FOCAL_SUMS)
RUNS(focal_slope, FOCAL_SLOPE)

static run_t *const RUN_OF[][2] = {[TOP] = {top_f32, top_bf16},
                                   [DR_SUMS] = {dr_sums_f32, dr_sums_bf16},
                                   [DR_SLOPE] = {dr_slope_f32, dr_slope_bf16},
                                   [FOCAL_SUMS] = {focal_sums_f32, focal_sums_bf16},
                                   [FOCAL_SLOPE] = {focal_slope_f32, focal_slope_bf16}};

/* The arguments of a block of candidates. */
typedef struct {
    const level_t *level;
    const void *x;
    void *g;
    run_t *run;
    sums_t *sums;
    int64_t size; /* bytes of an element */
} work_t;

/* Candidates of class k and, with dk = 1, of the classes after it. */
static void run(const work_t *t, int64_t i, int64_t n, int positive, const float *weights, int64_t k, int64_t dk) {
    const level_t *l = t->level;
    int64_t first = l->by_class_sums && !dk ? k : 0, classes = l->by_class_sums && dk ? l->classes : 0;
    const float *slopes = l->slopes ? l->slopes + 4 * first : 0;
    t->run(t->x, t->g, i, n, positive, weights, l->signs, slopes, t->sums + 2 * first, k, classes);
}

/* Label of an anchor; -1 for a number that is no label. */
static inline int64_t label_of(const level_t *l, int64_t a) {
    int64_t label = l->labels[a];
    return label >= 0 && label <= l->classes ? label : -1;
}

/* Weight of one candidate; 0 if it is not of that sign. */
static inline float weight_of(const level_t *l, int64_t a, int64_t k, int positive) {
    int is_positive, is_negative;
    if (l->dense) {
        uint8_t code = l->dense[a * l->classes + k];
        is_positive = code == 1, is_negative = code == 0;
    } else {
        int64_t label = label_of(l, a);
        is_positive = label == k + 1, is_negative = label >= 0 && !is_positive;
    }
    if (!(positive ? is_positive : is_negative)) return 0.0f;
    const float *w = l->weights[!positive];
    return w ? w[a * l->by_anchor[!positive] + k * l->by_class[!positive]] : 1.0f;
}

/* n places from element i on with candidates of both signs: first the negatives with their weights, then each
 * positive. Place j is anchor a0 + j * da, class k0 + j * dk. */
static void mixed(const work_t *t, int64_t i, int64_t n, int64_t a0, int64_t da, int64_t k0, int64_t dk) {
    float weights[WIDTH], own[WIDTH];
    for (int64_t from = 0; from < n; from += WIDTH) {
        int64_t count = n - from < WIDTH ? n - from : WIDTH;
        for (int64_t j = 0; j < count; j++) {
            weights[j] = weight_of(t->level, a0 + (from + j) * da, k0 + (from + j) * dk, 0);
            own[j] = weight_of(t->level, a0 + (from + j) * da, k0 + (from + j) * dk, 1);
        }
        /* If g is the memory of x, a positive would be read after its place was written: so its value is kept. */
        char kept[4 * WIDTH];
        memcpy(kept, (const char *)t->x + (i + from) * t->size, (size_t)(count * t->size));
        run(t, i + from, count, 0, weights, k0 + from * dk, dk);
        work_t positives = *t;
        positives.x = kept;
        positives.g = t->g ? (char *)t->g + (i + from) * t->size : 0;
        for (int64_t j = 0; j < count; j++)
            if (own[j] != 0.0f) run(&positives, j, 1, 1, own + j, k0 + (from + j) * dk, 0);
    }
}

/* Whether the negatives of a background anchor have no weights. */
static int plain(const level_t *l) { return !l->dense && !l->weights[1]; }

/* Anchors first .. last of a level in rows. */
static void rows(const work_t *t, int64_t first, int64_t last) {
    const level_t *l = t->level;
    int64_t k = l->classes;
    for (int64_t a = first, end; a < last; a = end) {
        end = a + 1;
        int64_t label = l->dense ? 0 : label_of(l, a);
        if (!plain(l) || (label > 0 && l->by_class_sums)) {
            mixed(t, a * k, k, a, 0, 0, 1);
            continue;
        }
        if (label > 0) {
            float own = weight_of(l, a, label - 1, 1);
            run(t, a * k, label - 1, 0, 0, 0, 1);
            run(t, a * k + label - 1, 1, 1, l->weights[0] ? &own : 0, label - 1, 0);
            run(t, a * k + label, k - label, 0, 0, label, 1);
            continue;
        }
        while (end < last && (label == 0 ? l->labels[end] == 0 : label_of(l, end) < 0)) end++;
        if (label == 0) run(t, a * k, (end - a) * k, 0, 0, 0, 1);
        else if (t->g) memset((char *)t->g + a * k * t->size, 0, (size_t)((end - a) * k * t->size));
    }
}

/* Places first .. last of all planes of anchor b. */
static void planes(const work_t *t, int64_t b, int64_t first, int64_t last) {
    const level_t *l = t->level;
    int background = plain(l);
    for (int64_t s = first; s < last && background; s++) background = l->labels[s * l->per_place + b] == 0;
    for (int64_t k = 0; k < l->classes; k++) {
        int64_t i = (b * l->classes + k) * l->places + first, n = last - first;
        if (background) run(t, i, n, 0, 0, k, 0);
        else mixed(t, i, n, first * l->per_place + b, l->per_place, k, 0);
    }
}

static int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Anchors in a block of rows. */
static int64_t height(const level_t *l) {
    int64_t many = up(BLOCK, l->classes);
    return l->by_class_sums && many < TALL ? TALL : many;
}

/* Number of blocks of a level: a block is whole anchors in rows, or WIDTH places of all planes of an anchor. */
int64_t drloss_blocks(const level_t *l) {
    return l->places ? l->per_place * up(l->places, WIDTH) : up(l->anchors, height(l));
}

static void block(const work_t *t, int64_t number) {
    const level_t *l = t->level;
    if (l->places) {
        int64_t parts = up(l->places, WIDTH), first = number % parts * WIDTH;
        planes(t, number / parts, first, least(first + WIDTH, l->places));
    } else {
        int64_t many = height(l), first = number * many;
        rows(t, first, least(first + many, l->anchors));
    }
}

/* One task over one level of one image. Sums are added to out = {positive z, s, m, negative z, s, m} of each set of
 * sums, where TOP keeps the largest y of each sign in place of z; slopes are written to g, which may be x itself. slots
 * has room for 6 doubles a block and set. */
void drloss_level(const level_t *l, const void *x, void *g, int task, double *slots, double *out, int bf16,
                  int threads) {
    int64_t blocks = drloss_blocks(l), size = 6 * (l->by_class_sums ? l->classes : 1);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && blocks > 1)
    for (int64_t number = 0; number < blocks; number++) {
        sums_t *sums = (sums_t *)(slots + size * number);
        if (!g) memset(sums, 0, (size_t)size * sizeof(double));
        if (task == TOP) sums[0].z = sums[1].z = -__builtin_inf();
        work_t work = {l, x, g, RUN_OF[task][bf16], sums, bf16 ? 2 : 4};
        block(&work, number);
    }
    for (int64_t i = 0; !g && i < size * blocks; i++) {
        if (task != TOP) out[i % size] += slots[i];
        else if (i % 3 == 0 && !(slots[i] <= out[i % size])) out[i % size] = slots[i];
    }
}
