/* WebAssembly's float32 kernels. Relaxed SIMD lets a product and a sum be one instruction where the processor has one;
 * float32 results may differ by that (kernels.h). */
#if defined(__wasm_simd128__)
#include "wasm.h"

#define TILE 5 /* pixels by 8 outputs: 10 sums, 2 weights and a pixel in the 16 registers that x86 has */

static inline v128_t madd(v128_t a, v128_t b, v128_t c)
{
#if defined(__wasm_relaxed_simd__)
    return wasm_f32x4_relaxed_madd(a, b, c);
#else
    return wasm_f32x4_add(wasm_f32x4_mul(a, b), c);
#endif
}

static inline v128_t activate(v128_t v, float low, float high, enum act act)
{
    v = wasm_f32x4_pmax(wasm_f32x4_splat(low), v);
    v = wasm_f32x4_pmin(wasm_f32x4_splat(high), v);
    if (act == ACT_NONE)
        return v;
    v128_t gate = wasm_f32x4_add(v, wasm_f32x4_const_splat(3.0f));
    gate = wasm_f32x4_pmax(wasm_f32x4_const_splat(0.0f), gate);
    gate = wasm_f32x4_pmin(wasm_f32x4_const_splat(6.0f), gate);
    gate = wasm_f32x4_mul(gate, wasm_f32x4_const_splat(1.0f / 6.0f));
    return act == ACT_HARD_SWISH ? wasm_f32x4_mul(v, gate) : gate;
}

static inline __attribute__((always_inline)) void step(const float *const *x, int j, int n, const float *w,
                                                       v128_t (*a)[2])
{
    const v128_t w0 = wasm_v128_load(w), w1 = wasm_v128_load(w + 4);
#pragma unroll
    for (int p = 0; p < n; p++) {
        const v128_t v = wasm_v128_load32_splat(x[p] + j);
        a[p][0] = madd(v, w0, a[p][0]);
        a[p][1] = madd(v, w1, a[p][1]);
        KEEP_ORDER(a[p][0], a[p][1]);
    }
}

static inline __attribute__((always_inline)) void tile(const uint8_t *const *x, uint8_t *const *y, int n, int k,
                                                       const float *w, int c, const struct finish *f)
{
    v128_t a[TILE][2];
    const float *xs[TILE];
#pragma unroll
    for (int p = 0; p < n; p++) {
        xs[p] = (const float *)(const void *)x[p];
        a[p][0] = wasm_v128_load(f->bias + c);
        a[p][1] = wasm_v128_load(f->bias + c + 4);
    }
    int j = 0;
    for (; j + 4 <= k; j += 4, w += 4 * PANEL) {
        OPAQUE(w);
#pragma unroll
        for (int p = 0; p < n; p++)
            OPAQUE(xs[p]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            step(xs, i, n, w + i * PANEL, a);
#pragma unroll
        for (int p = 0; p < n; p++)
            xs[p] += 4;
    }
    for (; j < k; j++, w += PANEL) {
        step(xs, 0, n, w, a);
#pragma unroll
        for (int p = 0; p < n; p++)
            xs[p]++;
    }
#pragma unroll
    for (int p = 0; p < n; p++) {
        float *o = (float *)(void *)y[p] + c;
        wasm_v128_store(o, activate(a[p][0], f->low, f->high, f->act));
        wasm_v128_store(o + 4, activate(a[p][1], f->low, f->high, f->act));
    }
}

void mnet_wasm_pointwise_f32(const struct pointwise_f32 *p)
{
    const ptrdiff_t count = (ptrdiff_t)p->rows * p->width;
    for (int panel = p->first; panel < p->last; panel += PANEL) {
        int row = 0, column = 0;
        for (ptrdiff_t done = 0; done < count; done += TILE) {
            const int n = count - done < TILE ? (int)(count - done) : TILE;
            const uint8_t *x[TILE];
            uint8_t *y[TILE];
            for (int i = 0; i < n; i++) {
                x[i] = p->x.at + row * p->x.row + column * p->x.pixel;
                y[i] = p->y.at + row * p->y.row + column * p->y.pixel;
                if (++column == p->width)
                    column = 0, row++;
            }
            for (int c = panel; c < p->last && c < panel + PANEL; c += LANES) {
                const float *w = p->w + (ptrdiff_t)panel * p->k + (c - panel);
                switch (n) {
                case 1: tile(x, y, 1, p->k, w, c, &p->f); break;
                case 2: tile(x, y, 2, p->k, w, c, &p->f); break;
                case 3: tile(x, y, 3, p->k, w, c, &p->f); break;
                case 4: tile(x, y, 4, p->k, w, c, &p->f); break;
                default: tile(x, y, TILE, p->k, w, c, &p->f);
                }
            }
        }
    }
}

#define ACROSS 4 /* outputs of a row at a time: they share the weights' loads */

static inline __attribute__((always_inline)) void depthwise_row(const struct depthwise_f32 *d, int r, int i, int n,
                                                                int kh, int kw, int c)
{
    const ptrdiff_t step = d->stride * d->in_pixel;
    const float *w = d->w + c;
    v128_t a[ACROSS][2];
#pragma unroll
    for (int p = 0; p < n; p++) {
        a[p][0] = wasm_v128_load(d->f.bias + c);
        a[p][1] = wasm_v128_load(d->f.bias + c + 4);
    }
    for (int h = 0; h < kh; h++) {
        const float *x = d->in[r * d->stride + h] + i * step + c;
        for (int v = 0; v < kw; v++, w += d->channels, x += d->in_pixel) {
            const v128_t w0 = wasm_v128_load(w), w1 = wasm_v128_load(w + 4);
#pragma unroll
            for (int p = 0; p < n; p++) {
                a[p][0] = madd(wasm_v128_load(x + p * step), w0, a[p][0]);
                a[p][1] = madd(wasm_v128_load(x + p * step + 4), w1, a[p][1]);
            }
        }
    }
#pragma unroll
    for (int p = 0; p < n; p++) {
        float *y = d->out[r] + (i + p) * d->out_pixel + c;
        wasm_v128_store(y, activate(a[p][0], d->f.low, d->f.high, d->f.act));
        wasm_v128_store(y + 4, activate(a[p][1], d->f.low, d->f.high, d->f.act));
    }
}

static inline __attribute__((always_inline)) void depthwise_of(const struct depthwise_f32 *d, int kh, int kw)
{
    for (int r = 0; r < d->n; r++)
        for (int c = d->first; c < d->last; c += LANES) {
            int i = 0;
            for (; i + ACROSS <= d->width; i += ACROSS)
                depthwise_row(d, r, i, ACROSS, kh, kw, c);
            for (; i < d->width; i++)
                depthwise_row(d, r, i, 1, kh, kw, c);
        }
}

void mnet_wasm_depthwise_f32(const struct depthwise_f32 *d)
{
    if (d->kh == 3 && d->kw == 3)
        depthwise_of(d, 3, 3);
    else
        depthwise_of(d, d->kh, d->kw);
}

void mnet_wasm_add_f32(const float *a, const float *b, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

void mnet_wasm_mul_f32(const float *a, const float *m, float *y, size_t pixels, int channels)
{
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels)
        for (int c = 0; c < channels; c += 4)
            wasm_v128_store(y + c, wasm_f32x4_mul(wasm_v128_load(a + c), wasm_v128_load(m + c)));
}

void mnet_wasm_act_f32(float *x, size_t n, float low, float high, enum act act)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        wasm_v128_store(x + i, activate(wasm_v128_load(x + i), low, high, act));
    for (; i < n; i++)
        wasm_v128_store32_lane(x + i, activate(wasm_v128_load32_zero(x + i), low, high, act), 0);
}

void mnet_wasm_sum_f32(const float *x, size_t pixels, int channels, float *sums)
{
    for (size_t p = 0; p < pixels; p++, x += channels)
        for (int c = 0; c < channels; c += 4)
            wasm_v128_store(sums + c, wasm_f32x4_add(wasm_v128_load(sums + c), wasm_v128_load(x + c)));
}
#endif
