/* AVX-512 with VNNI: depthwise convolutions in whole numbers.
 *
 * vpdpbusd adds four products of bytes that lie side by side, so four neighbouring pixels of a row are interleaved: a
 * "quad", made once with unpacks for 64 channels (four vectors), serves every output row whose window holds that row,
 * and as many output columns as weights that are shifted inside the quad allow: (w0, w1, w2, 0) and (0, w0, w1, w2). A
 * window wider than four takes two quads. The unpacks leave channels 16 l + 4 j + 0..3 in quarter l of vector j; weights
 * lie in the same order, and packing the sums to bytes puts them back.
 *
 *   w[C/64][kh][shift][quad][j][l][4 channels][4 taps]
 *
 * Where fewer than 64 channels are left, 32, 16 or 8 fill a part of a vector, and the other parts take pixels of other
 * columns: 2 or 4 groups of columns, each beside the last. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx512.h"

#include <string.h>

enum { BLOCK = 64, MOST_KERNEL = 7, QUAD_BYTES = 256, MOST_SHIFTS = 4 };

static int quads(int kw) { return (kw + 3) / 4; }
static int shifts(int kw) { return 4 * quads(kw) - kw + 1; }
static int plain(int kh, int kw) { return kh > MOST_KERNEL || kw > MOST_KERNEL; } /* left to plain C */

static size_t block_bytes(int kh, int kw)
{
    return (size_t)kh * (size_t)(shifts(kw) * quads(kw)) * QUAD_BYTES;
}

size_t mnet_avx512_depthwise_bytes(int kh, int kw, int channels)
{
    if (plain(kh, kw))
        return mnet_scalar.depthwise_bytes(kh, kw, channels);
    return (size_t)((channels + BLOCK - 1) / BLOCK) * block_bytes(kh, kw);
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
        for (int h = 0; h < kh; h++)
            for (int s = 0; s < shifts(kw); s++)
                for (int v = 0; v < kw; v++) {
                    const int tap = s + v;
                    int8_t *quad = block + ((h * shifts(kw) + s) * quads(kw) + tap / 4) * QUAD_BYTES;
                    quad[place + tap % 4] = w[(ptrdiff_t)(h * kw + v) * channels + c];
                }
    }
}

TARGET_BEGIN(AVX512_FEATURES)

/* What is the same for all outputs of a block: a part of them in each of four vectors. */
struct block {
    const int8_t *w;
    __m512i bias[4];
    __m512 multiplier[4];
    struct bounds512 bounds;
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
        b->bias[j] = _mm512_loadu_si512(bias[j]);
        b->multiplier[j] = _mm512_loadu_ps(multiplier[j]);
    }
    b->bounds = bounds512_of(&d->q);
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

/* 64 channels of a pixel, or fewer of one pixel for each group; steps are from the first group's pixel to the others'. */
INLINE __m512i load(const uint8_t *x, const ptrdiff_t *step, const int channels)
{
    if (channels == 64)
        return _mm512_loadu_si512(x);
    if (channels == 32)
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const void *)x)),
                                  _mm256_loadu_si256((const void *)(x + step[1])), 1);
#define QUARTER(g) \
    (channels == 16 ? _mm_loadu_si128((const void *)(x + step[g])) : _mm_loadl_epi64((const void *)(x + step[g])))
    __m512i v = _mm512_castsi128_si512(QUARTER(0));
    v = _mm512_inserti32x4(v, QUARTER(1), 1);
    v = _mm512_inserti32x4(v, QUARTER(2), 2);
    return _mm512_inserti32x4(v, QUARTER(3), 3);
#undef QUARTER
}

INLINE void store(uint8_t *y, __m512i v, const int group, const int channels)
{
    if (channels == 64)
        _mm512_storeu_si512(y, v);
    else if (channels == 32)
        _mm256_storeu_si256((void *)y, group ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v));
    else
        store_quarter(y, v, group, channels == 16);
}

/* Outputs of `rows` (at most R) rows, all their columns, `channels` of them: V columns from Q quads at a time. */
INLINE void strip(const int R, const int V, const int Q, const int channels, const struct depthwise *d,
                  const struct block *b, int row, int rows, int c)
{
    const int groups = channels >= 16 ? 64 / channels : 4, columns = (d->width - 1) * d->stride + d->kw;
    const ptrdiff_t shift_bytes = (ptrdiff_t)Q * QUAD_BYTES, row_bytes = shift_bytes * shifts(d->kw);
    for (int i = 0; i < d->width; i += V * groups) {
        /* Where a window's pixels are; behind a row's end the last one, for outputs that aren't stored or weights of 0 */
        ptrdiff_t at[8], step[8][4];
        UNROLL
        for (int t = 0; t < 4 * Q; t++)
            UNROLL
            for (int g = 0; g < groups; g++) {
                const int column = (i + g * V) * d->stride + t;
                const ptrdiff_t to = (column < columns ? column : columns - 1) * d->in_pixel;
                if (g == 0)
                    at[t] = to;
                step[t][g] = to - at[t];
            }
        __m512i sum[3][4][4];
        UNROLL
        for (int r = 0; r < R; r++)
            UNROLL
            for (int v = 0; v < V; v++)
                UNROLL
                for (int j = 0; j < 4; j++)
                    sum[r][v][j] = b->bias[j];
        for (int t = 0; t < (rows - 1) * d->stride + d->kh; t++) {
            const uint8_t *x = d->in[row * d->stride + t] + c;
            UNROLL
            for (int q = 0; q < Q; q++) {
                __m512i x0 = load(x + at[4 * q], step[4 * q], channels);
                __m512i x1 = load(x + at[4 * q + 1], step[4 * q + 1], channels);
                __m512i x2 = load(x + at[4 * q + 2], step[4 * q + 2], channels);
                __m512i x3 = load(x + at[4 * q + 3], step[4 * q + 3], channels);
                const __m512i low01 = _mm512_unpacklo_epi8(x0, x1), high01 = _mm512_unpackhi_epi8(x0, x1);
                const __m512i low23 = _mm512_unpacklo_epi8(x2, x3), high23 = _mm512_unpackhi_epi8(x2, x3);
                const __m512i quad[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                                         _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
                UNROLL
                for (int r = 0; r < R; r++) {
                    const int h = t - r * d->stride;
                    if (h < 0 || h >= d->kh)
                        continue;
                    const int8_t *w = b->w + h * row_bytes + q * QUAD_BYTES;
                    UNROLL
                    for (int v = 0; v < V; v++)
                        UNROLL
                        for (int j = 0; j < 4; j++) {
                            const int8_t *taps = w + v * d->stride * shift_bytes + j * 64;
                            dot512(&sum[r][v][j], quad[j], _mm512_loadu_si512(taps));
                        }
                }
            }
        }
        UNROLL
        for (int r = 0; r < R; r++) {
            if (r >= rows)
                break;
            UNROLL
            for (int v = 0; v < V; v++) {
                UNROLL
                for (int j = 0; j < 4; j++)
                    sum[r][v][j] = scaled512(sum[r][v][j], b->multiplier[j]);
                const __m512i *s = sum[r][v];
                const __m512i out = narrow512(s[0], s[1], s[2], s[3], &b->bounds);
                uint8_t *y = d->out[row + r] + (ptrdiff_t)(i + v) * d->out_pixel + c;
                UNROLL
                for (int g = 0; g < groups; g++)
                    if (i + v + g * V < d->width)
                        store(y + g * V * d->out_pixel, out, g, channels);
            }
        }
    }
}

/* How many rows and columns at a time: as many sums as registers hold beside a quad. */
INLINE void block_of(const int channels, const struct depthwise *d, const struct block *b, int c)
{
    const int n = d->n, wide = quads(d->kw) > 1;
    const int most = (shifts(d->kw) - 1) / d->stride + 1; /* columns that quads can serve */
    for (int row = 0; row < n;) {
        const int left = n - row;
        if (!wide && most > 1) {
            strip(3, 2, 1, channels, d, b, row, left < 3 ? left : 3, c);
            row += 3;
        } else if (!wide) {
            strip(3, 1, 1, channels, d, b, row, left < 3 ? left : 3, c);
            row += 3;
        } else if (most > 3) {
            strip(1, 4, 2, channels, d, b, row, 1, c);
            row += 1;
        } else if (most > 1) {
            strip(2, 2, 2, channels, d, b, row, left < 2 ? left : 2, c);
            row += 2;
        } else {
            strip(3, 1, 2, channels, d, b, row, left < 3 ? left : 3, c);
            row += 3;
        }
    }
}

static void block_64(const struct depthwise *d, const struct block *b, int c) { block_of(64, d, b, c); }
static void block_32(const struct depthwise *d, const struct block *b, int c) { block_of(32, d, b, c); }
static void block_16(const struct depthwise *d, const struct block *b, int c) { block_of(16, d, b, c); }
static void block_8(const struct depthwise *d, const struct block *b, int c) { block_of(8, d, b, c); }

void mnet_avx512_depthwise(const struct depthwise *d)
{
    if (plain(d->kh, d->kw)) {
        mnet_scalar.depthwise(d);
        return;
    }
    _Alignas(64) int8_t own[MOST_KERNEL * MOST_SHIFTS * 2 * QUAD_BYTES];
    struct block b;
    for (int c = d->first; c < d->last;) {
        const int left = d->last - c, channels = left >= 64 ? 64 : left >= 32 ? 32 : left >= 16 ? 16 : 8;
        assemble(&b, d, c, channels, channels >= 16 ? 64 / channels : 4, own);
        (channels == 64 ? block_64 : channels == 32 ? block_32 : channels == 16 ? block_16 : block_8)(d, &b, c);
        c += channels;
    }
    for (int r = 0; d->q.lut && r < d->n; r++)
        for (int i = 0; i < d->width; i++) {
            uint8_t *y = d->out[r] + i * d->out_pixel + d->first;
            mnet_avx512_lut_u8(y, y, (size_t)(d->last - d->first), d->q.lut);
        }
}

TARGET_END
#endif
