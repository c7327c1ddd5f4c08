/* AArch64: every processor of it has these instructions; neon_dot.c has what newer ones have. */
#if defined(__aarch64__)
#include "neon.h"

#include <string.h>

static size_t pointwise_scratch(int k)
{
    (void)k;
    return 0;
}

#define PIXELS 4 /* by 8 outputs: 16 sums, 2 weights, 4 inputs and their products in the 32 registers */

/* 2 outputs' 8 products are summed in pairs, so that an output's sum lies in two lanes. Inputs are 128 less, which
 * makes them signed: 128 times the sum of the weights is in `begin`. */
static inline __attribute__((always_inline)) void tile(const struct walk *at, int n, const int8_t *w, int k4, int c,
                                                       const int32x4_t *begin, const struct requant *q,
                                                       struct rounding to)
{
    int32x4_t a[PIXELS][4];
    for (int p = 0; p < n; p++)
        for (int o = 0; o < 4; o++)
            a[p][o] = vdupq_n_s32(0);
    for (int j = 0; j < k4; j++, w += PANEL * 4) {
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16);
        for (int p = 0; p < n; p++) {
            uint32_t four;
            memcpy(&four, at[p].x + (ptrdiff_t)j * 4, sizeof four);
            const int8x16_t x = vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
            a[p][0] = vpadalq_s16(a[p][0], vmull_s8(vget_low_s8(w0), vget_low_s8(x)));
            a[p][1] = vpadalq_s16(a[p][1], vmull_high_s8(w0, x));
            a[p][2] = vpadalq_s16(a[p][2], vmull_s8(vget_low_s8(w1), vget_low_s8(x)));
            a[p][3] = vpadalq_s16(a[p][3], vmull_high_s8(w1, x));
        }
    }
    for (int p = 0; p < n; p++)
        store(at[p].y, c, vaddq_s32(vpaddq_s32(a[p][0], a[p][1]), begin[0]),
              vaddq_s32(vpaddq_s32(a[p][2], a[p][3]), begin[1]), q, to);
}

void mnet_neon_pointwise(const struct pointwise *p)
{
    const int k4 = (p->k + 3) / 4, count = p->rows * p->width;
    const struct rounding to = rounding(p->q.zero, p->q.low, p->q.high);
    for (int c = p->first; c < p->last; c += LANES) {
        const int8_t *w = p->w + (ptrdiff_t)(c / PANEL * PANEL) * k4 * 4 + c % PANEL * 4;
        struct walk at = {p->x.at, p->y.at, 0}, pixels[PIXELS];
        int32x4_t begin[2];
        for (int o = 0; o < 2; o++) {
            int32x4_t sum = vdupq_n_s32(0);
            for (int j = 0; j < k4; j++)
                sum = vaddq_s32(sum, vpaddlq_s16(vpaddlq_s8(vld1q_s8(w + (ptrdiff_t)j * PANEL * 4 + o * 16))));
            begin[o] = vaddq_s32(vld1q_s32(p->q.bias + c + o * 4), vshlq_n_s32(sum, 7));
        }
        for (int done = 0; done < count; done += PIXELS) {
            const int n = count - done < PIXELS ? count - done : PIXELS;
            for (int i = 0; i < n; i++) {
                pixels[i] = at;
                next_pixel(&at, &p->x, &p->y, p->width);
            }
            switch (n) {
            case 1: tile(pixels, 1, w, k4, c, begin, &p->q, to); break;
            case 2: tile(pixels, 2, w, k4, c, begin, &p->q, to); break;
            case 3: tile(pixels, 3, w, k4, c, begin, &p->q, to); break;
            default: tile(pixels, PIXELS, w, k4, c, begin, &p->q, to);
            }
        }
    }
}

/* Depthwise weights as int16. */
static size_t depthwise_bytes(int kh, int kw, int channels)
{
    return (size_t)kh * (size_t)kw * (size_t)channels * 2;
}

static void depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out)
{
    const size_t n = depthwise_bytes(kh, kw, channels) / 2;
    for (size_t i = 0; i < n; i++)
        ((int16_t *)out)[i] = w[i];
}

#define ACROSS 4 /* outputs of a row at a time: they share the weights' loads */

static inline __attribute__((always_inline)) void outputs(const struct depthwise *d, int r, int i, int n, int c,
                                                          struct rounding to)
{
    const ptrdiff_t step = d->stride * d->in_pixel;
    const int16_t *w = (const int16_t *)d->w + c;
    int32x4_t a[ACROSS][2];
    for (int p = 0; p < n; p++) {
        a[p][0] = vld1q_s32(d->q.bias + c);
        a[p][1] = vld1q_s32(d->q.bias + c + 4);
    }
    for (int h = 0; h < d->kh; h++) {
        const uint8_t *x = d->in[r * d->stride + h] + i * step + c;
        for (int v = 0; v < d->kw; v++, w += d->channels, x += d->in_pixel) {
            const int16x8_t weights = vld1q_s16(w);
            for (int p = 0; p < n; p++) {
                const int16x8_t pixel = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(x + p * step)));
                a[p][0] = vmlal_s16(a[p][0], vget_low_s16(pixel), vget_low_s16(weights));
                a[p][1] = vmlal_high_s16(a[p][1], pixel, weights);
            }
        }
    }
    for (int p = 0; p < n; p++)
        store(d->out[r] + (i + p) * d->out_pixel, c, a[p][0], a[p][1], &d->q, to);
}

static void depthwise(const struct depthwise *d)
{
    const struct rounding to = rounding(d->q.zero, d->q.low, d->q.high);
    for (int r = 0; r < d->n; r++)
        for (int c = d->first; c < d->last; c += LANES) {
            int i = 0;
            for (; i + ACROSS <= d->width; i += ACROSS)
                outputs(d, r, i, ACROSS, c, to);
            for (; i < d->width; i++)
                outputs(d, r, i, 1, c, to);
        }
}

static inline float32x4_t centred(uint16x4_t v, int32x4_t zero) /* v - zero in float32 */
{
    return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(v)), zero));
}

static void add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s)
{
    const struct rounding to = rounding(s->zero, s->low, s->high);
    const int32x4_t za = vdupq_n_s32(s->za), zb = vdupq_n_s32(s->zb);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint16x8_t va = vmovl_u8(vld1_u8(a + i)), vb = vmovl_u8(vld1_u8(b + i));
        const float32x4_t low = vaddq_f32(vmulq_n_f32(centred(vget_low_u16(va), za), s->ma),
                                          vmulq_n_f32(centred(vget_low_u16(vb), zb), s->mb));
        const float32x4_t high = vaddq_f32(vmulq_n_f32(centred(vget_high_u16(va), za), s->ma),
                                           vmulq_n_f32(centred(vget_high_u16(vb), zb), s->mb));
        vst1_u8(y + i, bytes(rounded(low, to), rounded(high, to)));
    }
    for (; i < n; i++) {
        const float pa = (float)(a[i] - s->za) * s->ma, pb = (float)(b[i] - s->zb) * s->mb;
        y[i] = to_byte(pa + pb, s->zero, s->low, s->high);
    }
}

static void mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s)
{
    const struct rounding to = rounding(s->zero, s->low, s->high);
    const int32x4_t za = vdupq_n_s32(s->za);
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels)
        for (int c = 0; c < channels; c += LANES) {
            const uint16x8_t v = vmovl_u8(vld1_u8(a + c));
            vst1_u8(y + c, bytes(rounded(vmulq_f32(centred(vget_low_u16(v), za), vld1q_f32(s->m + c)), to),
                                 rounded(vmulq_f32(centred(vget_high_u16(v), za), vld1q_f32(s->m + c + 4)), to)));
        }
}

static void lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut)
{
    for (size_t i = 0; i < n; i++)
        y[i] = lut[x[i]];
}

static void sum_u8(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums)
{
    for (int c = 0; c < channels; c += LANES) {
        uint32x4_t low = vreinterpretq_u32_s32(vld1q_s32(sums + c));
        uint32x4_t high = vreinterpretq_u32_s32(vld1q_s32(sums + c + 4));
        for (size_t p = 0; p < pixels; p++) {
            const uint16x8_t v = vmovl_u8(vld1_u8(x + (ptrdiff_t)p * pixel + c));
            low = vaddw_u16(low, vget_low_u16(v));
            high = vaddw_u16(high, vget_high_u16(v));
        }
        vst1q_s32(sums + c, vreinterpretq_s32_u32(low));
        vst1q_s32(sums + c + 4, vreinterpretq_s32_u32(high));
    }
}

static void quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero)
{
    const struct rounding to = rounding(zero, 0, 255);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        vst1_u8(y + i, bytes(rounded(vmulq_n_f32(vld1q_f32(x + i), inverse), to),
                             rounded(vmulq_n_f32(vld1q_f32(x + i + 4), inverse), to)));
    for (; i < n; i++)
        y[i] = to_byte(x[i] * inverse, zero, 0, 255);
}

static void dequantize(const uint8_t *x, float *y, size_t n, float scale, int32_t zero)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint16x8_t v = vmovl_u8(vld1_u8(x + i));
        vst1q_f32(y + i, vmulq_n_f32(centred(vget_low_u16(v), vdupq_n_s32(zero)), scale));
        vst1q_f32(y + i + 4, vmulq_n_f32(centred(vget_high_u16(v), vdupq_n_s32(zero)), scale));
    }
    for (; i < n; i++)
        y[i] = (float)(x[i] - zero) * scale;
}

static void add_f32(const float *a, const float *b, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void mul_f32(const float *a, const float *m, float *y, size_t pixels, int channels)
{
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels)
        for (int c = 0; c < channels; c += 4)
            vst1q_f32(y + c, vmulq_f32(vld1q_f32(a + c), vld1q_f32(m + c)));
}

static void sum_f32(const float *x, size_t pixels, int channels, float *sums)
{
    for (size_t p = 0; p < pixels; p++, x += channels)
        for (int c = 0; c < channels; c += 4)
            vst1q_f32(sums + c, vaddq_f32(vld1q_f32(sums + c), vld1q_f32(x + c)));
}

#define TABLE(name, pointwise)                                                                                         \
    {                                                                                                                  \
        name, pointwise, pointwise_scratch, depthwise, depthwise_bytes, depthwise_pack, mnet_neon_pointwise_f32,       \
            mnet_neon_depthwise_f32, add_u8, mul_u8, lut_u8, sum_u8, quantize, dequantize, add_f32, mul_f32,           \
            mnet_neon_act_f32, sum_f32, NULL,                                                                          \
    }

const struct kernels mnet_neon = TABLE("neon", mnet_neon_pointwise);
#if !defined(MNET_WITHOUT_DOT) /* a compiler that knows these instructions by its flags alone */
const struct kernels mnet_dotprod = TABLE("dotprod", mnet_dotprod_pointwise);
const struct kernels mnet_i8mm = TABLE("i8mm", mnet_i8mm_pointwise);
#endif
#endif
