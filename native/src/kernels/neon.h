/* What the AArch64 tables share: sums to bytes, as kernels.h says. */
#ifndef MNET_NEON_H
#define MNET_NEON_H

#include "../kernels.h"
#include "round.h"

#include <arm_neon.h>

/* Keeps compilers from collecting all loads of an unrolled loop at its start: there are too few registers for that. */
#define IN_ORDER() __asm__ volatile("" : : : "memory")

/* The limits lie on whole numbers: clamping before the rint gives what clamping after it does. Of a number and what is
 * not one, minnm gives the number, as plain C does. */
struct rounding {
    float32x4_t low, high;
    int32x4_t zero;
};

static inline struct rounding rounding(int32_t zero, int32_t low, int32_t high)
{
    return (struct rounding){vdupq_n_f32((float)(low - zero)), vdupq_n_f32((float)(high - zero)), vdupq_n_s32(zero)};
}

static inline int32x4_t rounded(float32x4_t v, struct rounding to)
{
    return vaddq_s32(vcvtnq_s32_f32(vmaxnmq_f32(vminnmq_f32(v, to.high), to.low)), to.zero);
}

static inline int32x4_t scaled(int32x4_t sum, const float *multiplier, struct rounding to)
{
    return rounded(vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(multiplier)), to);
}

static inline uint8x8_t bytes(int32x4_t a, int32x4_t b)
{
    return vqmovun_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
}

static inline uint8x8_t looked_up(uint8x8_t v, const uint8_t *lut)
{
    uint8_t b[8];
    vst1_u8(b, v);
    for (int i = 0; i < 8; i++)
        b[i] = lut[b[i]];
    return vld1_u8(b);
}

/* Sums of 8 outputs from c on. */
static inline void store(uint8_t *y, int c, int32x4_t a, int32x4_t b, const struct requant *q, struct rounding to)
{
    uint8x8_t v = bytes(scaled(a, q->multiplier + c, to), scaled(b, q->multiplier + c + 4, to));
    vst1_u8(y + c, q->lut ? looked_up(v, q->lut) : v);
}

/* Pixels of a map one after another, whatever rows they lie in. */
struct walk {
    const uint8_t *x;
    uint8_t *y;
    int column;
};

static inline void next_pixel(struct walk *at, const struct view *x, const struct target *y, int width)
{
    at->x += x->pixel;
    at->y += y->pixel;
    if (++at->column == width) {
        at->column = 0;
        at->x += x->row - width * x->pixel;
        at->y += y->row - width * y->pixel;
    }
}

void mnet_neon_pointwise(const struct pointwise *);
void mnet_dotprod_pointwise(const struct pointwise *);
void mnet_i8mm_pointwise(const struct pointwise *);
void mnet_neon_pointwise_f32(const struct pointwise_f32 *);
void mnet_neon_depthwise_f32(const struct depthwise_f32 *);
void mnet_neon_act_f32(float *x, size_t n, float low, float high, enum act act);

#endif
