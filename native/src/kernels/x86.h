/* What the x86 tables share: how a file turns its instruction set on, and the AVX2 functions that others use as well. */
#ifndef MNET_X86_H
#define MNET_X86_H

#include "../kernels.h"
#include "round.h"

#include <immintrin.h>

/* From TARGET_BEGIN to TARGET_END functions are compiled for the named features, whatever the compiler's own flags. */
#define MNET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(features) \
    MNET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END MNET_PRAGMA(clang attribute pop)
#define UNROLL /* clang unrolls loops of constant length by itself */
#else
#define TARGET_BEGIN(features) MNET_PRAGMA(GCC push_options) MNET_PRAGMA(GCC target(features))
#define TARGET_END MNET_PRAGMA(GCC pop_options)
#define UNROLL MNET_PRAGMA(GCC unroll 32)
#endif
#define INLINE static inline __attribute__((always_inline))

#define AVX2_FEATURES "avx2,fma"

/* Walks the pixels of a map's rows, one after another. */
struct walk {
    uint8_t *at;
    ptrdiff_t pixel, wrap; /* to the next pixel; what is to be added between a row's last and the next row's first */
    int width, column;
};

INLINE struct walk walk_of(const uint8_t *at, ptrdiff_t pixel, ptrdiff_t row, int width)
{
    struct walk w = {(uint8_t *)(uintptr_t)at, pixel, row - pixel * width, width, 0};
    return w;
}

INLINE uint8_t *walk_on(struct walk *w)
{
    uint8_t *at = w->at;
    w->at += w->pixel;
    if (++w->column == w->width) {
        w->at += w->wrap;
        w->column = 0;
    }
    return at;
}

/* The next n pixels, of which `left` are there; the last of them again for the others. */
INLINE void walk_tile(struct walk *w, const int n, int left, uint8_t **at)
{
    if (w->column + n < w->width) { /* of one row: no more than sums */
        UNROLL
        for (int i = 0; i < n; i++)
            at[i] = w->at + i * w->pixel;
        w->at += n * w->pixel;
        w->column += n;
        return;
    }
    at[0] = walk_on(w);
    for (int i = 1; i < n; i++)
        at[i] = i < left ? walk_on(w) : at[i - 1];
}

/* The next n pixels, a piece of a row after the other. */
INLINE void walk_over(struct walk *w, uint8_t **at, int n)
{
    while (n) {
        const int piece = n < w->width - w->column ? n : w->width - w->column;
        for (int i = 0; i < piece; i++)
            at[i] = w->at + i * w->pixel;
        n -= piece, at += piece;
        w->at += piece * w->pixel;
        if ((w->column += piece) == w->width) {
            w->at += w->wrap;
            w->column = 0;
        }
    }
}

/* A table over `bytes` of each of a row's pixels. */
INLINE void lut_row(void (*lut_u8)(const uint8_t *, uint8_t *, size_t, const uint8_t *), uint8_t *y, int width,
                    ptrdiff_t pixel, int bytes, const uint8_t *lut)
{
    if (bytes == pixel) { /* all in one piece */
        lut_u8(y, y, (size_t)width * (size_t)bytes, lut);
        return;
    }
    for (int i = 0; i < width; i++, y += pixel)
        lut_u8(y, y, (size_t)bytes, lut);
}

/* Where there is a table: over all that p or d wrote. */
INLINE void lut_pixels(void (*lut_u8)(const uint8_t *, uint8_t *, size_t, const uint8_t *), const struct pointwise *p)
{
    for (int r = 0; p->q.lut && r < p->rows; r++)
        lut_row(lut_u8, p->y.at + p->first + r * p->y.row, p->width, p->y.pixel, p->last - p->first, p->q.lut);
}

INLINE void lut_rows(void (*lut_u8)(const uint8_t *, uint8_t *, size_t, const uint8_t *), const struct depthwise *d)
{
    for (int r = 0; d->q.lut && r < d->n; r++)
        lut_row(lut_u8, d->out[r] + d->first, d->width, d->out_pixel, d->last - d->first, d->q.lut);
}

size_t mnet_avx2_pointwise_scratch(int k);
void mnet_avx2_pointwise(const struct pointwise *p);
size_t mnet_avx2_depthwise_bytes(int kh, int kw, int channels);
void mnet_avx2_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out);
void mnet_avx2_depthwise(const struct depthwise *d);
void mnet_avx2_pointwise_f32(const struct pointwise_f32 *p);
void mnet_avx2_depthwise_f32(const struct depthwise_f32 *d);
void mnet_avx2_add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s);
void mnet_avx2_mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s);
void mnet_avx2_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut);
void mnet_avx2_sum_u8(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums);
void mnet_avx2_quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero);
void mnet_avx2_dequantize(const uint8_t *x, float *y, size_t n, float scale, int32_t zero);
void mnet_avx2_add_f32(const float *a, const float *b, float *y, size_t n);
void mnet_avx2_mul_f32(const float *a, const float *m, float *y, size_t pixels, int channels);
void mnet_avx2_act_f32(float *x, size_t n, float low, float high, enum act act);
void mnet_avx2_sum_f32(const float *x, size_t pixels, int channels, float *sums);

#endif
