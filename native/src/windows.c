/* Windows without weights, and channels in another order: what networks before MobileNets have. */
#include "kernels/round.h"
#include "session.h"

#include <math.h>
#include <string.h>

/* The pixels of a window that lie on the map: rows and columns from the first to before the last. */
struct window {
    int top, bottom, left, right;
};

static struct window window_at(const struct value *in, const struct op *o, int row, int column)
{
    struct window w = {row * (int)o->stride - (int)o->top, 0, column * (int)o->stride - (int)o->left, 0};
    w.bottom = w.top + (int)o->kh < (int)in->height ? w.top + (int)o->kh : (int)in->height;
    w.right = w.left + (int)o->kw < (int)in->width ? w.left + (int)o->kw : (int)in->width;
    w.top = w.top > 0 ? w.top : 0;
    w.left = w.left > 0 ? w.left : 0;
    return w;
}

static void most_u8(const struct context *c, const struct op *o, struct window w, uint8_t *y)
{
    const struct value *in = &c->s->model->values[o->in];
    memset(y, 0, in->pitch);
    for (int r = w.top; r < w.bottom; r++)
        for (int i = w.left; i < w.right; i++) {
            const uint8_t *x = mnet_row(c, o->in, r) + i * in->pixel;
            for (uint32_t k = 0; k < in->pitch; k++)
                y[k] = x[k] > y[k] ? x[k] : y[k];
        }
}

static void most_f32(const struct context *c, const struct op *o, struct window w, float *y)
{
    const struct value *in = &c->s->model->values[o->in];
    for (uint32_t k = 0; k < in->pitch; k++)
        y[k] = -INFINITY;
    for (int r = w.top; r < w.bottom; r++)
        for (int i = w.left; i < w.right; i++) {
            const float *x = (const void *)(mnet_row(c, o->in, r) + i * in->pixel);
            for (uint32_t k = 0; k < in->pitch; k++)
                y[k] = x[k] > y[k] ? x[k] : y[k];
        }
}

static void mean_u8(const struct context *c, const struct op *o, struct window w, uint8_t *y)
{
    const struct value *in = &c->s->model->values[o->in];
    int32_t *sums = (void *)c->t->gather;
    memset(sums, 0, in->pitch * sizeof *sums);
    for (int r = w.top; r < w.bottom; r++)
        for (int i = w.left; i < w.right; i++) {
            const uint8_t *x = mnet_row(c, o->in, r) + i * in->pixel;
            for (uint32_t k = 0; k < in->pitch; k++)
                sums[k] += x[k] - o->za;
        }
    for (uint32_t k = 0; k < in->pitch; k++)
        y[k] = to_byte((float)sums[k] * o->a, o->zero, o->low, o->high);
}

static void mean_f32(const struct context *c, const struct op *o, struct window w, float *y)
{
    const struct value *in = &c->s->model->values[o->in];
    memset(y, 0, in->pitch * sizeof *y);
    for (int r = w.top; r < w.bottom; r++)
        for (int i = w.left; i < w.right; i++) {
            const float *x = (const void *)(mnet_row(c, o->in, r) + i * in->pixel);
            for (uint32_t k = 0; k < in->pitch; k++)
                y[k] += x[k];
        }
    for (uint32_t k = 0; k < in->pitch; k++)
        y[k] *= o->a;
}

static void each_window(const struct context *c, const struct op *o, int from, int to)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    for (int r = from; r < to; r++) {
        uint8_t *y = mnet_row(c, o->out, r);
        for (int i = 0; i < (int)out->width; i++, y += out->pixel) {
            const struct window w = window_at(in, o, r, i);
            if (o->kind == MAXPOOL) {
                if (IN_BYTES(MAXPOOL, out))
                    most_u8(c, o, w, y);
                else
                    most_f32(c, o, w, (void *)y);
            } else if (IN_BYTES(AVGPOOL, out))
                mean_u8(c, o, w, y);
            else
                mean_f32(c, o, w, (void *)y);
        }
    }
}

/* Each channel is the one of the input that the table says. */
static void select_channels(const struct context *c, const struct op *o, int from, int to)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    const uint32_t *source = stored(c->s->model, o->lut);
    for (int r = from; r < to; r++) {
        const uint8_t *x = mnet_row(c, o->in, r);
        uint8_t *y = mnet_row(c, o->out, r);
        for (uint32_t i = 0; i < out->width; i++, x += in->pixel, y += out->pixel) {
            memset(y, 0, (size_t)out->pixel);
            if (IN_BYTES(SELECT, out)) {
                for (uint32_t k = 0; k < out->channels; k++)
                    y[k] = x[source[k]];
            } else {
                for (uint32_t k = 0; k < out->channels; k++)
                    ((float *)(void *)y)[k] = ((const float *)(const void *)x)[source[k]];
            }
        }
    }
}

int mnet_windows(const struct context *c, const struct op *o, int from, int to)
{
    switch (o->kind) {
        ON(MAXPOOL, each_window(c, o, from, to));
        ON(AVGPOOL, each_window(c, o, from, to));
        ON(SELECT, select_channels(c, o, from, to));
    default: return 0;
    }
    return 1;
}
