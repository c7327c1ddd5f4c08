/* Products of float weights that are mostly zeros, once for each vector ("Fast Sparse ConvNets", Elsen and others 2020):
 * pixels are turned so that a vector holds one channel of many, and an output adds up its weights times whole vectors,
 * those that aren't zero alone. The file that includes this says what a VECTOR is: its WIDTH, LOAD, STORE, SET, ADD_PRODUCT,
 * CLAMP, `transposed` and what the function is called. The order of additions is the dense product's. */
enum { VECTORS = SPARSE_STEP / WIDTH };
_Static_assert(SPARSE_PIXELS == 7 * SPARSE_STEP, "a case of the switch for each step");

/* Outputs [first, last) of n steps of pixels go on with a block's inputs, or begin with them and their bias. */
INLINE void add_products(const int n, const struct sparse_weight *weights, const uint32_t *begin, const float *bias,
                         int first, int last, const float *strip, float *out)
{
    for (int c = first; c < last; c++, out += SPARSE_PIXELS) {
        VECTOR sum[SPARSE_PIXELS / WIDTH];
        UNROLL
        for (int v = 0; v < n * VECTORS; v++)
            sum[v] = bias ? SET(bias[c]) : LOAD(out + v * WIDTH);
        const struct sparse_weight *const end = weights + begin[c + 1];
        for (const struct sparse_weight *from = weights + begin[c]; from < end; from++) {
            const VECTOR w = SET(from->w);
            const float *x = strip + from->at;
            UNROLL
            for (int v = 0; v < n * VECTORS; v++)
                sum[v] = ADD_PRODUCT(w, LOAD(x + v * WIDTH), sum[v]);
        }
        UNROLL
        for (int v = 0; v < n * VECTORS; v++)
            STORE(out + v * WIDTH, sum[v]);
    }
}

/* Of `pixels` pixels, in `steps` steps. */
static void product(const struct pointwise_f32 *p, const struct sparse *s, const float *const *x, float *const *y,
                    int pixels, int steps, float *strip)
{
    float *const out = strip + SPARSE_BLOCK * SPARSE_PIXELS;
    const uint32_t *begin = s->begin;
    VECTOR r[WIDTH];
    for (int k = 0; k < p->k; k += SPARSE_BLOCK, begin += s->outputs) {
        const int inputs = p->k - k < SPARSE_BLOCK ? p->k - k : SPARSE_BLOCK;
        for (int v = 0; v < steps * VECTORS; v++)
            for (int c = 0; c < inputs; c += WIDTH) {
                transposed(r, x + v * WIDTH, k + c);
                UNROLL
                for (int i = 0; i < WIDTH; i++)
                    STORE(strip + (c + i) * SPARSE_PIXELS + v * WIDTH, r[i]);
            }
#define STEPS(n) \
    case n: add_products(n, s->weights, begin, k ? NULL : p->f.bias, p->first, p->last, strip, out); break;
        switch (steps) { STEPS(1) STEPS(2) STEPS(3) STEPS(4) STEPS(5) STEPS(6) STEPS(7) }
    }
    const VECTOR low = SET(p->f.low), high = SET(p->f.high);
    for (int c = p->first; c < p->last; c += WIDTH) {
        const float *rows[WIDTH];
        for (int i = 0; i < WIDTH; i++)
            rows[i] = out + (ptrdiff_t)(c - p->first + i) * SPARSE_PIXELS;
        for (int first = 0; first < pixels; first += WIDTH) {
            transposed(r, rows, first);
            for (int i = 0; i < WIDTH && first + i < pixels; i++)
                STORE_SOME(y[first + i] + c, CLAMP(r[i], low, high), p->last - c);
        }
    }
    for (int i = 0; p->f.act != ACT_NONE && i < pixels; i++)
        mnet_avx2_act_f32(y[i] + p->first, (size_t)(p->last - p->first), p->f.low, p->f.high, p->f.act);
}

void PRODUCT(const struct pointwise_f32 *p, const struct sparse *s, float *strip)
{
    const int pixels = p->rows * p->width, strips = (pixels + SPARSE_PIXELS - 1) / SPARSE_PIXELS;
    const int each = (pixels + strips * SPARSE_STEP - 1) / (strips * SPARSE_STEP) * SPARSE_STEP;
    struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
    struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
    for (int done = 0; done < pixels; done += each) {
        const float *x[SPARSE_PIXELS];
        float *y[SPARSE_PIXELS];
        const int left = pixels - done < each ? pixels - done : each;
        const int steps = (left + SPARSE_STEP - 1) / SPARSE_STEP;
        for (int i = 0; i < steps * SPARSE_STEP; i++) {
            x[i] = i < left ? (const float *)(const void *)walk_on(&from) : x[i - 1];
            y[i] = i < left ? (float *)(void *)walk_on(&to) : y[i - 1];
        }
        product(p, s, x, y, left, steps, strip);
    }
}
