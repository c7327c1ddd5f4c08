/* AMX in int8: dense products in tiles of 16 pixels by 16 outputs; everything else, and products that tiles are too large
 * for, are AVX-512's.
 *
 * A panel of packed weights is a column of tiles as it lies, the pixels of a map are rows of tiles: their distance is the
 * rows' stride. Inputs go in equal steps of at most 64 where their number allows that; else the last step of a panel is
 * completed with zeros in scratch, and what a tile reads behind a pixel's last input meets them. Where fewer than 16
 * pixels are left, a tile begins earlier and computes some again. Pixels that aren't at one distance from another (rows
 * of small maps) are copied first.
 *
 * Tiles' sums become bytes by way of memory, while other blocks are multiplied: the two use different parts of the
 * processor, and each takes about as long as the other. Storing a tile waits for its last product, so that it is put off
 * until the next block needs the tile, and its sums become bytes a block later. A block is 16 pixels by 3 or 4 panels where
 * inputs are few and whole lines of outputs count, 32 pixels by 2 panels where weights had to be read too often, 64 by 1. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx512.h"

#include <string.h>

TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")

enum {
    ROWS = 16,         /* of a tile: pixels */
    STEP = 64,         /* its columns, at most: inputs */
    LEAST_INPUTS = 16, /* below, tiles are mostly empty */
    FEW_INPUTS = 192,  /* up to here blocks are 3 or 4 panels wide */
    COPIED = 64,       /* pixels that are copied at a time */
    CHUNK = 96,        /* pixels that meet all weights before the next do, at most; their inputs stay in L1: */
    CHUNK_BYTES = 16384,
    MANY_INPUTS = 2048, /* from here on they wouldn't: as many pixels as there may be, weights being more */
    UNIT = 64, /* sums that become bytes together */
    MOST_CHANNELS = 2048,
    TAIL_BYTES = STEP * PANEL,
    BLOCK_SUMS = 4 * ROWS * PANEL,
    ALL = BLOCK_SUMS,
};

/* Scratch: sums of two blocks, what sums begin with, completed weights, copied pixels. */
struct scratch {
    int32_t sums[2][BLOCK_SUMS], start[MOST_CHANNELS];
    int8_t tails[4 * TAIL_BYTES];
    uint8_t copied[];
};

static size_t pitch_of(int k) { return ((size_t)k + STEP - 1) / STEP * STEP; }

static size_t pointwise_scratch(int k) { return sizeof(struct scratch) + COPIED * pitch_of(k) + STEP + 64; }

struct job {
    const struct pointwise *p;
    struct scratch *s;
    const int32_t *start;      /* what sums begin with, of channel 0 */
    const uint8_t *const *row; /* where inputs lie: in one place for each row of a window */
    ptrdiff_t from, pixel;     /* there: the first of `pixels` at one distance */
    int pixels, kh, k4, step;  /* k4: inputs in one place */
    uint8_t *y[CHUNK + 2 * ROWS];
};

/* Inputs at a time: all steps alike, with one more than needed if there is no other way; or as many as there can be. */
static int step_of(int k4)
{
    const int least = (k4 + STEP - 1) / STEP;
    for (int n = least; n <= least + (least > 1); n++)
        if (k4 % (4 * n) == 0)
            return k4 / n;
    return STEP;
}

/* Tiles 0 to 3 are sums, 4 and 5 pixels, 6 and 7 weights. */
static void configure(int step)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int t = 0; t < 8; t++) {
        c.columns[t] = (uint16_t)(t == 4 || t == 5 ? step : STEP);
        c.rows[t] = (uint8_t)(t < 6 ? ROWS : step / 4);
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc takes the next line for one that reads 8 bytes, and omits others */
    _tile_loadconfig(&c);
}

/* One step of inputs, for sums' tile t of 16 pixels by a panel: tiles are panels one after another, of two panels those of
 * 16 pixels and then of 16 more, of one panel pixels alone. What tiles before t have read, it doesn't. */
INLINE void multiply(const int t, const int m, const uint8_t *x, ptrdiff_t pixel, const int8_t *w, ptrdiff_t panel)
{
    switch (t) {
    case 0:
        _tile_loadd(6, w, STEP);
        _tile_loadd(4, x, pixel);
        _tile_dpbusd(0, 4, 6);
        break;
    case 1:
        if (m == 1) {
            _tile_loadd(5, x + ROWS * pixel, pixel);
            _tile_dpbusd(1, 5, 6);
        } else {
            _tile_loadd(7, w + panel, STEP);
            _tile_dpbusd(1, 4, 7);
        }
        break;
    case 2:
        if (m == 1) {
            _tile_loadd(4, x + 2 * ROWS * pixel, pixel);
            _tile_dpbusd(2, 4, 6);
        } else if (m == 2) {
            _tile_loadd(5, x + ROWS * pixel, pixel);
            _tile_dpbusd(2, 5, 6);
        } else {
            _tile_loadd(6, w + 2 * panel, STEP);
            _tile_dpbusd(2, 4, 6);
        }
        break;
    default:
        if (m == 1) {
            _tile_loadd(5, x + 3 * ROWS * pixel, pixel);
            _tile_dpbusd(3, 5, 6);
        } else if (m == 2) {
            _tile_dpbusd(3, 5, 7);
        } else {
            _tile_loadd(7, w + 3 * panel, STEP);
            _tile_dpbusd(3, 4, 7);
        }
    }
}

/* A tile's sums to memory, as [pixel][panel], of 3 panels as of 4; and what sums begin with to the tile. */
INLINE void store_tile(const int t, const int m, int32_t *sums)
{
    const ptrdiff_t wide = m == 3 ? 4 : m, row = wide * PANEL * (ptrdiff_t)sizeof *sums;
    sums += (t / m * ROWS * wide + t % m) * PANEL;
    switch (t) {
    case 0: _tile_stored(0, sums, row); break;
    case 1: _tile_stored(1, sums, row); break;
    case 2: _tile_stored(2, sums, row); break;
    default: _tile_stored(3, sums, row);
    }
}

INLINE void begin_tile(const int t, const int m, const int32_t *start)
{
    start += t % m * PANEL; /* the same row sixteen times */
    switch (t) {
    case 0: _tile_loadd(0, start, 0); break;
    case 1: _tile_loadd(1, start, 0); break;
    case 2: _tile_loadd(2, start, 0); break;
    default: _tile_loadd(3, start, 0);
    }
}

/* A block whose sums are in memory or will be there: 64 at a time are to become bytes. */
struct pending {
    int32_t *sums;
    uint8_t *const *y;
    int c, units, done;
};

/* Of channels c on: what turns sums into bytes, in registers. */
struct scale {
    __m512 multiplier[4], excess[4];
    struct bounds512 bounds;
};

INLINE struct scale scale_of(const int m, const struct requant *q, int c)
{
    struct scale s;
    UNROLL
    for (int o = 0; o < 4; o++) {
        s.multiplier[o] = _mm512_loadu_ps(q->multiplier + c + o % m * PANEL);
        s.excess[o] = excess512(s.multiplier[o]);
    }
    s.bounds = bounds512_of(q->zero, q->low, q->high);
    return s;
}

INLINE void convert(const int lean, const int m, struct pending *b, const struct scale *s, int last, int most)
{
    const int pixels = m > 2 ? 1 : m > 1 ? 2 : 4, upto = b->units - b->done < most ? b->units : b->done + most;
    for (; b->done < upto; b->done++) {
        const int32_t *sums = b->sums + b->done * UNIT;
        __m512i v[4];
        UNROLL
        for (int i = 0; i < 4; i++)
            v[i] = m == 3 && i == 3 ? v[2]
                                    : scaled512(lean, _mm512_loadu_si512(sums + i * PANEL), s->multiplier[i], s->excess[i]);
        store_pixels(m, b->y + b->done * pixels, b->c, last - b->c, to_bytes512(lean, v[0], v[1], v[2], v[3], &s->bounds));
    }
}

/* The two blocks on their way: sums of the first become bytes, those of the second are in tiles. */
struct queue {
    struct pending first, second;
};

/* One step of inputs of n times 16 pixels by m panels. At a block's first, `start` being given, the block before leaves its
 * tiles, each when it is needed. Between tiles some sums of the block before that become bytes. */
INLINE void step(const int lean, const int n, const int m, const uint8_t *x, ptrdiff_t pixel, const int8_t *w,
                 ptrdiff_t panel, const int32_t *start, struct queue *q, const struct scale *s, int last, int each)
{
#define TILE(t) \
    if (start) \
        store_tile(t, m, q->second.sums); \
    if (start && t < n * m) \
        begin_tile(t, m, start); \
    if (t < n * m) \
        multiply(t, m, x, pixel, w, panel); \
    convert(lean, m, &q->first, s, last, each)
    TILE(0); /* written out, as gcc unrolls no loop with a loop in it */
    TILE(1);
    TILE(2);
    if (m != 3) {
        TILE(3);
    }
#undef TILE
}

/* Multiplies n times 16 pixels from number i on by m panels from channel c on. */
INLINE void block(const int lean, const int n, const int m, const struct job *j, int i, int c, struct queue *q)
{
    const struct pointwise *p = j->p;
    const ptrdiff_t panel = (ptrdiff_t)j->kh * j->k4 * PANEL;
    const int8_t *w = p->w + (ptrdiff_t)c / PANEL * panel;
    const uint8_t *x = j->row[0] + j->from + i * j->pixel;
    const struct scale s = scale_of(m, &p->q, q->first.c);
    const int turns = (j->k4 + j->step - 1) / j->step * j->kh * 3, each = (q->first.units + turns - 1) / turns;
    step(lean, n, m, x, j->pixel, w, panel, j->start + c, q, &s, p->last, each);
    for (int h = 0, k = j->step; h < j->kh; k = 0) {
        for (; k + j->step <= j->k4; k += j->step)
            step(lean, n, m, x + k, j->pixel, w + k * PANEL, panel, NULL, q, &s, p->last, each);
        if (k < j->k4)
            step(lean, n, m, x + k, j->pixel, j->s->tails, TAIL_BYTES, NULL, q, &s, p->last, each);
        w += j->k4 * PANEL;
        if (++h < j->kh)
            x = j->row[h] + j->from + i * j->pixel;
    }
    convert(lean, m, &q->first, &s, p->last, ALL);
    const struct pending now = {q->first.sums, j->y + i, c, n * ROWS * (m == 3 ? 4 : m) / 4, 0};
    q->first = q->second;
    q->second = now;
}

/* What is still on its way. */
INLINE void finish(const int lean, const int m, const struct job *j, struct queue *q)
{
    const struct pointwise *p = j->p;
    const struct scale first = scale_of(m, &p->q, q->first.c), second = scale_of(m, &p->q, q->second.c);
    store_tile(0, m, q->second.sums);
    store_tile(1, m, q->second.sums);
    store_tile(2, m, q->second.sums);
    if (m != 3)
        store_tile(3, m, q->second.sums);
    convert(lean, m, &q->first, &first, p->last, ALL);
    convert(lean, m, &q->second, &second, p->last, ALL);
}

/* The last inputs' weights of a panel, completed with zeros. */
static void complete(const struct job *j, int c, int8_t *tail)
{
    const int k = j->k4 / j->step * j->step;
    const size_t there = (size_t)(j->k4 - k) * PANEL;
    memcpy(tail, j->p->w + (ptrdiff_t)c * j->k4 + (ptrdiff_t)k * PANEL, there);
    memset(tail + there, 0, TAIL_BYTES - there);
}

/* A job's pixels by the panels of channels [from, to), m at a time. */
INLINE void panels(const int lean, const int m, const struct job *j, int from, int to)
{
    if (from == to)
        return;
    struct queue q = {{j->s->sums[0], j->y, from, 0, 0}, {j->s->sums[1], j->y, from, 0, 0}};
    for (int c = from; c < to; c += m * PANEL) {
        if (j->k4 % j->step)
            for (int o = 0; o < m; o++)
                complete(j, c + o * PANEL, j->s->tails + o * TAIL_BYTES);
        int i = 0;
        if (m == 1)
            for (; j->pixels - i >= 4 * ROWS; i += 4 * ROWS)
                block(lean, 4, m, j, i, c, &q);
        if (m < 3 && j->pixels >= 2 * ROWS)
            for (; j->pixels - i > ROWS; i += 2 * ROWS)
                block(lean, 2, m, j, j->pixels - i < 2 * ROWS ? j->pixels - 2 * ROWS : i, c, &q);
        for (; i < j->pixels; i += ROWS)
            block(lean, 1, m, j, j->pixels - i < ROWS ? j->pixels - ROWS : i, c, &q);
    }
    finish(lean, m, j, &q);
}

INLINE void all_panels(const int lean, const struct job *j)
{
    const struct pointwise *p = j->p;
    int c = p->first, left = (p->last - c + PANEL - 1) / PANEL;
    if (p->k <= FEW_INPUTS || j->pixels <= ROWS) {
        const int fours = left == 5 ? 0 : left % 4 == 1 && left > 4 ? left / 4 - 1 : left / 4; /* 9: 4, 3, 2 */
        panels(lean, 4, j, c, c + fours * 4 * PANEL);
        c += fours * 4 * PANEL, left -= fours * 4;
        if (left == 3 || left == 5) {
            panels(lean, 3, j, c, c + 3 * PANEL);
            c += 3 * PANEL, left -= 3;
        }
    }
    panels(lean, 2, j, c, c + left / 2 * 2 * PANEL);
    c += left / 2 * 2 * PANEL;
    if (left % 2)
        panels(lean, 1, j, c, c + PANEL);
}

static void full(const struct job *j) { all_panels(0, j); }
static void lean(const struct job *j) { all_panels(1, j); }

/* Runs of pixels at one distance: `rows` of `pixels` (one run, or a map's rows), the first of which is where `to` is. */
static void runs(struct job *j, void (*of)(const struct job *), int rows, ptrdiff_t row, int pixels, struct walk *to)
{
    const int k = j->kh * j->k4;
    int most = CHUNK_BYTES / k / (2 * ROWS) * (2 * ROWS);
    most = most > CHUNK || k >= MANY_INPUTS ? CHUNK : most < 2 * ROWS ? 2 * ROWS : most;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < pixels; i += j->pixels) {
            const int left = pixels - i; /* what is left behind a chunk is never less than a pair of tiles */
            j->pixels = left < most + 2 * ROWS ? left : most;
            j->from = r * row + i * j->pixel;
            walk_over(to, j->y, j->pixels);
            of(j);
        }
}

/* What a job needs of a product, its inputs aside; gives what is to be done with each run. */
static void (*job_of(struct job *j, const struct pointwise *p, int kh, int k4, int step))(const struct job *)
{
    j->p = p;
    j->s = (void *)(((uintptr_t)p->scratch + STEP - 1) & ~(uintptr_t)(STEP - 1));
    j->kh = kh;
    j->k4 = k4;
    j->step = step;
    j->start = p->q.bias;
    configure(step);
    if (p->last > MOST_CHANNELS || !lean512(&p->q, p->first, p->last, p->k))
        return full;
    j->start = j->s->start;
    for (int c = p->first; c < p->last; c += PANEL)
        _mm512_storeu_si512(j->s->start + c, start512(1, _mm512_loadu_si512(p->q.bias + c)));
    return lean;
}

static void pointwise(const struct pointwise *p)
{
    const int pixels = p->rows * p->width;
    if (p->k < LEAST_INPUTS || pixels < ROWS) {
        mnet_avx512_pointwise(p);
        return;
    }
    struct job j;
    const int k4 = (p->k + 3) / 4 * 4;
    void (*const of)(const struct job *) = job_of(&j, p, 1, k4, step_of(k4));
    struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
    j.row = &p->x.at;
    j.pixel = p->x.pixel;
    if (p->rows == 1 || p->x.row == p->x.pixel * p->width) {
        runs(&j, of, 1, 0, pixels, &to);
    } else if (p->width >= 2 * ROWS || p->width == ROWS) {
        runs(&j, of, p->rows, p->x.row, p->width, &to);
    } else {
        const size_t pitch = pitch_of(p->k);
        const uint8_t *copied = j.s->copied;
        struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
        j.row = &copied;
        j.pixel = (ptrdiff_t)pitch;
        for (int i = 0, n; i < pixels; i += n) {
            const int left = pixels - i; /* never so few that they don't fill a tile */
            n = left <= COPIED ? left : left < COPIED + ROWS ? COPIED - ROWS : COPIED;
            for (int o = 0; o < n; o++)
                memcpy(j.s->copied + (size_t)o * pitch, walk_on(&from), (size_t)p->k);
            runs(&j, of, 1, 0, n, &to);
        }
    }
    _tile_release();
    mnet_avx512_lut_pixels(p);
}

/* Windows are read where they lie: a row of one is inputs of a tile's row, completed as far as steps reach by what meets
 * zeros. */
static int conv_steps(int run) { return (run + STEP - 1) / STEP; }
static int conv_step(int run) { return (run + 4 * conv_steps(run) - 1) / (4 * conv_steps(run)) * 4; }

static size_t conv_bytes(int kh, int run, int channels)
{
    return (size_t)kh * (size_t)(conv_steps(run) * conv_step(run)) * (size_t)((channels + PANEL - 1) / PANEL * PANEL);
}

static void conv_pack(const int8_t *w, int kh, int run, int channels, void *out)
{
    const int there = (kh * run + 3) / 4 * 4, padded = conv_steps(run) * conv_step(run);
    int8_t *to = out;
    for (int c = 0; c < channels; c += PANEL, w += there * PANEL, to += kh * padded * PANEL)
        for (int k = 0; k < kh * padded; k++)
            for (int o = 0; o < PANEL; o++) {
                const int from = k / padded * run + k % padded; /* of the product's inputs */
                const int8_t tap = k % padded < run ? w[from / 4 * 4 * PANEL + o * 4 + from % 4] : 0;
                to[k / 4 * 4 * PANEL + o * 4 + k % 4] = tap;
            }
}

static void conv(const struct conv *v)
{
    const int k = v->kh * v->run, step = conv_step(v->run);
    const struct pointwise p = {{NULL, 0, 0}, {NULL, 0, 0}, 1, v->width, k, v->first, v->last, v->w, v->q, v->scratch};
    struct job j;
    void (*const of)(const struct job *) = job_of(&j, &p, v->kh, conv_steps(v->run) * step, step);
    j.pixel = v->stride * v->in_pixel;
    for (int r = 0; r < v->n; r++) {
        struct walk to = walk_of(v->out[r], v->out_pixel, 0, v->width);
        j.row = v->in + r * v->stride;
        runs(&j, of, 1, 0, v->width, &to);
    }
    _tile_release();
    for (int r = 0; v->q.lut && r < v->n; r++)
        mnet_avx512_lut_row(v->out[r] + v->first, v->width, v->out_pixel, v->last - v->first, v->q.lut);
}

TARGET_END

static const struct windows windows = {conv, conv_bytes, conv_pack, ROWS};

const struct kernels mnet_amx = {
    "amx",
    pointwise,
    pointwise_scratch,
    mnet_avx512_depthwise,
    mnet_avx512_depthwise_bytes,
    mnet_avx512_depthwise_pack,
    mnet_avx512_pointwise_f32,
    mnet_avx2_depthwise_f32,
    mnet_avx512_add_u8,
    mnet_avx512_mul_u8,
    mnet_avx512_lut_u8,
    mnet_avx2_sum_u8,
    mnet_avx512_quantize,
    mnet_avx2_dequantize,
    mnet_avx2_add_f32,
    mnet_avx2_mul_f32,
    mnet_avx2_act_f32,
    mnet_avx2_sum_f32,
    &windows,
};
#endif
