/* Convolutions as products of windows with panels of filters. */

#pragma once

#define DEPTH 256 /* numbers of a pixel's window at a time */
#define DOWN (DEPTH + LANES)
#define KEPT (96 << 10) /* numbers of gathered pixels at a time */
#define MOST 240

/* `rows` pixels of y = a * b, with one or two vectors of columns: the sum over `taps` parts of `depth` numbers, of which
   pixel i's are at a + i * down, and `across` further for the next part. With m, plus what is there already; with a bias,
   plus that, then the ReLU, or times the slope where negative. NaN stays. */
#define PANEL(panel, vec, bits, lanes) \
    INLINE void panel(int vectors, int rows, long taps, const float *a, long down, long across, const float *b, \
                      long depth, const float *m, const float *bias, const float *slope, long relu, float *y, \
                      long stride) { \
        vec sum[ROWS][2]; \
        const float *at[ROWS / 3]; \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) \
            sum[i][0] = sum[i][1] = (vec){0}, at[i / 3] = a + i / 3 * 3 * down; \
        for (long t = 0; t < taps; t++, b += depth * WIDE) { \
            for (long k = 0; k < depth; k++) { \
                vec left = *(vec *)(b + k * WIDE), right = *(vec *)(b + k * WIDE + (vectors - 1) * lanes); \
                _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) { \
                    float x = at[i / 3][i % 3 * down + k]; \
                    sum[i][0] += x * left; \
                    if (vectors == 2) sum[i][1] += x * right; \
                } \
            } \
            _Pragma("GCC unroll 16") for (int i = 0; i < rows; i += 3) at[i / 3] += across; \
        } \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) \
            _Pragma("GCC unroll 2") for (int j = 0; j < vectors; j++) { \
                vec z = sum[i][j]; \
                if (m) z += *(vec *)(m + i * WIDE + j * lanes); \
                if (bias) z += *(vec *)(bias + j * lanes); \
                if (slope) { \
                    bits below = z < 0; \
                    z = (vec)(((bits)(z * *(vec *)(slope + j * lanes)) & below) | ((bits)z & ~below)); \
                } else if (relu) \
                    z = (vec)((bits)z & ~(z < 0)); \
                *(vec *)(y + i * stride + j * lanes) = z; \
            } \
    }
PANEL(panel, vec, bits, LANES)
PANEL(thin, thin_vec, thin_bits, LANES / 2)
#define PIXELS(name, panel, vectors) \
    static void name(long rows, long taps, const float *a, long down, long across, const float *b, long depth, \
                     const float *m, const float *bias, const float *slope, long relu, float *y, long stride) { \
        for (long pieces = (rows + ROWS - 1) / ROWS; pieces; pieces--) { \
            long now = (rows + pieces - 1) / pieces; \
            switch (now) { \
                PIECE(1, panel, vectors) PIECE(2, panel, vectors) PIECE(3, panel, vectors) PIECE(4, panel, vectors) \
                PIECE(5, panel, vectors) PIECE(6, panel, vectors) MORE_PIECES(panel, vectors) \
            } \
            a += now * down, y += now * stride, m += m ? now * WIDE : 0, rows -= now; \
        } \
    }
#define PIECE(n, panel, vectors) \
    case n: \
        panel(vectors, n, taps, a, down, across, b, depth, m, bias, slope, relu, y, stride); \
        break;
#if ROWS == 12
#define MORE_PIECES(panel, vectors) \
    PIECE(7, panel, vectors) PIECE(8, panel, vectors) PIECE(9, panel, vectors) PIECE(10, panel, vectors) \
    PIECE(11, panel, vectors) PIECE(12, panel, vectors)
#else
#define MORE_PIECES(panel, vectors)
#endif
PIXELS(whole_panel, panel, 2)
PIXELS(half_panel, panel, 1)
PIXELS(quarter_panel, thin, 1)
typedef void pixels_of(long, long, const float *, long, long, const float *, long, const float *, const float *,
                       const float *, long, float *, long);

/* For so many columns, and how many it computes. */
static pixels_of *panel_for(long count, long *computed) {
    *computed = count <= LANES / 2 ? LANES / 2 : count <= LANES ? LANES : WIDE;
    return *computed == WIDE ? whole_panel : *computed == LANES ? half_panel : quarter_panel;
}

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

/* A convolution of few outputs, for which gathering every window would cost more than its products: rows of the input are
   copied whole, with their padding, and windows read there. */
static int convolve_rows(const Step *s, const float *x, float *y, int threads) {
    long inputs = s->c / s->group, outputs = s->out / s->group, depth = s->kernel[1] * inputs, taps = s->kernel[0];
    long columns = (s->out_w - 1) * s->step[1] + s->kernel[1], width = columns * inputs;
    long left = least(s->pad[1], columns), inside = least(s->w, columns - left);
    long high = (taps - 1) * s->dilation[0] + 1, many = KEPT / 2 / width > high ? (KEPT / 2 / width - high) / s->step[0] + 1 : 1;
    long bands = (s->out_h + least(many, s->out_h) - 1) / least(many, s->out_h), computed;
    while (s->n * s->group * bands % threads && bands < s->out_h) bands++;
    pixels_of *pixels = panel_for(outputs, &computed);
    int failed = 0, direct = outputs == computed;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed) if (threads > 1)
    for (long task = 0; task < s->n * s->group * bands; task++) {
        long band = task % bands, group = task / bands % s->group, image = task / (bands * s->group);
        long first = s->out_h * band / bands, last = s->out_h * (band + 1) / bands;
        long top = first * s->step[0] - s->pad[0], rows = (last - 1 - first) * s->step[0] + high;
        float *a = scratch(sizeof(float) * (rows * width + s->out_w * WIDE + LANES)), *m = a + rows * width;
        if (!a) {
            failed = 1;
            continue;
        }
        for (long r = 0; r < rows; r++) {
            float *to = a + r * width;
            if (top + r < 0 || top + r >= s->h) {
                memset(to, 0, width * sizeof(float));
                continue;
            }
            const float *from = x + (image * s->h + top + r) * s->w * s->x.stride + group * inputs;
            memset(to, 0, left * inputs * sizeof(float));
            to += left * inputs;
            if (s->x.stride == inputs)
                memcpy(to, from, inside * inputs * sizeof(float));
            else
                for (long i = 0; i < inside; i++) memcpy(to + i * inputs, from + i * s->x.stride, inputs * sizeof(float));
            memset(to + inside * inputs, 0, (columns - left - inside) * inputs * sizeof(float));
        }
        const float *w = s->weight + group * WIDE * depth * taps, *slope = s->slope ? s->slope + group * WIDE : 0;
        for (long oy = first; oy < last; oy++) {
            float *to = y + (image * s->out_h + oy) * s->out_w * s->y.stride + group * outputs;
            pixels(s->out_w, taps, a + (oy - first) * s->step[0] * width, s->step[1] * inputs, s->dilation[0] * width, w,
                   depth, 0, s->bias + group * WIDE, slope, s->relu, direct ? to : m, direct ? s->y.stride : WIDE);
            for (long p = 0; p < s->out_w && !direct; p++)
                memcpy(to + p * s->y.stride, m + p * WIDE, outputs * sizeof(float));
        }
    }
    return failed;
}

/* weight: (group, panels, kernel rows, columns, inputs, WIDE); bias and slope filled up to whole panels. In bfloat16
   (group, panels, pairs of kernel rows, columns and inputs, WIDE, 2). */
static int convolve(const Step *s, const float *x, float *y, int threads) {
    long inputs = s->c / s->group, outputs = s->out / s->group, depth = s->kernel[0] * s->kernel[1] * inputs;
    long blocks = (depth + DEPTH - 1) / DEPTH, panels = (outputs + WIDE - 1) / WIDE, in_half = s->op == CONVOLVE_HALF;
    int single = depth == inputs && s->out_h == s->h && s->out_w == s->w && !s->pad[0] && !s->pad[1];
    if (!in_half && !single && blocks == 1 && outputs <= LANES && s->dilation[1] == 1)
        return convolve_rows(s, x, y, threads);
    long total = s->n * s->out_h * s->out_w, many = KEPT / (blocks * DOWN) / ROWS * ROWS;
    many = many > MOST ? MOST : many < 2 * ROWS ? 2 * ROWS : many;
    long chunks = (total + many - 1) / many, parts = 1;
    if (chunks * s->group < threads)
        parts = least(panels, (threads + chunks * s->group - 1) / (chunks * s->group));
    else if (chunks % threads)
        chunks = least(total, (chunks + threads - 1) / threads * threads);
    many = (total + chunks - 1) / chunks, chunks = (total + many - 1) / many;
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads) reduction(| : failed) if (threads > 1)
    for (long task = 0; task < chunks * s->group * parts; task++) {
        long part = task / chunks % parts, group = task / (chunks * parts), first = task % chunks * many;
        long rows = least(many, total - first), block = many * DOWN;
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
            long computed;
            pixels_of *pixels = panel_for(count, &computed);
            int direct = count == computed;
            for (long k = 0; k < blocks; k++) {
                long now = least(DEPTH, depth - k * DEPTH), last = k == blocks - 1, put_there = last && direct;
                const float *left = as_is ? from + first * s->x.stride + k * DEPTH : a + k * block;
                if (in_half)
                    halves_by_panel(rows, halves + k * many * HALF_DOWN, v + k * DEPTH * WIDE, m, now, k == 0);
                else
                    pixels(rows, 1, left, as_is ? s->x.stride : DOWN, 0, w + k * DEPTH * WIDE, now, k ? m : 0,
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
