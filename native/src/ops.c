/* Rows of each kind of operation, by the kernels. */
#include "kernels/round.h"
#include "session.h"

#include <math.h>
#include <string.h>

enum { MOST_ROWS = 32, MOST_POINTERS = (MOST_ROWS - 1) * 8 + 256, MANY_WEIGHTS = 1 << 20 };

uint8_t *mnet_row(const struct context *c, uint32_t value, int row)
{
    const struct value *v = &c->s->model->values[value];
    const size_t at = (size_t)v->at * UNIT;
    const ptrdiff_t skip = (ptrdiff_t)v->left * v->pixel;
    if (v->place == ARENA)
        return c->arena + at + row * v->row + skip;
    return c->t->windows + at + (row - c->t->from[value]) * v->row + skip;
}

/* A row as spatial operations read it, from its first padded pixel that they read on. */
static const uint8_t *padded_row(const struct context *c, const struct op *o, int row)
{
    const struct value *v = &c->s->model->values[o->in];
    if (row < 0 || row >= (int)v->height)
        return c->s->around[v->pad];
    return mnet_row(c, o->in, row) - (ptrdiff_t)o->left * v->pixel;
}

/* Whether rows lie one after another. */
static int plain(const struct mnet_model *m, uint32_t v) { return v == NONE || !(m->values[v].left + m->values[v].right); }

static struct requant requant_of(const struct mnet_model *m, const struct op *o)
{
    return (struct requant){stored(m, o->multiplier), stored(m, o->bias), o->zero, o->low, o->high, stored(m, o->lut)};
}

static struct finish finish_of(const struct mnet_model *m, const struct op *o)
{
    return (struct finish){stored(m, o->bias), o->least, o->most, (enum act)o->act};
}

static void gelu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
}

static void dense(const struct context *c, const struct op *o, struct view x, struct target y, int rows, int width,
                  int first, int last)
{
    const struct mnet_model *m = c->s->model;
    const void *w = c->s->weights[o - m->ops];
    if (IN_BYTES(DENSE, &m->values[o->out])) {
        const struct pointwise p = {x, y, rows, width, o->inputs, first, last, w, requant_of(m, o), c->t->scratch};
        KERNELS(c->s)->pointwise(&p);
    } else {
        const struct pointwise_f32 p = {x, y, rows, width, o->inputs, first, last, w, finish_of(m, o)};
        const struct sparse *sparse = WITHOUT_ZEROS(c->s, o - m->ops);
        if (sparse)
            c->s->sparse_product(&p, sparse, c->t->strip);
        else
            KERNELS(c->s)->pointwise_f32(&p);
    }
}

static void pointwise(const struct context *c, const struct op *o, int from, int to, int first, int last)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    const struct view x = {mnet_row(c, o->in, from * (int)o->stride), in->pixel * o->stride, in->row * o->stride};
    const struct target y = {mnet_row(c, o->out, from), out->pixel, out->row};
    dense(c, o, x, y, to - from, (int)out->width, first, last);
}

size_t mnet_gather_stride(const struct mnet_model *m, const struct op *o)
{
    const struct value *in = &m->values[o->in];
    return up((uint64_t)o->kh * o->kw * (uint64_t)in->pixel, in->type == U8 ? 4 : 1);
}

int mnet_gather_pixels(const struct mnet_model *m, const struct op *o)
{
    const struct value *out = &m->values[o->out];
    const size_t stride = mnet_gather_stride(m, o);
    const int width = (int)out->width, n = GATHER_BYTES / (int)stride;
    const uint64_t pixels = (uint64_t)width * out->height; /* of a map that is never whole in memory perhaps */
    if (pixels <= MOST_GATHERED && stride * out->channels >= MANY_WEIGHTS)
        return (int)pixels;
    return n >= width ? n / width * width : n > LEAST_GATHERED ? n : LEAST_GATHERED;
}

/* The windows of `n` pixels of one row, one after another. Short runs are copied by 16 bytes: what is too much is
 * overwritten by what follows, or lies behind. */
static void gather(const struct context *c, const struct op *o, int row, int column, int n, uint8_t *to)
{
    const struct value *in = &c->s->model->values[o->in];
    const size_t run = o->kw * (size_t)in->pixel, stride = mnet_gather_stride(c->s->model, o);
    const ptrdiff_t step = (ptrdiff_t)o->stride * in->pixel;
    const uint8_t *from[255];
    for (int h = 0; h < (int)o->kh; h++)
        from[h] = padded_row(c, o, row * (int)o->stride - (int)o->top + h) + column * step;
    for (int i = 0; i < n; i++, to += stride) {
        uint8_t *at = to;
        if (run <= 16)
            for (int h = 0; h < (int)o->kh; h++, at += run)
                memcpy(at, from[h] + i * step, 16);
        else
            for (int h = 0; h < (int)o->kh; h++, at += run)
                memcpy(at, from[h] + i * step, run);
    }
}

int mnet_in_place(const struct mnet_session *s, const struct op *o)
{
    const struct value *out = &s->model->values[o->out];
    return o->kind == CONV && IN_BYTES(CONV, out) && KERNELS(s)->windows &&
           (int)out->width >= KERNELS(s)->windows->least;
}

/* Input rows that n rows of outputs from r on read, and those rows of outputs. */
static void rows_of(const struct context *c, const struct op *o, int r, int n, const uint8_t **in, uint8_t **out)
{
    for (int j = 0; j < (n - 1) * (int)o->stride + (int)o->kh; j++)
        in[j] = padded_row(c, o, r * (int)o->stride - (int)o->top + j);
    for (int j = 0; j < n; j++)
        out[j] = mnet_row(c, o->out, r + j);
}

static void in_place(const struct context *c, const struct op *o, int from, int to, int first, int last)
{
    const struct mnet_model *m = c->s->model;
    const struct value *in = &m->values[o->in], *out = &m->values[o->out];
    const uint8_t *rows[MOST_POINTERS];
    uint8_t *outs[MOST_ROWS];
    const int most = o->stride > 8 ? 1 : MOST_ROWS;
    for (int r = from; r < to; r += most) {
        const int n = to - r < most ? to - r : most;
        rows_of(c, o, r, n, rows, outs);
        const int run = (int)o->kw * (int)in->pixel;
        const struct conv v = {rows, outs, n, (int)out->width, (int)o->kh, run, (int)o->stride, first, last, in->pixel,
                               out->pixel, c->s->weights[o - m->ops], requant_of(m, o), c->t->scratch};
        KERNELS(c->s)->windows->conv(&v);
    }
}

static void convolution(const struct context *c, const struct op *o, int from, int to, int first, int last)
{
    const struct value *out = &c->s->model->values[o->out];
    if (mnet_in_place(c->s, o)) {
        in_place(c, o, from, to, first, last);
        return;
    }
    const int width = (int)out->width, most = mnet_gather_pixels(c->s->model, o);
    const ptrdiff_t stride = (ptrdiff_t)mnet_gather_stride(c->s->model, o);
    const int rows = most >= width ? most / width : 1, columns = most >= width ? width : most;
    for (int r = from; r < to; r += rows) {
        const int n = to - r < rows ? to - r : rows;
        for (int i = 0; i < width; i += columns) {
            const int wide = width - i < columns ? width - i : columns;
            for (int j = 0; j < n; j++)
                gather(c, o, r + j, i, wide, c->t->gather + (ptrdiff_t)j * wide * stride);
            const struct view x = {c->t->gather, stride, wide * stride};
            const struct target y = {mnet_row(c, o->out, r) + i * out->pixel, out->pixel, out->row};
            dense(c, o, x, y, n, wide, first, last);
        }
    }
}

static void depthwise(const struct context *c, const struct op *o, int from, int to, int first, int last)
{
    const struct mnet_model *m = c->s->model;
    const struct value *in = &m->values[o->in], *out = &m->values[o->out];
    const uint8_t *rows[MOST_POINTERS];
    uint8_t *outs[MOST_ROWS];
    const int stride = (int)o->stride, kh = (int)o->kh;
    int most = stride > 8 ? 1 : MOST_ROWS;
    const void *w = c->s->weights[o - m->ops];
    for (int r = from; r < to; r += most) {
        const int n = to - r < most ? to - r : most;
        rows_of(c, o, r, n, rows, outs);
        if (IN_BYTES(DEPTHWISE, out)) {
            const struct depthwise d = {rows, outs, n, (int)out->width, kh, (int)o->kw, stride, first, last,
                                        in->pixel, out->pixel, w, (int)out->pitch, requant_of(m, o)};
            KERNELS(c->s)->depthwise(&d);
        } else {
            const struct depthwise_f32 d = {(const float *const *)(const void *)rows, (float *const *)(void *)outs, n,
                                            (int)out->width, kh, (int)o->kw, stride, first, last, in->pixel / 4,
                                            out->pixel / 4, w, (int)out->pitch, finish_of(m, o)};
            KERNELS(c->s)->depthwise_f32(&d);
        }
    }
}

static void pixel_row(const struct context *c, const struct op *o, int row)
{
    const struct value *out = &c->s->model->values[o->out];
    const int width = (int)out->width, pitch = (int)out->pitch;
    const uint8_t *x = c->image + (ptrdiff_t)row * width * 3, *table = stored(c->s->model, o->lut);
    uint8_t *y = mnet_row(c, o->out, row);
    if (!IN_BYTES(PIXELS, out)) {
        const float *values = (const void *)table;
        float *f = (void *)y;
        for (int i = 0; i < width; i++, x += 3, f += pitch) {
            for (int k = 0; k < 3; k++)
                f[k] = values[k * 256 + x[k]];
            for (int k = 3; k < pitch; k++)
                f[k] = 0;
        }
    } else if (o->first) { /* the bytes as they are */
        memcpy(y, x, (size_t)width * 3);
    } else {
        for (int i = 0; i < width; i++, x += 3, y += pitch) {
            for (int k = 0; k < 3; k++)
                y[k] = table[k * 256 + x[k]];
            for (int k = 3; k < pitch; k++)
                y[k] = 0;
        }
    }
}

static void pixels(const struct context *c, const struct op *o, int from, int to)
{
    for (int r = from; r < to; r++)
        pixel_row(c, o, r);
}

static void copy_row(const struct context *c, const struct op *o, int row)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    const uint8_t *x = mnet_row(c, o->in, row), *lut = stored(c->s->model, o->lut);
    const size_t size = out->type == F32 ? 4 : 1, n = in->channels * size;
    const size_t behind = o->first + in->channels == out->channels ? (out->pitch - out->channels) * size : 0;
    uint8_t *y = mnet_row(c, o->out, row) + o->first * size;
    for (uint32_t i = 0; i < out->width; i++, x += in->pixel, y += out->pixel) {
        if (IN_BYTES(COPY, out) && lut)
            KERNELS(c->s)->lut_u8(x, y, n, lut);
        else
            memmove(y, x, n);
        memset(y + n, 0, behind);
    }
}

static void copy(const struct context *c, const struct op *o, int from, int to)
{
    for (int r = from; r < to; r++)
        copy_row(c, o, r);
}

/* One number after another, channels first. */
static void flatten(const struct context *c, const struct op *o)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    float *y = (void *)mnet_row(c, o->out, 0);
    const uint32_t h = in->height, w = in->width;
    for (uint32_t r = 0; r < h; r++)
        for (uint32_t i = 0; i < w; i++) {
            const float *x = (const void *)(mnet_row(c, o->in, (int)r) + (ptrdiff_t)i * in->pixel);
            for (uint32_t k = 0; k < in->channels; k++)
                y[((size_t)k * h + r) * w + i] = x[k];
        }
    for (uint32_t k = out->channels; k < out->pitch; k++)
        y[k] = 0;
}

/* Means of bytes, some channels at a time. */
static void pool_u8(const struct context *c, const struct op *o, int first, int last)
{
    enum { PIECE = 256 };
    const struct value *in = &c->s->model->values[o->in];
    const struct kernels *k = KERNELS(c->s);
    const int n = (int)(in->height * in->width), low = o->low, high = o->high;
    const int rows = plain(c->s->model, o->in) ? 1 : (int)in->height; /* in one piece, or each by itself */
    for (int at = first; at < last; at += PIECE) {
        const int channels = last - at < PIECE ? last - at : PIECE;
        int32_t sums[PIECE] = {0};
        float means[PIECE];
        uint8_t *y = mnet_row(c, o->out, 0) + at;
        for (int r = 0; r < rows; r++)
            k->sum_u8(mnet_row(c, o->in, r) + at, in->pixel, (size_t)(n / rows), channels, sums);
        for (int i = 0; i < channels; i++)
            means[i] = (float)(sums[i] - n * o->za) * o->a / (float)n;
        k->quantize(means, y, (size_t)channels, o->b, o->zero);
        for (int i = 0; i < channels; i++) {
            const int b = y[i] > low ? y[i] : low;
            y[i] = (uint8_t)(b < high ? b : high);
        }
    }
}

static void pool(const struct context *c, const struct op *o, int first, int last)
{
    const struct value *in = &c->s->model->values[o->in];
    if (IN_BYTES(POOL, in)) {
        pool_u8(c, o, first, last);
        return;
    }
    float *sums = (float *)(void *)mnet_row(c, o->out, 0); /* all channels: the kernel knows of no others */
    memset(sums, 0, (size_t)in->pixel);
    for (int r = 0; r < (int)in->height; r++)
        KERNELS(c->s)->sum_f32((const void *)mnet_row(c, o->in, r), in->width, (int)in->pitch, sums);
    for (uint32_t i = 0; i < in->pitch; i++)
        sums[i] *= o->a;
}

/* e to the power of each number, held to where that is a normal one: within a unit of the last place. In plain loops
 * that compilers turn into vectors. */
static void exponentials(float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const float x = y[i] < -87.0f ? -87.0f : y[i];
        y[i] = x > 88.0f ? 88.0f : x;
    }
    for (uint32_t i = 0; i < n; i++) {
        const float shifter = 12582912.0f; /* 1.5 * 2^23: a sum with it is rounded to a whole number, in its lowest bits */
        const float shifted = y[i] * 1.44269504f + shifter, two = shifted - shifter;
        const float r = y[i] - two * 0.693359375f - two * -2.12194440e-4f; /* y = two * ln 2 + r */
        uint32_t bits;
        float power, p = 1.9875691500e-4f;
        memcpy(&bits, &shifted, 4);
        bits = (bits + 127) << 23;
        memcpy(&power, &bits, 4);
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        y[i] = (p * (r * r) + r + 1.0f) * power;
    }
}

enum { APART = 32 }; /* maxima, and sums, that don't wait for each other */

static float largest(const float *x, uint32_t n)
{
    float most[APART];
    uint32_t i = 0;
    for (int k = 0; k < APART; k++)
        most[k] = x[0];
    for (; i + APART <= n; i += APART)
        for (int k = 0; k < APART; k++)
            most[k] = x[i + (uint32_t)k] > most[k] ? x[i + (uint32_t)k] : most[k];
    for (int k = 0; k < APART; k++)
        most[0] = most[k] > most[0] ? most[k] : most[0];
    for (; i < n; i++)
        most[0] = x[i] > most[0] ? x[i] : most[0];
    return most[0];
}

static float total(const float *x, uint32_t n)
{
    float sum[APART] = {0};
    uint32_t i = 0;
    for (; i + APART <= n; i += APART)
        for (int k = 0; k < APART; k++)
            sum[k] += x[i + (uint32_t)k];
    for (int k = 1; k < APART; k++)
        sum[0] += sum[k];
    for (; i < n; i++)
        sum[0] += x[i];
    return sum[0];
}

static void softmax(float *y, const float *x, uint32_t n)
{
    const float most = largest(x, n);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] - most;
    exponentials(y, n);
    const float sum = total(y, n);
    for (uint32_t i = 0; i < n; i++)
        y[i] /= sum;
}

static void sigmoid(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = -x[i];
    exponentials(y, n);
    for (uint32_t i = 0; i < n; i++)
        y[i] = 1.0f / (1.0f + y[i]);
}

static void l2norm(float *y, const float *x, uint32_t n)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    const float length = fmaxf(sqrtf(sum), 1e-12f);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] / length;
}

static void multiply(const struct context *c, const struct op *o, const uint8_t *a, uint8_t *y, size_t pixels)
{
    const struct value *out = &c->s->model->values[o->out];
    const uint8_t *gate = mnet_row(c, o->in2, 0);
    if (!IN_BYTES(MUL, out)) {
        KERNELS(c->s)->mul_f32((const void *)a, (const void *)gate, (void *)y, pixels, (int)out->pitch);
        return;
    }
    float *factor = (void *)c->t->gather;
    for (uint32_t k = 0; k < out->pitch; k++)
        factor[k] = (float)(gate[k] - o->zb) * o->a;
    const struct mul_u8 how = {factor, o->za, o->zero, o->low, o->high};
    KERNELS(c->s)->mul_u8(a, y, pixels, (int)out->pitch, &how);
}

static void add(const struct context *c, const struct op *o, const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n)
{
    if (!IN_BYTES(ADD, &c->s->model->values[o->out])) {
        KERNELS(c->s)->add_f32((const void *)a, (const void *)b, (void *)y, n);
        return;
    }
    const struct add_u8 how = {o->a, o->b, o->za, o->zb, o->zero, o->low, o->high};
    KERNELS(c->s)->add_u8(a, b, y, n, &how);
}

static void activate(const struct context *c, const struct op *o, const uint8_t *x, uint8_t *y, size_t n)
{
    memmove(y, x, n * sizeof(float));
    if (USES(GELU, F32) && o->act == ACT_GELU)
        gelu((void *)y, n);
    else
        KERNELS(c->s)->act_f32((void *)y, n, o->least, o->most, (enum act)o->act);
}

static void vectors(const struct value *v, const uint8_t *x, uint8_t *y, size_t n,
                    void (*of)(float *, const float *, uint32_t))
{
    for (size_t i = 0; i < n; i++, x += v->pixel, y += v->pixel)
        of((void *)y, (const void *)x, v->channels);
}

/* What is computed pixel by pixel: `n` of them, one after another. */
static void alike(const struct context *c, const struct op *o, int row, size_t n)
{
    const struct value *out = &c->s->model->values[o->out];
    const struct kernels *k = KERNELS(c->s);
    const uint8_t *x = mnet_row(c, o->in, row);
    uint8_t *y = mnet_row(c, o->out, row);
    const size_t all = n * out->pitch;
    switch (o->kind) {
        ON(ADD, add(c, o, x, mnet_row(c, o->in2, row), y, all));
        ON(MUL, multiply(c, o, x, y, n));
        ON(LUT, k->lut_u8(x, y, all, stored(c->s->model, o->lut)));
        ON(ACT, activate(c, o, x, y, all));
        ON(QUANTIZE, k->quantize((const void *)x, y, all, o->a, o->zero));
        ON(DEQUANTIZE, k->dequantize(x, (void *)y, all, o->a, o->za));
        ON(SOFTMAX, vectors(out, x, y, n, softmax));
        ON(L2NORM, vectors(out, x, y, n, l2norm));
        ON(SIGMOID, vectors(out, x, y, n, sigmoid));
    }
}

static void each_row(const struct context *c, const struct op *o, int from, int to)
{
    const struct mnet_model *m = c->s->model;
    const size_t width = m->values[o->out].width;
    if (plain(m, o->in) && plain(m, o->out) && (o->kind == MUL || plain(m, o->in2))) {
        alike(c, o, from, width * (size_t)(to - from));
        return;
    }
    for (int r = from; r < to; r++)
        alike(c, o, r, width);
}

/* The padding left and right of rows. */
static void fill_around(const struct context *c, uint32_t value, int from, int to)
{
    const struct value *v = &c->s->model->values[value];
    const size_t left = v->left * (size_t)v->pixel, right = v->right * (size_t)v->pixel;
    for (int r = from; r < to && left + right; r++) {
        uint8_t *row = mnet_row(c, value, r);
        memset(row - left, (int)v->pad, left);
        memset(row + v->width * (size_t)v->pixel, (int)v->pad, right);
    }
}

void mnet_rows(const struct context *c, uint32_t op, int from, int to, int first, int last)
{
    const struct op *o = &c->s->model->ops[op];
    switch (o->kind) {
        ON(POINTWISE, pointwise(c, o, from, to, first, last));
        ON(CONV, convolution(c, o, from, to, first, last));
        ON(DEPTHWISE, depthwise(c, o, from, to, first, last));
        ON(POOL, pool(c, o, first, last));
        ON(FLATTEN, flatten(c, o));
        ON(PIXELS, pixels(c, o, from, to));
        ON(COPY, copy(c, o, from, to));
    default:
        if (!mnet_windows(c, o, from, to) && !mnet_detect(c, o, from, to))
            each_row(c, o, from, to);
    }
    if (first == 0)
        fill_around(c, o->out, from, to);
}
