/* What the kernels share: vectors, products of a few rows with a panel of WIDE columns, memory of a thread. */

#pragma once
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define ROWS 6
#else
#define LANES 4
#define ROWS 6
#endif
#define WIDE (2 * LANES) /* columns of one panel */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int bits __attribute__((vector_size(4 * LANES)));
typedef float thin_vec __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef int thin_bits __attribute__((vector_size(2 * LANES)));
#define AT(p) (*(vec *)(p))
#define INLINE static inline __attribute__((always_inline))

/* rows of c += a * b; a[i * down + k * along], b and c with WIDE columns. The sum is complete before it is added, which
   halves the rounding of many channels. */
INLINE void multiply(int rows, long down, long along, const float *a, const float *b, float *c, long depth, int fresh) {
    vec sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vec){0};
    for (long k = 0; k < depth; k++) {
        vec left = AT(b + k * WIDE), right = AT(b + k * WIDE + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            float x = a[i * down + k * along];
            sum[i][0] += x * left;
            sum[i][1] += x * right;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        float *to = c + i * WIDE;
        if (!fresh) sum[i][0] += AT(to), sum[i][1] += AT(to + LANES);
        AT(to) = sum[i][0];
        AT(to + LANES) = sum[i][1];
    }
}

/* The same for any number of rows, in pieces of at most ROWS. */
#define CASE(n, with, down, along) \
    case n: \
        with(n, down, along, a, b, c, depth, fresh); \
        break;
#define PRODUCT(name, down, along) PRODUCT_OF(float, multiply, name, down, along)
#define PRODUCT_OF(type, with, name, down, along) \
    static void name(long rows, const type *a, const type *b, float *c, long depth, int fresh) { \
        long pieces = (rows + ROWS - 1) / ROWS; \
        for (; pieces; pieces--) { \
            long now = (rows + pieces - 1) / pieces; \
            switch (now) { \
                CASE(1, with, down, along) CASE(2, with, down, along) CASE(3, with, down, along) \
                CASE(4, with, down, along) CASE(5, with, down, along) CASE(6, with, down, along) \
                MORE(with, down, along) \
            } \
            a += now * (down), c += now * WIDE, rows -= now; \
        } \
    }
#if ROWS == 12
#define MORE(with, down, along) \
    CASE(7, with, down, along) CASE(8, with, down, along) CASE(9, with, down, along) \
    CASE(10, with, down, along) CASE(11, with, down, along) CASE(12, with, down, along)
#else
#define MORE(with, down, along)
#endif
static pthread_key_t kept_memory;
static __attribute__((constructor)) void make_key(void) { pthread_key_create(&kept_memory, free); }

/* A thread's memory, which is kept for its next layer and freed when it ends. */
static void *scratch(size_t bytes) {
    static __thread char *kept;
    static __thread size_t size;
    if (size < bytes) {
        free(kept);
        size = (bytes + 4095) / 4096 * 4096;
        kept = aligned_alloc(4096, size);
        if (!kept) size = 0;
        pthread_setspecific(kept_memory, kept);
    }
    return kept;
}

static long least(long a, long b) { return a < b ? a : b; }
