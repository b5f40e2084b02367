/* The permutohedral lattice: its corners by a hash table, and filtering with the channels of a corner side by side.

   Corners are numbered in the order in which points meet them, so that those of near points lie together in memory.
   Sums are made in one order, whatever the number of threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));

#define PARTS 8 /* tables at most: each holds the codes of one thread */
#define AT_ONCE 16 /* codes whose places in a table are asked for beforehand */
#define AHEAD 12 /* corners of a chain that are asked for beforehand */
#define BLOCK 2048 /* corners of chains that a thread takes at a time */
#define WIDEST 32 /* channels at a time */
#define HUGE_PAGE (2l << 20)

typedef struct {
    int64_t *codes; /* of the corners, in the order of their numbers */
    int32_t *slots; /* numbers from 1; 0 is free */
    long count, size, first; /* first: what is added to its numbers, less 1, in the whole */
    char apart[88]; /* no two in one line of the cache */
} Table;

static uint64_t mixed(int64_t code) {
    uint64_t x = (uint64_t)code * 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

static int part_of(uint64_t hash, int parts) { return (int)((hash & 0xffff) * (uint64_t)parts >> 16); }

static long place(const Table *t, uint64_t hash) { return (long)(hash >> 16) & (t->size - 1); }

/* The slot of a code, or the free one where it belongs. */
static long slot(const Table *t, int64_t code, uint64_t hash) {
    long at = place(t, hash);
    while (t->slots[at] && t->codes[t->slots[at] - 1] != code) at = (at + 1) & (t->size - 1);
    return at;
}

static void *large(size_t bytes) {
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *made = aligned_alloc(HUGE_PAGE, bytes);
    if (made) madvise(made, bytes, MADV_HUGEPAGE);
    return made;
}

/* Room for `size` slots, those in use put in. */
static int resize(Table *t, long size) {
    int32_t *slots = large(sizeof *slots * size);
    if (!slots) return 1;
    memset(slots, 0, sizeof *slots * size);
    free(t->slots);
    t->slots = slots;
    t->size = size;
    for (long i = 0; i < t->count; i++) slots[slot(t, t->codes[i], mixed(t->codes[i]))] = (int32_t)i + 1;
    return 0;
}

/* Number those codes that are of part p. */
static int number(Table *t, const int64_t *codes, long many, int p, int parts, int32_t *corner) {
    for (long i = 0; i < many;) {
        int64_t code[AT_ONCE];
        uint64_t hash[AT_ONCE];
        long from[AT_ONCE], now = 0;
        if ((t->count + AT_ONCE) * 2 > t->size && resize(t, t->size * 4)) return 1;
        for (; i < many && now < AT_ONCE; i++) {
            uint64_t h = mixed(codes[i]);
            if (part_of(h, parts) != p) continue;
            code[now] = codes[i], hash[now] = h, from[now] = i;
            __builtin_prefetch(t->slots + place(t, hash[now++]), 1, 1);
        }
        for (long j = 0; j < now; j++) {
            long at = slot(t, code[j], hash[j]);
            if (!t->slots[at]) {
                t->codes[t->count++] = code[j];
                t->slots[at] = (int32_t)t->count;
            }
            corner[from[j]] = t->slots[at];
        }
    }
    return 0;
}

/* Corners in runs of neighbours along an axis, from `step` to `step`, the first of each as its complement; those
   without a neighbour are left out. Returns how many, or -1 where memory is short. */
static long chains(const Table *tables, int parts, long all, int64_t step, int32_t *chain) {
    int32_t *next = large(sizeof *next * all);
    char *has_before = calloc(all, 1);
    long written = 0;
    if (!next || !has_before) written = -1;
    for (int p = 0; p < parts && !written; p++)
        for (long i = 0; i < tables[p].count; i += AT_ONCE) {
            uint64_t hash[AT_ONCE];
            long now = tables[p].count - i < AT_ONCE ? tables[p].count - i : AT_ONCE;
            const int64_t *here = tables[p].codes + i;
            for (long j = 0; j < now; j++) {
                hash[j] = mixed(here[j] + step);
                const Table *t = tables + part_of(hash[j], parts);
                __builtin_prefetch(t->slots + place(t, hash[j]), 0, 1);
            }
            for (long j = 0; j < now; j++) {
                const Table *t = tables + part_of(hash[j], parts);
                int32_t there = t->slots[slot(t, here[j] + step, hash[j])];
                next[tables[p].first + i + j] = there ? (int32_t)(t->first + there - 1) : -1;
                if (there) has_before[t->first + there - 1] = 1;
            }
        }
    for (long i = 0; i < all && written >= 0; i++) {
        if (has_before[i] || next[i] < 0) continue;
        chain[written++] = ~(int32_t)i;
        for (int32_t j = next[i]; j >= 0; j = next[j]) chain[written++] = j;
    }
    free(next);
    free(has_before);
    return written;
}

/* Number the corners: given (points, corners of a point, threads), their codes, and how far apart the codes of
   neighbours along each axis are. corner (points, corners of a point) gets the numbers; counts their number, then that
   of each axis's corners in chains; chain (axes, points times corners of a point) the chains; starts (corners + 1),
   from and share each corner's points in their order, with the weights. Returns 1 where memory is short. */
int lattice_corners(const long *given, const int64_t *codes, const float *weights, const int64_t *steps,
                    int32_t *corner, int64_t *counts, int32_t *chain, int32_t *starts, int32_t *from, float *share) {
    long each = given[1], many = given[0] * each, all = 0;
    int parts = given[2] < PARTS ? (int)given[2] : PARTS, failed = 0;
    Table tables[PARTS] = {{0}};
    int64_t *kept = large(sizeof(int64_t) * many * parts);
    if (!kept) return 1;
#pragma omp parallel for schedule(static, 1) num_threads(parts) reduction(| : failed)
    for (int p = 0; p < parts; p++) {
        tables[p].codes = kept + many * p;
        failed = resize(tables + p, 1 << 16) || number(tables + p, codes, many, p, parts, corner);
    }
    for (int p = 0; p < parts; p++) tables[p].first = all, all += tables[p].count;
    counts[0] = all;
    if (!failed) {
        /* Each corner's points, by counting; a thread has the corners of a part. */
        memset(starts, 0, sizeof *starts * (all + 1));
#pragma omp parallel for schedule(static, 1) num_threads(parts)
        for (int p = 0; p < parts; p++)
            for (long i = 0; i < many; i++)
                if (part_of(mixed(codes[i]), parts) == p) starts[corner[i] += (int32_t)tables[p].first - 1]++;
        int32_t end = 0;
        for (long i = 0; i <= all; i++) starts[i] = end += starts[i];
#pragma omp parallel for schedule(static, 1) num_threads(parts)
        for (int p = 0; p < parts; p++)
            for (long i = many; i--;) {
                long c = corner[i] - tables[p].first;
                if (c < 0 || c >= tables[p].count) continue;
                int32_t at = --starts[corner[i]];
                from[at] = (int32_t)(i / each);
                share[at] = weights[i];
            }
#pragma omp parallel for schedule(dynamic, 1) num_threads(parts) reduction(| : failed)
        for (long axis = 0; axis < each; axis++) {
            counts[1 + axis] = chains(tables, parts, all, steps[axis], chain + axis * many);
            failed |= counts[1 + axis] < 0;
        }
    }
    for (int p = 0; p < parts; p++) free(tables[p].slots);
    free(kept);
    return failed;
}

typedef struct {
    long points, each, corners, channels;
    const float *values, *share, *weights;
    const int32_t *starts, *from, *chain, *corner;
    const int64_t *counts;
    float *at, *y, scale;
    int add;
} Filter;

/* Channels from c on, W of them: vectors of V, side by side. Rows of values are read as whole vectors; what stands
   behind a row is not used, and the last rows are copied, so that nothing behind the last is read. */
#define FILTER(name, V, W) \
    static void name(const Filter *f, long c) { \
        enum { COUNT = (W) / (sizeof(V) / 4) }; \
        long wanted = f->channels - c < (W) ? f->channels - c : (W), whole = f->points * f->channels; \
        float *at = f->at; \
        _Pragma("omp for schedule(static)") for (long i = 0; i < f->corners; i++) { \
            V sum[COUNT] = {{0}}; \
            for (long k = f->starts[i]; k < f->starts[i + 1]; k++) { \
                long here = f->from[k] * f->channels + c; \
                float last[W] = {0}; \
                const float *row = f->values + here; \
                if (here + (W) > whole) row = memcpy(last, row, sizeof(float) * wanted); \
                for (int v = 0; v < COUNT; v++) sum[v] += f->share[k] * ((V *)row)[v]; \
            } \
            for (int v = 0; v < COUNT; v++) ((V *)(at + i * (W)))[v] = sum[v]; \
        } \
        for (long axis = 0; axis < f->each; axis++) { \
            const int32_t *chain = f->chain + axis * f->points * f->each; \
            long end = f->counts[1 + axis]; \
            _Pragma("omp for schedule(static)") for (long block = 0; block < end; block += BLOCK) { \
                V before[COUNT] = {{0}}, here[COUNT] = {{0}}; \
                long i = block; \
                while (i < end && i < block + BLOCK && chain[i] >= 0) i++; /* of a chain of the block before */ \
                if (i == block + BLOCK) continue; \
                for (; i < end && (i < block + BLOCK || chain[i] >= 0); i++) { \
                    V *row = (V *)(at + (chain[i] < 0 ? ~chain[i] : chain[i]) * (long)(W)); \
                    if (i + AHEAD < end) { \
                        int32_t later = chain[i + AHEAD]; \
                        const float *far = at + (later < 0 ? ~later : later) * (long)(W); \
                        for (int v = 0; v < (W); v += 16) __builtin_prefetch(far + v, 1, 2); \
                    } \
                    int ends = i + 1 == end || chain[i + 1] < 0; \
                    const V *next = ends ? 0 : (V *)(at + chain[i + 1] * (long)(W)); \
                    for (int v = 0; v < COUNT; v++) { \
                        V own = chain[i] < 0 ? row[v] : here[v]; \
                        V sum = own; \
                        if (!ends) here[v] = next[v], sum += 0.5f * here[v]; \
                        if (chain[i] >= 0) sum += 0.5f * before[v]; \
                        row[v] = sum, before[v] = own; \
                    } \
                } \
            } \
        } \
        _Pragma("omp for schedule(static)") for (long i = 0; i < f->points; i++) { \
            V sum[COUNT] = {{0}}; \
            for (long k = i * f->each; k < (i + 1) * f->each; k++) { \
                const V *row = (V *)(at + f->corner[k] * (long)(W)); \
                for (int v = 0; v < COUNT; v++) sum[v] += f->weights[k] * row[v]; \
            } \
            float *y = f->y + i * f->channels + c; \
            for (int v = 0; v < COUNT; v++) sum[v] *= f->scale; \
            const float *found = (float *)sum; \
            if (f->add) \
                for (long j = 0; j < wanted; j++) y[j] += found[j]; \
            else \
                memcpy(y, found, sizeof(float) * wanted); \
        } \
    }
FILTER(filter4, four, 4)
FILTER(filter8, eight, 8)
FILTER(filter16, eight, 16)
FILTER(filter24, eight, 24)
FILTER(filter32, eight, 32)

/* y (points, channels) = or += (`add`) scale times the filtered values (points, channels). given: points, corners of a
   point, corners, channels, add, threads. work: corners times the least of 4, 8, 16, 24 and 32 that holds the channels,
   or 32. */
int lattice_filter(const long *given, const float *values, const int32_t *starts, const int32_t *from,
                   const float *share, const int32_t *chain, const int64_t *counts, const int32_t *corner,
                   const float *weights, float *work, float *y, const float *scale) {
    Filter f = {given[0], given[1], given[2], given[3], values, share, weights, starts,
                from,     chain,    corner,   counts,   work,   y,     *scale,  (int)given[4]};
#pragma omp parallel num_threads(given[5])
    for (long c = 0; c < f.channels; c += WIDEST) {
        long left = f.channels - c;
        if (left <= 4) filter4(&f, c);
        else if (left <= 8) filter8(&f, c);
        else if (left <= 16) filter16(&f, c);
        else if (left <= 24) filter24(&f, c);
        else filter32(&f, c);
    }
    return 0;
}
