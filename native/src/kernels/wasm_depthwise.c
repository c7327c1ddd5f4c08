/* WebAssembly's depthwise kernel in whole numbers. */
#if defined(__wasm_simd128__)
#include "wasm.h"

/* Depthwise weights as pairs of rows, [channels/8][kh/2][kw][8][2] int16: a product of pairs sums two taps. */
size_t mnet_wasm_depthwise_bytes(int kh, int kw, int channels)
{
    return (size_t)((kh + 1) / 2) * (size_t)kw * (size_t)channels * 4;
}

void mnet_wasm_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out)
{
    int16_t *o = out;
    for (int c = 0; c < channels; c += LANES)
        for (int h = 0; h < kh; h += 2)
            for (int v = 0; v < kw; v++)
                for (int lane = 0; lane < LANES; lane++, o += 2) {
                    o[0] = w[(ptrdiff_t)(h * kw + v) * channels + c + lane];
                    o[1] = h + 1 < kh ? w[(ptrdiff_t)((h + 1) * kw + v) * channels + c + lane] : 0;
                }
}

#define ACROSS 4 /* outputs of a row at a time: they share the weights' loads */

static inline __attribute__((always_inline)) void depthwise_row(const struct depthwise *d, const uint8_t *const *in,
                                                                uint8_t *out, int i, int n, int kh, int kw, int c)
{
    const struct requant *q = &d->q;
    const ptrdiff_t step = d->stride * d->in_pixel;
    const int16_t *w = (const int16_t *)d->w + (ptrdiff_t)c * ((kh + 1) / 2) * kw * 2;
    v128_t a[ACROSS][2];
    for (int p = 0; p < n; p++) {
        a[p][0] = wasm_v128_load(q->bias + c);
        a[p][1] = wasm_v128_load(q->bias + c + 4);
    }
    for (int h = 0; h < kh; h += 2)
        for (int v = 0; v < kw; v++, w += 16) {
            const v128_t w0 = wasm_v128_load(w), w1 = wasm_v128_load(w + 8);
            const uint8_t *x0 = in[h] + i * step + v * d->in_pixel + c;
            const uint8_t *x1 = h + 1 < kh ? in[h + 1] + i * step + v * d->in_pixel + c : NULL;
#pragma unroll
            for (int p = 0; p < n; p++) {
                v128_t r0 = wasm_u16x8_load8x8(x0 + p * step), low, high;
                if (h + 1 < kh) {
                    v128_t r1 = wasm_u16x8_load8x8(x1 + p * step);
                    low = wasm_i16x8_shuffle(r0, r1, 0, 8, 1, 9, 2, 10, 3, 11);
                    high = wasm_i16x8_shuffle(r0, r1, 4, 12, 5, 13, 6, 14, 7, 15);
                } else {
                    low = wasm_u32x4_extend_low_u16x8(r0);
                    high = wasm_u32x4_extend_high_u16x8(r0);
                }
                a[p][0] = wasm_i32x4_add(a[p][0], wasm_i32x4_dot_i16x8(low, w0));
                a[p][1] = wasm_i32x4_add(a[p][1], wasm_i32x4_dot_i16x8(high, w1));
            }
        }
    const v128_t zero = wasm_i32x4_splat(q->zero), low = wasm_u8x16_splat((uint8_t)q->low),
                 high = wasm_u8x16_splat((uint8_t)q->high), none = wasm_i32x4_const_splat(0);
    for (int p = 0; p < n; p++) {
        v128_t b = clamp16(scaled(a[p][0], none, q->multiplier + c, zero),
                           scaled(a[p][1], none, q->multiplier + c + 4, zero), zero, zero, low, high);
        if (q->lut)
            b = looked_up(b, q->lut);
        wasm_v128_store64_lane(out + (i + p) * d->out_pixel + c, b, 0);
    }
}

static inline __attribute__((always_inline)) void depthwise_of(const struct depthwise *d, int kh, int kw)
{
    for (int r = 0; r < d->n; r++)
        for (int c = d->first; c < d->last; c += LANES) {
            const uint8_t *const *in = d->in + r * d->stride;
            int i = 0;
            for (; i + ACROSS <= d->width; i += ACROSS)
                depthwise_row(d, in, d->out[r], i, ACROSS, kh, kw, c);
            for (; i < d->width; i++)
                depthwise_row(d, in, d->out[r], i, 1, kh, kw, c);
        }
}

void mnet_wasm_depthwise(const struct depthwise *d)
{
    if (d->kh == 3 && d->kw == 3)
        depthwise_of(d, 3, 3);
    else if (d->kh == 5 && d->kw == 5)
        depthwise_of(d, 5, 5);
    else
        depthwise_of(d, d->kh, d->kw);
}
#endif
