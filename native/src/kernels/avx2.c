/* AVX2: the dense product in whole numbers, and the table.
 *
 * vpmaddubsw saturates, so bytes are widened to int16 once and multiplied by vpmaddwd, which is exact: a block of pixels
 * is widened into scratch, then one panel of weights after another, which stays in L1 while all pixels of the block
 * pass it. Widened weights lie as pairs of inputs, so that an accumulator holds 8 outputs: panel[K/2][2][8][2]. The 8
 * are in the order of SHUFFLED, which the packing at the end undoes at no cost.
 *
 * Two products become one by Winograd's identity (S. Winograd, "A new algorithm for inner product", 1968):
 *     x0 w0 + x2 w2 = (x0 + w2)(x2 + w0) - x0 x2 - w0 w2
 * where the last two are known once for each pixel, and for each output. The sums of inputs and weights fit into int16,
 * the products' are exact in 32 bits, which may wrap on the way. That is as many instructions, but half as many
 * multiplications, which two of a core's four units can do, where all four can add: 25 macs a cycle where 22 were, with
 * more than FEW_INPUTS of them. With fewer, what has to be taken away isn't worth it. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx2_requant.h"

TARGET_BEGIN(AVX2_FEATURES)

enum {
    BLOCK_BYTES = 96 * 1024, /* of widened pixels: a part of L2 */
    BLOCK_MOST = 512,        /* pixels in a block */
    FEW_INPUTS = 32,         /* up to which pairs are multiplied as they are */
    TILE = 4,                /* pixels that one pass over a panel computes: 8 accumulators of 16 registers, */
    LARGE_TILE = 6,          /* 12 of few inputs, */
    HALF_TILE = 12,          /* and 12 over a panel that has 8 outputs left */
    FEW = 3,                 /* so few pixels aren't worth a widened panel */
};

static int block_pixels(int k4)
{
    int n = BLOCK_BYTES / (k4 * 8);
    n = n < BLOCK_MOST ? n : BLOCK_MOST;
    return n < HALF_TILE ? HALF_TILE : n / TILE * TILE;
}

size_t mnet_avx2_pointwise_scratch(int k)
{
    const int k4 = (k + 3) / 4;
    return (size_t)k4 * 4 * 2 * (PANEL + (size_t)block_pixels(k4)) + BLOCK_MOST * (sizeof(uint8_t *) + 4) + 64;
}

/* x0 x2 + x1 x3 of fours of inputs, each twice. */
INLINE __m256i crossed(__m256i v) { return _mm256_madd_epi16(v, _mm256_shuffle_epi32(v, 0xb1)); }

/* k inputs, a multiple of 4, as int16; returns the sum of their fours' x0 x2 + x1 x3, 0 for `few` inputs. */
INLINE int32_t widen(const uint8_t *x, int16_t *y, int k, const int few)
{
    static const int32_t last[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
    __m256i sum = _mm256_setzero_si256();
    int j = 0;
    for (; j + 16 <= k; j += 16) {
        const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(x + j)));
        _mm256_storeu_si256((void *)(y + j), v);
        if (!few)
            sum = _mm256_add_epi32(sum, crossed(v));
    }
    if (j < k && j) { /* some of the last block once more, rather than the rest by fours */
        const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(x + k - 16)));
        _mm256_storeu_si256((void *)(y + k - 16), v);
        const __m256i fresh = _mm256_loadu_si256((const void *)(last + (k - j) / 2));
        sum = _mm256_add_epi32(sum, _mm256_and_si256(crossed(v), fresh));
        j = k;
    }
    __m128i all = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    all = _mm_add_epi32(all, _mm_unpackhi_epi64(all, all));
    for (; j < k; j += 4) {
        const __m128i v = _mm_cvtepu8_epi16(_mm_loadu_si32(x + j));
        _mm_storel_epi64((void *)(y + j), v);
        all = _mm_add_epi32(all, _mm_madd_epi16(v, _mm_shuffle_epi32(v, 0xb1)));
    }
    return few ? 0 : _mm_cvtsi128_si32(all);
}


/* What turns a panel's sums into bytes, in the order of its accumulators. */
struct panel {
    __m256i bias[2];
    __m256 multiplier[2];
    struct bounds bounds;
};

#define SHUFFLED _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7)

INLINE struct panel panel_of(const struct requant *q, int c)
{
    struct panel s;
    UNROLL
    for (int h = 0; h < 2; h++) {
        s.bias[h] = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const void *)(q->bias + c + h * 8)), SHUFFLED);
        s.multiplier[h] = _mm256_permutevar8x32_ps(_mm256_loadu_ps(q->multiplier + c + h * 8), SHUFFLED);
    }
    s.bounds = bounds_of(q->zero, q->low, q->high);
    return s;
}

/* Weights as int16; of the biases, w0 w2 + w1 w3 of all fours is taken away, but of few inputs. */
static void widen_panel(const int8_t *w, int16_t *y, int k4, struct panel *s)
{
    for (int j = 0; j < k4; j++, w += 64, y += 64) {
        __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)w));
        __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 16)));
        __m256i c = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 32)));
        __m256i d = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 48)));
        __m256 fa = _mm256_castsi256_ps(a), fb = _mm256_castsi256_ps(b);
        __m256 fc = _mm256_castsi256_ps(c), fd = _mm256_castsi256_ps(d);
        a = _mm256_castps_si256(_mm256_shuffle_ps(fa, fb, 0x88)); /* inputs 0 and 1 of the first 8 outputs */
        b = _mm256_castps_si256(_mm256_shuffle_ps(fc, fd, 0x88));
        c = _mm256_castps_si256(_mm256_shuffle_ps(fa, fb, 0xdd)); /* inputs 2 and 3 */
        d = _mm256_castps_si256(_mm256_shuffle_ps(fc, fd, 0xdd));
        _mm256_store_si256((void *)y, a);
        _mm256_store_si256((void *)(y + 16), b);
        _mm256_store_si256((void *)(y + 32), c);
        _mm256_store_si256((void *)(y + 48), d);
        if (k4 * 4 <= FEW_INPUTS)
            continue;
        s->bias[0] = _mm256_sub_epi32(s->bias[0], _mm256_madd_epi16(a, c));
        s->bias[1] = _mm256_sub_epi32(s->bias[1], _mm256_madd_epi16(b, d));
    }
}

/* Two pixels' sums of a panel, as 16 bytes each. */
INLINE void finish_two(const struct panel *s, const __m256i *a, const __m256i *b, __m128i *ya, __m128i *yb)
{
    __m256i v = narrow(scaled(a[0], s->multiplier[0]), scaled(a[1], s->multiplier[1]),
                       scaled(b[0], s->multiplier[0]), scaled(b[1], s->multiplier[1]), &s->bounds);
    __m128i lower = _mm256_castsi256_si128(v), upper = _mm256_extracti128_si256(v, 1);
    *ya = _mm_unpacklo_epi16(lower, upper);
    *yb = _mm_unpackhi_epi16(lower, upper);
}

/* Four inputs at x + `at` bytes, and their weights for 16 outputs: w[0], w[1] are those of inputs 0 and 1, w[2], w[3] of
 * 2 and 3. In assembly because gcc moves all products before all sums, and then keeps the accumulators in memory; with
 * addresses in it because gcc would work out the second of each pair by itself, which costs a quarter of the speed. */
INLINE void add_four(__m256i *sum, const int16_t *x, ptrdiff_t at, const __m256i *w)
{
    __m256i a, b, c, d;
    __asm__("vpbroadcastd (%6,%7), %2\n\tvpbroadcastd 4(%6,%7), %3\n\t"
            "vpaddw %10, %2, %4\n\tvpaddw %8, %3, %5\n\tvpmaddwd %4, %5, %4\n\tvpaddd %4, %0, %0\n\t"
            "vpaddw %11, %2, %2\n\tvpaddw %9, %3, %3\n\tvpmaddwd %2, %3, %2\n\tvpaddd %2, %1, %1"
            : "+x"(sum[0]), "+x"(sum[1]), "=&x"(a), "=&x"(b), "=&x"(c), "=&x"(d)
            : "r"(x), "r"(at), "x"(w[0]), "x"(w[1]), "x"(w[2]), "x"(w[3])
            : "memory");
}

INLINE void add_four_half(__m256i *sum, const int16_t *x, __m256i first, __m256i second)
{
    __m256i a, b;
    __asm__("vpbroadcastd %3, %1\n\tvpbroadcastd %4, %2\n\t"
            "vpaddw %6, %1, %1\n\tvpaddw %5, %2, %2\n\tvpmaddwd %1, %2, %1\n\tvpaddd %1, %0, %0"
            : "+x"(*sum), "=&x"(a), "=&x"(b)
            : "m"(*(const int32_t *)x), "m"(*(const int32_t *)(x + 2)), "x"(first), "x"(second));
}

/* The same of two inputs and 8 outputs, multiplied as they are. */
INLINE void add_two(__m256i *sum, __m256i x, __m256i w)
{
    __m256i product;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(product) : "x"(x), "x"(w));
}

/* n pixels of `stride` widened inputs each, times a widened panel; `cross` is what widening said of each. */
INLINE void tile(const int few, const int n, const int16_t *x, const int32_t *cross, ptrdiff_t stride, const int16_t *w, int k4,
                 const struct panel *s, uint8_t *const *y, int c, int whole)
{
    __m256i sum[LARGE_TILE][2];
    const int16_t *in[LARGE_TILE];
    UNROLL
    for (int i = 0; i < n; i++) {
        const __m256i less = few ? _mm256_setzero_si256() : _mm256_set1_epi32(cross[i]);
        sum[i][0] = _mm256_sub_epi32(s->bias[0], less);
        sum[i][1] = _mm256_sub_epi32(s->bias[1], less);
        in[i] = x + i * stride;
    }
    for (ptrdiff_t j = 0; few && j < (ptrdiff_t)k4 * 4; j += 2) {
        const __m256i *at = (const void *)(w + j * PANEL), w0 = at[0], w1 = at[1];
        UNROLL
        for (int i = 0; i < n; i++) {
            const __m256i v = _mm256_castps_si256(_mm256_broadcast_ss((const void *)(in[i] + j)));
            add_two(&sum[i][0], v, w0);
            add_two(&sum[i][1], v, w1);
        }
    }
    for (ptrdiff_t j = 0; !few && j < (ptrdiff_t)k4 * 4; j += 4) {
        const __m256i *at = (const void *)(w + j * PANEL), four[4] = {at[0], at[1], at[2], at[3]};
        UNROLL
        for (int i = 0; i < n; i++)
            add_four(sum[i], in[i], j * 2, four);
    }
    UNROLL
    for (int i = 0; i < n; i += 2) {
        __m128i a, b;
        finish_two(s, sum[i], sum[i + 1 < n ? i + 1 : i], &a, &b);
        store_panel(y[i] + c, a, whole);
        if (i + 1 < n)
            store_panel(y[i + 1] + c, b, whole);
    }
}

/* HALF_TILE pixels by the 8 outputs that a panel begins with. */
INLINE void half_tile(const int few, const int16_t *x, const int32_t *cross, ptrdiff_t stride, const int16_t *w, int k4,
                      const struct panel *s, uint8_t *const *y, int c)
{
    __m256i sum[HALF_TILE];
    UNROLL
    for (int i = 0; i < HALF_TILE; i++)
        sum[i] = few ? s->bias[0] : _mm256_sub_epi32(s->bias[0], _mm256_set1_epi32(cross[i]));
    for (ptrdiff_t j = 0; few && j < (ptrdiff_t)k4 * 4; j += 2) {
        const __m256i *at = (const void *)(w + j * PANEL);
        UNROLL
        for (int i = 0; i < HALF_TILE; i++)
            add_two(&sum[i], _mm256_castps_si256(_mm256_broadcast_ss((const void *)(x + i * stride + j))), at[0]);
    }
    for (ptrdiff_t j = 0; !few && j < (ptrdiff_t)k4 * 4; j += 4) {
        const __m256i *at = (const void *)(w + j * PANEL);
        UNROLL
        for (int i = 0; i < HALF_TILE; i++)
            add_four_half(&sum[i], x + i * stride + j, at[0], at[2]);
    }
    UNROLL
    for (int i = 0; i < HALF_TILE; i += 4) {
        const __m256 m = s->multiplier[0];
        const __m256i v = narrow(scaled(sum[i], m), scaled(sum[i + 1], m), scaled(sum[i + 2], m), scaled(sum[i + 3], m),
                                 &s->bounds);
        const __m128i lower = _mm256_castsi256_si128(v), upper = _mm256_extracti128_si256(v, 1);
        const __m128i first = _mm_unpacklo_epi16(lower, upper), second = _mm_unpackhi_epi16(lower, upper);
        _mm_storel_epi64((void *)(y[i] + c), first);
        _mm_storeh_pd((void *)(y[i + 1] + c), _mm_castsi128_pd(first));
        _mm_storel_epi64((void *)(y[i + 2] + c), second);
        _mm_storeh_pd((void *)(y[i + 3] + c), _mm_castsi128_pd(second));
    }
}

INLINE void block(const int few, const int16_t *x, const int32_t *cross, int pixels, const int16_t *w, int k4,
                  const struct panel *s, uint8_t *const *y, int c, int whole)
{
    const ptrdiff_t stride = (ptrdiff_t)k4 * 4;
    const int each = few ? LARGE_TILE : TILE;
    int i = 0;
    if (!whole)
        for (; i + HALF_TILE <= pixels; i += HALF_TILE)
            half_tile(few, x + i * stride, cross + i, stride, w, k4, s, y + i, c);
    for (; i + each <= pixels; i += each)
        tile(few, each, x + i * stride, cross + i, stride, w, k4, s, y + i, c, whole);
    x += i * stride;
    cross += i;
    y += i;
    switch (pixels - i) {
    case 5: tile(few, few ? 5 : 1, x, cross, stride, w, k4, s, y, c, whole); break;
    case 4: tile(few, few ? 4 : 1, x, cross, stride, w, k4, s, y, c, whole); break;
    case 3: tile(few, 3, x, cross, stride, w, k4, s, y, c, whole); break;
    case 2: tile(few, 2, x, cross, stride, w, k4, s, y, c, whole); break;
    case 1: tile(few, 1, x, cross, stride, w, k4, s, y, c, whole); break;
    default: break;
    }
}

static void block_of_few(const int16_t *x, const int32_t *cross, int pixels, const int16_t *w, int k4,
                         const struct panel *s, uint8_t *const *y, int c, int whole)
{
    block(1, x, cross, pixels, w, k4, s, y, c, whole);
}

static void block_of_many(const int16_t *x, const int32_t *cross, int pixels, const int16_t *w, int k4,
                          const struct panel *s, uint8_t *const *y, int c, int whole)
{
    block(0, x, cross, pixels, w, k4, s, y, c, whole);
}

/* A pixel by packed weights as they lie: four outputs of four inputs in a register. For one pixel weights are read once,
 * and widening them first would cost more than the product. */
static void panel_of_pixel(const int16_t *x, const int8_t *w, int k4, const struct requant *q, uint8_t *y, int whole,
                           int c)
{
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int j = 0; j < k4; j++, w += 64) {
        __m256i v = _mm256_castpd_si256(_mm256_broadcast_sd((const void *)(x + j * 4)));
        UNROLL
        for (int o = 0; o < 4; o++) {
            __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + o * 16)));
            sum[o] = _mm256_add_epi32(sum[o], _mm256_madd_epi16(v, wide));
        }
    }
    const struct panel s = panel_of(q, c);
    __m256i sums[2] = {_mm256_add_epi32(_mm256_hadd_epi32(sum[0], sum[1]), s.bias[0]),
                       _mm256_add_epi32(_mm256_hadd_epi32(sum[2], sum[3]), s.bias[1])};
    __m128i a, b;
    finish_two(&s, sums, sums, &a, &b);
    store_panel(y + c, a, whole);
}

void mnet_avx2_pointwise(const struct pointwise *p)
{
    const int k4 = (p->k + 3) / 4, most = block_pixels(k4), pixels = p->rows * p->width, few = k4 * 4 <= FEW_INPUTS;
    int16_t *panel = (void *)(((uintptr_t)p->scratch + 63) & ~(uintptr_t)63);
    int16_t *wide = panel + (ptrdiff_t)k4 * 4 * PANEL;
    uint8_t **y = (void *)(wide + (ptrdiff_t)k4 * 4 * most);
    int32_t *cross = (void *)(y + BLOCK_MOST);
    struct walk x = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
    struct walk out = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
    for (int from = 0; from < pixels; from += most) {
        const int n = pixels - from < most ? pixels - from : most;
        for (int i = 0; i < n; i++) {
            cross[i] = few ? widen(walk_on(&x), wide + (ptrdiff_t)i * k4 * 4, k4 * 4, 1)
                           : widen(walk_on(&x), wide + (ptrdiff_t)i * k4 * 4, k4 * 4, 0);
            y[i] = walk_on(&out);
        }
        for (int c = p->first; c < p->last; c += PANEL) {
            const int8_t *w = p->w + (ptrdiff_t)c * k4 * 4;
            const int whole = p->last - c >= PANEL;
            if (n <= FEW) {
                for (int i = 0; i < n; i++)
                    panel_of_pixel(wide + (ptrdiff_t)i * k4 * 4, w, k4, &p->q, y[i], whole, c);
            } else {
                struct panel s = panel_of(&p->q, c);
                widen_panel(w, panel, k4, &s);
                (few ? block_of_few : block_of_many)(wide, cross, n, panel, k4, &s, y, c, whole);
            }
        }
    }
    lut_pixels(mnet_avx2_lut_u8, p);
}

TARGET_END

const struct kernels mnet_avx2 = {
    "avx2",
    mnet_avx2_pointwise,
    mnet_avx2_pointwise_scratch,
    mnet_avx2_depthwise,
    mnet_avx2_depthwise_bytes,
    mnet_avx2_depthwise_pack,
    mnet_avx2_pointwise_f32,
    mnet_avx2_depthwise_f32,
    mnet_avx2_add_u8,
    mnet_avx2_mul_u8,
    mnet_avx2_lut_u8,
    mnet_avx2_sum_u8,
    mnet_avx2_quantize,
    mnet_avx2_dequantize,
    mnet_avx2_add_f32,
    mnet_avx2_mul_f32,
    mnet_avx2_act_f32,
    mnet_avx2_sum_f32,
    NULL,
};
#endif
