/* AVX2: depthwise convolutions in whole numbers, two output rows at once.
 *
 * vpmaddwd multiplies pairs of int16 and adds them, so two input rows are interleaved: a pair (r0, r1), (r2, r3), ...
 * is made once for a column and serves both output rows and all kw taps that read it. An output row that begins at an
 * even row of the pairs needs the weights (w0, w1), (w2, 0); one that begins at an odd row (0, w0), (w1, w2): packed
 * are both, w[C/8][kw][pairs of the even, then pairs of the odd][8][2] as int16. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx2_requant.h"

#include <string.h>

enum { COLUMNS = 40, MOST_PAIRS = 5, MOST_KERNEL = 7, MOST_STRIDE = 8, GROUP = 16 /* int16 values of 8 channels' pairs */ };

static int even_pairs(int kh) { return (kh + 1) / 2; }
static int odd_pairs(int kh) { return kh / 2 + 1; }
static int plain(int kh, int kw) { return kh > MOST_KERNEL || kw > MOST_KERNEL; } /* left to plain C */

size_t mnet_avx2_depthwise_bytes(int kh, int kw, int channels)
{
    if (plain(kh, kw))
        return mnet_scalar.depthwise_bytes(kh, kw, channels);
    return (size_t)(even_pairs(kh) + odd_pairs(kh)) * (size_t)kw * (size_t)channels * 2 * sizeof(int16_t);
}

void mnet_avx2_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out)
{
    if (plain(kh, kw)) {
        mnet_scalar.depthwise_pack(w, kh, kw, channels, out);
        return;
    }
    const int even = even_pairs(kh), pairs = even + odd_pairs(kh);
    memset(out, 0, mnet_avx2_depthwise_bytes(kh, kw, channels));
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < kw; v++) {
            int16_t *column = (int16_t *)out + ((ptrdiff_t)(c / LANES) * kw + v) * pairs * GROUP + c % LANES * 2;
            for (int h = 0; h < kh; h++) {
                const int16_t tap = w[(ptrdiff_t)(h * kw + v) * channels + c];
                column[h / 2 * GROUP + h % 2] = tap;
                column[(even + (h + 1) / 2) * GROUP + (h + 1) % 2] = tap;
            }
        }
}

TARGET_BEGIN(AVX2_FEATURES)

struct shape {
    int kh, kw, stride;
};

/* sum += pairs of x * tap. Two instructions that stay together: gcc moves all products before all sums, and then keeps
 * half of them in memory. */
INLINE void multiply_add(__m256i *sum, __m256i x, __m256i tap)
{
    __m256i product;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(product) : "x"(x), "x"(tap));
}

/* What sums of 8 channels need. */
struct finish_u8 {
    __m256i bias;
    __m256 multiplier;
    struct bounds bounds;
};

INLINE void store_eight(__m128i v, uint8_t *y, ptrdiff_t pixel, int two)
{
    _mm_storel_epi64((void *)y, v);
    if (two)
        _mm_storeh_pd((void *)(y + pixel), _mm_castsi128_pd(v));
}

/* Eight channels of n (4 or 2) outputs in `two` + 1 rows; all but the last of them are stored, or all. */
INLINE void outputs(const struct shape s, const int two, const int n, const __m256i (*pair)[COLUMNS + MOST_STRIDE],
                    int next, const int16_t *w, const struct finish_u8 *f, uint8_t *y0, uint8_t *y1, ptrdiff_t pixel,
                    int all_stored)
{
    const int even = even_pairs(s.kh), all = even + odd_pairs(s.kh), rows = s.kh + two * s.stride;
    const int pairs = (rows + 1) / 2, shift = s.stride % 2, below = s.stride / 2; /* of the second row: its first pair */
    const int second = shift ? odd_pairs(s.kh) : even;
    __m256i sum[2][4];
    UNROLL
    for (int o = 0; o < 4; o++)
        sum[0][o] = sum[1][o] = f->bias;
    UNROLL
    for (int v = 0; v < s.kw; v++)
        UNROLL
        for (int p = 0; p < pairs; p++) {
            const int16_t *column = w + v * all * GROUP;
            const int first = p < even, other = two && p >= below && p - below < second;
            const __m256i a = _mm256_loadu_si256((const void *)(column + (first ? p : 0) * GROUP));
            const __m256i b = _mm256_loadu_si256((const void *)(column + (other ? shift * even + p - below : 0) * GROUP));
            UNROLL
            for (int o = 0; o < n; o++) {
                const __m256i x = pair[p][o * next + v];
                if (first)
                    multiply_add(&sum[0][o], x, a);
                if (other)
                    multiply_add(&sum[1][o], x, b);
            }
        }
    UNROLL
    for (int r = 0; r <= two; r++)
        UNROLL
        for (int o = 0; o < n; o++)
            sum[r][o] = scaled(sum[r][o], f->multiplier);
    const int from = n == 4 ? 0 : two; /* the row of the third and fourth of these, where there are two outputs a row */
    const __m256i v = to_bytes(sum[0][0], sum[0][1], sum[from][n == 4 ? 2 : 0], sum[from][n == 4 ? 3 : 1], &f->bounds);
    const __m128i lower = _mm256_castsi256_si128(v), upper = _mm256_extracti128_si256(v, 1);
    if (n == 2) {
        store_eight(lower, y0, pixel, all_stored);
        if (two)
            store_eight(upper, y1, pixel, all_stored);
        return;
    }
    store_eight(lower, y0, pixel, 1);
    store_eight(upper, y0 + 2 * pixel, pixel, all_stored);
    if (two) {
        const __m256i u = to_bytes(sum[1][0], sum[1][1], sum[1][2], sum[1][3], &f->bounds);
        store_eight(_mm256_castsi256_si128(u), y1, pixel, 1);
        store_eight(_mm256_extracti128_si256(u, 1), y1 + 2 * pixel, pixel, all_stored);
    }
}

/* Eight channels of `width` outputs in `two` + 1 rows. */
INLINE void eight(const struct shape s, const int two, const uint8_t *const *in, uint8_t *const *out, int width,
                  ptrdiff_t in_pixel, ptrdiff_t out_pixel, const int16_t *w, const struct requant *q, int c)
{
    const int rows = s.kh + two * s.stride, pairs = (rows + 1) / 2;
    __m256i pair[MOST_PAIRS][COLUMNS + MOST_STRIDE];
    const int next = s.stride > MOST_STRIDE ? 0 : s.stride; /* columns from an output to its neighbour */
    const int columns = (width - 1) * s.stride + s.kw, spare = width % 2 ? next : 0; /* spare: of none behind the last */
    for (int p = 0; p < pairs; p++) {
        const uint8_t *a = in[2 * p] + c, *b = in[2 * p + 1 < rows ? 2 * p + 1 : 2 * p] + c;
        for (int i = 0; i < columns; i++, a += in_pixel, b += in_pixel)
            pair[p][i] = _mm256_cvtepu8_epi16(
                _mm_unpacklo_epi8(_mm_loadl_epi64((const void *)a), _mm_loadl_epi64((const void *)b)));
        for (int i = columns; i < columns + spare; i++)
            pair[p][i] = _mm256_setzero_si256();
    }
    const struct finish_u8 f = {_mm256_loadu_si256((const void *)(q->bias + c)), _mm256_loadu_ps(q->multiplier + c),
                                bounds_of(q->zero, q->low, q->high)};
    uint8_t *y0 = out[0] + c, *y1 = out[two] + c;
    int i = 0;
    for (; width - i > 2; i += 4, y0 += 4 * out_pixel, y1 += 4 * out_pixel)
        outputs(s, two, 4, (void *)&pair[0][i * s.stride], next, w, &f, y0, y1, out_pixel, width - i > 3);
    if (i < width)
        outputs(s, two, 2, (void *)&pair[0][i * s.stride], next, w, &f, y0, y1, out_pixel, width - i > 1);
}

/* The shapes that networks have are compiled for themselves. */
INLINE void rows(const struct depthwise *d, const int two, const uint8_t *const *in, uint8_t *const *out, int width)
{
    const struct shape s = {d->kh, d->kw, d->stride};
    const ptrdiff_t group = (ptrdiff_t)(even_pairs(s.kh) + odd_pairs(s.kh)) * s.kw * GROUP;
    const int16_t *w = (const int16_t *)d->w + d->first / LANES * group;
    for (int c = d->first; c < d->last; c += LANES, w += group) {
#define SHAPE(k, by) \
    if (s.kh == k && s.kw == k && s.stride == by) { \
        eight((struct shape){k, k, by}, two, in, out, width, d->in_pixel, d->out_pixel, w, &d->q, c); \
        continue; \
    }
        SHAPE(3, 1)
        SHAPE(3, 2)
        SHAPE(5, 1)
        SHAPE(5, 2)
#undef SHAPE
        eight(s, two, in, out, width, d->in_pixel, d->out_pixel, w, &d->q, c);
    }
}

static void one_row(const struct depthwise *d, const uint8_t *const *in, uint8_t *const *out, int width)
{
    rows(d, 0, in, out, width);
}

static void two_rows(const struct depthwise *d, const uint8_t *const *in, uint8_t *const *out, int width)
{
    rows(d, 1, in, out, width);
}

void mnet_avx2_depthwise(const struct depthwise *d)
{
    if (plain(d->kh, d->kw)) {
        mnet_scalar.depthwise(d);
        return;
    }
    const uint8_t *in[2 * MOST_PAIRS];
    uint8_t *out[2];
    const int block = d->stride > MOST_STRIDE ? 1 : (COLUMNS - d->kw) / d->stride + 1;
    for (int r = 0; r < d->n;) {
        const int two = d->stride <= 2 && r + 1 < d->n;
        for (int i = 0; i < d->width; i += block) {
            const int width = d->width - i < block ? d->width - i : block;
            for (int j = 0; j < d->kh + two * d->stride; j++)
                in[j] = d->in[r * d->stride + j] + (ptrdiff_t)i * d->stride * d->in_pixel;
            for (int j = 0; j <= two; j++)
                out[j] = d->out[r + j] + i * d->out_pixel;
            if (two)
                two_rows(d, in, out, width);
            else
                one_row(d, in, out, width);
        }
        r += 1 + two;
    }
    lut_rows(mnet_avx2_lut_u8, d);
}

TARGET_END
#endif
