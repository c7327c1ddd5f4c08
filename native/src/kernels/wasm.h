/* What the WebAssembly tables share: sums to bytes, as kernels.h says, four at a time. */
#ifndef MNET_WASM_H
#define MNET_WASM_H

#include "../kernels.h"
#include "round.h"

#include <wasm_simd128.h>

/* Compilers turn a stream's pointer into several, and collect loads at the start of a loop: more registers than x86
 * has. A pointer that they can't see through keeps its constant offsets; sums that they must have by then keep the order. */
#define OPAQUE(pointer) __asm__("" : "+r"(pointer))
#define KEEP_ORDER(a, b) __asm__ volatile("" : "+r"(a), "+r"(b) : : "memory")

/* Added to a float below 2^22, its sum's last bits are the number rounded to the nearest even: there is no fast
 * instruction for that, and converting back is slow on x86, where whatever is out of range has to give a limit. */
#define MAGIC 12582912.0f /* 1.5 * 2^23 */
#define MAGIC_BITS 0x4B400000

/* The limits lie on whole numbers: clamping before the rint gives what clamping after it does. */
struct rounding {
    v128_t low, high, zero; /* float32, float32, int32 */
};

static inline struct rounding rounding(int32_t zero, int32_t low, int32_t high)
{
    return (struct rounding){wasm_f32x4_splat((float)(low - zero)), wasm_f32x4_splat((float)(high - zero)),
                             wasm_i32x4_splat(zero - MAGIC_BITS)};
}

static inline v128_t rounded(v128_t v, struct rounding to) /* 4 bytes as int32 */
{
    v = wasm_f32x4_pmax(to.low, wasm_f32x4_pmin(to.high, v));
    return wasm_i32x4_add(wasm_f32x4_add(v, wasm_f32x4_const_splat(MAGIC)), to.zero);
}

static inline v128_t scaled(v128_t sum, v128_t multiplier, struct rounding to)
{
    return rounded(wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sum), multiplier), to);
}

static inline v128_t bytes(v128_t a, v128_t b, v128_t c, v128_t d)
{
    return wasm_u8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(a, b), wasm_i16x8_narrow_i32x4(c, d));
}

static inline v128_t looked_up(v128_t v, const uint8_t *lut)
{
    uint8_t b[16];
    wasm_v128_store(b, v);
    for (int i = 0; i < 16; i++)
        b[i] = lut[b[i]];
    return wasm_v128_load(b);
}

/* What the table has beside products of maps. */
size_t mnet_wasm_depthwise_bytes(int kh, int kw, int channels);
void mnet_wasm_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out);
void mnet_wasm_depthwise(const struct depthwise *);
void mnet_wasm_add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *);
void mnet_wasm_mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *);
void mnet_wasm_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut);
void mnet_wasm_sum_u8(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums);
void mnet_wasm_quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero);
void mnet_wasm_dequantize(const uint8_t *x, float *y, size_t n, float scale, int32_t zero);
void mnet_wasm_pointwise_f32(const struct pointwise_f32 *);
void mnet_wasm_depthwise_f32(const struct depthwise_f32 *);
void mnet_wasm_add_f32(const float *a, const float *b, float *y, size_t n);
void mnet_wasm_mul_f32(const float *a, const float *m, float *y, size_t pixels, int channels);
void mnet_wasm_act_f32(float *x, size_t n, float low, float high, enum act act);
void mnet_wasm_sum_f32(const float *x, size_t pixels, int channels, float *sums);

#endif
