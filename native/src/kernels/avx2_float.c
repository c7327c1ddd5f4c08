/* AVX2 with fused multiply-add: products, depthwise convolutions and activations in float32. */
#if defined(__x86_64__) || defined(_M_X64)
#include "x86.h"

TARGET_BEGIN(AVX2_FEATURES)

enum { TILE = 6, COLUMNS = 4, BLOCK = 16 /* outputs of a row whose inputs stay near while channels pass */ };

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

/* Eight channels of COLUMNS outputs of a 3x3 kernel: taps stay in registers, and a column that several outputs read is
 * read once. */
INLINE void three(const int stride, const float *const *in, float *y, ptrdiff_t in_pixel, ptrdiff_t out_pixel,
                  const __m256 *tap, const __m256 bias, const struct finish *f)
{
    __m256 sum[COLUMNS];
    UNROLL
    for (int o = 0; o < COLUMNS; o++)
        sum[o] = bias;
    UNROLL
    for (int h = 0; h < 3; h++)
        UNROLL
        for (int i = 0; i < (COLUMNS - 1) * stride + 3; i++) {
            const __m256 x = _mm256_loadu_ps(in[h] + i * in_pixel);
            UNROLL
            for (int o = 0; o < COLUMNS; o++)
                if (i >= o * stride && i < o * stride + 3)
                    sum[o] = _mm256_fmadd_ps(tap[h * 3 + i - o * stride], x, sum[o]);
        }
    const __m256 low = _mm256_set1_ps(f->low), high = _mm256_set1_ps(f->high);
    UNROLL
    for (int o = 0; o < COLUMNS; o++)
        _mm256_storeu_ps(y + o * out_pixel, activated(sum[o], low, high, f->act));
}

/* Outputs [from, to) of a row, as many as are whole COLUMNS. Gives where it ended. */
INLINE int row_of_three(const int stride, const struct depthwise_f32 *d, int r, int from, int to)
{
    const int end = from + (to - from) / COLUMNS * COLUMNS;
    for (int c = d->first; c < d->last; c += LANES) {
        __m256 tap[9];
        UNROLL
        for (int t = 0; t < 9; t++)
            tap[t] = _mm256_loadu_ps(d->w + (ptrdiff_t)t * d->channels + c);
        const __m256 bias = _mm256_loadu_ps(d->f.bias + c);
        for (int i = from; i < end; i += COLUMNS) {
            const float *in[3];
            UNROLL
            for (int h = 0; h < 3; h++)
                in[h] = d->in[r * stride + h] + (ptrdiff_t)i * stride * d->in_pixel + c;
            three(stride, in, d->out[r] + i * d->out_pixel + c, d->in_pixel, d->out_pixel, tap, bias, &d->f);
        }
    }
    return end;
}

void mnet_avx2_depthwise_f32(const struct depthwise_f32 *d)
{
    const int known = d->kh == 3 && d->kw == 3 && d->stride <= 2;
    for (int r = 0; r < d->n; r++)
        for (int from = 0; from < d->width; from += BLOCK) {
            const int to = d->width - from < BLOCK ? d->width : from + BLOCK;
            int i = from;
            if (known)
                i = d->stride == 1 ? row_of_three(1, d, r, from, to) : row_of_three(2, d, r, from, to);
            for (; i < to; i += COLUMNS)
                for (int c = d->first; c < d->last; c += LANES)
                    switch (to - i) {
                    case 1: columns(1, d, r, i, c); break;
                    case 2: columns(2, d, r, i, c); break;
                    case 3: columns(3, d, r, i, c); break;
                    default: columns(COLUMNS, d, r, i, c); break;
                    }
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
