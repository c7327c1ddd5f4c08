/* WebAssembly with 128-bit vectors, and with relaxed ones.
 *
 * Every browser has i32x4.dot_i16x8_s: 8 products of int16 an instruction, exact. Relaxed SIMD has a dot product of 16
 * bytes, int8 by 7 bits. What it makes of an eighth bit is the browser's choice, of which there are few: products with
 * signed bytes, which are exact after x xor 128 where no weight is -128 (a pair of products has to fit int16: 2 * 127 *
 * 128 does); with unsigned ones, exact where the processor sums them in int32 (vpdpbusd), lost where it saturates. The
 * choice is made once for a processor, so it can be asked for: see mnet_wasm_relaxed. */
#if defined(__wasm_simd128__)
#include "wasm.h"

#include <string.h>

/* How a tile multiplies: int16 by int16; bytes, the pixels' being unsigned; bytes, signed ones; the same twice, with
 * the weights as sums of two that aren't -128. */
enum mode { WIDE, UNSIGNED, SIGNED, TWICE };

#define TILE 5   /* pixels of a tile: with two vectors of weights, 10 sums of the 16 registers that x86 has */
#define BLOCK 60 /* pixels whose inputs are laid out anew before all outputs are computed: they stay in L2 */

static inline size_t group_bytes(enum mode mode) { return mode == WIDE ? 8 : 4; } /* of 4 inputs of a pixel */

static size_t pointwise_scratch(int k)
{
    return BLOCK * (size_t)((k + 3) / 4) * 8;
}

/* Inputs of n pixels as [k/4][n][4], int16 or bytes: what a tile reads in one stream. */
static inline __attribute__((always_inline)) void lay_out(const uint8_t *const *x, int n, int k4, enum mode mode,
                                                          uint8_t *out)
{
    const size_t step = (size_t)n * group_bytes(mode);
    for (int p = 0; p < n; p++) {
        uint8_t *o = out + (size_t)p * group_bytes(mode);
        int j = 0;
        for (; j + 4 <= k4; j += 4, o += 4 * step) {
            v128_t v = wasm_v128_load(x[p] + (ptrdiff_t)j * 4);
            if (mode == WIDE) {
                v128_t low = wasm_u16x8_extend_low_u8x16(v), high = wasm_u16x8_extend_high_u8x16(v);
                wasm_v128_store64_lane(o, low, 0);
                wasm_v128_store64_lane(o + step, low, 1);
                wasm_v128_store64_lane(o + 2 * step, high, 0);
                wasm_v128_store64_lane(o + 3 * step, high, 1);
            } else {
                if (mode != UNSIGNED)
                    v = wasm_v128_xor(v, wasm_i8x16_const_splat(-128));
                wasm_v128_store32_lane(o, v, 0);
                wasm_v128_store32_lane(o + step, v, 1);
                wasm_v128_store32_lane(o + 2 * step, v, 2);
                wasm_v128_store32_lane(o + 3 * step, v, 3);
            }
        }
        for (; j < k4; j++, o += step) {
            v128_t v = wasm_v128_load32_zero(x[p] + (ptrdiff_t)j * 4);
            if (mode == WIDE)
                wasm_v128_store64_lane(o, wasm_u16x8_extend_low_u8x16(v), 0);
            else
                wasm_v128_store32_lane(o, mode == UNSIGNED ? v : wasm_v128_xor(v, wasm_i8x16_const_splat(-128)), 0);
        }
    }
}

static inline v128_t dot(v128_t w, v128_t x, v128_t sum, enum mode mode)
{
#if defined(__wasm_relaxed_simd__)
    if (mode == TWICE) {
        const v128_t most = wasm_i8x16_max(w, wasm_i8x16_const_splat(-127));
        sum = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_i8x16_sub(w, most), x, sum);
        w = most;
    }
    if (mode != WIDE)
        return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(w, x, sum);
#endif
    (void)mode;
    return wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(w, x));
}

/* Sums of n <= TILE pixels by two vectors of weights: 4 outputs (one vector) in int16, 8 (two) in bytes. In int16 an
 * output's sum lies in two lanes, and so do `begin`'s. */
static inline __attribute__((always_inline)) void tile(const uint8_t *x, const int8_t *w, int n, int k4, enum mode mode,
                                                       const v128_t *begin, v128_t (*a)[2])
{
#pragma unroll
    for (int p = 0; p < n; p++) {
        a[p][0] = begin[0];
        a[p][1] = begin[1];
    }
    for (int j = 0; j < k4; j++, w += PANEL * 4, x += (size_t)n * group_bytes(mode)) {
        OPAQUE(x);
        OPAQUE(w);
        const v128_t w0 = mode == WIDE ? wasm_i16x8_load8x8(w) : wasm_v128_load(w);
        const v128_t w1 = mode == WIDE ? wasm_i16x8_load8x8(w + 8) : wasm_v128_load(w + 16);
#pragma unroll
        for (int p = 0; p < n; p++) {
            const v128_t v = mode == WIDE ? wasm_v128_load64_splat(x + p * 8) : wasm_v128_load32_splat(x + p * 4);
            a[p][0] = dot(w0, v, a[p][0], mode);
            a[p][1] = dot(w1, v, a[p][1], mode);
            KEEP_ORDER(a[p][0], a[p][1]);
        }
    }
}

/* What a tile needs beside its pixels, for outputs from c on. */
struct outputs {
    const int8_t *w;
    const v128_t *begin;
    const float *multiplier;
    struct rounding to;
    const uint8_t *lut;
    int c, k4;
};

static inline __attribute__((always_inline)) void tile_of(int n, const uint8_t *x, uint8_t *const *y, enum mode mode,
                                                          struct outputs o)
{
    v128_t a[TILE][2];
    tile(x, o.w, n, o.k4, mode, o.begin, a);
    const int together = mode == WIDE ? 4 : 2; /* pixels that fill a vector of bytes */
    const v128_t m0 = wasm_v128_load(o.multiplier), m1 = mode == WIDE ? m0 : wasm_v128_load(o.multiplier + 4);
#pragma unroll
    for (int p = 0; p < n; p += together) {
        v128_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int from = mode == WIDE ? p + i : p + i / 2;
            if (from >= n)
                v[i] = o.to.zero;
            else if (mode == WIDE)
                v[i] = scaled(wasm_i32x4_add(wasm_i32x4_shuffle(a[from][0], a[from][1], 0, 2, 4, 6),
                                             wasm_i32x4_shuffle(a[from][0], a[from][1], 1, 3, 5, 7)), m0, o.to);
            else
                v[i] = scaled(a[from][i % 2], i % 2 ? m1 : m0, o.to);
        }
        v128_t b = bytes(v[0], v[1], v[2], v[3]);
        if (o.lut)
            b = looked_up(b, o.lut);
        if (mode == WIDE) {
            wasm_v128_store32_lane(y[p] + o.c, b, 0);
            if (p + 1 < n)
                wasm_v128_store32_lane(y[p + 1] + o.c, b, 1);
            if (p + 2 < n)
                wasm_v128_store32_lane(y[p + 2] + o.c, b, 2);
            if (p + 3 < n)
                wasm_v128_store32_lane(y[p + 3] + o.c, b, 3);
        } else {
            wasm_v128_store64_lane(y[p] + o.c, b, 0);
            if (p + 1 < n)
                wasm_v128_store64_lane(y[p + 1] + o.c, b, 1);
        }
    }
}

/* What signed pixels lack: 128 times the sum of the weights. */
static inline v128_t lacking(const int8_t *w, int k4)
{
    v128_t sum = wasm_i32x4_const_splat(0);
    for (int j = 0; j < k4; j++, w += PANEL * 4)
        sum = dot(wasm_v128_load(w), wasm_i8x16_const_splat(1), sum, SIGNED);
    return wasm_i32x4_shl(sum, 7);
}

/* The sums' beginnings of a panel: the bias, in two lanes each in int16. */
static inline __attribute__((always_inline)) void beginnings(const struct pointwise *p, int panel, int end, int k4,
                                                             enum mode mode, v128_t *begin)
{
    const v128_t none = wasm_i32x4_const_splat(0);
    for (int o = 0; o < end; o += 4) {
        v128_t bias = wasm_v128_load(p->q.bias + panel + o);
        if (mode == WIDE) {
            begin[o / 2] = wasm_i32x4_shuffle(bias, none, 0, 4, 1, 5);
            begin[o / 2 + 1] = wasm_i32x4_shuffle(bias, none, 2, 4, 3, 5);
        } else {
            if (mode != UNSIGNED)
                bias = wasm_i32x4_add(bias, lacking(p->w + (ptrdiff_t)panel * k4 * 4 + o * 4, k4));
            begin[o / 4] = bias;
        }
    }
}

static inline __attribute__((always_inline)) void pointwise_in(const struct pointwise *p, enum mode mode)
{
    const int k4 = (p->k + 3) / 4, step = mode == WIDE ? 4 : 8;
    const ptrdiff_t count = (ptrdiff_t)p->rows * p->width;
    const size_t pixel_bytes = (size_t)k4 * group_bytes(mode);
    const struct rounding to = rounding(p->q.zero, p->q.low, p->q.high);
    uint8_t *laid = p->scratch;
    int row = 0, column = 0;
    for (ptrdiff_t done = 0; done < count; done += BLOCK) {
        const int block = count - done < BLOCK ? (int)(count - done) : BLOCK;
        const uint8_t *x[BLOCK];
        uint8_t *y[BLOCK];
        for (int i = 0; i < block; i++) {
            x[i] = p->x.at + row * p->x.row + column * p->x.pixel;
            y[i] = p->y.at + row * p->y.row + column * p->y.pixel;
            if (++column == p->width)
                column = 0, row++;
        }
        for (int i = 0; i < block; i += TILE)
            lay_out(x + i, block - i < TILE ? block - i : TILE, k4, mode, laid + (size_t)i * pixel_bytes);
        for (int panel = p->first; panel < p->last; panel += PANEL) {
            const int end = p->last - panel < PANEL ? p->last - panel : PANEL;
            v128_t begin[PANEL / 2];
            beginnings(p, panel, end, k4, mode, begin);
            for (int i = 0; i < block; i += TILE)
                for (int c = 0; c < end; c += step) {
                    const struct outputs o = {p->w + (ptrdiff_t)panel * k4 * 4 + c * 4, begin + c * 2 / step,
                                              p->q.multiplier + panel + c, to, p->q.lut, panel + c, k4};
                    const uint8_t *at = laid + (size_t)i * pixel_bytes;
                    switch (block - i) {
                    case 1: tile_of(1, at, y + i, mode, o); break;
                    case 2: tile_of(2, at, y + i, mode, o); break;
                    case 3: tile_of(3, at, y + i, mode, o); break;
                    case 4: tile_of(4, at, y + i, mode, o); break;
                    default: tile_of(TILE, at, y + i, mode, o);
                    }
                }
        }
    }
}

static void pointwise(const struct pointwise *p) { pointwise_in(p, WIDE); }

#define TABLE(name, pointwise)                                                                                         \
    {                                                                                                                  \
        name, pointwise, pointwise_scratch, mnet_wasm_depthwise, mnet_wasm_depthwise_bytes, mnet_wasm_depthwise_pack,  \
            mnet_wasm_pointwise_f32, mnet_wasm_depthwise_f32, mnet_wasm_add_u8, mnet_wasm_mul_u8, mnet_wasm_lut_u8,    \
            mnet_wasm_sum_u8, mnet_wasm_quantize, mnet_wasm_dequantize, mnet_wasm_add_f32, mnet_wasm_mul_f32,          \
            mnet_wasm_act_f32, mnet_wasm_sum_f32, NULL,                                                                \
    }

const struct kernels mnet_wasm = TABLE("wasm", pointwise);

#if defined(__wasm_relaxed_simd__)
static void pointwise_unsigned(const struct pointwise *p) { pointwise_in(p, UNSIGNED); }

static void pointwise_signed(const struct pointwise *p)
{
    const ptrdiff_t k = (ptrdiff_t)(p->k + 3) / 4 * 4;
    v128_t least = wasm_i8x16_const_splat(0);
    for (const int8_t *w = p->w + p->first * k; w < p->w + (p->last + PANEL - 1) / PANEL * PANEL * k; w += 16)
        least = wasm_i8x16_min(least, wasm_v128_load(w));
    if (wasm_v128_any_true(wasm_i8x16_eq(least, wasm_i8x16_const_splat(-128))))
        pointwise_in(p, TWICE);
    else
        pointwise_in(p, SIGNED);
}

const struct kernels mnet_wasm_unsigned = TABLE("wasm-unsigned", pointwise_unsigned);
const struct kernels mnet_wasm_signed = TABLE("wasm-signed", pointwise_signed);

/* Asks the relaxed dot product for what differs between the choices, at the ends of the ranges. */
const struct kernels *mnet_wasm_relaxed(void)
{
    static const volatile int8_t weights[] = {-127, 1, 127}; /* volatile: the browser is to compute it */
    static const volatile uint8_t pixels[] = {0, 127, 128, 255};
    int as_unsigned = 1, as_signed = 1;
    for (int i = 0; i < 3 * 3 * 4 * 4; i++) {
        const int8_t w0 = weights[i % 3], w1 = weights[i / 3 % 3];
        const uint8_t x0 = pixels[i / 9 % 4], x1 = pixels[i / 36];
        const v128_t w = wasm_i8x16_make(w0, w1, w0, w1, w0, w1, w0, w1, w0, w1, w0, w1, w0, w1, w0, w1);
        const v128_t x = wasm_u8x16_make(x0, x1, x0, x1, x0, x1, x0, x1, x0, x1, x0, x1, x0, x1, x0, x1);
        const v128_t sum = dot(w, x, wasm_i32x4_const_splat(7), UNSIGNED);
        const int32_t with_unsigned = 7 + 2 * (w0 * x0 + w1 * x1);
        const int32_t with_signed = 7 + 2 * (w0 * (int8_t)x0 + w1 * (int8_t)x1);
        as_unsigned &= wasm_i32x4_all_true(wasm_i32x4_eq(sum, wasm_i32x4_splat(with_unsigned)));
        as_signed &= wasm_i32x4_all_true(wasm_i32x4_eq(sum, wasm_i32x4_splat(with_signed)));
    }
    return as_signed ? &mnet_wasm_signed : as_unsigned ? &mnet_wasm_unsigned : NULL;
}
#endif
#endif
