/* The layers of a net one after the other, in one call.

   Images are (n, rows, columns, channels); a blob's pixels are `stride` numbers apart, so that it may be a part of the
   channels of another blob (a concatenation's). Convolutions are products of gathered pixels with panels of filters.
   Each number is summed in one order, whatever the number of threads. */

#include "product.c"
#include "winograd.c"
#include <float.h>
#include <math.h>
#include <stdint.h>

enum { CONVOLVE, WINOGRAD, DEPTHWISE, ROWS_PRODUCT, COLUMNS_PRODUCT, LARGEST, AVERAGE, NEIGHBOURS, SUM, AFFINE, SOFTMAX,
       TO_PLANES, FROM_PLANES, COLUMNS, CONVOLVE_HALF };

typedef struct {
    long base, at, stride; /* which memory, the first number's place in it, from pixel to pixel */
} Blob;

typedef struct {
    long op;
    Blob x, other, y;
    long n, h, w, c, out_h, out_w, out; /* sizes of x and y */
    long kernel[2], step[2], pad[2], behind[2], dilation[2], group;
    long relu, flag;
    const float *weight, *bias, *slope;
    float a, b, power;
} Step;

/* Vectors of multiplications up to which waking a second thread costs more than it gains. */
long few = 1 << 17;

#define DEPTH 256 /* numbers of a pixel's window at a time */
#define DOWN (DEPTH + LANES)
#define KEPT (96 << 10) /* numbers of gathered pixels at a time */
#define MOST 240

/* `rows` pixels of y = a * b, with `vectors` vectors of columns, from the pixels a, `down` numbers apart. With m, plus
   what is there already; with a bias, plus that, then the ReLU, or times the slope where negative. NaN stays. */
INLINE void panel(int vectors, int rows, const float *a, long down, const float *b, long depth, const float *m,
                   const float *bias, const float *slope, long relu, float *y, long stride) {
    vec sum[ROWS][2];
    const float *at[ROWS / 3];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vec){0}, at[i / 3] = a + i / 3 * 3 * down;
    for (long k = 0; k < depth; k++) {
        vec left = AT(b + k * WIDE), right = AT(b + k * WIDE + (vectors - 1) * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            float x = at[i / 3][i % 3 * down + k];
            sum[i][0] += x * left;
            if (vectors == 2) sum[i][1] += x * right;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            vec z = sum[i][j];
            if (m) z += AT(m + i * WIDE + j * LANES);
            if (bias) z += AT(bias + j * LANES);
            if (slope) {
                bits below = z < 0;
                z = (vec)(((bits)(z * AT(slope + j * LANES)) & below) | ((bits)z & ~below));
            } else if (relu)
                z = (vec)((bits)z & ~(z < 0));
            AT(y + i * stride + j * LANES) = z;
        }
}
#define PIXELS(name, vectors) \
    static void name(long rows, const float *a, long down, const float *b, long depth, const float *m, \
                     const float *bias, const float *slope, long relu, float *y, long stride) { \
        for (long pieces = (rows + ROWS - 1) / ROWS; pieces; pieces--) { \
            long now = (rows + pieces - 1) / pieces; \
            switch (now) { \
                PIECE(1, vectors) PIECE(2, vectors) PIECE(3, vectors) PIECE(4, vectors) PIECE(5, vectors) PIECE(6, vectors) \
                MORE_PIECES(vectors) \
            } \
            a += now * down, y += now * stride, m += m ? now * WIDE : 0, rows -= now; \
        } \
    }
#define PIECE(n, vectors) \
    case n: \
        panel(vectors, n, a, down, b, depth, m, bias, slope, relu, y, stride); \
        break;
#if ROWS == 12
#define MORE_PIECES(vectors) \
    PIECE(7, vectors) PIECE(8, vectors) PIECE(9, vectors) PIECE(10, vectors) PIECE(11, vectors) PIECE(12, vectors)
#else
#define MORE_PIECES(vectors)
#endif
PIXELS(whole_panel, 2)
PIXELS(half_panel, 1)

/* The same in bfloat16: pairs of numbers, their products added in single precision. */
typedef uint16_t half;
#define HALF_DOWN (DEPTH + 2 * LANES)
#ifdef __AVX512BF16__
#include <immintrin.h>
INLINE void multiply_half(int rows, long down, long along, const half *a, const half *b, float *c, long depth, int fresh) {
    __m512 sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (long k = 0; k < depth; k += 2) {
        __m512bh left = (__m512bh)_mm512_loadu_si512(b + k * WIDE), right = (__m512bh)_mm512_loadu_si512(b + (k + 1) * WIDE);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            int pair;
            memcpy(&pair, a + i * down + k * along, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, left);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, right);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 2; j++) {
            float *to = c + i * WIDE + j * LANES;
            _mm512_storeu_ps(to, fresh ? sum[i][j] : _mm512_add_ps(sum[i][j], _mm512_loadu_ps(to)));
        }
}
PRODUCT_OF(half, multiply_half, halves_by_panel, HALF_DOWN, 1)

static void narrow(const float *from, half *to, long count) {
    for (long k = 0; k < count; k += LANES)
        _mm256_storeu_si256((__m256i *)(to + k), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + k)));
}
int has_half(void) { return 1; }
#else
static void halves_by_panel(long rows, const half *a, const half *b, float *c, long depth, int fresh) {}
static void narrow(const float *from, half *to, long count) {}
int has_half(void) { return 0; }
#endif

/* z from m: plus the bias, then the ReLU, or times the slope where negative. NaN stays. */
INLINE void emit(float *z, const float *m, const float *bias, const float *slope, long relu, long count) {
    if (slope)
        for (long c = 0; c < count; c++) {
            float v = m[c] + bias[c];
            z[c] = v < 0 ? v * slope[c] : v;
        }
    else if (relu)
        for (long c = 0; c < count; c++) {
            float v = m[c] + bias[c];
            z[c] = v < 0 ? 0 : v;
        }
    else
        for (long c = 0; c < count; c++) z[c] = m[c] + bias[c];
}

/* Numbers (0 without `from`) as the next ones of a window. Whole vectors, where as many can be read before `end`: each
   block has room for one more. */
INLINE void put(float *blocks, long block, unsigned long at, const float *from, long count, const float *end) {
    while (count > 0) {
        long k = at % DEPTH, now = least(count, DEPTH - k);
        float *to = blocks + at / DEPTH * block + k;
        if (!from)
            for (long i = 0; i < now; i += LANES) AT(to + i) = (vec){0};
        else if (end - from >= now + LANES)
            for (long i = 0; i < now; i += LANES) AT(to + i) = AT(from + i);
        else
            memcpy(to, from, now * sizeof(float));
        from += from ? now : 0, at += now, count -= now;
    }
}

/* The window of an output pixel: `inputs` channels of each tap. */
static void gather(const Step *s, const float *x, long image, long oy, long ox, long inputs, float *to, long block,
                   const float *end) {
    long at = 0;
    long left = ox * s->step[1] - s->pad[1], width = s->kernel[1] * inputs;
    for (long i = 0; i < s->kernel[0]; i++, at += width) {
        long row = oy * s->step[0] - s->pad[0] + i * s->dilation[0];
        if (row < 0 || row >= s->h) {
            put(to, block, at, 0, width, end);
            continue;
        }
        const float *from = x + (image * s->h + row) * s->w * s->x.stride;
        if (s->dilation[1] == 1 && s->x.stride == inputs) {
            long first = left < 0 ? least(-left, s->kernel[1]) : 0, last = least(s->kernel[1], s->w - left);
            if (last < first) last = first;
            put(to, block, at, 0, first * inputs, end);
            put(to, block, at + first * inputs, from + (left + first) * inputs, (last - first) * inputs, end);
            put(to, block, at + last * inputs, 0, width - last * inputs, end);
            continue;
        }
        for (long j = 0; j < s->kernel[1]; j++) {
            long column = left + j * s->dilation[1];
            int inside = column >= 0 && column < s->w;
            put(to, block, at + j * inputs, inside ? from + column * s->x.stride : 0, inputs, end);
        }
    }
}

/* The same for a window that is inside, of at most DEPTH numbers, whose rows are each in one piece. */
INLINE int gather_inside(const Step *s, const float *x, long image, long oy, long ox, long inputs, float *to,
                         const float *end) {
    long top = oy * s->step[0] - s->pad[0], left = ox * s->step[1] - s->pad[1], width = s->kernel[1] * inputs;
    long down = s->dilation[0] * s->w * inputs;
    const float *from = x + ((image * s->h + top) * s->w + left) * inputs;
    if (top < 0 || left < 0 || left + s->kernel[1] > s->w || top + (s->kernel[0] - 1) * s->dilation[0] >= s->h ||
        end - from < (s->kernel[0] - 1) * down + width + LANES)
        return 0;
    for (long i = 0; i < s->kernel[0]; i++, from += down, to += width)
        for (long k = 0; k < width; k += LANES) AT(to + k) = AT(from + k);
    return 1;
}

/* weight: (group, panels, kernel rows, columns, inputs, WIDE); bias and slope filled up to whole panels. In bfloat16
   (group, panels, pairs of kernel rows, columns and inputs, WIDE, 2). */
static int convolve(const Step *s, const float *x, float *y, int threads) {
    long inputs = s->c / s->group, outputs = s->out / s->group, depth = s->kernel[0] * s->kernel[1] * inputs;
    long blocks = (depth + DEPTH - 1) / DEPTH, panels = (outputs + WIDE - 1) / WIDE, in_half = s->op == CONVOLVE_HALF;
    int single = depth == inputs && s->out_h == s->h && s->out_w == s->w && !s->pad[0] && !s->pad[1];
    long pixels = s->n * s->out_h * s->out_w, many = KEPT / (blocks * DOWN) / ROWS * ROWS;
    many = many > MOST ? MOST : many < 2 * ROWS ? 2 * ROWS : many;
    long chunks = (pixels + many - 1) / many, parts = 1;
    if (chunks * s->group < threads)
        parts = least(panels, (threads + chunks * s->group - 1) / (chunks * s->group));
    else if (chunks % threads)
        chunks = least(pixels, (chunks + threads - 1) / threads * threads);
    many = (pixels + chunks - 1) / chunks, chunks = (pixels + many - 1) / many;
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads) reduction(| : failed) if (threads > 1)
    for (long task = 0; task < chunks * s->group * parts; task++) {
        long part = task / chunks % parts, group = task / (chunks * parts), first = task % chunks * many;
        long rows = least(many, pixels - first), block = many * DOWN;
        float *a = scratch(sizeof(float) * (blocks * block + many * WIDE + blocks * DOWN));
        if (!a) {
            failed = 1;
            continue;
        }
        float *m = a + blocks * block, *one = m + many * WIDE;
        half *halves = (half *)a;
        const float *from = x + group * inputs, *end = x + (s->n * s->h * s->w - 1) * s->x.stride + s->c;
        int as_is = single && !in_half; /* the pixels are read where they are */
        int whole_rows = blocks == 1 && s->dilation[1] == 1 && s->x.stride == inputs;
        long image = first / (s->out_h * s->out_w), oy = first / s->out_w % s->out_h, ox = first % s->out_w;
        for (long r = 0; r < rows && !as_is; r++) {
            float *window = in_half ? one : a + r * DOWN;
            if (!whole_rows || !gather_inside(s, x, image, oy, ox, inputs, window, end))
                gather(s, from, image, oy, ox, inputs, window, in_half ? DOWN : block, end);
            if (++ox == s->out_w) ox = 0, oy++;
            if (oy == s->out_h) oy = 0, image++;
            for (long k = 0; in_half && k < blocks; k++) {
                long now = least(DEPTH, depth - k * DEPTH);
                memset(one + k * DOWN + now, 0, LANES * sizeof(float));
                narrow(one + k * DOWN, halves + (k * many + r) * HALF_DOWN, now);
            }
        }
        for (long panel = panels * part / parts; panel < panels * (part + 1) / parts; panel++) {
            long column = panel * WIDE, padded = (group * panels + panel) * WIDE, count = least(WIDE, outputs - column);
            const float *w = s->weight + padded * depth, *slope = s->slope ? s->slope + padded : 0;
            const half *v = (const half *)s->weight + padded * ((depth + 1) / 2 * 2);
            float *to = y + first * s->y.stride + group * outputs + column;
            long vectors = count <= LANES ? 1 : 2;
            int direct = count == vectors * LANES;
            for (long k = 0; k < blocks; k++) {
                long now = least(DEPTH, depth - k * DEPTH), last = k == blocks - 1, put_there = last && direct;
                const float *left = as_is ? from + first * s->x.stride + k * DEPTH : a + k * block;
                if (in_half)
                    halves_by_panel(rows, halves + k * many * HALF_DOWN, v + k * DEPTH * WIDE, m, now, k == 0);
                else
                    (vectors == 1 ? half_panel : whole_panel)(
                        rows, left, as_is ? s->x.stride : DOWN, w + k * DEPTH * WIDE, now, k ? m : 0,
                        last ? s->bias + padded : 0, last ? slope : 0, last && s->relu, put_there ? to : m,
                        put_there ? s->y.stride : WIDE);
            }
            for (long r = 0; r < rows && in_half; r++)
                emit(to + r * s->y.stride, m + r * WIDE, s->bias + padded, slope, s->relu, count);
            for (long r = 0; r < rows && !direct && !in_half; r++)
                memcpy(to + r * s->y.stride, m + r * WIDE, count * sizeof(float));
        }
    }
    return failed;
}

#include "windows.h"

/* x / (k + alpha * the sum of squares of neighbouring channels)^power; a: alpha over the size, b: k, flag: the size. */
static int neighbours(const Step *s, const float *x, float *y, int threads) {
    long pixels = s->n * s->h * s->w, half = s->flag / 2, width = s->c + 2 * half;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed) if (threads > 1)
    for (long p = 0; p < pixels; p++) {
        float *squares = scratch(sizeof(float) * (width + s->c)), *sum = squares + width;
        if (!squares) {
            failed = 1;
            continue;
        }
        const float *from = x + p * s->x.stride;
        float *to = y + p * s->y.stride;
        memset(squares, 0, half * sizeof(float)), memset(squares + half + s->c, 0, half * sizeof(float));
        for (long c = 0; c < s->c; c++) squares[half + c] = from[c] * from[c];
        for (long c = 0; c < s->c; c++) sum[c] = squares[c];
        for (long i = 1; i < s->flag; i++)
            for (long c = 0; c < s->c; c++) sum[c] += squares[c + i];
        for (long c = 0; c < s->c; c++) sum[c] = s->b + s->a * sum[c];
        if (s->power == 0.75f)
            for (long c = 0; c < s->c; c++) {
                float root = sqrtf(sum[c]);
                to[c] = from[c] / (root * sqrtf(root));
            }
        else
            for (long c = 0; c < s->c; c++) to[c] = from[c] * powf(sum[c], -s->power);
    }
    return failed;
}

static void softmax(const Step *s, const float *x, float *y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long p = 0; p < s->n * s->h * s->w; p++) {
        const float *from = x + p * s->x.stride;
        float *to = y + p * s->y.stride, most = from[0], sum = 0;
        for (long c = 1; c < s->c; c++) most = from[c] > most || from[c] != from[c] ? from[c] : most;
        for (long c = 0; c < s->c; c++) sum += to[c] = expf(from[c] - most);
        for (long c = 0; c < s->c; c++) to[c] /= sum;
    }
}

static void pixelwise(const Step *s, const float *x, const float *other, float *y, int threads) {
    long pixels = s->n * s->h * s->w, c;
#pragma omp parallel for schedule(static) num_threads(threads) private(c) if (threads > 1)
    for (long p = 0; p < pixels; p++) {
        const float *from = x + p * s->x.stride, *second = other + p * s->other.stride;
        float *to = y + p * s->y.stride;
        if (s->op == AFFINE) {
            if (s->weight)
                for (c = 0; c < s->c; c++) to[c] = from[c] * s->weight[c];
            else
                memmove(to, from, s->c * sizeof(float));
            if (s->bias) emit(to, to, s->bias, s->slope, s->relu, s->c);
        } else if (s->relu)
            for (c = 0; c < s->c; c++) {
                float z = s->a * from[c] + s->b * second[c];
                to[c] = z < 0 ? 0 : z;
            }
        else
            for (c = 0; c < s->c; c++) to[c] = s->a * from[c] + s->b * second[c];
    }
}

/* (n, h, w, c) to (n, c, h, w) or back. */
static void turn(const Step *s, const float *x, float *y, int threads) {
    long area = s->h * s->w;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long image = 0; image < s->n; image++)
        for (long first = 0; first < area; first += 64)
            for (long c = 0; c < s->c; c++)
                for (long p = first; p < least(area, first + 64); p++) {
                    if (s->op == TO_PLANES)
                        y[(image * s->c + c) * area + p] = x[(image * area + p) * s->x.stride + c];
                    else
                        y[(image * area + p) * s->y.stride + c] = x[(image * s->c + c) * area + p];
                }
}

/* The window of each output pixel as a row of (channels, kernel rows, columns). */
static void columns(const Step *s, const float *x, float *y) {
    long taps = s->kernel[0] * s->kernel[1];
    for (long p = 0; p < s->n * s->out_h * s->out_w; p++)
        for (long t = 0; t < taps; t++) {
            long row = p / s->out_w % s->out_h * s->step[0] - s->pad[0] + t / s->kernel[1] * s->dilation[0];
            long column = p % s->out_w * s->step[1] - s->pad[1] + t % s->kernel[1] * s->dilation[1];
            int inside = row >= 0 && row < s->h && column >= 0 && column < s->w;
            const float *from = x + ((p / (s->out_h * s->out_w) * s->h + row) * s->w + column) * s->x.stride;
            for (long c = 0; c < s->c; c++) y[(p * s->c + c) * taps + t] = inside ? from[c] : 0;
        }
}

/* Returns 1 where memory is short. */
int run_steps(const Step *steps, long count, float *const *memory, long budget, int most) {
    int failed = 0;
    for (const Step *s = steps; s < steps + count && !failed; s++) {
        const float *x = memory[s->x.base] + s->x.at, *other = memory[s->other.base] + s->other.at;
        float *y = memory[s->y.base] + s->y.at;
        long size = s->n * s->h * s->w * s->c, inputs = s->c / s->group, outputs = s->out / s->group;
        long work = s->n * s->out_h * s->out_w * s->kernel[0] * s->kernel[1] * inputs * s->out / LANES;
        if (s->op == ROWS_PRODUCT || s->op == COLUMNS_PRODUCT) work *= 4; /* their weights are read from far */
        if (s->op > COLUMNS_PRODUCT && s->op != CONVOLVE_HALF) work = size;
        int threads = work > few ? most : 1;
        long rows[] = {s->n * s->h * s->w, s->c, s->out};
        long shape[] = {s->n, s->h, s->w, inputs, outputs, s->pad[0], s->pad[1], s->dilation[0]};
        switch (s->op) {
            case CONVOLVE_HALF:
            case CONVOLVE: failed = convolve(s, x, y, threads); break;
            case WINOGRAD:
                for (long g = 0; g < s->group && !failed; g++)
                    failed = winograd_part(shape, x + g * inputs, s->x.stride, s->weight + g * 9 * inputs * outputs,
                                           s->bias + g * outputs, s->relu, y + g * outputs, s->y.stride, budget, threads);
                break;
            case ROWS_PRODUCT: failed = product_rows(rows, x, s->weight, 0, s->bias, s->relu, y, threads); break;
            case COLUMNS_PRODUCT: failed = product_columns(rows, x, s->weight, 0, s->bias, s->relu, y, threads); break;
            case DEPTHWISE:
            case LARGEST:
            case AVERAGE: failed = over_windows(s, x, y, most); break;
            case NEIGHBOURS: failed = neighbours(s, x, y, threads); break;
            case SOFTMAX: softmax(s, x, y, threads); break;
            case TO_PLANES:
            case FROM_PLANES: turn(s, x, y, threads); break;
            case COLUMNS: columns(s, x, y); break;
            default: pixelwise(s, x, other, y, threads);
        }
    }
    return failed;
}

static long spacing(long size) { return size / 16 ? size / 16 : 1; }

/* A number that changes with any of the sampled values. */
uint64_t sampled(const float *const *blobs, const long *sizes, long count) {
    uint64_t hash = 14695981039346656037u;
    for (long i = 0; i < count; i++)
        for (long k = 0; k < sizes[i]; k += spacing(sizes[i])) __builtin_prefetch(blobs[i] + k);
    for (long i = 0; i < count; i++) {
        long step = spacing(sizes[i]);
        for (long k = 0; k < sizes[i]; k += step) {
            uint32_t value;
            memcpy(&value, blobs[i] + k, 4);
            hash = (hash ^ value) * 1099511628211u;
        }
    }
    return hash;
}

long panel_width(void) { return WIDE; }
