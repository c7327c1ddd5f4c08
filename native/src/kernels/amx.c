/* AMX in int8: dense products in tiles of 16 pixels by 16 outputs; everything else, and products that tiles are too large
 * for, are AVX-512's.
 *
 * A panel of packed weights is a column of tiles as it lies, the pixels of a map are rows of tiles: their distance is the
 * rows' stride. All tiles are whole: what a tile of inputs reads behind a pixel's last input meets weights of 0 (the last
 * tile of a panel is completed with zeros in scratch), and where fewer than 16 pixels are left, a tile begins earlier and
 * computes some again. Pixels that aren't at one distance from another (rows of small maps) are copied first. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx512.h"

#include <string.h>

TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")

enum {
    ROWS = 16,         /* of a tile: pixels */
    STEP = 64,         /* its columns: inputs */
    LEAST_INPUTS = 40, /* below, tiles are mostly empty */
    COPIED = 64,       /* pixels that are copied at a time */
    TAIL_BYTES = STEP * PANEL, SUM_BYTES = 2 * ROWS * 2 * PANEL * 4,
};

static size_t pitch_of(int k) { return ((size_t)k + STEP - 1) / STEP * STEP; }

static size_t pointwise_scratch(int k) { return SUM_BYTES + 2 * TAIL_BYTES + COPIED * pitch_of(k) + STEP; }

struct job {
    const struct pointwise *p;
    const uint8_t *x; /* the first of `pixels` at one distance */
    ptrdiff_t pixel;
    int pixels, number; /* how many, and the first one's number in the map */
    int8_t *tails;
    int32_t *sums;
};

static void configure(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int t = 0; t < 8; t++) {
        c.columns[t] = STEP;
        c.rows[t] = ROWS;
    }
    _tile_loadconfig(&c);
}

/* One step of inputs: tiles 0 to 3 are sums, 4 and 5 pixels, 6 and 7 weights. */
INLINE void step(const int twice, const int wide, const uint8_t *x0, const uint8_t *x1, ptrdiff_t pixel,
                 const int8_t *w0, const int8_t *w1)
{
    _tile_loadd(6, w0, STEP);
    _tile_loadd(4, x0, pixel);
    _tile_dpbusd(0, 4, 6);
    if (wide) {
        _tile_loadd(7, w1, STEP);
        _tile_dpbusd(1, 4, 7);
    }
    if (twice) {
        _tile_loadd(5, x1, pixel);
        _tile_dpbusd(2, 5, 6);
        if (wide)
            _tile_dpbusd(3, 5, 7);
    }
}

/* Sixteen pixels' sums as bytes; sums lie as [pixel][2 panels]. */
INLINE void finish(const struct job *j, const int32_t *sums, int first, int c, const int wide)
{
    const struct pointwise *p = j->p;
    const struct requant *q = &p->q;
    const struct bounds512 bounds = bounds512_of(q);
    const int bytes = p->last - c, number = j->number + first;
    const __m512 m0 = _mm512_loadu_ps(q->multiplier + c);
    const __m512 m1 = wide ? _mm512_loadu_ps(q->multiplier + c + PANEL) : m0;
    const __mmask32 mask = bytes >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << bytes) - 1;
    struct walk to = walk_of(p->y.at + c, p->y.pixel, p->y.row, p->width);
    to.column = number % p->width;
    to.at += number / p->width * p->y.row + to.column * p->y.pixel;
    for (int i = 0; i < ROWS; i += 2, sums += 4 * PANEL) {
        const __m512i a = scaled512(_mm512_loadu_si512(sums), m0);
        const __m512i b = wide ? scaled512(_mm512_loadu_si512(sums + PANEL), m1) : a;
        const __m512i d = scaled512(_mm512_loadu_si512(sums + 2 * PANEL), m0);
        const __m512i e = wide ? scaled512(_mm512_loadu_si512(sums + 3 * PANEL), m1) : d;
        const __m512i v = to_bytes512(a, b, d, e, &bounds);
        _mm256_mask_storeu_epi8(walk_on(&to), mask, _mm512_castsi512_si256(v));
        _mm256_mask_storeu_epi8(walk_on(&to), mask, _mm512_extracti64x4_epi64(v, 1));
    }
}

/* 16 pixels from number i on, and 16 from `other` on where it is not -1, by one panel or two. */
INLINE void tile(const struct job *j, int i, int other, int c, const int twice, const int wide)
{
    const struct pointwise *p = j->p;
    const int k4 = (p->k + 3) / 4 * 4;
    const int8_t *w0 = p->w + (ptrdiff_t)c * k4, *w1 = w0 + (ptrdiff_t)k4 * PANEL;
    const uint8_t *x0 = j->x + i * j->pixel, *x1 = j->x + other * j->pixel;
    const ptrdiff_t row = 2 * PANEL * sizeof(int32_t);
    _tile_loadd(0, p->q.bias + c, 0); /* the same row sixteen times */
    if (wide)
        _tile_loadd(1, p->q.bias + c + PANEL, 0);
    if (twice) {
        _tile_loadd(2, p->q.bias + c, 0);
        if (wide)
            _tile_loadd(3, p->q.bias + c + PANEL, 0);
    }
    int k = 0;
    for (; k + STEP <= k4; k += STEP)
        step(twice, wide, x0 + k, x1 + k, j->pixel, w0 + k * PANEL, w1 + k * PANEL);
    if (k < k4)
        step(twice, wide, x0 + k, x1 + k, j->pixel, j->tails, j->tails + TAIL_BYTES);
    _tile_stored(0, j->sums, row);
    if (wide)
        _tile_stored(1, j->sums + PANEL, row);
    finish(j, j->sums, i, c, wide);
    if (twice) {
        int32_t *sums = j->sums + ROWS * 2 * PANEL;
        _tile_stored(2, sums, row);
        if (wide)
            _tile_stored(3, sums + PANEL, row);
        finish(j, sums, other, c, wide);
    }
}

/* The last inputs' weights of a panel, completed with zeros. */
static void complete(const struct pointwise *p, int c, int8_t *tail)
{
    const int k4 = (p->k + 3) / 4 * 4, k = k4 / STEP * STEP;
    const size_t there = (size_t)(k4 - k) * PANEL;
    memcpy(tail, p->w + (ptrdiff_t)c * k4 + (ptrdiff_t)k * PANEL, there);
    memset(tail + there, 0, TAIL_BYTES - there);
}

INLINE void pixels_of(const struct job *j, int c, const int wide)
{
    const int last = j->pixels - ROWS;
    for (int i = 0; i < j->pixels; i += 2 * ROWS) {
        const int first = i < last ? i : last, other = i + ROWS < last ? i + ROWS : last;
        if (i + ROWS < j->pixels)
            tile(j, first, other, c, 1, wide);
        else
            tile(j, first, first, c, 0, wide);
    }
}

/* Runs of pixels at one distance (one run, or a map's rows) by all panels. */
static void runs(struct job *j, int rows, ptrdiff_t row)
{
    const struct pointwise *p = j->p;
    const uint8_t *x = j->x;
    const int number = j->number;
    for (int c = p->first; c < p->last; c += 2 * PANEL) {
        const int wide = p->last - c > PANEL;
        if ((p->k + 3) / 4 * 4 % STEP) {
            complete(p, c, j->tails);
            if (wide)
                complete(p, c + PANEL, j->tails + TAIL_BYTES);
        }
        for (int r = 0; r < rows; r++) {
            j->x = x + r * row;
            j->number = number + r * p->width;
            if (wide)
                pixels_of(j, c, 1);
            else
                pixels_of(j, c, 0);
        }
    }
}

static void pointwise(const struct pointwise *p)
{
    const int pixels = p->rows * p->width;
    if (p->k < LEAST_INPUTS || pixels < ROWS) {
        mnet_avx512_pointwise(p);
        return;
    }
    int32_t *sums = (void *)(((uintptr_t)p->scratch + STEP - 1) & ~(uintptr_t)(STEP - 1));
    int8_t *tails = (int8_t *)sums + SUM_BYTES;
    uint8_t *copied = (uint8_t *)tails + 2 * TAIL_BYTES;
    struct job j = {p, p->x.at, p->x.pixel, pixels, 0, tails, sums};
    configure();
    if (p->rows == 1 || p->x.row == p->x.pixel * p->width) {
        runs(&j, 1, 0);
    } else if (p->width >= 2 * ROWS || p->width == ROWS) {
        j.pixels = p->width;
        runs(&j, p->rows, p->x.row);
    } else {
        const size_t pitch = pitch_of(p->k);
        struct walk from = walk_of(p->x.at, p->x.pixel, p->x.row, p->width);
        j.x = copied;
        j.pixel = (ptrdiff_t)pitch;
        for (int i = 0; i < pixels; i += j.pixels) {
            const int left = pixels - i; /* never so few that they don't fill a tile */
            j.pixels = left <= COPIED ? left : left < COPIED + ROWS ? COPIED - ROWS : COPIED;
            for (int o = 0; o < j.pixels; o++)
                memcpy(copied + (size_t)o * pitch, walk_on(&from), (size_t)p->k);
            j.x = copied;
            j.number = i;
            runs(&j, 1, 0);
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
    mnet_avx2_add_u8,
    mnet_avx2_mul_u8,
    mnet_avx512_lut_u8,
    mnet_avx2_sum_u8,
    mnet_avx2_quantize,
    mnet_avx2_dequantize,
    mnet_avx2_add_f32,
    mnet_avx2_mul_f32,
    mnet_avx2_act_f32,
    mnet_avx2_sum_f32,
};
#endif
