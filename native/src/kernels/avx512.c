/* AVX-512 with VNNI: dense products, whole and in float32, tables of 256, and the table of it all. Weights are read as
 * they lie, 16 outputs of four inputs to a register, and inputs from the map itself. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx512.h"

#include <string.h>

TARGET_BEGIN(AVX512_FEATURES)

enum { MOST_TILE = 12, MOST_PANELS = 4 };

static size_t pointwise_scratch(int k)
{
    (void)k;
    return 0;
}

/* n pixels by m panels of 16 outputs; `bytes` of the outputs exist. */
INLINE void tile(const int lean, const int n, const int m, const uint8_t *const *x, uint8_t *const *y, const int8_t *w,
                 int k4, const struct requant *q, int c, int bytes)
{
    const ptrdiff_t panel = (ptrdiff_t)k4 * 4 * PANEL;
    __m512i sum[MOST_TILE * 2 + 4];
    UNROLL
    for (int i = 0; i < n * m; i++)
        sum[i] = start512(lean, _mm512_loadu_si512(q->bias + c + i % m * PANEL));
    for (ptrdiff_t j = 0; j < (ptrdiff_t)k4 * 4; j += 4) {
        __m512i taps[MOST_PANELS];
        UNROLL
        for (int o = 0; o < m; o++)
            taps[o] = _mm512_loadu_si512(w + o * panel + j * PANEL);
        UNROLL
        for (int i = 0; i < n; i++) {
            const __m512i v = _mm512_castps_si512(_mm512_broadcastss_ps(_mm_load_ss((const void *)(x[i] + j))));
            UNROLL
            for (int o = 0; o < m; o++)
                dot512(&sum[i * m + o], v, taps[o]);
        }
    }
    const struct bounds512 bounds = bounds512_of(q->zero, q->low, q->high);
    UNROLL
    for (int o = 0; o < m; o++) {
        const __m512 multiplier = _mm512_loadu_ps(q->multiplier + c + o * PANEL), excess = excess512(multiplier);
        UNROLL
        for (int i = 0; i < n; i++)
            sum[i * m + o] = scaled512(lean, sum[i * m + o], multiplier, excess);
    }
    UNROLL
    for (int i = 0; i < n; i += m == 1 ? 4 : m == 2 ? 2 : 1) {
        const __m512i *s = sum + i * m;
        const __m512i v = to_bytes512(lean, s[0], s[1], s[2], m == 3 ? s[2] : s[3], &bounds);
        store_pixels(m, y + i, c, bytes, v);
    }
}

/* All pixels by m panels, n at a time. Where fewer are left, some are computed twice: to the same bytes. */
INLINE void panels(const int lean, const int n, const int m, const struct pointwise *p, int k4, int c)
{
    const int pixels = p->rows * p->width;
    const int plain = p->x.row == p->x.pixel * p->width && p->y.row == p->y.pixel * p->width; /* as one row */
    const int width = plain ? pixels : p->width;
    const int8_t *w = p->w + (ptrdiff_t)c * k4 * 4;
    struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, width);
    struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, width);
    for (int i = 0; i < pixels;) {
        uint8_t *at[MOST_TILE], *y[MOST_TILE];
        const uint8_t *const *x = (const uint8_t *const *)at;
        const int left = pixels - i < n ? pixels - i : n;
        walk_tile(&from, n, left, at);
        walk_tile(&to, n, left, y);
        if (m == 4 && left == 1)
            tile(lean, 1, m, x, y, w, k4, &p->q, c, p->last - c);
        else if (m == 4 && left <= 4)
            tile(lean, 4, m, x, y, w, k4, &p->q, c, p->last - c);
        else
            tile(lean, n, m, x, y, w, k4, &p->q, c, p->last - c);
        i += left;
    }
}

/* One pixel by four panels, each read from its beginning to its end: weights come as fast as they can be fetched. */
INLINE void single(const int lean, const struct pointwise *p, int k4, int c)
{
    enum { AHEAD = 4096 };
    const int8_t *w = p->w + (ptrdiff_t)c * k4 * 4;
    const uint8_t *const x = p->x.at;
    const struct bounds512 bounds = bounds512_of(p->q.zero, p->q.low, p->q.high);
    __m512i whole[MOST_PANELS];
    for (int o = 0; o < MOST_PANELS; o++) {
        __m512i sum[4];
        sum[0] = start512(lean, _mm512_loadu_si512(p->q.bias + c + o * PANEL));
        sum[1] = sum[2] = sum[3] = _mm512_setzero_si512();
        int j = 0;
        for (; j + 4 <= k4; j += 4, w += 4 * 64) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                _mm_prefetch((const void *)((uintptr_t)w + AHEAD + (uintptr_t)i * 64), _MM_HINT_T0);
                const __m512i v = _mm512_castps_si512(_mm512_broadcastss_ps(_mm_load_ss((const void *)(x + 4 * (j + i)))));
                dot512_at(&sum[i], v, w + i * 64);
            }
        }
        for (; j < k4; j++, w += 64)
            dot512_at(&sum[0], _mm512_castps_si512(_mm512_broadcastss_ps(_mm_load_ss((const void *)(x + 4 * j)))), w);
        sum[0] = _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3]));
        const __m512 multiplier = _mm512_loadu_ps(p->q.multiplier + c + o * PANEL);
        whole[o] = scaled512(lean, sum[0], multiplier, excess512(multiplier));
    }
    uint8_t *const y = p->y.at;
    store_pixels(MOST_PANELS, &y, c, p->last - c, to_bytes512(lean, whole[0], whole[1], whole[2], whole[3], &bounds));
}

INLINE void all(const int lean, const struct pointwise *p)
{
    const int k4 = (p->k + 3) / 4;
    int c = p->first;
    for (; c + 3 * PANEL < p->last; c += 4 * PANEL)
        if (p->rows * p->width == 1)
            single(lean, p, k4, c);
        else
            panels(lean, 6, 4, p, k4, c);
    switch ((p->last - c + PANEL - 1) / PANEL) {
    case 3: panels(lean, 8, 3, p, k4, c); break;
    case 2: panels(lean, 12, 2, p, k4, c); break;
    case 1: panels(lean, 12, 1, p, k4, c); break;
    default: break;
    }
}

static void full(const struct pointwise *p) { all(0, p); }
static void lean(const struct pointwise *p) { all(1, p); }

void mnet_avx512_pointwise(const struct pointwise *p)
{
    (lean512(&p->q, p->first, p->last, p->k) ? lean : full)(p);
    mnet_avx512_lut_pixels(p);
}

void mnet_avx512_lut_pixels(const struct pointwise *p) { lut_pixels(mnet_avx512_lut_u8, p); }

void mnet_avx512_lut_row(uint8_t *y, int width, ptrdiff_t pixel, int bytes, const uint8_t *lut)
{
    lut_row(mnet_avx512_lut_u8, y, width, pixel, bytes, lut);
}

INLINE __m512 activated(__m512 v, __m512 low, __m512 high, enum act act)
{
    v = _mm512_min_ps(_mm512_max_ps(v, low), high);
    if (act == ACT_NONE)
        return v;
    __m512 gate = _mm512_add_ps(v, _mm512_set1_ps(3.0f));
    gate = _mm512_min_ps(_mm512_max_ps(gate, _mm512_setzero_ps()), _mm512_set1_ps(6.0f));
    gate = _mm512_mul_ps(gate, _mm512_set1_ps(1.0f / 6.0f));
    return act == ACT_HARD_SWISH ? _mm512_mul_ps(v, gate) : gate;
}

/* In float32: n pixels by m panels. */
INLINE void tile_f32(const int n, const int m, const float *const *x, float *const *y, const float *w, int k,
                     const struct finish *f, int c, int last)
{
    const ptrdiff_t panel = (ptrdiff_t)k * PANEL;
    __m512 sum[MOST_TILE][2];
    UNROLL
    for (int i = 0; i < n; i++)
        UNROLL
        for (int o = 0; o < m; o++)
            sum[i][o] = _mm512_loadu_ps(f->bias + c + o * PANEL);
    for (ptrdiff_t j = 0; j < k; j++) {
        __m512 taps[2];
        UNROLL
        for (int o = 0; o < m; o++)
            taps[o] = _mm512_loadu_ps(w + o * panel + j * PANEL);
        UNROLL
        for (int i = 0; i < n; i++) {
            const __m512 v = _mm512_broadcastss_ps(_mm_load_ss(x[i] + j));
            UNROLL
            for (int o = 0; o < m; o++)
                sum[i][o] = _mm512_fmadd_ps(v, taps[o], sum[i][o]);
        }
    }
    const __m512 low = _mm512_set1_ps(f->low), high = _mm512_set1_ps(f->high);
    UNROLL
    for (int i = 0; i < n; i++)
        UNROLL
        for (int o = 0; o < m; o++) {
            const __mmask16 mask = last - c - o * PANEL >= PANEL ? 0xffff : 0xff;
            _mm512_mask_storeu_ps(y[i] + c + o * PANEL, mask, activated(sum[i][o], low, high, f->act));
        }
}

INLINE void panels_f32(const int m, const struct pointwise_f32 *p, int c)
{
    const int pixels = p->rows * p->width;
    const float *w = p->w + (ptrdiff_t)c * p->k;
    struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
    struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
    for (int i = 0; i < pixels;) {
        const float *x[MOST_TILE];
        float *y[MOST_TILE];
        const int left = pixels - i < MOST_TILE ? pixels - i : MOST_TILE;
        for (int o = 0; o < MOST_TILE; o++) {
            x[o] = o < left ? (const float *)(const void *)walk_on(&from) : x[o - 1];
            y[o] = o < left ? (float *)(void *)walk_on(&to) : y[o - 1];
        }
        if (left == 1)
            tile_f32(1, m, x, y, w, p->k, &p->f, c, p->last);
        else if (left <= 4)
            tile_f32(4, m, x, y, w, p->k, &p->f, c, p->last);
        else
            tile_f32(MOST_TILE, m, x, y, w, p->k, &p->f, c, p->last);
        i += left;
    }
}

void mnet_avx512_pointwise_f32(const struct pointwise_f32 *p)
{
    int c = p->first;
    for (; c + PANEL < p->last; c += 2 * PANEL)
        panels_f32(2, p, c);
    if (c < p->last)
        panels_f32(1, p, c);
}

TARGET_END

TARGET_BEGIN(AVX512_FEATURES)

/* Sixteen bytes less their zero point, times scales; where not all are there, of those that a mask has. */
INLINE __m512 real512(const int all, const uint8_t *x, __mmask16 mask, __m512i zero, __m512 scale)
{
    const __m128i bytes = all ? _mm_loadu_si128((const void *)x) : _mm_maskz_loadu_epi8(mask, x);
    const __m512i v = _mm512_cvtepu8_epi32(bytes);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(v, zero)), scale);
}

INLINE __m512i rounded512(__m512 v) { return _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(ROUND_LIMIT))); }

INLINE void store64(const int all, uint8_t *y, __mmask64 mask, __m512i v)
{
    if (all)
        _mm512_storeu_si512(y, v);
    else
        _mm512_mask_storeu_epi8(y, mask, v);
}

INLINE __mmask64 first64(size_t n) { return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1; }

INLINE void add64(const int all, const uint8_t *a, const uint8_t *b, uint8_t *y, __mmask64 mask, const struct add_u8 *s)
{
    const __m512i za = _mm512_set1_epi32(s->za), zb = _mm512_set1_epi32(s->zb);
    const __m512 ma = _mm512_set1_ps(s->ma), mb = _mm512_set1_ps(s->mb);
    const struct bounds512 bounds = bounds512_of(s->zero, s->low, s->high);
    __m512i v[4];
    UNROLL
    for (int o = 0; o < 4; o++) {
        const __mmask16 part = (__mmask16)(mask >> (o * 16));
        const __m512 x = real512(all, a + o * 16, part, za, ma);
        v[o] = rounded512(_mm512_add_ps(x, real512(all, b + o * 16, part, zb, mb)));
    }
    store64(all, y, mask, to_bytes512(0, v[0], v[1], v[2], v[3], &bounds));
}

void mnet_avx512_add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s)
{
    const struct add_u8 how = *s; /* which no byte that is written can change */
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        add64(1, a + i, b + i, y + i, 0, &how);
    if (i < n)
        add64(0, a + i, b + i, y + i, first64(n - i), &how);
}

/* The same 64 channels of all pixels, or those that a mask has: their scales stay in registers. */
INLINE void multiply64(const int all, const uint8_t *a, uint8_t *y, size_t pixels, int channels, __mmask64 mask,
                       const float *scales, const struct mul_u8 *s)
{
    const __m512i za = _mm512_set1_epi32(s->za);
    const struct bounds512 bounds = bounds512_of(s->zero, s->low, s->high);
    __m512 m[4];
    UNROLL
    for (int o = 0; o < 4; o++)
        m[o] = _mm512_maskz_loadu_ps((__mmask16)(mask >> (o * 16)), scales + o * 16);
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels) {
        __m512i v[4];
        UNROLL
        for (int o = 0; o < 4; o++)
            v[o] = rounded512(real512(all, a + o * 16, (__mmask16)(mask >> (o * 16)), za, m[o]));
        store64(all, y, mask, to_bytes512(0, v[0], v[1], v[2], v[3], &bounds));
    }
}

static void multiply(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s)
{
    int c = 0;
    for (; c + 64 <= channels; c += 64)
        multiply64(1, a + c, y + c, pixels, channels, ~(__mmask64)0, s->m + c, s);
    if (c < channels)
        multiply64(0, a + c, y + c, pixels, channels, first64((size_t)(channels - c)), s->m + c, s);
}

/* Some pixels side by side are one of more channels: as many as fill whole vectors. */
void mnet_avx512_mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s)
{
    enum { MOST = 160 }; /* above, what a last vector leaves empty is little */
    float m[8 * MOST];
    struct mul_u8 wide = *s;
    int beside = 1;
    while (channels <= MOST && channels * beside % 64)
        beside *= 2;
    const size_t whole = pixels / (size_t)beside, done = whole * (size_t)(beside * channels);
    if (beside > 1) {
        for (int i = 0; i < beside; i++)
            memcpy(m + i * channels, s->m, (size_t)channels * sizeof *m);
        wide.m = m;
        multiply(a, y, whole, beside * channels, &wide);
        a += done, y += done, pixels %= (size_t)beside;
    }
    multiply(a, y, pixels, channels, s);
}

void mnet_avx512_quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero)
{
    const __m512 scale = _mm512_set1_ps(inverse);
    const struct bounds512 bounds = bounds512_of(zero, 0, 255);
    for (size_t i = 0; i < n; i += 64) {
        const __mmask64 mask = first64(n - i);
        __m512i v[4];
        UNROLL
        for (int o = 0; o < 4; o++) {
            const __mmask16 part = (__mmask16)(mask >> (o * 16));
            v[o] = rounded512(_mm512_mul_ps(_mm512_maskz_loadu_ps(part, x + i + o * 16), scale));
        }
        _mm512_mask_storeu_epi8(y + i, mask, to_bytes512(0, v[0], v[1], v[2], v[3], &bounds));
    }
}

TARGET_END

TARGET_BEGIN("avx512f,avx512bw,avx512vbmi")

/* vpermi2b looks up 128 bytes; the highest bit chooses the half. */
static void lut_vbmi(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut)
{
    const __m512i a = _mm512_loadu_si512(lut), b = _mm512_loadu_si512(lut + 64);
    const __m512i c = _mm512_loadu_si512(lut + 128), d = _mm512_loadu_si512(lut + 192);
    for (size_t i = 0; i < n; i += 64) {
        const __mmask64 mask = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
        const __m512i v = _mm512_maskz_loadu_epi8(mask, x + i);
        const __m512i lower = _mm512_permutex2var_epi8(a, v, b), upper = _mm512_permutex2var_epi8(c, v, d);
        _mm512_mask_storeu_epi8(y + i, mask, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), lower, upper));
    }
}

TARGET_END

void mnet_avx512_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut)
{
    if (__builtin_cpu_supports("avx512vbmi"))
        lut_vbmi(x, y, n, lut);
    else
        mnet_avx2_lut_u8(x, y, n, lut);
}

const struct kernels mnet_avx512 = {
    "avx512",
    mnet_avx512_pointwise,
    pointwise_scratch,
    mnet_avx512_depthwise,
    mnet_avx512_depthwise_bytes,
    mnet_avx512_depthwise_pack,
    mnet_avx512_pointwise_f32,
    mnet_avx2_depthwise_f32,
    mnet_avx512_add_u8,
    mnet_avx512_mul_u8,
    mnet_avx512_lut_u8,
    mnet_avx2_sum_u8,
    mnet_avx512_quantize,
    mnet_avx2_dequantize,
    mnet_avx2_add_f32,
    mnet_avx2_mul_f32,
    mnet_avx2_act_f32,
    mnet_avx2_sum_f32,
    NULL,
};
#endif
