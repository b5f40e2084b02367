/* y = x * w' for few rows of x and a large matrix, which is read once, as it lies in memory.

   Libraries first copy a matrix into an order of their own, in each call or into a second copy that is kept. For few
   rows the reading bounds the product, and the order is no gain. Each number is summed in one order, whatever the
   number of threads. */

#include "panels.h"

#define RUN 2048 /* inputs at a time, of rows of w */
#define NEAR 64 /* inputs at a time, of columns of w */
#define SHARE 128
#define STRIP (32 * WIDE)
#define AHEAD 4 /* rows of w that are asked for beforehand */
#if LANES == 16
#define TALL 6
#else
#define TALL 2
#endif

INLINE float total(vec v) {
    float part[LANES], sum = 0;
    AT(part) = v;
#pragma GCC unroll 16
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    sum += part[0];
    return sum;
}

/* c[row][0 to 3] += the products of rows of x, `step` apart, with the four rows w; what lies `ahead` of w is asked for
   beforehand. */
INLINE void dots(int rows, const float *x, long step, const float *const *w, long depth, float *c, long width, int wanted,
                 int fresh, long ahead) {
    vec sum[TALL][4];
    long k = 0;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = (vec){0};
    for (; k + LANES <= depth; k += LANES) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) __builtin_prefetch(w[j] + ahead + k, 0, 2);
        vec a = AT(w[0] + k), b = AT(w[1] + k), d = AT(w[2] + k), e = AT(w[3] + k);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec v = AT(x + i * step + k);
            sum[i][0] += v * a;
            sum[i][1] += v * b;
            sum[i][2] += v * d;
            sum[i][3] += v * e;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wanted; j++) {
            float found = total(sum[i][j]);
            for (long rest = k; rest < depth; rest++) found += x[i * step + rest] * w[j][rest];
            c[i * width + j] = fresh ? found : c[i * width + j] + found;
        }
}

static void finish(float *y, long rows, long width, long first, long last, const float *scale, const float *bias,
                   int relu) {
    for (long i = 0; i < rows; i++)
        for (long j = first; j < last; j++) {
            float z = y[i * width + j];
            z = scale ? z * scale[j] : z;
            z = bias ? z + bias[j] : z;
            y[i * width + j] = relu && z < 0 ? 0 : z;
        }
}

/* x (rows, depth), w (width, depth), y (rows, width); scale and bias of the columns may be null. Returns 1 where memory
   is short. */
int product_rows(const long *given, const float *x, const float *w, const float *scale, const float *bias, int relu,
                 float *y, int threads) {
    long rows = given[0], depth = given[1], width = given[2], step = RUN + LANES;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
    for (long first = 0; first < width; first += SHARE) {
        long last = least(width, first + SHARE);
        float *near = scratch(sizeof(float) * rows * step);
        if (!near) {
            failed = 1;
            continue;
        }
        for (long k = 0; k < depth; k += RUN) {
            long now = least(RUN, depth - k);
            for (long i = 0; i < rows; i++) memcpy(near + i * step, x + i * depth + k, now * sizeof(float));
            for (long j = first; j < last; j += 4) {
                const float *from[4];
                int wanted = (int)least(4, last - j);
                for (int i = 0; i < 4; i++) from[i] = w + (j + (i < wanted ? i : 0)) * depth + k;
                for (long i = 0; i < rows; i += TALL) {
                    const float *left = near + i * step;
                    float *to = y + i * width + j;
#define DOTS(n) \
    case n: \
        dots(n, left, step, from, now, to, width, wanted, k == 0, i ? 0 : 4 * depth); \
        break;
                    switch (least(TALL, rows - i)) {
                        DOTS(1) DOTS(2)
#if TALL == 6
                        DOTS(3) DOTS(4) DOTS(5) DOTS(6)
#endif
                    }
                }
            }
        }
        finish(y, rows, width, first, last, scale, bias, relu);
    }
    return failed;
}

PRODUCT(rows_by_columns, NEAR, 1)

/* The same with w (depth, width). */
int product_columns(const long *given, const float *x, const float *w, const float *scale, const float *bias, int relu,
                    float *y, int threads) {
    long rows = given[0], depth = given[1], width = given[2];
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
    for (long first = 0; first < width; first += STRIP) {
        long last = least(width, first + STRIP);
        float *left = scratch(sizeof(float) * (rows * NEAR + NEAR * STRIP + rows * STRIP));
        if (!left) {
            failed = 1;
            continue;
        }
        float *right = left + rows * NEAR, *sum = right + NEAR * STRIP;
        memset(right, 0, sizeof(float) * NEAR * STRIP);
        for (long k = 0; k < depth; k += NEAR) {
            long now = least(NEAR, depth - k);
            for (long i = 0; i < rows; i++) memcpy(left + i * NEAR, x + i * depth + k, now * sizeof(float));
            for (long i = 0; i < now; i++) {
                const float *from = w + (k + i) * width;
                float *to = right + i * WIDE;
                long j = first;
                for (; j + WIDE <= last; j += WIDE, to += NEAR * WIDE) {
                    __builtin_prefetch(from + j + AHEAD * width, 0, 1);
                    __builtin_prefetch(from + j + LANES + AHEAD * width, 0, 1);
                    AT(to) = AT(from + j);
                    AT(to + LANES) = AT(from + j + LANES);
                }
                if (j < last) memcpy(to, from + j, (last - j) * sizeof(float));
            }
            for (long j = first; j < last; j += WIDE)
                rows_by_columns(rows, left, right + (j - first) * NEAR, sum + (j - first) * rows, now, k == 0);
        }
        for (long j = first; j < last; j += WIDE)
            for (long i = 0; i < rows; i++)
                memcpy(y + i * width + j, sum + (j - first) * rows + i * WIDE, least(WIDE, last - j) * sizeof(float));
        finish(y, rows, width, first, last, scale, bias, relu);
    }
    return failed;
}
