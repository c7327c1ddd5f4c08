/* What the AVX-512 and AMX files share. */
#ifndef MNET_AVX512_H
#define MNET_AVX512_H

#include "x86.h"

#define AVX512_FEATURES "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"

void mnet_avx512_pointwise(const struct pointwise *p);
void mnet_avx512_pointwise_f32(const struct pointwise_f32 *p);
size_t mnet_avx512_depthwise_bytes(int kh, int kw, int channels);
void mnet_avx512_depthwise_pack(const int8_t *w, int kh, int kw, int channels, void *out);
void mnet_avx512_depthwise(const struct depthwise *d);
void mnet_avx512_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut);
void mnet_avx512_lut_pixels(const struct pointwise *p); /* where there is a table: over all that p wrote */

TARGET_BEGIN(AVX512_FEATURES)

/* sum += four bytes of v times four of w. As an instruction, not as the function of the compiler's header, with which gcc
 * copies accumulators back and forth and runs out of registers. */
INLINE void dot512(__m512i *sum, __m512i v, __m512i w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(v), "vm"(w));
}

INLINE __m512i scaled512(__m512i sum, __m512 multiplier)
{
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier);
    return _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(ROUND_LIMIT)));
}

struct bounds512 {
    __m512i zero, low, high;
};

INLINE struct bounds512 bounds512_of(const struct requant *q)
{
    struct bounds512 b = {_mm512_set1_epi16((int16_t)q->zero), _mm512_set1_epi8((char)q->low),
                          _mm512_set1_epi8((char)q->high)};
    return b;
}

/* Four vectors of scaled sums as bytes; packing works in quarters, so that four of each come in turn: a b c d a b c d. */
INLINE __m512i narrow512(__m512i a, __m512i b, __m512i c, __m512i d, const struct bounds512 *s)
{
    __m512i lower = _mm512_adds_epi16(_mm512_packs_epi32(a, b), s->zero);
    __m512i upper = _mm512_adds_epi16(_mm512_packs_epi32(c, d), s->zero);
    return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(lower, upper), s->low), s->high);
}

/* The same in order: sixteen of a, of b, of c, of d. */
INLINE __m512i to_bytes512(__m512i a, __m512i b, __m512i c, __m512i d, const struct bounds512 *s)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, narrow512(a, b, c, d, s));
}

/* The quarter of a vector that holds a pixel's outputs of a panel: 16, or the 8 that are left. */
INLINE void store_quarter(uint8_t *y, __m512i v, const int quarter, int whole)
{
    const __m128i part = quarter == 0   ? _mm512_castsi512_si128(v)
                         : quarter == 1 ? _mm512_extracti32x4_epi32(v, 1)
                         : quarter == 2 ? _mm512_extracti32x4_epi32(v, 2)
                                        : _mm512_extracti32x4_epi32(v, 3);
    if (whole)
        _mm_storeu_si128((void *)y, part);
    else
        _mm_storel_epi64((void *)y, part);
}

TARGET_END
#endif
