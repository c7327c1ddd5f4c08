/* AMX in int8: dense products in tiles of 16 pixels by 16 outputs; everything else, and products that tiles are too large
 * for, are AVX-512's.
 *
 * A panel of packed weights is a column of tiles as it lies, the pixels of a map are rows of tiles: their distance is the
 * rows' stride. Inputs go in equal steps of at most 64 where their number allows that; else the last step of a panel is
 * completed with zeros in scratch, and what a tile reads behind a pixel's last input meets them. Where fewer than 16
 * pixels are left, a tile begins earlier and computes some again. Pixels that aren't at one distance from another (rows
 * of small maps) are copied first.
 *
 * Tiles' sums become bytes by way of memory, while the next block is multiplied: the two use different parts of the
 * processor, and each takes about as long as the other. A block is 16 pixels by 3 or 4 panels where inputs are few and
 * whole lines of outputs count, 32 pixels by 1 or 2 panels where weights had to be read too often. */
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
    CHUNK_BYTES = 32768,
    MANY_INPUTS = 2048, /* from here on they wouldn't: as many pixels as there may be, weights being more */
    UNIT = 64, /* sums that become bytes together */
    MOST_CHANNELS = 2048,
    TAIL_BYTES = STEP * PANEL,
    BLOCK_SUMS = 4 * ROWS * PANEL,
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
    const int32_t *start; /* what sums begin with, of channel 0 */
    const uint8_t *x;     /* the first of `pixels` at one distance */
    ptrdiff_t pixel;
    int pixels, k4, step;
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

/* One step of inputs of n times 16 pixels by m panels. */
INLINE void step(const int n, const int m, const uint8_t *x0, const uint8_t *x1, ptrdiff_t pixel, const int8_t *w,
                 ptrdiff_t panel)
{
    _tile_loadd(6, w, STEP);
    _tile_loadd(4, x0, pixel);
    _tile_dpbusd(0, 4, 6);
    if (m > 1) {
        _tile_loadd(7, w + panel, STEP);
        _tile_dpbusd(1, 4, 7);
    }
    if (n > 1) {
        _tile_loadd(5, x1, pixel);
        _tile_dpbusd(2, 5, 6);
        if (m > 1)
            _tile_dpbusd(3, 5, 7);
    }
    if (m > 2) {
        _tile_loadd(6, w + 2 * panel, STEP);
        _tile_dpbusd(2, 4, 6);
    }
    if (m > 3) {
        _tile_loadd(7, w + 3 * panel, STEP);
        _tile_dpbusd(3, 4, 7);
    }
}

/* A block whose sums are in memory, as [pixel][panel], 3 panels as 4: 64 at a time are to become bytes. */
struct pending {
    const int32_t *sums;
    uint8_t *const *y;
    int c, units, done;
};

/* Of channels c on: what turns sums into bytes, in registers. */
struct scale {
    __m512 multiplier[4], excess[4];
};

INLINE void convert(const int lean, const int m, struct pending *b, const struct scale *s, const struct bounds512 *bounds,
                    int last, int upto)
{
    const int pixels = m > 2 ? 1 : m > 1 ? 2 : 4;
    for (; b->done < upto; b->done++) {
        const int32_t *sums = b->sums + b->done * UNIT;
        __m512i v[4];
        UNROLL
        for (int i = 0; i < 4; i++)
            v[i] = m == 3 && i == 3 ? v[2]
                                    : scaled512(lean, _mm512_loadu_si512(sums + i * PANEL), s->multiplier[i], s->excess[i]);
        store_pixels(m, b->y + b->done * pixels, b->c, last - b->c, to_bytes512(lean, v[0], v[1], v[2], v[3], bounds));
    }
}

/* Multiplies n times 16 pixels from number i on by m panels from channel c on, and meanwhile finishes the block before. */
INLINE void block(const int lean, const int n, const int m, const struct job *j, int i, int c, struct pending *before)
{
    const struct pointwise *p = j->p;
    const ptrdiff_t panel = (ptrdiff_t)j->k4 * PANEL, row = (m == 3 ? 4 : m) * PANEL * (ptrdiff_t)sizeof(int32_t);
    const int8_t *w = p->w + (ptrdiff_t)c / PANEL * panel;
    const uint8_t *x0 = j->x + i * j->pixel, *x1 = x0 + ROWS * j->pixel;
    const int32_t *start = j->start + c;
    const struct bounds512 bounds = bounds512_of(p->q.zero, p->q.low, p->q.high);
    struct scale s;
    UNROLL
    for (int o = 0; o < 4; o++) {
        s.multiplier[o] = _mm512_loadu_ps(p->q.multiplier + before->c + o % m * PANEL);
        s.excess[o] = excess512(s.multiplier[o]);
    }
    _tile_loadd(0, start, 0); /* the same row sixteen times */
    if (m > 1)
        _tile_loadd(1, start + PANEL, 0);
    if (n > 1) {
        _tile_loadd(2, start, 0);
        if (m > 1)
            _tile_loadd(3, start + PANEL, 0);
    }
    if (m > 2)
        _tile_loadd(2, start + 2 * PANEL, 0);
    if (m > 3)
        _tile_loadd(3, start + 3 * PANEL, 0);
    const int steps = (j->k4 + j->step - 1) / j->step, each = (before->units + steps - 1) / steps;
    int k = 0;
    for (int upto = each; k + j->step <= j->k4; k += j->step, upto += each) {
        step(n, m, x0 + k, x1 + k, j->pixel, w + k * PANEL, panel);
        convert(lean, m, before, &s, &bounds, p->last, upto < before->units ? upto : before->units);
    }
    if (k < j->k4)
        step(n, m, x0 + k, x1 + k, j->pixel, j->s->tails, TAIL_BYTES);
    convert(lean, m, before, &s, &bounds, p->last, before->units);
    int32_t *sums = before->sums == j->s->sums[0] ? j->s->sums[1] : j->s->sums[0];
    _tile_stored(0, sums, row);
    if (m > 1)
        _tile_stored(1, sums + PANEL, row);
    if (n > 1) {
        _tile_stored(2, sums + ROWS * m * PANEL, row);
        if (m > 1)
            _tile_stored(3, sums + ROWS * m * PANEL + PANEL, row);
    }
    if (m > 2)
        _tile_stored(2, sums + 2 * PANEL, row);
    if (m > 3)
        _tile_stored(3, sums + 3 * PANEL, row);
    const struct pending now = {sums, j->y + i, c, n * ROWS * (m == 3 ? 4 : m) / 4, 0};
    *before = now;
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
    const struct pointwise *p = j->p;
    const struct bounds512 bounds = bounds512_of(p->q.zero, p->q.low, p->q.high);
    struct pending before = {j->s->sums[1], j->y, from, 0, 0};
    for (int c = from; c < to; c += m * PANEL) {
        if (j->k4 % j->step)
            for (int o = 0; o < m; o++)
                complete(j, c + o * PANEL, j->s->tails + o * TAIL_BYTES);
        int i = 0;
        if (m < 3 && j->pixels >= 2 * ROWS)
            for (; j->pixels - i > ROWS; i += 2 * ROWS)
                block(lean, 2, m, j, j->pixels - i < 2 * ROWS ? j->pixels - 2 * ROWS : i, c, &before);
        for (; i < j->pixels; i += ROWS)
            block(lean, 1, m, j, j->pixels - i < ROWS ? j->pixels - ROWS : i, c, &before);
    }
    struct scale s;
    UNROLL
    for (int o = 0; o < 4; o++) {
        s.multiplier[o] = _mm512_loadu_ps(p->q.multiplier + before.c + o % m * PANEL);
        s.excess[o] = excess512(s.multiplier[o]);
    }
    convert(lean, m, &before, &s, &bounds, p->last, before.units);
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
static void runs(struct job *j, void (*of)(const struct job *), const uint8_t *x, int rows, ptrdiff_t row, int pixels,
                 struct walk *to)
{
    int most = CHUNK_BYTES / j->k4 / (2 * ROWS) * (2 * ROWS);
    most = most > CHUNK || j->k4 >= MANY_INPUTS ? CHUNK : most < 2 * ROWS ? 2 * ROWS : most;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < pixels; i += j->pixels) {
            const int left = pixels - i; /* what is left behind a chunk is never less than a pair of tiles */
            j->pixels = left < most + 2 * ROWS ? left : most;
            j->x = x + r * row + i * j->pixel;
            for (int o = 0; o < j->pixels; o++)
                j->y[o] = walk_on(to);
            of(j);
        }
}

static void pointwise(const struct pointwise *p)
{
    const int pixels = p->rows * p->width;
    if (p->k < LEAST_INPUTS || pixels < ROWS) {
        mnet_avx512_pointwise(p);
        return;
    }
    struct job j;
    j.p = p;
    j.s = (void *)(((uintptr_t)p->scratch + STEP - 1) & ~(uintptr_t)(STEP - 1));
    j.pixel = p->x.pixel;
    j.k4 = (p->k + 3) / 4 * 4;
    j.step = step_of(j.k4);
    j.start = p->q.bias;
    void (*of)(const struct job *) = full;
    if (p->last <= MOST_CHANNELS && lean512(&p->q, p->first, p->last, p->k)) {
        of = lean;
        j.start = j.s->start;
        for (int c = p->first; c < p->last; c += PANEL)
            _mm512_storeu_si512(j.s->start + c, start512(1, _mm512_loadu_si512(p->q.bias + c)));
    }
    configure(j.step);
    struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
    if (p->rows == 1 || p->x.row == p->x.pixel * p->width) {
        runs(&j, of, p->x.at, 1, 0, pixels, &to);
    } else if (p->width >= 2 * ROWS || p->width == ROWS) {
        runs(&j, of, p->x.at, p->rows, p->x.row, p->width, &to);
    } else {
        const size_t pitch = pitch_of(p->k);
        struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
        j.pixel = (ptrdiff_t)pitch;
        for (int i = 0, n; i < pixels; i += n) {
            const int left = pixels - i; /* never so few that they don't fill a tile */
            n = left <= COPIED ? left : left < COPIED + ROWS ? COPIED - ROWS : COPIED;
            for (int o = 0; o < n; o++)
                memcpy(j.s->copied + (size_t)o * pitch, walk_on(&from), (size_t)p->k);
            runs(&j, of, j.s->copied, 1, 0, n, &to);
        }
    }
    _tile_release();
    mnet_avx512_lut_pixels(p);
}

TARGET_END

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
};
#endif
