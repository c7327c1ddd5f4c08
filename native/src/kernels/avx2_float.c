/* AVX2 with fused multiply-add: products, depthwise convolutions and activations in float32. */
#if defined(__x86_64__) || defined(_M_X64)
#include "x86.h"

TARGET_BEGIN(AVX2_FEATURES)

enum { TILE = 6, COLUMNS = 4 };

INLINE __m256 activated(__m256 v, __m256 low, __m256 high, enum act act)
{
    v = _mm256_min_ps(_mm256_max_ps(v, low), high);
    if (act == ACT_NONE)
        return v;
    __m256 gate = _mm256_add_ps(v, _mm256_set1_ps(3.0f));
    gate = _mm256_min_ps(_mm256_max_ps(gate, _mm256_setzero_ps()), _mm256_set1_ps(6.0f));
    gate = _mm256_mul_ps(gate, _mm256_set1_ps(1.0f / 6.0f));
    return act == ACT_HARD_SWISH ? _mm256_mul_ps(v, gate) : gate;
}

/* n pixels by a panel of 16 outputs. */
INLINE void tile(const int n, const float *const *x, float *const *y, const float *w, int k, const struct finish *f,
                 int c, int whole)
{
    __m256 sum[TILE][2];
    UNROLL
    for (int i = 0; i < n; i++) {
        sum[i][0] = _mm256_loadu_ps(f->bias + c);
        sum[i][1] = _mm256_loadu_ps(f->bias + c + 8);
    }
    for (ptrdiff_t j = 0; j < k; j++) {
        const __m256 w0 = _mm256_loadu_ps(w + j * PANEL), w1 = _mm256_loadu_ps(w + j * PANEL + 8);
        UNROLL
        for (int i = 0; i < n; i++) {
            const __m256 v = _mm256_broadcast_ss(x[i] + j);
            sum[i][0] = _mm256_fmadd_ps(v, w0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(v, w1, sum[i][1]);
        }
    }
    const __m256 low = _mm256_set1_ps(f->low), high = _mm256_set1_ps(f->high);
    UNROLL
    for (int i = 0; i < n; i++) {
        _mm256_storeu_ps(y[i] + c, activated(sum[i][0], low, high, f->act));
        if (whole)
            _mm256_storeu_ps(y[i] + c + 8, activated(sum[i][1], low, high, f->act));
    }
}

void mnet_avx2_pointwise_f32(const struct pointwise_f32 *p)
{
    const int pixels = p->rows * p->width;
    for (int c = p->first; c < p->last; c += PANEL) {
        const float *w = p->w + (ptrdiff_t)c * p->k;
        const int whole = p->last - c >= PANEL;
        struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
        struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
        for (int i = 0; i < pixels;) {
            const float *x[TILE];
            float *y[TILE];
            const int n = pixels - i < TILE ? pixels - i : TILE;
            for (int o = 0; o < n; o++) {
                x[o] = (const float *)(const void *)walk_on(&from);
                y[o] = (float *)(void *)walk_on(&to);
            }
            switch (n) {
            case 6: tile(6, x, y, w, p->k, &p->f, c, whole); break;
            case 5: tile(5, x, y, w, p->k, &p->f, c, whole); break;
            case 4: tile(4, x, y, w, p->k, &p->f, c, whole); break;
            case 3: tile(3, x, y, w, p->k, &p->f, c, whole); break;
            case 2: tile(2, x, y, w, p->k, &p->f, c, whole); break;
            default: tile(1, x, y, w, p->k, &p->f, c, whole); break;
            }
            i += n;
        }
    }
}

/* Eight channels of n neighbouring outputs: taps are read once for all of them. */
INLINE void columns(const int n, const struct depthwise_f32 *d, int r, int i, int c)
{
    const struct finish *f = &d->f;
    __m256 sum[COLUMNS];
    UNROLL
    for (int o = 0; o < n; o++)
        sum[o] = _mm256_loadu_ps(f->bias + c);
    const float *w = d->w + c;
    for (int h = 0; h < d->kh; h++) {
        const float *x = d->in[r * d->stride + h] + (ptrdiff_t)i * d->stride * d->in_pixel + c;
        for (int v = 0; v < d->kw; v++, x += d->in_pixel, w += d->channels) {
            const __m256 tap = _mm256_loadu_ps(w);
            UNROLL
            for (int o = 0; o < n; o++)
                sum[o] = _mm256_fmadd_ps(tap, _mm256_loadu_ps(x + o * d->stride * d->in_pixel), sum[o]);
        }
    }
    const __m256 low = _mm256_set1_ps(f->low), high = _mm256_set1_ps(f->high);
    UNROLL
    for (int o = 0; o < n; o++)
        _mm256_storeu_ps(d->out[r] + (i + o) * d->out_pixel + c, activated(sum[o], low, high, f->act));
}

void mnet_avx2_depthwise_f32(const struct depthwise_f32 *d)
{
    for (int r = 0; r < d->n; r++)
        for (int i = 0; i < d->width; i += COLUMNS)
            for (int c = d->first; c < d->last; c += LANES)
                switch (d->width - i) {
                case 1: columns(1, d, r, i, c); break;
                case 2: columns(2, d, r, i, c); break;
                case 3: columns(3, d, r, i, c); break;
                default: columns(COLUMNS, d, r, i, c); break;
                }
}

void mnet_avx2_act_f32(float *x, size_t n, float low, float high, enum act act)
{
    const __m256 lows = _mm256_set1_ps(low), highs = _mm256_set1_ps(high);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, activated(_mm256_loadu_ps(x + i), lows, highs, act));
    for (; i < n; i++)
        _mm_store_ss(x + i, _mm256_castps256_ps128(activated(_mm256_set1_ps(x[i]), lows, highs, act)));
}

TARGET_END
#endif
