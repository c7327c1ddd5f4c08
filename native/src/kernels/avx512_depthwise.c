/* AVX-512 with VNNI: depthwise convolutions in whole numbers.
 *
 * vpdpbusd adds four products of bytes that lie side by side, so the bytes of four rows at one place are interleaved: a
 * "quad", made with unpacks for 64 channels (four vectors). A window taller than four takes two quads. Going along a row
 * pixel by pixel, a quad serves all the output columns whose windows hold that pixel: their sums stay in registers, the
 * oldest is finished and the next begins with each step. Of kernels of up to three rows, a quad also serves two output
 * rows: with taps (w0, w1, w2, 0) and (0, w0, w1, w2). The unpacks leave channels 16 l + 4 j + 0..3 in quarter l of
 * vector j; weights lie in the same order, and packing the sums to bytes puts them back.
 *
 *   w[C/64][shift][kw][quad][j][l][4 channels][4 taps]
 *
 * Where fewer than 64 channels are left, 32, 16 or 8 fill a part of a vector, and the other parts take other parts of the
 * row: 2 or 4 groups of columns, which overlap where the width is no multiple. Where more than half a block is left, the
 * block goes back over channels that are done rather than be made of parts.
 *
 * Where pixels have 8 or 16 channels in all and the window is 3x3, that left most of the work to loads and unpacks. There
 * a row is a line of bytes, of which one vpermb (on processors that have it) makes a quad along the row: of pixels 0 to 3
 * for 16 channels; for 8, of 0 to 3 and of 2 to 5. With stride 1 it serves the next column too, by weights one tap later.
 *
 *   w[kh][16 channels, or 8 twice][4 taps of a row], behind the others */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx512.h"

#include <string.h>

enum { BLOCK = 64, MOST_KERNEL = 7, QUAD_BYTES = 256, MOST_BLOCK_BYTES = 7 * 2 * QUAD_BYTES,
       LINE_BYTES = 3 * 64 };

static int quads(int kh) { return (kh + 3) / 4; }
static int shifts(int kh) { return kh < 4 ? 2 : 1; }
static int plain(int kh, int kw) { return kh > MOST_KERNEL || kw > MOST_KERNEL; } /* left to plain C */

static int lined(int kh, int kw, int channels) { return kh == 3 && kw == 3 && channels <= 16; }

static size_t block_bytes(int kh, int kw) { return (size_t)(shifts(kh) * kw * quads(kh)) * QUAD_BYTES; }

size_t mnet_avx512_depthwise_bytes(int kh, int kw, int channels)
{
    if (plain(kh, kw))
        return mnet_scalar.depthwise_bytes(kh, kw, channels);
    return (size_t)((channels + BLOCK - 1) / BLOCK) * block_bytes(kh, kw) + (lined(kh, kw, channels) ? LINE_BYTES : 0);
}

void mnet_avx512_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out)
{
    if (plain(kh, kw)) {
        mnet_scalar.depthwise_pack(w, kh, kw, channels, out);
        return;
    }
    memset(out, 0, mnet_avx512_depthwise_bytes(kh, kw, channels));
    for (int c = 0; c < channels; c++) {
        int8_t *block = (int8_t *)out + (size_t)(c / BLOCK) * block_bytes(kh, kw);
        const int place = c % 16 / 4 * 64 + c % BLOCK / 16 * 16 + c % 4 * 4;
        for (int s = 0; s < shifts(kh); s++)
            for (int v = 0; v < kw; v++)
                for (int h = 0; h < kh; h++) {
                    const int tap = s + h;
                    int8_t *quad = block + ((s * kw + v) * quads(kh) + tap / 4) * QUAD_BYTES;
                    quad[place + tap % 4] = w[(ptrdiff_t)(h * kw + v) * channels + c];
                }
    }
    int8_t *line = (int8_t *)out + block_bytes(kh, kw);
    for (int i = 0; lined(kh, kw, channels) && i < 3 * 16; i++)
        for (int v = 0; v < 3; v++)
            line[i * 4 + v] = w[(i / 16 * 3 + v) * channels + i % channels];
}

TARGET_BEGIN(AVX512_FEATURES)

/* What is the same for all outputs of a block: a part of them in each of four vectors. */
struct block {
    const int8_t *w;
    __m512i start[4];
    __m512 multiplier[4], excess[4];
    struct bounds512 bounds;
    int lean;
};

/* The channels from c on of quarter l, vector j; `groups` share a vector, 8 channels fill half of a quarter. */
static int channel_of(int groups, int l, int j) { return l % (4 / groups) * 16 + j * 4; }

static void assemble(struct block *b, const struct depthwise *d, int c, int channels, int groups, int8_t *own)
{
    int32_t bias[4][16] = {{0}};
    float multiplier[4][16] = {{0}};
    const size_t vectors = block_bytes(d->kh, d->kw) / 64;
    const int whole = c % BLOCK == 0 && channels == BLOCK;
    for (int j = 0; j < 4; j++)
        for (int l = 0; l < 4; l++) {
            const int at = c + channel_of(groups, l, j);
            if (at >= c + channels)
                continue;
            memcpy(bias[j] + l * 4, d->q.bias + at, 16);
            memcpy(multiplier[j] + l * 4, d->q.multiplier + at, 16);
        }
    for (int j = 0; j < 4; j++) {
        b->start[j] = start512(b->lean, _mm512_loadu_si512(bias[j]));
        b->multiplier[j] = _mm512_loadu_ps(multiplier[j]);
        b->excess[j] = excess512(b->multiplier[j]);
    }
    if (whole) {
        b->w = (const int8_t *)d->w + (size_t)(c / BLOCK) * block_bytes(d->kh, d->kw);
        return;
    }
    b->w = own;
    for (size_t i = 0; i < vectors; i += 4)
        for (int j = 0; j < 4; j++)
            for (int l = 0; l < 4; l++) {
                const int at = c + channel_of(groups, l, j);
                int8_t *to = own + (i + (size_t)j) * 64 + l * 16;
                if (at >= c + channels) {
                    memset(to, 0, 16);
                    continue;
                }
                const int8_t *block = (const int8_t *)d->w + (size_t)(at / BLOCK) * block_bytes(d->kh, d->kw);
                memcpy(to, block + (i + (size_t)(at % 16 / 4)) * 64 + at % BLOCK / 16 * 16, 16);
            }
}

/* How a row is dealt to the groups: where each begins, in bytes of inputs and of outputs, and how many columns it has. */
struct deal {
    ptrdiff_t from[4], to[4];
    int columns;
};

INLINE struct deal deal_of(const int groups, const struct depthwise *d)
{
    struct deal s = {{0}, {0}, (d->width + groups - 1) / groups};
    for (int g = 1; g < groups; g++) {
        const int first = g * s.columns < d->width - s.columns ? g * s.columns : d->width - s.columns;
        s.from[g] = first * d->stride * d->in_pixel;
        s.to[g] = first * d->out_pixel;
    }
    return s;
}

/* 64 channels of a pixel, or fewer of one pixel for each group. */
INLINE __m512i load(const uint8_t *x, const ptrdiff_t *from, const int channels)
{
    if (channels == 64)
        return _mm512_loadu_si512(x);
    if (channels == 32)
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const void *)x)),
                                  _mm256_loadu_si256((const void *)(x + from[1])), 1);
#define QUARTER(g) \
    (channels == 16 ? _mm_loadu_si128((const void *)(x + from[g])) : _mm_loadl_epi64((const void *)(x + from[g])))
    __m512i v = _mm512_castsi128_si512(QUARTER(0));
    v = _mm512_inserti32x4(v, QUARTER(1), 1);
    v = _mm512_inserti32x4(v, QUARTER(2), 2);
    return _mm512_inserti32x4(v, QUARTER(3), 3);
#undef QUARTER
}

/* The quad of up to four rows; what stands for rows that aren't there meets weights of 0. */
INLINE void interleave(__m512i *quad, const uint8_t *const *x, const int rows, ptrdiff_t at, const ptrdiff_t *from,
                       const int channels)
{
    __m512i x0 = load(x[0] + at, from, channels);
    if (rows == 1) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            const __m128i order = _mm_add_epi8(_mm_setr_epi8(0, -99, -99, -99, 1, -99, -99, -99, 2, -99, -99, -99, 3, -99,
                                                             -99, -99), _mm_set1_epi8((char)(4 * j)));
            quad[j] = _mm512_shuffle_epi8(x0, _mm512_broadcast_i32x4(order));
        }
        return;
    }
    __m512i x1 = load(x[1] + at, from, channels), x2 = rows > 2 ? load(x[2] + at, from, channels) : x1;
    __m512i x3 = rows > 3 ? load(x[3] + at, from, channels) : x2;
    held512(&x0), held512(&x1), held512(&x2), held512(&x3);
    const __m512i low01 = _mm512_unpacklo_epi8(x0, x1), high01 = _mm512_unpackhi_epi8(x0, x1);
    const __m512i low23 = _mm512_unpacklo_epi8(x2, x3), high23 = _mm512_unpackhi_epi8(x2, x3);
    quad[0] = _mm512_unpacklo_epi16(low01, low23), quad[1] = _mm512_unpackhi_epi16(low01, low23);
    quad[2] = _mm512_unpacklo_epi16(high01, high23), quad[3] = _mm512_unpackhi_epi16(high01, high23);
}

INLINE void dot(__m512i *sum, const __m512i *quad, const int8_t *w)
{
    UNROLL
    for (int j = 0; j < 4; j++)
        dot512_at(&sum[j], quad[j], w + j * 64);
}

/* Sums of a column of R rows as bytes, of each group to its own pixel. */
INLINE void finish(const int lean, const int R, const struct block *b, __m512i (*sum)[4], uint8_t *const *y,
                   const ptrdiff_t *to, const int channels)
{
    UNROLL
    for (int j = 0; j < 4; j++) {
        __m512i multiplier = _mm512_castps_si512(b->multiplier[j]);
        held512(&multiplier);
        UNROLL
        for (int r = 0; r < R; r++)
            sum[r][j] = scaled512(lean, sum[r][j], _mm512_castsi512_ps(multiplier), b->excess[j]);
    }
    UNROLL
    for (int r = 0; r < R; r++) {
        const __m512i v = narrow512(lean, sum[r][0], sum[r][1], sum[r][2], sum[r][3], &b->bounds);
        if (channels == 64) {
            _mm512_storeu_si512(y[r], v);
        } else if (channels == 32) {
            _mm256_storeu_si256((void *)y[r], _mm512_castsi512_si256(v));
            _mm256_storeu_si256((void *)(y[r] + to[1]), _mm512_extracti64x4_epi64(v, 1));
        } else {
            UNROLL
            for (int g = 0; g < 4; g++)
                store_quarter(y[r] + to[g], v, g, channels == 16);
        }
    }
}

/* R output rows of a window on their way. */
struct way {
    const struct block *b;
    const int8_t *w;
    const uint8_t *x[MOST_KERNEL];
    uint8_t *y[2];
    ptrdiff_t at, in_pixel, out_pixel; /* `at`: the next pixel */
    struct deal deal;
};

/* A pixel, by the taps of all columns that hold it, from the oldest on: it is pixel p from the first one of column 0, and
 * columns' sums lie at the column's number modulo `live`. The last tap finishes a column, the first begins one. */
INLINE void pixel(const int lean, const int kh, const int kw, const int stride, const int R, const int channels,
                  struct way *t, __m512i (*sum)[2][4], const int p)
{
    const int Q = (kh + 3) / 4, live = (kw - 1) / stride, rows = kh + R - 1;
    const int8_t *w = anew(t->w);
    __m512i quad[2][4];
    UNROLL
    for (int q = 0; q < Q; q++)
        interleave(quad[q], t->x + 4 * q, rows - 4 * q < 4 ? rows - 4 * q : 4, t->at, t->deal.from, channels);
    t->at += t->in_pixel;
    UNROLL
    for (int v = kw - 1; v >= 0; v--) {
        if ((p + 8 * stride - v) % stride || p < v)
            continue;
        __m512i(*s)[4] = sum[(p - v) / stride % live];
        UNROLL
        for (int r = 0; r < R; r++) {
            UNROLL
            for (int j = 0; v == 0 && j < 4; j++)
                s[r][j] = t->b->start[j];
            UNROLL
            for (int q = 0; q < Q; q++)
                dot(s[r], quad[q], w + ((r * kw + v) * Q + q) * QUAD_BYTES);
        }
        if (v < kw - 1)
            continue;
        finish(lean, R, t->b, s, t->y, t->deal.to, channels);
        UNROLL
        for (int r = 0; r < R; r++)
            t->y[r] += t->out_pixel;
    }
}

/* R output rows (1; 2 where stride is 1 and kh below 4) of a window of constant size, all their columns. */
INLINE void along(const int lean, const int kh, const int kw, const int stride, const int R, const int channels,
                  const struct depthwise *d, const struct block *b, int row, int c)
{
    const int live = (kw - 1) / stride;
    struct way t = {b, b->w, {0}, {0}, 0, d->in_pixel, d->out_pixel, deal_of(channels >= 16 ? 64 / channels : 4, d)};
    UNROLL
    for (int i = 0; i < kh + R - 1; i++)
        t.x[i] = d->in[row * stride + i] + c;
    UNROLL
    for (int r = 0; r < R; r++)
        t.y[r] = d->out[row + r] + c;
    __m512i sum[4][2][4];
    UNROLL
    for (int p = 0; p < kw - stride; p++)
        pixel(lean, kh, kw, stride, R, channels, &t, sum, p);
    const int steps = kw > 3 ? 1 : live; /* for large windows to turn the sums about, in registers, is little */
    for (int i = 0; i < t.deal.columns; i += steps) { /* each step: the pixels that column i + u waits for */
        UNROLL
        for (int u = 0; u < steps; u++) {
            if (u && i + u >= t.deal.columns)
                break;
            UNROLL
            for (int e = 0; e < stride; e++)
                pixel(lean, kh, kw, stride, R, channels, &t, sum, u * stride + kw - stride + e);
        }
        if (steps == live)
            continue;
        UNROLL
        for (int j = 0; j < 4; j++) {
            const __m512i newest = sum[0][0][j];
            UNROLL
            for (int k = 0; k + 1 < live; k++)
                sum[k][0][j] = sum[k + 1][0][j];
            sum[live - 1][0][j] = newest;
        }
    }
}

/* One row of any window, column by column. */
INLINE void any(const int lean, const int channels, const struct depthwise *d, const struct block *b, int row, int c)
{
    const struct deal deal = deal_of(channels >= 16 ? 64 / channels : 4, d);
    const int Q = quads(d->kh);
    const uint8_t *x[8];
    for (int t = 0; t < 8; t++)
        x[t] = d->in[row * d->stride + (t < d->kh ? t : d->kh - 1)] + c;
    for (int i = 0; i < deal.columns; i++) {
        const int8_t *w = b->w;
        uint8_t *const y = d->out[row] + i * d->out_pixel + c;
        __m512i sum[1][4] = {{b->start[0], b->start[1], b->start[2], b->start[3]}}, quad[4];
        for (int v = 0; v < d->kw; v++)
            for (int q = 0; q < Q; q++, w += QUAD_BYTES) {
                interleave(quad, x + 4 * q, 4, ((ptrdiff_t)i * d->stride + v) * d->in_pixel, deal.from, channels);
                dot(sum[0], quad, w);
            }
        finish(lean, 1, b, sum, &y, deal.to, channels);
    }
}

INLINE void block_of(const int lean, const int channels, const struct depthwise *d, const struct block *b, int c)
{
    const int size = d->kh == d->kw && d->stride < 10 ? d->kh * 10 + d->stride : 0;
    for (int row = 0; row < d->n;) {
        if (size == 31 && row + 1 < d->n) {
            along(lean, 3, 3, 1, 2, channels, d, b, row, c);
            row += 2;
            continue;
        }
        switch (size) {
        case 31: along(lean, 3, 3, 1, 1, channels, d, b, row, c); break;
        case 32: along(lean, 3, 3, 2, 1, channels, d, b, row, c); break;
        case 51: along(lean, 5, 5, 1, 1, channels, d, b, row, c); break;
        case 52: along(lean, 5, 5, 2, 1, channels, d, b, row, c); break;
        default: any(lean, channels, d, b, row, c); break;
        }
        row++;
    }
}

#define BLOCKS(n) \
    static void full_##n(const struct depthwise *d, const struct block *b, int c) { block_of(0, n, d, b, c); } \
    static void lean_##n(const struct depthwise *d, const struct block *b, int c) { block_of(1, n, d, b, c); }
BLOCKS(64)
BLOCKS(32)
BLOCKS(16)
BLOCKS(8)

static void blocks(const struct depthwise *d, const struct bounds512 *bounds, int lean)
{
    _Alignas(64) int8_t own[MOST_BLOCK_BYTES];
    struct block b;
    b.bounds = *bounds;
    b.lean = lean;
    for (int next = d->first; next < d->last;) {
        const int left = d->last - next, most = d->last - d->first;
        const int channels = left > 32 && most >= 64 ? 64 : left > 16 && most >= 32 ? 32 : left >= 16 ? 16 : 8;
        const int c = channels < left ? next : d->last - channels;
        next = c + channels;
        assemble(&b, d, c, channels, channels >= 16 ? 64 / channels : 4, own);
        if (b.lean)
            (channels == 64 ? lean_64 : channels == 32 ? lean_32 : channels == 16 ? lean_16 : lean_8)(d, &b, c);
        else
            (channels == 64 ? full_64 : channels == 32 ? full_32 : channels == 16 ? full_16 : full_8)(d, &b, c);
    }
}

TARGET_END

TARGET_BEGIN(AVX512_FEATURES ",avx512vbmi")

/* Maps of 8 or 16 channels, window 3x3: what is the same for all outputs. */
struct line {
    __m512i w[2][3];     /* of the quad's own column and, a tap later, of the next */
    __m512i quad, order; /* which bytes make a quad; which order the outputs come in */
    __m512i start;
    __m512 multiplier, excess;
    struct bounds512 bounds;
};

static int in_line(const struct depthwise *d)
{
    return lined(d->kh, d->kw, d->channels) && d->stride <= 2 && d->first == 0 && d->last == d->channels &&
           d->in_pixel == d->channels && d->out_pixel == d->channels && __builtin_cpu_supports("avx512vbmi");
}

static struct line line_of(const struct depthwise *d, const struct bounds512 *bounds, int lean)
{
    const int8_t *w = (const int8_t *)d->w + block_bytes(3, 3);
    const int eight = d->channels == 8;
    struct line l;
    int8_t quad[64];
    int32_t bias[16];
    float multiplier[16];
    for (int i = 0; i < 64; i++)
        quad[i] = (int8_t)((i % 4 + (eight ? i / 32 * 2 : 0)) * d->channels + i / 4 % d->channels);
    for (int i = 0; i < 16; i++) {
        bias[i] = d->q.bias[i % d->channels];
        multiplier[i] = d->q.multiplier[i % d->channels];
    }
    for (int h = 0; h < 3; h++) {
        l.w[0][h] = _mm512_loadu_si512(w + h * 64);
        l.w[1][h] = _mm512_slli_epi32(l.w[0][h], 8);
    }
    l.start = start512(lean, _mm512_loadu_si512(bias));
    l.quad = _mm512_loadu_si512(quad);
    l.order = eight && d->stride == 1 ? _mm512_setr_epi32(0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15)
                                      : _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    l.multiplier = _mm512_loadu_ps(multiplier);
    l.excess = excess512(l.multiplier);
    l.bounds = *bounds;
    return l;
}

INLINE __mmask64 first_bytes(ptrdiff_t n) { return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n > 0 ? n : 0)) - 1; }

/* 32 bytes of each of R output rows, from byte `at` on; of a row's end, those that are there. */
INLINE void line_step(const int lean, const int stride, const int R, const int end, const struct line *l,
                      const uint8_t *const *x, uint8_t *const *y, ptrdiff_t at, ptrdiff_t in_bytes, ptrdiff_t out_bytes)
{
    __m512i sum[2][2] = {{l->start, l->start}, {l->start, l->start}};
    UNROLL
    for (int i = 0; i < (R - 1) * stride + 3; i++) {
        __m512i quad[2];
        UNROLL
        for (int e = 0; e < stride; e++) {
            const ptrdiff_t from = at * stride + 32 * e;
            const __m512i v = end ? _mm512_maskz_loadu_epi8(first_bytes(in_bytes - from), x[i] + from)
                                  : _mm512_loadu_si512(x[i] + from);
            quad[e] = _mm512_permutexvar_epi8(l->quad, v);
        }
        UNROLL
        for (int r = 0; r < R; r++) {
            const int h = i - r * stride;
            if (h < 0 || h > 2)
                continue;
            dot512(&sum[r][0], quad[0], l->w[0][h]);
            dot512(&sum[r][1], quad[stride - 1], l->w[2 - stride][h]);
        }
    }
    UNROLL
    for (int i = 0; i < 2 * R; i++)
        sum[i / 2][i % 2] = scaled512(lean, sum[i / 2][i % 2], l->multiplier, l->excess);
    const __m512i v = narrow512(lean, sum[0][0], sum[0][1], sum[R - 1][0], sum[R - 1][1], &l->bounds);
    const __m512i bytes = _mm512_permutexvar_epi32(l->order, v);
    UNROLL
    for (int r = 0; r < R; r++) {
        const __m256i row = r ? _mm512_extracti64x4_epi64(bytes, 1) : _mm512_castsi512_si256(bytes);
        if (end)
            _mm256_mask_storeu_epi8(y[r] + at, (__mmask32)first_bytes(out_bytes - at), row);
        else
            _mm256_storeu_si256((void *)(y[r] + at), row);
    }
}

INLINE void line_rows(const int lean, const int stride, const int R, const struct line *l, const struct depthwise *d,
                      int row)
{
    const ptrdiff_t in_bytes = ((d->width - 1) * stride + 3) * d->in_pixel, out_bytes = d->width * d->out_pixel;
    const uint8_t *x[5];
    uint8_t *y[2];
    UNROLL
    for (int i = 0; i < (R - 1) * stride + 3; i++)
        x[i] = d->in[row * stride + i];
    UNROLL
    for (int r = 0; r < R; r++)
        y[r] = d->out[row + r];
    ptrdiff_t at = 0;
    for (; (at + 32) * stride + 32 <= in_bytes; at += 32)
        line_step(lean, stride, R, 0, l, x, y, at, in_bytes, out_bytes);
    for (; at < out_bytes; at += 32)
        line_step(lean, stride, R, 1, l, x, y, at, in_bytes, out_bytes);
}

INLINE void line_all(const int lean, const int stride, const struct line *l, const struct depthwise *d)
{
    for (int row = 0; row + 1 < d->n; row += 2)
        line_rows(lean, stride, 2, l, d, row);
    if (d->n % 2)
        line_rows(lean, stride, 1, l, d, d->n - 1);
}

static void lines(const struct depthwise *d, const struct bounds512 *bounds, int lean)
{
    const struct line l = line_of(d, bounds, lean);
    if (d->stride == 1)
        lean ? line_all(1, 1, &l, d) : line_all(0, 1, &l, d);
    else
        lean ? line_all(1, 2, &l, d) : line_all(0, 2, &l, d);
}

TARGET_END

TARGET_BEGIN(AVX512_FEATURES)

void mnet_avx512_depthwise(const struct depthwise *d)
{
    if (plain(d->kh, d->kw)) {
        mnet_scalar.depthwise(d);
        return;
    }
    const struct bounds512 bounds = bounds512_of(d->q.zero, d->q.low, d->q.high);
    (in_line(d) ? lines : blocks)(d, &bounds, lean512(&d->q, d->first, d->last, d->kh * d->kw));
    for (int r = 0; d->q.lut && r < d->n; r++)
        mnet_avx512_lut_row(d->out[r] + d->first, d->width, d->out_pixel, d->last - d->first, d->q.lut);
}

TARGET_END
#endif
