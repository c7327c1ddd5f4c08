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
    CHUNK = 160,       /* pixels that meet all weights before the next do, at most; their inputs stay in L1: */
    CHUNK_BYTES = 16384,
    MANY_INPUTS = 2048, /* from here on they wouldn't, */
    MOST_PIXELS = 512,  /* and as many as these are taken; also where weights meet them but once */
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
    const int32_t *start;      /* what sums begin with, of channel 0 */
    const uint8_t *const *row; /* where inputs lie: in one place for each row of a window */
    ptrdiff_t from, pixel;     /* there: the first of `pixels` at one distance */
    int pixels, kh, k4, step;  /* k4: inputs in one place */
    int in_row, tail, lean;
    uint8_t *y[MOST_PIXELS + 2 * ROWS];
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

/* A block whose sums are in memory or will be there: 64 at a time, a unit, are to become bytes. */
struct pending {
    int32_t *sums;
    uint8_t *const *y;
    int c, units;
};

/* Of n times 16 pixels by m panels; 3 take the room of 4. */
INLINE int units_of(int n, int m) { return 4 * n * (m == 3 ? 4 : m); }

/* Of a block: what turns its sums into bytes, in registers; which bytes of a pixel exist, whether pixels' lie together. */
struct scale {
    __m512 multiplier[4], excess[4];
    struct bounds512 bounds;
    int bytes, whole, together;
};

INLINE struct scale scale_of(const int m, const struct pointwise *p, const struct pending *b)
{
    struct scale s;
    UNROLL
    for (int o = 0; o < 4; o++) {
        s.multiplier[o] = _mm512_loadu_ps(p->q.multiplier + b->c + o % m * PANEL);
        s.excess[o] = excess512(s.multiplier[o]);
    }
    s.bounds = bounds512_of(p->q.zero, p->q.low, p->q.high);
    const int bytes = p->last - b->c, most = m * PANEL, pixels = 4 / m * b->units;
    s.bytes = bytes;
    s.whole = bytes >= most;
    s.together = m < 3 && s.whole && pixels && b->y[pixels - 1] == b->y[0] + (pixels - 1) * most;
    return s;
}

INLINE void convert(const int lean, const int m, struct pending *b, const struct scale *s)
{
    __m512i v[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = m == 3 && i == 3 ? v[2]
                                : scaled512(lean, _mm512_loadu_si512(b->sums + i * PANEL), s->multiplier[i], s->excess[i]);
    const __m512i bytes = to_bytes512(lean, v[0], v[1], v[2], v[3], &s->bounds);
    uint8_t *const *const y = b->y;
    const int c = b->c;
    if (m == 4 ? s->whole : s->together) {
        _mm512_storeu_si512(y[0] + c, bytes);
    } else if (m == 3 && s->whole) {
        _mm256_storeu_si256((void *)(y[0] + c), _mm512_castsi512_si256(bytes));
        _mm_storeu_si128((void *)(y[0] + c + 32), _mm512_extracti32x4_epi32(bytes, 2));
    } else if (m == 2 && s->whole) {
        _mm256_storeu_si256((void *)(y[0] + c), _mm512_castsi512_si256(bytes));
        _mm256_storeu_si256((void *)(y[1] + c), _mm512_extracti64x4_epi64(bytes, 1));
    } else if (m > 1) {
        const __mmask64 there = ((__mmask64)1 << s->bytes) - 1;
        _mm512_mask_storeu_epi8(y[0] + c, m == 2 ? (__mmask32)there : there, bytes);
        if (m == 2)
            _mm256_mask_storeu_epi8(y[1] + c, (__mmask32)there, _mm512_extracti64x4_epi64(bytes, 1));
    } else {
        UNROLL
        for (int e = 0; e < 4; e++)
            store_quarter(y[e] + c, bytes, e, s->whole);
    }
    b->sums += UNIT;
    b->y += m > 2 ? 1 : 4 / m;
    b->units--;
}

INLINE void convert_all(const int lean, const int m, struct pending *b, const struct scale *s)
{
    while (b->units)
        convert(lean, m, b, s);
}

/* The two blocks on their way: sums of the first become bytes, those of the second are in tiles. */
struct queue {
    struct pending first, second;
};

/* One step of inputs of n times 16 pixels by m panels. At a block's first, `start` being given, the block before leaves its
 * tiles, each when it is needed. Behind each tile some units of the block before that become bytes. */
INLINE void step(int each, const int begin, const int lean, const int n, const int m, const uint8_t *x,
                 ptrdiff_t pixel, const int8_t *w, ptrdiff_t panel, const int32_t *start, int32_t *sums,
                 struct pending *b, const struct scale *s)
{
#define TILE(t) \
    if (begin && t < (m == 3 ? 3 : 4)) \
        store_tile(t, m, sums); \
    if (begin && t < n * m) \
        begin_tile(t, m, start); \
    if (t < n * m) { \
        multiply(t, m, x, pixel, w, panel); \
        for (int u = 0; u < each; u++) \
            convert(lean, m, b, s); \
    }
    TILE(0) /* written out, as gcc unrolls no loop with a loop in it */
    TILE(1)
    TILE(2)
    TILE(3)
#undef TILE
}

/* Units behind each of so many products: all are done with when the last product is, or but a few are left. */
static int each_of(int units, int products)
{
    const int most = (units + products - 1) / products;
    return units % most ? units / products : most;
}

/* Multiplies n times 16 pixels from number i on by m panels from channel c on, `blocks` times, one behind the other. That
 * there is one unit behind a product, of many inputs, is known where this is compiled: it saves a tenth. */
INLINE void blocks_of(const int one, const int lean, const int n, const int m, const struct job *j, int i, int c,
                      int blocks, struct queue *queue)
{
    const struct pointwise *p = j->p;
    const ptrdiff_t panel = (ptrdiff_t)j->kh * j->k4 * PANEL, pixel = j->pixel, k = j->step;
    const int8_t *const weights = p->w + (ptrdiff_t)c / PANEL * panel;
    const int32_t *const start = j->start + c;
    const int units = units_of(n, m), products = n * m, in_row = j->in_row, all = j->kh * in_row;
    const int each = one ? 1 : each_of(units, products * all);
    ptrdiff_t from = j->from + i * pixel;
    struct queue q = *queue;
    for (; blocks > 0; blocks--, i += n * ROWS, from += n * ROWS * pixel) {
        const int8_t *w = weights;
        const uint8_t *const *row = j->row, *x = *row + from;
        const struct scale s = scale_of(m, p, &q.first);
        struct pending first = q.first;
        int steps = all, left = in_row;
#define STEP(each, begin) \
    { \
        step(each, begin, lean, n, m, x, pixel, w, panel, start, q.second.sums, &first, &s); \
        x += k, w += k * PANEL, steps--; \
        if (--left == 0 && steps) { \
            x = *++row + from; \
            left = in_row; \
        } \
    }
        if (first.units >= products * each)
            STEP(each, 1)
        else
            STEP(0, 1)
        while (steps && first.units >= products * each)
            STEP(each, 0)
        while (steps)
            STEP(0, 0)
#undef STEP
        if (j->tail)
            step(0, 0, lean, n, m, x, pixel, j->s->tails, TAIL_BYTES, NULL, NULL, &first, &s);
        convert_all(lean, m, &first, &s);
        first = (struct pending){q.first.sums, j->y + i, c, units};
        q.first = q.second;
        q.second = first;
    }
    *queue = q;
}

/* A function for each kind of blocks. */
typedef void blocks(const struct job *, int i, int c, int n, struct queue *);
#define BLOCKS(one, lean, m, n) \
    static void blocks_##one##lean##m##n(const struct job *j, int i, int c, int blocks, struct queue *q) \
    { \
        blocks_of(one, lean, n, m, j, i, c, blocks, q); \
    }
#define SHAPES(one, lean) \
    BLOCKS(one, lean, 1, 1) \
    BLOCKS(one, lean, 1, 2) \
    BLOCKS(one, lean, 1, 4) \
    BLOCKS(one, lean, 2, 1) \
    BLOCKS(one, lean, 2, 2) \
    BLOCKS(one, lean, 3, 1) \
    BLOCKS(one, lean, 4, 1)
SHAPES(0, 0)
SHAPES(0, 1)
SHAPES(1, 0)
SHAPES(1, 1)

/* The one for n times 16 pixels by m panels; n is 1, 2 or 4. */
static blocks *blocks_for(const struct job *j, int m, int n)
{
#define NAMES(one, lean) \
    {{blocks_##one##lean##11, blocks_##one##lean##12, blocks_##one##lean##14}, \
     {blocks_##one##lean##21, blocks_##one##lean##22}, \
     {blocks_##one##lean##31}, \
     {blocks_##one##lean##41}}
    static blocks *const all[2][2][4][3] = {{NAMES(0, 0), NAMES(0, 1)}, {NAMES(1, 0), NAMES(1, 1)}};
    return all[n * m * j->kh * j->in_row >= units_of(n, m)][j->lean][m - 1][n / 2];
}

/* What is still on its way. */
INLINE void finish_of(const int lean, const int m, const struct job *j, struct queue q)
{
    const struct pointwise *p = j->p;
    const struct scale first = scale_of(m, p, &q.first), second = scale_of(m, p, &q.second);
    store_tile(0, m, q.second.sums);
    store_tile(1, m, q.second.sums);
    store_tile(2, m, q.second.sums);
    if (m != 3)
        store_tile(3, m, q.second.sums);
    convert_all(lean, m, &q.first, &first);
    convert_all(lean, m, &q.second, &second);
}

static void finish(const struct job *j, int m, struct queue q)
{
    switch (m + 4 * j->lean) {
    case 1: finish_of(0, 1, j, q); break;
    case 2: finish_of(0, 2, j, q); break;
    case 3: finish_of(0, 3, j, q); break;
    case 4: finish_of(0, 4, j, q); break;
    case 5: finish_of(1, 1, j, q); break;
    case 6: finish_of(1, 2, j, q); break;
    case 7: finish_of(1, 3, j, q); break;
    default: finish_of(1, 4, j, q);
    }
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
static void panels(const struct job *j, int m, int from, int to)
{
    if (from == to)
        return;
    struct queue q = {{j->s->sums[0], j->y, from, 0}, {j->s->sums[1], j->y, from, 0}};
    const int n = m == 1 ? 4 : m == 2 ? 2 : 1, whole = j->pixels / (n * ROWS);
    blocks *const most = blocks_for(j, m, n), *const one = blocks_for(j, m, 1);
    blocks *const pair = m < 3 ? blocks_for(j, m, 2) : NULL;
    for (int c = from; c < to; c += m * PANEL) {
        if (j->tail)
            for (int o = 0; o < m; o++)
                complete(j, c + o * PANEL, j->s->tails + o * TAIL_BYTES);
        most(j, 0, c, whole, &q);
        int i = whole * n * ROWS;
        for (; m < 3 && j->pixels - i > ROWS && j->pixels >= 2 * ROWS; i += 2 * ROWS)
            pair(j, j->pixels - i < 2 * ROWS ? j->pixels - 2 * ROWS : i, c, 1, &q);
        for (; i < j->pixels; i += ROWS)
            one(j, j->pixels - i < ROWS ? j->pixels - ROWS : i, c, 1, &q);
    }
    finish(j, m, q);
}

static void all_panels(const struct job *j)
{
    const struct pointwise *p = j->p;
    int c = p->first, left = (p->last - c + PANEL - 1) / PANEL;
    if (p->k <= FEW_INPUTS || j->pixels <= ROWS) {
        const int fours = left == 5 ? 0 : left % 4 == 1 && left > 4 ? left / 4 - 1 : left / 4; /* 9: 4, 3, 2 */
        panels(j, 4, c, c + fours * 4 * PANEL);
        c += fours * 4 * PANEL, left -= fours * 4;
        if (left == 3 || left == 5) {
            panels(j, 3, c, c + 3 * PANEL);
            c += 3 * PANEL, left -= 3;
        }
    }
    panels(j, 2, c, c + left / 2 * 2 * PANEL);
    c += left / 2 * 2 * PANEL;
    if (left % 2)
        panels(j, 1, c, c + PANEL);
}

/* Runs of pixels at one distance: `rows` of `pixels` (one run, or a map's rows), the first of which is where `to` is. */
static void runs(struct job *j, int rows, ptrdiff_t row, int pixels, struct walk *to)
{
    const int k = j->kh * j->k4;
    const int wide = k <= FEW_INPUTS ? 4 * PANEL : 2 * PANEL, once = j->p->last - j->p->first <= wide;
    int most = CHUNK_BYTES / k / (2 * ROWS) * (2 * ROWS);
    most = once || k >= MANY_INPUTS ? MOST_PIXELS : most > CHUNK ? CHUNK : most < 2 * ROWS ? 2 * ROWS : most;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < pixels; i += j->pixels) {
            const int left = pixels - i; /* what is left behind a chunk is never less than a pair of tiles */
            j->pixels = left < most + 2 * ROWS ? left : most;
            j->from = r * row + i * j->pixel;
            walk_over(to, j->y, j->pixels);
            all_panels(j);
        }
}

/* What a job needs of a product, its inputs aside. */
static void job_of(struct job *j, const struct pointwise *p, int kh, int k4, int step)
{
    j->p = p;
    j->s = (void *)(((uintptr_t)p->scratch + STEP - 1) & ~(uintptr_t)(STEP - 1));
    j->kh = kh;
    j->k4 = k4;
    j->step = step;
    j->in_row = k4 / step;
    j->tail = k4 % step;
    j->start = p->q.bias;
    configure(step);
    j->lean = p->last <= MOST_CHANNELS && lean512(&p->q, p->first, p->last, p->k);
    if (!j->lean)
        return;
    j->start = j->s->start;
    for (int c = p->first; c < p->last; c += PANEL)
        _mm512_storeu_si512(j->s->start + c, start512(1, _mm512_loadu_si512(p->q.bias + c)));
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
    job_of(&j, p, 1, k4, step_of(k4));
    struct walk to = walk_of(p->y.at, p->y.pixel, p->y.row, p->width);
    j.row = &p->x.at;
    j.pixel = p->x.pixel;
    if (p->rows == 1 || p->x.row == p->x.pixel * p->width) {
        runs(&j, 1, 0, pixels, &to);
    } else if (p->width >= 2 * ROWS || p->width == ROWS) {
        runs(&j, p->rows, p->x.row, p->width, &to);
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
            runs(&j, 1, 0, n, &to);
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
    job_of(&j, &p, v->kh, conv_steps(v->run) * step, step);
    j.pixel = v->stride * v->in_pixel;
    for (int r = 0; r < v->n; r++) {
        struct walk to = walk_of(v->out[r], v->out_pixel, 0, v->width);
        j.row = v->in + r * v->stride;
        runs(&j, 1, 0, v->width, &to);
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
