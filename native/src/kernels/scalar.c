/* Plain C: what every other table is tested against, and what runs where nothing better does. */
#include "../kernels.h"
#include "round.h"

#include <string.h>

static size_t pointwise_scratch(int k)
{
    (void)k;
    return 0;
}

static void pointwise(const struct pointwise *p)
{
    const int k4 = (p->k + 3) / 4;
    const struct requant *q = &p->q;
    for (int c = p->first; c < p->last; c += PANEL) {
        const int8_t *panel = p->w + (ptrdiff_t)c * k4 * 4;
        const int outputs = p->last - c < PANEL ? p->last - c : PANEL;
        for (int r = 0; r < p->rows; r++)
            for (int i = 0; i < p->width; i++) {
                const uint8_t *x = p->x.at + r * p->x.row + i * p->x.pixel;
                uint8_t *y = p->y.at + r * p->y.row + i * p->y.pixel + c;
                int32_t sums[PANEL];
                memcpy(sums, q->bias + c, sizeof sums);
                for (int j = 0; j < p->k; j++) {
                    const int8_t *w = panel + (ptrdiff_t)(j / 4) * PANEL * 4 + j % 4;
                    for (int o = 0; o < PANEL; o++)
                        sums[o] += x[j] * w[o * 4];
                }
                for (int o = 0; o < outputs; o++) {
                    uint8_t b = to_byte((float)sums[o] * q->multiplier[c + o], q->zero, q->low, q->high);
                    y[o] = q->lut ? q->lut[b] : b;
                }
            }
    }
}

static size_t depthwise_bytes(int kh, int kw, int channels)
{
    return (size_t)kh * (size_t)kw * (size_t)channels;
}

static void depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out)
{
    memcpy(out, w, depthwise_bytes(kh, kw, channels));
}

static void depthwise(const struct depthwise *d)
{
    const struct requant *q = &d->q;
    for (int r = 0; r < d->n; r++)
        for (int i = 0; i < d->width; i++)
            for (int c = d->first; c < d->last; c += LANES) {
                int32_t sums[LANES];
                memcpy(sums, q->bias + c, sizeof sums);
                for (int h = 0; h < d->kh; h++)
                    for (int v = 0; v < d->kw; v++) {
                        const uint8_t *x = d->in[r * d->stride + h] + (i * d->stride + v) * d->in_pixel + c;
                        const int8_t *w = (const int8_t *)d->w + (ptrdiff_t)(h * d->kw + v) * d->channels + c;
                        for (int o = 0; o < LANES; o++)
                            sums[o] += x[o] * w[o];
                    }
                uint8_t *y = d->out[r] + i * d->out_pixel + c;
                for (int o = 0; o < LANES; o++) {
                    uint8_t b = to_byte((float)sums[o] * q->multiplier[c + o], q->zero, q->low, q->high);
                    y[o] = q->lut ? q->lut[b] : b;
                }
            }
}

static inline float activate(float v, float low, float high, enum act act)
{
    v = v > low ? v : low;
    v = v < high ? v : high;
    if (act == ACT_NONE)
        return v;
    float gate = v + 3.0f;
    gate = gate > 0.0f ? gate : 0.0f;
    gate = (gate < 6.0f ? gate : 6.0f) * (1.0f / 6.0f);
    return act == ACT_HARD_SWISH ? v * gate : gate;
}

static void pointwise_f32(const struct pointwise_f32 *p)
{
    const struct finish *f = &p->f;
    for (int c = p->first; c < p->last; c += PANEL) {
        const float *panel = p->w + (ptrdiff_t)c * p->k;
        const int outputs = p->last - c < PANEL ? p->last - c : PANEL;
        for (int r = 0; r < p->rows; r++)
            for (int i = 0; i < p->width; i++) {
                const float *x = (const float *)(const void *)(p->x.at + r * p->x.row + i * p->x.pixel);
                float *y = (float *)(void *)(p->y.at + r * p->y.row + i * p->y.pixel) + c;
                float sums[PANEL];
                memcpy(sums, f->bias + c, sizeof sums);
                for (int j = 0; j < p->k; j++)
                    for (int o = 0; o < PANEL; o++)
                        sums[o] += x[j] * panel[(ptrdiff_t)j * PANEL + o];
                for (int o = 0; o < outputs; o++)
                    y[o] = activate(sums[o], f->low, f->high, f->act);
            }
    }
}

static void depthwise_f32(const struct depthwise_f32 *d)
{
    const struct finish *f = &d->f;
    for (int r = 0; r < d->n; r++)
        for (int i = 0; i < d->width; i++)
            for (int c = d->first; c < d->last; c += LANES) {
                float sums[LANES];
                memcpy(sums, f->bias + c, sizeof sums);
                for (int h = 0; h < d->kh; h++)
                    for (int v = 0; v < d->kw; v++) {
                        const float *x = d->in[r * d->stride + h] + (i * d->stride + v) * d->in_pixel + c;
                        const float *w = d->w + (ptrdiff_t)(h * d->kw + v) * d->channels + c;
                        for (int o = 0; o < LANES; o++)
                            sums[o] += x[o] * w[o];
                    }
                float *y = d->out[r] + i * d->out_pixel + c;
                for (int o = 0; o < LANES; o++)
                    y[o] = activate(sums[o], f->low, f->high, f->act);
            }
}

static void add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s)
{
    for (size_t i = 0; i < n; i++) {
        float pa = (float)(a[i] - s->za) * s->ma, pb = (float)(b[i] - s->zb) * s->mb;
        y[i] = to_byte(pa + pb, s->zero, s->low, s->high);
    }
}

static void mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s)
{
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels)
        for (int c = 0; c < channels; c++)
            y[c] = to_byte((float)(a[c] - s->za) * s->m[c], s->zero, s->low, s->high);
}

static void lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut)
{
    for (size_t i = 0; i < n; i++)
        y[i] = lut[x[i]];
}

static void sum_u8(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums)
{
    for (size_t p = 0; p < pixels; p++, x += pixel)
        for (int c = 0; c < channels; c++)
            sums[c] += x[c];
}

static void quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero)
{
    for (size_t i = 0; i < n; i++)
        y[i] = to_byte(x[i] * inverse, zero, 0, 255);
}

static void dequantize(const uint8_t *x, float *y, size_t n, float scale, int32_t zero)
{
    for (size_t i = 0; i < n; i++)
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
        for (int c = 0; c < channels; c++)
            y[c] = a[c] * m[c];
}

static void act_f32(float *x, size_t n, float low, float high, enum act act)
{
    for (size_t i = 0; i < n; i++)
        x[i] = activate(x[i], low, high, act);
}

static void sum_f32(const float *x, size_t pixels, int channels, float *sums)
{
    for (size_t p = 0; p < pixels; p++, x += channels)
        for (int c = 0; c < channels; c++)
            sums[c] += x[c];
}

const struct kernels mnet_scalar = {
    "scalar",      pointwise,     pointwise_scratch, depthwise, depthwise_bytes, depthwise_pack,
    pointwise_f32, depthwise_f32, add_u8,            mul_u8,    lut_u8,          sum_u8,
    quantize,      dequantize,    add_f32,           mul_f32,   act_f32,         sum_f32,
    NULL,
};
