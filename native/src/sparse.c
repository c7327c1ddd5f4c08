/* Float layers whose weights are mostly zeros: found in the numbers when a session is made, for processors whose kernels
 * gain by it. */
#include "session.h"

/* With three fifths of zeros V1 1.0 takes 12% less time in all with AVX-512 and 33% with AVX2, V1 .25 4 and 16%. */
enum { LEAST_INPUTS = 32, LEAST_PIXELS = 32 };
static const double MOST_LEFT = 0.42;

/* Of the weights w[C/16][K][16] of a layer how many aren't zero; 0 where they are too many, or the layer too small. */
static size_t few(const struct mnet_model *m, const struct op *o, const float *w)
{
    const struct value *out = &m->values[o->out];
    if ((o->kind != POINTWISE && o->kind != CONV) || out->type != F32 || o->inputs < LEAST_INPUTS ||
        (uint64_t)out->height * out->width < LEAST_PIXELS)
        return 0;
    const size_t panel = (size_t)o->inputs * PANEL, all = (size_t)up(out->channels, PANEL) * (size_t)o->inputs;
    const double most = MOST_LEFT * o->inputs * out->channels;
    size_t left = 0;
    for (size_t first = 0; first < all && (double)left <= most; first += panel)
        for (size_t i = first; i < first + panel; i++)
            left += w[i] != 0;
    return (double)left <= most ? left : 0;
}

/* NULL where there is no memory. */
static struct sparse *packed(struct mnet_session *s, const struct op *o, const float *w, size_t left)
{
    const int outputs = (int)up(s->model->values[o->out].channels, PANEL), k = o->inputs;
    const size_t blocks = (size_t)(k + SPARSE_BLOCK - 1) / SPARSE_BLOCK;
    struct sparse *made = mnet_allocate(s, sizeof *made);
    uint32_t *begin = mnet_allocate(s, (blocks * (size_t)outputs + 1) * sizeof *begin);
    struct sparse_weight *weights = mnet_allocate(s, (left + 1) * sizeof *weights), *next = weights;
    if (!made || !begin || !weights)
        return NULL;
    *made = (struct sparse){begin, weights, outputs};
    for (int first = 0; first < k; first += SPARSE_BLOCK)
        for (int c = 0; c < outputs; c++) {
            const float *row = w + ((ptrdiff_t)(c / PANEL) * k + first) * PANEL + c % PANEL;
            for (int i = 0; i < SPARSE_BLOCK && first + i < k; i++) { /* without a jump: none could be foreseen */
                *next = (struct sparse_weight){(uint32_t)(i * SPARSE_PIXELS), row[i * PANEL]};
                next += row[i * PANEL] != 0;
            }
            *++begin = (uint32_t)(next - weights);
        }
    return made;
}

int mnet_sparse(struct mnet_session *s)
{
    const struct mnet_model *m = s->model;
    size_t outputs = 0;
    if (!(s->sparse_product = mnet_sparse_kernel(s->kernels)))
        return 1;
    if (!(s->sparse = mnet_allocate(s, m->h.operations * sizeof *s->sparse)))
        return 0;
    for (uint32_t i = 0; i < m->h.operations; i++) {
        const struct op *o = &m->ops[i];
        const size_t left = few(m, o, s->weights[i]);
        if (!left)
            continue;
        if (!(s->sparse[i] = packed(s, o, s->weights[i], left)))
            return 0;
        outputs = (size_t)s->sparse[i]->outputs > outputs ? (size_t)s->sparse[i]->outputs : outputs;
    }
    for (int i = 0; outputs && i < s->threads; i++)
        if (!(s->thread[i].strip = mnet_allocate(s, (SPARSE_BLOCK + outputs) * SPARSE_PIXELS * sizeof(float))))
            return 0;
    return 1;
}
