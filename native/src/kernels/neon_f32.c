/* AArch64's float32 kernels. */
#if defined(__aarch64__)
#include "neon.h"

static inline float32x4_t activate(float32x4_t v, float low, float high, enum act act)
{
    v = vminq_f32(vmaxq_f32(v, vdupq_n_f32(low)), vdupq_n_f32(high));
    if (act == ACT_NONE)
        return v;
    float32x4_t gate = vaddq_f32(v, vdupq_n_f32(3.0f));
    gate = vminq_f32(vmaxq_f32(gate, vdupq_n_f32(0.0f)), vdupq_n_f32(6.0f));
    gate = vmulq_f32(gate, vdupq_n_f32(1.0f / 6.0f));
    return act == ACT_HARD_SWISH ? vmulq_f32(v, gate) : gate;
}

#define PIXELS 4 /* by 16 outputs: 16 sums, 4 weights and 4 inputs of the 32 registers */

#define STEP(lane)                                                                                                     \
    do {                                                                                                               \
        IN_ORDER();                                                                                                    \
        const float32x4_t w0 = vld1q_f32(w), w1 = vld1q_f32(w + 4), w2 = vld1q_f32(w + 8), w3 = vld1q_f32(w + 12);     \
        for (int p = 0; p < n; p++) {                                                                                  \
            a[p][0] = vfmaq_laneq_f32(a[p][0], w0, v[p], lane);                                                        \
            a[p][1] = vfmaq_laneq_f32(a[p][1], w1, v[p], lane);                                                        \
            a[p][2] = vfmaq_laneq_f32(a[p][2], w2, v[p], lane);                                                        \
            a[p][3] = vfmaq_laneq_f32(a[p][3], w3, v[p], lane);                                                        \
        }                                                                                                              \
        w += PANEL;                                                                                                    \
    } while (0)

static inline __attribute__((always_inline)) void tile(const struct walk *at, int n, const float *w, int k, int c,
                                                       int last, const struct finish *f)
{
    float32x4_t a[PIXELS][4], v[PIXELS];
    const float *x[PIXELS];
    for (int p = 0; p < n; p++) {
        x[p] = (const float *)(const void *)at[p].x;
        for (int o = 0; o < 4; o++)
            a[p][o] = vld1q_f32(f->bias + c + o * 4);
    }
    int j = 0;
    for (; j + 4 <= k; j += 4) {
        for (int p = 0; p < n; p++)
            v[p] = vld1q_f32(x[p] + j);
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
    }
    for (; j < k; j++) {
        for (int p = 0; p < n; p++)
            v[p] = vdupq_n_f32(x[p][j]);
        STEP(0);
    }
    const int vectors = last - c > LANES ? 4 : 2;
    for (int p = 0; p < n; p++) {
        float *y = (float *)(void *)at[p].y + c;
        for (int o = 0; o < 4; o++)
            if (o < vectors)
                vst1q_f32(y + o * 4, activate(a[p][o], f->low, f->high, f->act));
    }
}

void mnet_neon_pointwise_f32(const struct pointwise_f32 *p)
{
    const int count = p->rows * p->width;
    for (int c = p->first; c < p->last; c += PANEL) {
        const float *w = p->w + (ptrdiff_t)c * p->k;
        struct walk at = {p->x.at, p->y.at, 0}, pixels[PIXELS];
        for (int done = 0; done < count; done += PIXELS) {
            const int n = count - done < PIXELS ? count - done : PIXELS;
            for (int i = 0; i < n; i++) {
                pixels[i] = at;
                next_pixel(&at, &p->x, &p->y, p->width);
            }
            switch (n) {
            case 1: tile(pixels, 1, w, p->k, c, p->last, &p->f); break;
            case 2: tile(pixels, 2, w, p->k, c, p->last, &p->f); break;
            case 3: tile(pixels, 3, w, p->k, c, p->last, &p->f); break;
            default: tile(pixels, PIXELS, w, p->k, c, p->last, &p->f);
            }
        }
    }
}

#define ACROSS 4 /* outputs of a row at a time: they share the weights' loads */

static inline __attribute__((always_inline)) void outputs(const struct depthwise_f32 *d, int r, int i, int n, int c)
{
    const ptrdiff_t step = d->stride * d->in_pixel;
    const float *w = d->w + c;
    float32x4_t a[ACROSS][2];
    for (int p = 0; p < n; p++) {
        a[p][0] = vld1q_f32(d->f.bias + c);
        a[p][1] = vld1q_f32(d->f.bias + c + 4);
    }
    for (int h = 0; h < d->kh; h++) {
        const float *x = d->in[r * d->stride + h] + i * step + c;
        for (int v = 0; v < d->kw; v++, w += d->channels, x += d->in_pixel) {
            const float32x4_t w0 = vld1q_f32(w), w1 = vld1q_f32(w + 4);
            for (int p = 0; p < n; p++) {
                a[p][0] = vfmaq_f32(a[p][0], vld1q_f32(x + p * step), w0);
                a[p][1] = vfmaq_f32(a[p][1], vld1q_f32(x + p * step + 4), w1);
            }
        }
    }
    for (int p = 0; p < n; p++) {
        float *y = d->out[r] + (i + p) * d->out_pixel + c;
        vst1q_f32(y, activate(a[p][0], d->f.low, d->f.high, d->f.act));
        vst1q_f32(y + 4, activate(a[p][1], d->f.low, d->f.high, d->f.act));
    }
}

void mnet_neon_depthwise_f32(const struct depthwise_f32 *d)
{
    for (int r = 0; r < d->n; r++)
        for (int c = d->first; c < d->last; c += LANES) {
            int i = 0;
            for (; i + ACROSS <= d->width; i += ACROSS)
                outputs(d, r, i, ACROSS, c);
            for (; i < d->width; i++)
                outputs(d, r, i, 1, c);
        }
}

void mnet_neon_act_f32(float *x, size_t n, float low, float high, enum act act)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(x + i, activate(vld1q_f32(x + i), low, high, act));
    for (; i < n; i++)
        x[i] = vgetq_lane_f32(activate(vdupq_n_f32(x[i]), low, high, act), 0);
}
#endif
