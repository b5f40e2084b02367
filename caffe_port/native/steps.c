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
       TO_PLANES, FROM_PLANES, COLUMNS, CONVOLVE_HALF, LARGEST_AT, UNPOOL };

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

#include "convolution.h"
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

/* Returns 1 where memory is short, and 2 + the step's number where a switch is outside the output. */
int run_steps(const Step *steps, long count, float *const *memory, long budget, int most) {
    int failed = 0;
    for (const Step *s = steps; s < steps + count && !failed; s++) {
        const float *x = memory[s->x.base] + s->x.at;
        float *other = memory[s->other.base] + s->other.at;
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
            case LARGEST_AT: largest_at(s, x, y, other, threads); break;
            case UNPOOL: failed = unpool(s, x, other, y, threads) ? 2 + (int)(s - steps) : 0; break;
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
