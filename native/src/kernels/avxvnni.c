/* AVX-VNNI: vpdpbusd on 256 bits, for the dense product; everything else is AVX2's. Weights are read as they lie, inputs
 * from the map itself, four at a time. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx2_requant.h"

TARGET_BEGIN("avx2,fma,avxvnni")

enum { TILE = 6 };

static size_t pointwise_scratch(int k)
{
    (void)k;
    return 0;
}

/* sum += four bytes of v times four of w (an instruction, for gcc's sake: see multiply_add in avx2.c) */
INLINE void dot(__m256i *sum, __m256i v, __m256i w)
{
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sum) : "x"(v), "x"(w));
}

/* n pixels by a panel of 16 outputs. */
INLINE void tile(const int n, const uint8_t *const *x, uint8_t *const *y, const int8_t *w, int k4,
                 const struct requant *q, int c, int whole)
{
    const __m256i bias0 = _mm256_loadu_si256((const void *)(q->bias + c));
    const __m256i bias1 = _mm256_loadu_si256((const void *)(q->bias + c + 8));
    __m256i sum[TILE][2];
    UNROLL
    for (int i = 0; i < n; i++) {
        sum[i][0] = bias0;
        sum[i][1] = bias1;
    }
    for (ptrdiff_t j = 0; j < (ptrdiff_t)k4 * 4; j += 4) {
        const __m256i w0 = _mm256_loadu_si256((const void *)(w + j * PANEL));
        const __m256i w1 = _mm256_loadu_si256((const void *)(w + j * PANEL + 32));
        UNROLL
        for (int i = 0; i < n; i++) {
            const __m256i v = _mm256_castps_si256(_mm256_broadcast_ss((const void *)(x[i] + j)));
            dot(&sum[i][0], v, w0);
            dot(&sum[i][1], v, w1);
        }
    }
    const __m256 m0 = _mm256_loadu_ps(q->multiplier + c), m1 = _mm256_loadu_ps(q->multiplier + c + 8);
    const struct bounds bounds = bounds_of(q->zero, q->low, q->high);
    UNROLL
    for (int i = 0; i < n; i += 2) {
        const int next = i + 1 < n ? i + 1 : i;
        const __m256i v = to_bytes(scaled(sum[i][0], m0), scaled(sum[i][1], m1), scaled(sum[next][0], m0),
                                   scaled(sum[next][1], m1), &bounds);
        store_panel(y[i] + c, _mm256_castsi256_si128(v), whole);
        if (next != i)
            store_panel(y[next] + c, _mm256_extracti128_si256(v, 1), whole);
    }
}

static void pointwise(const struct pointwise *p)
{
    const int k4 = (p->k + 3) / 4, pixels = p->rows * p->width;
    for (int c = p->first; c < p->last; c += PANEL) {
        const int8_t *w = p->w + (ptrdiff_t)c * k4 * 4;
        const int whole = p->last - c >= PANEL;
        struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
        struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
        for (int i = 0; i < pixels;) {
            const uint8_t *x[TILE];
            uint8_t *y[TILE];
            const int n = pixels - i < TILE ? pixels - i : TILE;
            for (int o = 0; o < n; o++) {
                x[o] = walk_on(&from);
                y[o] = walk_on(&to);
            }
            switch (n) {
            case 6: tile(6, x, y, w, k4, &p->q, c, whole); break;
            case 5: tile(5, x, y, w, k4, &p->q, c, whole); break;
            case 4: tile(4, x, y, w, k4, &p->q, c, whole); break;
            case 3: tile(3, x, y, w, k4, &p->q, c, whole); break;
            case 2: tile(2, x, y, w, k4, &p->q, c, whole); break;
            default: tile(1, x, y, w, k4, &p->q, c, whole); break;
            }
            i += n;
        }
    }
    lut_pixels(mnet_avx2_lut_u8, p);
}

TARGET_END

const struct kernels mnet_avxvnni = {
    "avxvnni",
    pointwise,
    pointwise_scratch,
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
