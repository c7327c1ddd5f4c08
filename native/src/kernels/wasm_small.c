/* WebAssembly's small operations on bytes: all of them are bound by memory. */
#if defined(__wasm_simd128__)
#include "wasm.h"

static inline v128_t ints(v128_t v, int quarter) /* 4 of 16 bytes */
{
    const v128_t half = quarter < 2 ? wasm_u16x8_extend_low_u8x16(v) : wasm_u16x8_extend_high_u8x16(v);
    return quarter % 2 ? wasm_u32x4_extend_high_u16x8(half) : wasm_u32x4_extend_low_u16x8(half);
}

static inline v128_t centred(v128_t v, int quarter, v128_t zero) /* v - zero in float32 */
{
    return wasm_f32x4_convert_i32x4(wasm_i32x4_sub(ints(v, quarter), zero));
}

void mnet_wasm_add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s)
{
    const v128_t za = wasm_i32x4_splat(s->za), zb = wasm_i32x4_splat(s->zb);
    const struct rounding to = rounding(s->zero, s->low, s->high);
    const v128_t ma = wasm_f32x4_splat(s->ma), mb = wasm_f32x4_splat(s->mb);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const v128_t va = wasm_v128_load(a + i), vb = wasm_v128_load(b + i);
        v128_t v[4];
        for (int j = 0; j < 4; j++)
            v[j] = rounded(wasm_f32x4_add(wasm_f32x4_mul(centred(va, j, za), ma),
                                          wasm_f32x4_mul(centred(vb, j, zb), mb)), to);
        wasm_v128_store(y + i, bytes(v[0], v[1], v[2], v[3]));
    }
    for (; i < n; i++) {
        const float pa = (float)(a[i] - s->za) * s->ma, pb = (float)(b[i] - s->zb) * s->mb;
        y[i] = to_byte(pa + pb, s->zero, s->low, s->high);
    }
}

void mnet_wasm_mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s)
{
    const v128_t za = wasm_i32x4_splat(s->za);
    const struct rounding to = rounding(s->zero, s->low, s->high);
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels)
        for (int c = 0; c < channels; c += LANES) {
            const v128_t va = wasm_v128_load64_zero(a + c);
            v128_t v[2];
            for (int j = 0; j < 2; j++)
                v[j] = rounded(wasm_f32x4_mul(centred(va, j, za), wasm_v128_load(s->m + c + j * 4)), to);
            wasm_v128_store64_lane(y + c, bytes(v[0], v[1], v[0], v[1]), 0);
        }
}

void mnet_wasm_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut)
{
    for (size_t i = 0; i < n; i++)
        y[i] = lut[x[i]];
}

void mnet_wasm_sum_u8(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums)
{
    for (int c = 0; c < channels; c += LANES) {
        v128_t low = wasm_v128_load(sums + c), high = wasm_v128_load(sums + c + 4);
        for (size_t p = 0; p < pixels; p++) {
            const v128_t v = wasm_u16x8_load8x8(x + (ptrdiff_t)p * pixel + c);
            low = wasm_i32x4_add(low, wasm_u32x4_extend_low_u16x8(v));
            high = wasm_i32x4_add(high, wasm_u32x4_extend_high_u16x8(v));
        }
        wasm_v128_store(sums + c, low);
        wasm_v128_store(sums + c + 4, high);
    }
}

void mnet_wasm_quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero)
{
    const v128_t scale = wasm_f32x4_splat(inverse);
    const struct rounding to = rounding(zero, 0, 255);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v128_t v[4];
        for (int j = 0; j < 4; j++)
            v[j] = rounded(wasm_f32x4_mul(wasm_v128_load(x + i + j * 4), scale), to);
        wasm_v128_store(y + i, bytes(v[0], v[1], v[2], v[3]));
    }
    for (; i < n; i++)
        y[i] = to_byte(x[i] * inverse, zero, 0, 255);
}

void mnet_wasm_dequantize(const uint8_t *x, float *y, size_t n, float scale, int32_t zero)
{
    const v128_t z = wasm_i32x4_splat(zero), m = wasm_f32x4_splat(scale);
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        wasm_v128_store(y + i, wasm_f32x4_mul(centred(wasm_v128_load32_zero(x + i), 0, z), m));
    for (; i < n; i++)
        y[i] = (float)(x[i] - zero) * scale;
}
#endif
