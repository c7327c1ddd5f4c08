/* What detectors end in: rows of answers, boxes, and which of them are kept. */
#include "session.h"

#include <math.h>
#include <string.h>

static const float *numbers(const struct context *c, uint32_t value, int row)
{
    return (const void *)mnet_row(c, value, row);
}

/* What a map says of each of K things at every position, one after another. */
static void spread(const struct context *c, const struct op *o)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    float *y = (float *)(void *)mnet_row(c, o->out, 0) + (size_t)o->first * out->pitch;
    const uint32_t things = in->channels / out->channels;
    const size_t bytes = out->channels * sizeof *y;
    for (uint32_t r = 0; r < in->height; r++) {
        const float *x = numbers(c, o->in, (int)r);
        for (uint32_t i = 0; i < in->width; i++, x += in->pitch)
            for (uint32_t k = 0; k < things; k++, y += out->pitch)
                memcpy(y, x + (size_t)k * out->channels, bytes);
    }
}

/* Of each pixel the nearest one of the smaller map, in bytes by the table. */
static void upsample(const struct context *c, const struct op *o, int from, int to)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    const uint8_t *lut = stored(c->s->model, o->lut);
    for (int r = from; r < to; r++) {
        const uint8_t *x = mnet_row(c, o->in, (int)((uint64_t)r * in->height / out->height));
        uint8_t *y = mnet_row(c, o->out, r);
        for (uint32_t i = 0; i < out->width; i++, y += out->pixel) {
            const uint8_t *pixel = x + (ptrdiff_t)((uint64_t)i * in->width / out->width) * in->pixel;
            if (IN_BYTES(UPSAMPLE, out) && lut)
                KERNELS(c->s)->lut_u8(pixel, y, (size_t)out->pixel, lut);
            else
                memcpy(y, pixel, (size_t)out->pixel);
        }
    }
}

/* Of each anchor: centre x, y, its sides over the coder's scales, half its sides. a, b: one by the scales of sizes. */
static void boxes(const struct context *c, const struct op *o)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    const float *x = numbers(c, o->in, 0), *anchor = stored(c->s->model, o->lut);
    float *y = (void *)mnet_row(c, o->out, 0);
    const uint32_t turned = o->first ? 1 : 0; /* y and height come first */
    for (uint32_t i = 0; i < in->width; i++, x += in->pitch, y += out->pitch, anchor += ANCHOR_WORDS) {
        const float cx = anchor[0] + x[turned] * anchor[2], cy = anchor[1] + x[1 - turned] * anchor[3];
        const float w = anchor[4] * expf(x[2 + turned] * o->a), h = anchor[5] * expf(x[3 - turned] * o->b);
        y[0] = cx - w;
        y[1] = cy - h;
        y[2] = cx + w;
        y[3] = cy + h;
    }
}

/* ---- suppression: from the best score down, a box is kept unless a kept one of its class overlaps it too far. A heap
 * has every box once, by the best of its classes that is still to come: nothing is sorted that isn't looked at. */

static int before(const struct candidate *a, const struct candidate *b)
{
    if (a->score != b->score)
        return a->score > b->score;
    return a->label != b->label ? a->label < b->label : a->box < b->box;
}

static void sink(struct candidate *heap, uint32_t n, uint32_t i)
{
    const struct candidate moved = heap[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &moved))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static float greatest(const float *x, uint32_t n)
{
    float lanes[LANES], most = -INFINITY;
    uint32_t i = 0;
    for (int k = 0; k < LANES; k++)
        lanes[k] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lanes[k] = x[i + (uint32_t)k] > lanes[k] ? x[i + (uint32_t)k] : lanes[k];
    for (int k = 0; k < LANES; k++)
        most = lanes[k] > most ? lanes[k] : most;
    for (; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

/* The best class of a box from `first` on; 0 where none is above `least`. */
static int best_class(const float *x, uint32_t first, uint32_t end, float least, struct candidate *found)
{
    const float most = greatest(x + first, end - first);
    if (!(most > least))
        return 0;
    uint32_t k = first;
    while (k + 1 < end && x[k] != most)
        k++;
    found->score = most;
    found->label = k;
    return 1;
}

/* The class that comes after the one a candidate is of. */
static int next_class(const float *x, uint32_t first, uint32_t end, float least, struct candidate *of)
{
    float most = least;
    uint32_t label = end;
    for (uint32_t k = first; k < end; k++)
        if (x[k] > most && (x[k] < of->score || (x[k] == of->score && k > of->label))) {
            most = x[k];
            label = k;
        }
    if (label == end)
        return 0;
    of->score = most;
    of->label = label;
    return 1;
}

static float overlap(const float *a, const float *b)
{
    const float left = a[0] > b[0] ? a[0] : b[0], top = a[1] > b[1] ? a[1] : b[1];
    const float right = a[2] < b[2] ? a[2] : b[2], bottom = a[3] < b[3] ? a[3] : b[3];
    const float w = right - left > 0 ? right - left : 0, h = bottom - top > 0 ? bottom - top : 0;
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h);
}

static int stays(const float *box, float label, const float *kept, int n, const struct value *out, const struct op *o)
{
    uint32_t alike = 0;
    for (int i = 0; i < n; i++, kept += out->pitch)
        if (!o->stride ? overlap(box, kept) > o->b
                       : kept[5] == label && (++alike >= o->stride || overlap(box, kept) > o->b))
            return 0;
    return 1;
}

/* Logits of one row as probabilities, where any but the background's can be above what `least` is the logit of. */
static int probable(float *x, uint32_t n, float least)
{
    float sum = 0, most = greatest(x + 1, n - 1);
    if (!(most - x[0] > least))
        return 0;
    most = most > x[0] ? most : x[0];
    for (uint32_t k = 0; k < n; k++)
        sum += x[k] = expf(x[k] - most);
    for (uint32_t k = 0; k < n; k++)
        x[k] /= sum;
    return 1;
}

static void suppress(const struct context *c, const struct op *o)
{
    const struct mnet_model *m = c->s->model;
    const struct value *in = &m->values[o->in], *of = &m->values[o->in2], *out = &m->values[o->out];
    const float *box = numbers(c, o->in, 0);
    float *scores = (void *)mnet_row(c, o->in2, 0), *y = (void *)mnet_row(c, o->out, 0);
    struct candidate *heap = (void *)c->t->gather;
    const uint32_t end = of->channels;
    const float least = o->act == SOFTMAXED ? 1 / (1 + expf(-o->a)) : o->a;
    uint32_t n = 0;
    for (uint32_t i = 0; i < in->width; i++) {
        float *x = scores + (size_t)i * of->pitch;
        if (o->act == SOFTMAXED && !probable(x, end, o->a))
            continue;
        heap[n].box = i;
        n += (uint32_t)best_class(x, o->first, end, least, &heap[n]);
    }
    for (uint32_t i = n / 2; i-- > 0;)
        sink(heap, n, i);
    memset(y, 0, (size_t)out->width * (size_t)out->pixel);
    for (int kept = 0; n && kept < (int)out->width;) {
        const float *b = box + (size_t)heap->box * in->pitch, label = (float)(heap->label - o->first);
        if (stays(b, label, y, kept, out, o)) {
            float *row = y + (size_t)kept++ * out->pitch;
            memcpy(row, b, 4 * sizeof *row);
            row[4] = o->act == LOGITS ? 1 / (1 + expf(-heap->score)) : heap->score;
            row[5] = label;
        }
        if (!next_class(scores + (size_t)heap->box * of->pitch, o->first, end, least, heap))
            heap[0] = heap[--n];
        sink(heap, n, 0);
    }
}

static void part(const struct context *c, const struct op *o)
{
    const struct value *in = &c->s->model->values[o->in], *out = &c->s->model->values[o->out];
    const float *x = numbers(c, o->in, 0) + o->first;
    float *y = (void *)mnet_row(c, o->out, 0);
    const int one = out->width != in->width; /* a column as one vector */
    for (uint32_t i = 0; i < in->width; i++, x += in->pitch, y += one ? 1 : out->pitch)
        memcpy(y, x, (one ? 1 : out->channels) * sizeof *y);
}

/* How many have a number above 0. */
static void count(const struct context *c, const struct op *o)
{
    const struct value *in = &c->s->model->values[o->in];
    const float *x = numbers(c, o->in, 0) + o->first;
    float n = 0;
    for (uint32_t i = 0; i < in->width; i++, x += in->pitch)
        n += *x > 0;
    *(float *)(void *)mnet_row(c, o->out, 0) = n;
}

int mnet_detect(const struct context *c, const struct op *o, int from, int to)
{
    switch (o->kind) {
        ON(SPREAD, spread(c, o));
        ON(UPSAMPLE, upsample(c, o, from, to));
        ON(BOXES, boxes(c, o));
        ON(SUPPRESS, suppress(c, o));
        ON(PART, part(c, o));
        ON(COUNT, count(c, o));
    default: return 0;
    }
    return 1;
}
