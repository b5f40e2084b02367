/* Depthwise convolution, pooling and unpooling, for steps.c. */

/* The pixels of a window that are inside, and their taps' numbers. */
INLINE long window(const Step *s, const float *x, long image, long oy, long ox, const float **from, long *taps) {
    long count = 0;
    for (long i = 0; i < s->kernel[0]; i++) {
        long row = oy * s->step[0] - s->pad[0] + i * s->dilation[0];
        if (row < 0 || row >= s->h) continue;
        for (long j = 0; j < s->kernel[1]; j++) {
            long column = ox * s->step[1] - s->pad[1] + j * s->dilation[1];
            if (column < 0 || column >= s->w) continue;
            from[count] = x + ((image * s->h + row) * s->w + column) * s->x.stride;
            taps[count++] = i * s->kernel[1] + j;
        }
    }
    return count;
}

/* What is computed over the taps for vectors of channels from c on; the last vector may begin before c. */
#define OVER_TAPS(vectors, begin, each) \
    for (; c + (vectors) * LANES <= s->c; c += (vectors) * LANES) { \
        vec sum[vectors]; \
        _Pragma("GCC unroll 8") for (int v = 0; v < (vectors); v++) sum[v] = begin; \
        for (long t = 0; t < count; t++) { \
            const float *p = from[t] + c, *q = s->weight + (s->weight ? taps[t] * s->c + c : 0); \
            (void)q; \
            _Pragma("GCC unroll 8") for (int v = 0; v < (vectors); v++) each \
        } \
        _Pragma("GCC unroll 8") for (int v = 0; v < (vectors); v++) AT(line + c + v * LANES) = sum[v]; \
    }

#define LAST_CHANNELS \
    if (c < s->c && s->c >= LANES) c = s->c - LANES;

/* A row of a depthwise 3x3 convolution, a vector of channels with its filter in registers: with neighbouring columns all
   of it, else its pixels from `first` to `last`, whose windows lie inside from left to right. Returns the first channel
   that is left over. */
static long depthwise_3x3(const Step *s, const float *x, long image, long oy, long first, long last, float *y) {
    static const float nothing[LANES];
    long c = 0, along = s->dilation[1];
    for (; c + LANES <= s->c; c += LANES) {
        vec w[9], bias = AT(s->bias + c), now = {0}, next = {0}, kept[64];
        const float *rows[3];
        long stride[3];
        for (int i = 0; i < 9; i++) w[i] = AT(s->weight + i * s->c + c);
        for (int i = 0; i < 3; i++) {
            long row = oy * s->step[0] - s->pad[0] + i * s->dilation[0], inside = row >= 0 && row < s->h;
            rows[i] = inside ? x + (image * s->h + row) * s->w * s->x.stride + c : nothing;
            stride[i] = inside ? s->x.stride : 0;
        }
#define COLUMN(i, at) AT(rows[i] + (at) * stride[i])
#define OF_ROW(i) \
    (COLUMN(i, at) * w[3 * i] + COLUMN(i, at + along) * w[3 * i + 1] + COLUMN(i, at + 2 * along) * w[3 * i + 2])
#define KEEP(sum, ox) AT(y + (ox) * s->y.stride + c) = s->relu ? (vec)((bits)(sum) & ~((sum) < 0)) : (sum)
        if (s->step[1] == 1 && along == 1)
            for (long begin = 0; begin < s->out_w; begin += 64, now = next = (vec){0}) {
                long end = least(s->out_w, begin + 64);
                for (long k = begin; k < end + 2; k++) { /* a column is read once, for three pixels */
                    long at = k - s->pad[1];
                    vec sum = now;
                    now = next, next = (vec){0};
                    if (at >= 0 && at < s->w) {
                        vec u = COLUMN(0, at), v = COLUMN(1, at), t = COLUMN(2, at);
                        sum += u * w[2] + v * w[5] + t * w[8];
                        now += u * w[1] + v * w[4] + t * w[7];
                        next += u * w[0] + v * w[3] + t * w[6];
                    }
                    if (k >= begin + 2) kept[k - begin - 2] = sum + bias;
                }
                for (long ox = begin; ox < end; ox++) KEEP(kept[ox - begin], ox);
            }
        else
            for (long ox = first; ox < last; ox++) {
                long at = ox * s->step[1] - s->pad[1];
                vec sum = OF_ROW(0) + OF_ROW(1) + OF_ROW(2) + bias;
                KEEP(sum, ox);
            }
    }
    return c;
}

/* Depthwise convolution (weight: (taps, channels)), or pooling: the largest, or the mean. */
static int over_windows(const Step *s, const float *x, float *y, int threads) {
    int failed = 0;
    int parallel = s->n * s->out_h * s->out_w * s->c * s->kernel[0] * s->kernel[1] / LANES > few ? threads : 1;
#pragma omp parallel for schedule(static) num_threads(parallel) reduction(| : failed) if (parallel > 1)
    for (long row = 0; row < s->n * s->out_h; row++) {
        long room = s->kernel[0] * s->kernel[1];
        float *line = scratch(sizeof(float) * (s->c + LANES) + room * (sizeof(float *) + sizeof(long)) + 64);
        if (!line) {
            failed = 1;
            continue;
        }
        const float **from = (const float **)(line + (s->c + LANES) / LANES * LANES);
        long *taps = (long *)(from + room), oy = row % s->out_h, image = row / s->out_h, done = 0;
        long alone = s->step[1] == 1 && s->dilation[1] == 1, first = alone ? 0 : (s->pad[1] + s->step[1] - 1) / s->step[1];
        long last = alone ? s->out_w : least(s->out_w, (s->w - 1 - 2 * s->dilation[1] + s->pad[1]) / s->step[1] + 1);
        if (s->op == DEPTHWISE && s->kernel[0] == 3 && s->kernel[1] == 3 && !s->slope && first < last)
            done = depthwise_3x3(s, x, image, oy, first, last, y + row * s->out_w * s->y.stride);
        for (long ox = 0; ox < s->out_w; ox++) {
            long begin = ox >= first && ox < last ? done : 0, c = begin;
            if (begin == s->c) continue;
            long count = window(s, x, image, oy, ox, from, taps);
            float *to = y + (row * s->out_w + ox) * s->y.stride;
            if (s->op == DEPTHWISE) {
                OVER_TAPS(4, (vec){0}, sum[v] += AT(p + v * LANES) * AT(q + v * LANES);)
                OVER_TAPS(1, (vec){0}, sum[v] += AT(p + v * LANES) * AT(q + v * LANES);)
                LAST_CHANNELS OVER_TAPS(1, (vec){0}, sum[v] += AT(p + v * LANES) * AT(q + v * LANES);)
                for (; c < s->c; c++) {
                    float sum = 0;
                    for (long t = 0; t < count; t++) sum += from[t][c] * s->weight[taps[t] * s->c + c];
                    line[c] = sum;
                }
                emit(to + begin, line + begin, s->bias + begin, s->slope ? s->slope + begin : 0, s->relu, s->c - begin);
            } else if (s->op == LARGEST) {
#define LARGER \
    { \
        vec z = AT(p + v * LANES); \
        bits take = (z > sum[v]) | (z != z); \
        sum[v] = (vec)(((bits)z & take) | ((bits)sum[v] & ~take)); \
    }
                vec lowest = (vec){0} - FLT_MAX;
                OVER_TAPS(4, lowest, LARGER)
                OVER_TAPS(1, lowest, LARGER)
                LAST_CHANNELS OVER_TAPS(1, lowest, LARGER)
                for (; c < s->c; c++) {
                    float most = -FLT_MAX;
                    for (long t = 0; t < count; t++) {
                        float z = from[t][c];
                        most = z > most || z != z ? z : most;
                    }
                    line[c] = most;
                }
                memcpy(to, line, s->c * sizeof(float));
            } else {
                long sides[2], at[2] = {oy, ox}, size[2] = {s->h, s->w};
                for (int i = 0; i < 2; i++) {
                    long start = at[i] * s->step[i] - s->pad[i];
                    long end = least(start + s->kernel[i], size[i] + (s->flag ? s->behind[i] : 0));
                    sides[i] = end - (s->flag || start > 0 ? start : 0);
                }
                OVER_TAPS(4, (vec){0}, sum[v] += AT(p + v * LANES);)
                OVER_TAPS(1, (vec){0}, sum[v] += AT(p + v * LANES);)
                LAST_CHANNELS OVER_TAPS(1, (vec){0}, sum[v] += AT(p + v * LANES);)
                for (; c < s->c; c++) {
                    float sum = 0;
                    for (long t = 0; t < count; t++) sum += from[t][c];
                    line[c] = sum;
                }
                float area = (float)(sides[0] * sides[1]);
                for (c = 0; c < s->c; c++) to[c] = line[c] / area;
            }
        }
    }
    return failed;
}

/* A switch is the number of a pixel in its image, as the other blobs' numbers are. Vectors of one number too. */
typedef float one_vec __attribute__((vector_size(4), aligned(4), may_alias));
typedef int one_bits __attribute__((vector_size(4)));
#define PICK(vec, bits, take, a, b) (vec)(((bits)(a) & (take)) | ((bits)(b) & ~(take)))

/* The largest of each window, and its switch. */
static void largest_at(const Step *s, const float *x, float *y, float *switches, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long row = 0; row < s->n * s->out_h; row++) {
        const float *image = x + row / s->out_h * s->h * s->w * s->x.stride;
        long top = row % s->out_h * s->step[0] - s->pad[0], below = least(top + s->kernel[0], s->h);
        for (long ox = 0; ox < s->out_w; ox++) {
            long left = ox * s->step[1] - s->pad[1], right = least(left + s->kernel[1], s->w), c = 0;
            long first = top > 0 ? top : 0, begin = left > 0 ? left : 0;
            float *to = y + (row * s->out_w + ox) * s->y.stride, *at = switches + (row * s->out_w + ox) * s->other.stride;
#define LARGEST_OF(vec, bits, lanes) \
    for (; c + (lanes) <= s->c; c += (lanes)) { \
        vec most = (vec){0} - INFINITY, place = (vec){0} + (float)(first * s->w + begin); \
        for (long i = first; i < below; i++) \
            for (long j = begin; j < right; j++) { \
                vec z = *(vec *)(image + (i * s->w + j) * s->x.stride + c); \
                bits take = (z > most) | (z != z); \
                most = PICK(vec, bits, take, z, most); \
                place = PICK(vec, bits, take, (vec){0} + (float)(i * s->w + j), place); \
            } \
        *(vec *)(to + c) = most, *(vec *)(at + c) = place; \
    }
            LARGEST_OF(vec, bits, LANES)
            LARGEST_OF(thin_vec, thin_bits, LANES / 2)
            LARGEST_OF(one_vec, one_bits, 1)
        }
    }
}

/* Each number at its switch, 0 elsewhere. Returns whether a switch is outside the output. */
static int unpool(const Step *s, const float *x, const float *switches, float *y, int threads) {
    int tiles = s->kernel[0] == s->step[0] && s->kernel[1] == s->step[1];
    tiles = tiles && s->out_h <= s->h * s->step[0] && s->out_w <= s->w * s->step[1];
    for (long image = 0; image < s->n; image++) {
        const float *from = x + image * s->h * s->w * s->x.stride, *at = switches + image * s->h * s->w * s->other.stride;
        float *to = y + image * s->out_h * s->out_w * s->y.stride;
        int elsewhere = !tiles;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : elsewhere) if (tiles && threads > 1)
        for (long row = 0; row < (tiles ? s->h : 0); row++) { /* every switch in its own window: each output is met once */
            long below = least((row + 1) * s->step[0], s->out_h);
            for (long ox = 0; ox < s->w; ox++) {
                long right = least((ox + 1) * s->step[1], s->out_w), pixel = row * s->w + ox, c = 0;
#define PUT_BACK(vec, bits, lanes) \
    for (; c + (lanes) <= s->c; c += (lanes)) { \
        vec z = *(vec *)(from + pixel * s->x.stride + c), place = *(vec *)(at + pixel * s->other.stride + c); \
        bits met = (bits){0}; \
        for (long i = row * s->step[0]; i < below; i++) \
            for (long j = ox * s->step[1]; j < right; j++) { \
                bits here = place == (float)(i * s->out_w + j); \
                *(vec *)(to + (i * s->out_w + j) * s->y.stride + c) = (vec)((bits)z & here); \
                met |= here; \
            } \
        for (int k = 0; k < (lanes); k++) elsewhere |= !met[k]; \
    }
                PUT_BACK(vec, bits, LANES)
                PUT_BACK(thin_vec, thin_bits, LANES / 2)
                PUT_BACK(one_vec, one_bits, 1)
            }
        }
        if (!elsewhere) continue;
        for (long p = 0; p < s->out_h * s->out_w; p++) memset(to + p * s->y.stride, 0, s->c * sizeof(float));
        for (long p = 0; p < s->h * s->w; p++)
            for (long c = 0; c < s->c; c++) {
                float place = at[p * s->other.stride + c];
                if (!(place > -1 && place < s->out_h * s->out_w)) return 1;
                to[(long)place * s->y.stride + c] = from[p * s->x.stride + c];
            }
    }
    return 0;
}
