/* WebAssembly's depthwise kernel in whole numbers. */
#if defined(__wasm_simd128__)
#include "wasm.h"

#define ACROSS 2 /* outputs of a row at a time */

/* Weights as pairs of rows, [channels/8][2][(kh+1)/2][kw][8][2] int16: a product of pairs sums two taps. The second of
 * the two sets lies a row lower: with it the same pairs of input rows serve the next output row. */
size_t mnet_wasm_depthwise_bytes(int kh, int kw, int channels)
{
    return (size_t)((kh + 1) / 2) * (size_t)kw * (size_t)channels * 8;
}

void mnet_wasm_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out)
{
    int16_t *o = out;
    for (int c = 0; c < channels; c += LANES)
        for (int lower = 0; lower < 2; lower++)
            for (int h = -lower; h < kh - (lower && kh % 2 == 0); h += 2)
                for (int v = 0; v < kw; v++)
                    for (int lane = 0; lane < LANES; lane++, o += 2) {
                        o[0] = h >= 0 ? w[(ptrdiff_t)(h * kw + v) * channels + c + lane] : 0;
                        o[1] = h + 1 < kh ? w[(ptrdiff_t)((h + 1) * kw + v) * channels + c + lane] : 0;
                    }
}

/* n outputs of each of `rows` (1 or 2) rows, 8 channels. Two rows: of an odd kernel, stride 1. */
static inline __attribute__((always_inline)) void outputs(const struct depthwise *d, int r, int rows, int i, int n,
                                                          int kh, int kw, int c, struct rounding to)
{
    const ptrdiff_t step = d->stride * d->in_pixel;
    const ptrdiff_t set = (ptrdiff_t)((kh + 1) / 2) * kw * 16;
    const int16_t *w = (const int16_t *)d->w + (ptrdiff_t)c / LANES * set * 2;
    const uint8_t *const *in = d->in + r * d->stride;
    const float *multiplier = d->q.multiplier + c;
    v128_t a[2][ACROSS][2];
#pragma unroll
    for (int y = 0; y < rows; y++)
#pragma unroll
        for (int p = 0; p < n; p++) {
            a[y][p][0] = wasm_v128_load(d->q.bias + c);
            a[y][p][1] = wasm_v128_load(d->q.bias + c + 4);
        }
    for (int h = 0; h < kh; h += 2) {
        const uint8_t *x0 = in[h] + i * step + c, *x1 = h + 1 < kh || rows == 2 ? in[h + 1] + i * step + c : x0;
        for (int v = 0; v < kw; v++, w += 16, x0 += d->in_pixel, x1 += d->in_pixel) {
            OPAQUE(w);
#pragma unroll
            for (int p = 0; p < n; p++) {
                const v128_t r0 = wasm_v128_load64_zero(x0 + p * step), r1 = wasm_v128_load64_zero(x1 + p * step);
                const v128_t pairs = wasm_i8x16_shuffle(r0, r1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                const v128_t low = wasm_u16x8_extend_low_u8x16(pairs), high = wasm_u16x8_extend_high_u8x16(pairs);
#pragma unroll
                for (int y = 0; y < rows; y++) {
                    v128_t *s = a[y][p];
                    s[0] = wasm_i32x4_add(s[0], wasm_i32x4_dot_i16x8(low, wasm_v128_load(w + y * set)));
                    s[1] = wasm_i32x4_add(s[1], wasm_i32x4_dot_i16x8(high, wasm_v128_load(w + y * set + 8)));
                    KEEP_ORDER(s[0], s[1]);
                }
            }
        }
    }
    const v128_t m0 = wasm_v128_load(multiplier), m1 = wasm_v128_load(multiplier + 4);
#pragma unroll
    for (int y = 0; y < rows; y++)
#pragma unroll
        for (int p = 0; p < n; p++) {
            v128_t b = bytes(scaled(a[y][p][0], m0, to), scaled(a[y][p][1], m1, to), m0, m0);
            if (d->q.lut)
                b = looked_up(b, d->q.lut);
            wasm_v128_store64_lane(d->out[r + y] + (i + p) * d->out_pixel + c, b, 0);
        }
}

static inline __attribute__((always_inline)) void rows_of(const struct depthwise *d, int r, int rows, int kh, int kw)
{
    const struct rounding to = rounding(d->q.zero, d->q.low, d->q.high);
    for (int c = d->first; c < d->last; c += LANES) {
        int i = 0;
        for (; i + ACROSS <= d->width; i += ACROSS)
            outputs(d, r, rows, i, ACROSS, kh, kw, c, to);
        for (; i < d->width; i++)
            outputs(d, r, rows, i, 1, kh, kw, c, to);
    }
}

static inline __attribute__((always_inline)) void depthwise_of(const struct depthwise *d, int kh, int kw)
{
    int r = 0;
    if (d->stride == 1 && kh % 2)
        for (; r + 2 <= d->n; r += 2)
            rows_of(d, r, 2, kh, kw);
    for (; r < d->n; r++)
        rows_of(d, r, 1, kh, kw);
}

void mnet_wasm_depthwise(const struct depthwise *d)
{
    if (d->kh == 3 && d->kw == 3)
        depthwise_of(d, 3, 3);
    else
        depthwise_of(d, d->kh, d->kw);
}
#endif
