/* 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3), forward and the gradient of the filters.

   A tile of 6x6 pixels gives 4x4 outputs: tiles and filters are transformed, multiplied channel by channel as 36 matrix
   products, and transformed back. The transforms interpolate polynomials at 0, +-a, +-b and infinity with ab = 1.
   Everything between two transforms stays in the cache: filters are transformed again for each block of tiles, which
   costs less than reading 36 numbers in place of 9.

   Images are (n, rows, columns, channels), filters (9, inputs, outputs); inputs and outputs are multiples of 16.
   With a dilation d, each of the d*d sets of pixels with the same remainder is an image of its own.
   Each number is summed in one order, whatever the number of threads.

   Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016; Barabasz et al., "Error Analysis
   and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018. */

#include "panels.h"

#define DEEP 64 /* channels of one block of tiles */
#define SPAN 4  /* blocks of panels of a task of the filters' gradient */

static const float A = 2.f / 3, AA = 4.f / 9, B = 3.f / 2, BB = 9.f / 4, S = 97.f / 36;
static const float AAA = 8.f / 27, BBB = 27.f / 8;
static const float FA = -81.f / 130, FAA = -54.f / 130, FAAA = -36.f / 130; /* of filters: 1, a, a*a over a's product */
static const float FB = 16.f / 130, FBB = 24.f / 130, FBBB = 36.f / 130;

INLINE void tile6(const vec d[6], vec t[6]) {
    vec u = d[4] - BB * d[2], v = A * d[3] - B * d[1], p = d[4] - AA * d[2], q = B * d[3] - A * d[1];
    t[0] = d[0] - S * d[2] + d[4];
    t[1] = u + v;
    t[2] = u - v;
    t[3] = p + q;
    t[4] = p - q;
    t[5] = d[1] - S * d[3] + d[5];
}

INLINE void filter6(const vec g[3], vec t[6]) {
    vec u = FA * g[0] + FAAA * g[2], v = FAA * g[1], p = FB * g[0] + FBBB * g[2], q = FBB * g[1];
    t[0] = g[0];
    t[1] = u + v;
    t[2] = u - v;
    t[3] = p + q;
    t[4] = p - q;
    t[5] = g[2];
}

INLINE void back4(const vec m[6], vec y[4]) {
    vec u = m[1] + m[2], v = m[1] - m[2], p = m[3] + m[4], q = m[3] - m[4];
    y[0] = m[0] + u + p;
    y[1] = A * v + B * q;
    y[2] = AA * u + BB * p;
    y[3] = AAA * v + BBB * q + m[5];
}

/* The transposes of back4 and of filter6. */
INLINE void diff6(const vec y[4], vec t[6]) {
    vec u = y[0] + AA * y[2], v = A * y[1] + AAA * y[3], p = y[0] + BB * y[2], q = B * y[1] + BBB * y[3];
    t[0] = y[0];
    t[1] = u + v;
    t[2] = u - v;
    t[3] = p + q;
    t[4] = p - q;
    t[5] = y[3];
}

INLINE void filter3(const vec m[6], vec g[3]) {
    vec u = m[1] + m[2], v = m[1] - m[2], p = m[3] + m[4], q = m[3] - m[4];
    g[0] = m[0] + FA * u + FB * p;
    g[1] = FAA * v + FBB * q;
    g[2] = FAAA * u + FBBB * p + m[5];
}

PRODUCT(tiles_by_filters, DEEP, 1)
PRODUCT(tiles_by_diffs, 1, DEEP)

/* A shape, and the first row and column of each tile of outputs. */
typedef struct {
    long n, h, w, inputs, outputs, pad_h, pad_w, dilation, out_h, out_w, down, across, tiles;
    long x_step, y_step; /* from pixel to pixel */
    long *rows, *columns;
    const float *zeros;
} Shape;

static long starts(long size, long dilation, long *found) {
    long count = 0;
    for (long r = 0; r < dilation; r++)
        for (long i = r; i < size; i += 4 * dilation, count++)
            if (found) found[count] = i;
    return count;
}

static int describe(Shape *s, const long *given) {
    memcpy(s, given, 8 * sizeof(long));
    s->out_h = s->h + 2 * s->pad_h - 2 * s->dilation, s->out_w = s->w + 2 * s->pad_w - 2 * s->dilation;
    s->down = starts(s->out_h, s->dilation, 0), s->across = starts(s->out_w, s->dilation, 0);
    s->tiles = s->n * s->down * s->across;
    s->x_step = s->inputs, s->y_step = s->outputs;
    s->rows = malloc((s->down + s->across) * sizeof(long));
    s->zeros = calloc(s->inputs > s->outputs ? s->inputs : s->outputs, sizeof(float));
    if (!s->rows || !s->zeros) return 1;
    s->columns = s->rows + s->down;
    starts(s->out_h, s->dilation, s->rows), starts(s->out_w, s->dilation, s->columns);
    return 0;
}

static void forget(Shape *s) {
    free(s->rows);
    free((void *)s->zeros);
}

/* The pixels of a tile: side*side of them, of an image of (h, w, channels), zeros outside. */
INLINE void pixels(const Shape *s, const float *x, long tile, int side, long h, long w, long channels, long up, long left,
                   const float **found) {
    long image = tile / (s->down * s->across), y = tile / s->across % s->down;
    long row = s->rows[y] - up, column = s->columns[tile % s->across] - left;
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            long r = row + i * s->dilation, c = column + j * s->dilation;
            int inside = r >= 0 && r < h && c >= 0 && c < w;
            found[i * side + j] = inside ? x + ((image * h + r) * w + c) * channels : s->zeros;
        }
}

/* Tiles of inputs, channels first to last (at most DEEP), to v[position][tile][DEEP], positions `step` apart. */
static void transform_tiles(const Shape *s, const float *x, long tile, long count, long first, long last, float *v,
                            long step) {
    const float *from[36];
    for (long t = 0; t < count; t++) {
        pixels(s, x, tile + t, 6, s->h, s->w, s->x_step, s->pad_h, s->pad_w, from);
        for (long c = first; c < last; c += LANES) {
            vec d[6], half[6][6], done[6];
            for (int j = 0; j < 6; j++) {
                for (int i = 0; i < 6; i++) d[i] = AT(from[i * 6 + j] + c);
                tile6(d, done);
                for (int i = 0; i < 6; i++) half[i][j] = done[i];
            }
            float *to = v + t * DEEP + c - first;
            for (int i = 0; i < 6; i++) {
                tile6(half[i], done);
                for (int j = 0; j < 6; j++) AT(to + (i * 6 + j) * step) = done[j];
            }
        }
    }
}

/* Filters of the inputs first to last and a panel of outputs to u[position][input][WIDE]. */
static void transform_filters(const Shape *s, const float *w, long first, long last, long output, float *u, long step) {
    long wide = s->outputs - output < WIDE ? s->outputs - output : WIDE, plane = s->inputs * s->outputs;
    for (long k = first; k < last; k++, u += WIDE)
        for (long c = 0; c < WIDE; c += LANES) {
            vec g[3], half[6][3], done[6];
            if (c >= wide) {
                for (int p = 0; p < 36; p++) AT(u + p * step + c) = (vec){0};
                continue;
            }
            const float *from = w + k * s->outputs + output + c;
            for (int j = 0; j < 3; j++) {
                for (int i = 0; i < 3; i++) g[i] = AT(from + (i * 3 + j) * plane);
                filter6(g, done);
                for (int i = 0; i < 6; i++) half[i][j] = done[i];
            }
            for (int i = 0; i < 6; i++) {
                filter6(half[i], done);
                for (int j = 0; j < 6; j++) AT(u + (i * 6 + j) * step + c) = done[j];
            }
        }
}

/* Products m[position][tile][WIDE] to a panel of outputs. */
static void transform_back(const Shape *s, const float *m, long step, long tile, long count, long output,
                           const float *bias, int relu, float *y) {
    long wide = s->outputs - output < WIDE ? s->outputs - output : WIDE;
    for (long t = 0; t < count; t++) {
        long image = (tile + t) / (s->down * s->across), at = (tile + t) / s->across % s->down;
        long row = s->rows[at], column = s->columns[(tile + t) % s->across];
        for (long c = 0; c < wide; c += LANES) {
            vec d[6], half[4][6], done[4], b = bias ? AT(bias + output + c) : (vec){0};
            for (int j = 0; j < 6; j++) {
                for (int i = 0; i < 6; i++) d[i] = AT(m + (i * 6 + j) * step + t * WIDE + c);
                back4(d, done);
                for (int i = 0; i < 4; i++) half[i][j] = done[i];
            }
            for (int i = 0; i < 4 && row + i * s->dilation < s->out_h; i++) {
                long r = row + i * s->dilation;
                back4(half[i], done);
                for (int j = 0; j < 4 && column + j * s->dilation < s->out_w; j++) {
                    vec z = done[j] + b;
                    if (relu) z = (vec)((bits)z & ~(z < 0)); /* NaN stays */
                    AT(y + ((image * s->out_h + r) * s->out_w + column + j * s->dilation) * s->y_step + output + c) = z;
                }
            }
        }
    }
}

/* Diffs of outputs, channels first to last (at most WIDE), to d[position][tile][WIDE]. */
static void transform_diffs(const Shape *s, const float *dy, long tile, long count, long first, long last, float *to,
                            long step) {
    const float *from[16];
    for (long t = 0; t < count; t++, to += WIDE) {
        pixels(s, dy, tile + t, 4, s->out_h, s->out_w, s->outputs, 0, 0, from);
        for (long c = 0; c < WIDE; c += LANES) {
            vec d[4], half[6][4], done[6];
            if (first + c >= last) {
                for (int p = 0; p < 36; p++) AT(to + p * step + c) = (vec){0};
                continue;
            }
            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < 4; i++) d[i] = AT(from[i * 4 + j] + first + c);
                diff6(d, done);
                for (int i = 0; i < 6; i++) half[i][j] = done[i];
            }
            for (int i = 0; i < 6; i++) {
                diff6(half[i], done);
                for (int j = 0; j < 6; j++) AT(to + (i * 6 + j) * step + c) = done[j];
            }
        }
    }
}

/* y = x * w + bias. given: n, rows, columns, inputs, outputs, pad of rows and of columns, dilation. bias may be null.
   x_step, y_step: from pixel to pixel. budget: the bytes of transformed tiles at a time. Returns 1 where memory is
   short. */
static int winograd_part(const long *given, const float *x, long x_step, const float *w, const float *bias, int relu,
                         float *y, long y_step, long budget, int threads) {
    Shape s;
    int failed = describe(&s, given);
    s.x_step = x_step, s.y_step = y_step;
    if (!failed) {
        long deep = (s.inputs + DEEP - 1) / DEEP, panels = (s.outputs + WIDE - 1) / WIDE;
        long at_once = least(256, budget / (36 * deep * DEEP * 4));
        at_once = at_once < 24 ? 24 : at_once;
        long blocks = (s.tiles + at_once - 1) / at_once, groups = 1;
        if (blocks % threads && s.tiles >= 24 * threads)
            blocks = (blocks + threads - 1) / threads * threads;
        else if (blocks < threads)
            groups = least(panels, (threads + blocks - 1) / blocks);
        at_once = (s.tiles + blocks - 1) / blocks;
        long step = at_once * DEEP + LANES, filter_step = DEEP * WIDE + LANES, back_step = at_once * WIDE + LANES;
#pragma omp parallel for schedule(static, 1) num_threads(threads) reduction(| : failed)
        for (long task = 0; task < blocks * groups; task++) {
            long tile = task / groups * at_once, count = least(at_once, s.tiles - tile), group = task % groups;
            float *v = scratch(36 * sizeof(float) * (deep * step + filter_step + back_step));
            if (!v) {
                failed = 1;
                continue;
            }
            float *u = v + 36 * deep * step, *m = u + 36 * filter_step;
            for (long k = 0; k < deep; k++)
                transform_tiles(&s, x, tile, count, k * DEEP, least(s.inputs, (k + 1) * DEEP), v + k * 36 * step, step);
            for (long panel = panels * group / groups; panel < panels * (group + 1) / groups; panel++) {
                for (long k = 0; k < deep; k++) {
                    long last = least(s.inputs, (k + 1) * DEEP);
                    transform_filters(&s, w, k * DEEP, last, panel * WIDE, u, filter_step);
                    for (int p = 0; p < 36; p++)
                        tiles_by_filters(count, v + (k * 36 + p) * step, u + p * filter_step, m + p * back_step,
                                         last - k * DEEP, k == 0);
                }
                transform_back(&s, m, back_step, tile, count, panel * WIDE, bias, relu, y);
            }
        }
    }
    forget(&s);
    return failed;
}

int winograd_forward(const long *given, const float *x, const float *w, const float *bias, int relu, float *y,
                     long budget, int threads) {
    return winograd_part(given, x, given[3], w, bias, relu, y, given[4], budget, threads);
}

/* dw (9, inputs, outputs) of y = x * w, from the diffs of y. */
int winograd_filters(const long *given, const float *x, const float *dy, float *dw, int threads) {
    Shape s;
    int failed = describe(&s, given);
    if (!failed) {
        enum { MANY = 48 };
        long deep = (s.inputs + DEEP - 1) / DEEP, panels = (s.outputs + WIDE - 1) / WIDE;
        long groups = (panels + SPAN - 1) / SPAN;
        if (deep * groups < threads) groups = least(panels, (threads + deep - 1) / deep);
        long span = (panels + groups - 1) / groups;
        long step = MANY * DEEP + LANES, diff_step = MANY * WIDE + LANES, sum_step = DEEP * WIDE;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (long task = 0; task < deep * groups; task++) {
            long first = task / groups * DEEP, inputs = least(DEEP, s.inputs - first);
            long panel = panels * (task % groups) / groups, end = panels * (task % groups + 1) / groups;
            float *v = scratch(36 * sizeof(float) * (step + diff_step + (span + 1) * sum_step));
            if (!v) {
                failed = 1;
                continue;
            }
            float *d = v + 36 * step, *sum = d + 36 * diff_step;
            for (long tile = 0; tile < s.tiles; tile += MANY) {
                long count = least(MANY, s.tiles - tile);
                transform_tiles(&s, x, tile, count, first, first + inputs, v, step);
                for (long q = panel; q < end; q++) {
                    transform_diffs(&s, dy, tile, count, q * WIDE, least(s.outputs, (q + 1) * WIDE), d, diff_step);
                    for (int p = 0; p < 36; p++)
                        tiles_by_diffs(inputs, v + p * step, d + p * diff_step,
                                       sum + ((q - panel) * 36 + p) * sum_step, count, tile == 0);
                }
            }
            for (long q = panel; q < end; q++)
                for (long k = 0; k < inputs; k++)
                    for (long c = 0; c < WIDE && q * WIDE + c < s.outputs; c += LANES) {
                        vec m[6], half[3][6], done[3];
                        const float *from = sum + (q - panel) * 36 * sum_step + k * WIDE + c;
                        for (int j = 0; j < 6; j++) {
                            for (int i = 0; i < 6; i++) m[i] = AT(from + (i * 6 + j) * sum_step);
                            filter3(m, done);
                            for (int i = 0; i < 3; i++) half[i][j] = done[i];
                        }
                        for (int i = 0; i < 3; i++) {
                            filter3(half[i], done);
                            for (int j = 0; j < 3; j++)
                                AT(dw + ((i * 3 + j) * s.inputs + first + k) * s.outputs + q * WIDE + c) = done[j];
                        }
                    }
        }
    }
    forget(&s);
    return failed;
}
