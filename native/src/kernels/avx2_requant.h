/* Sums to bytes, eight at a time; for the files compiled for AVX2. */
#ifndef MNET_AVX2_REQUANT_H
#define MNET_AVX2_REQUANT_H

#include "x86.h"

TARGET_BEGIN(AVX2_FEATURES)

INLINE __m256i scaled(__m256i sum, __m256 multiplier)
{
    __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), multiplier);
    return _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(ROUND_LIMIT)));
}

struct bounds {
    __m256i zero, low, high;
};

INLINE struct bounds bounds_of(int32_t zero, int32_t low, int32_t high)
{
    struct bounds b = {_mm256_set1_epi16((int16_t)zero), _mm256_set1_epi8((char)low), _mm256_set1_epi8((char)high)};
    return b;
}

/* Four vectors of scaled sums as bytes; packing works in halves, so that four of each come in turn: a b c d a b c d. */
INLINE __m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d, const struct bounds *s)
{
    __m256i lower = _mm256_adds_epi16(_mm256_packs_epi32(a, b), s->zero);
    __m256i upper = _mm256_adds_epi16(_mm256_packs_epi32(c, d), s->zero);
    return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(lower, upper), s->low), s->high);
}

/* The same in order: eight of a, eight of b, of c, of d. */
INLINE __m256i to_bytes(__m256i a, __m256i b, __m256i c, __m256i d, const struct bounds *s)
{
    return _mm256_permutevar8x32_epi32(narrow(a, b, c, d, s), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* A pixel's outputs of a panel: 16, or the 8 that are left. */
INLINE void store_panel(uint8_t *y, __m128i v, int whole)
{
    if (whole)
        _mm_storeu_si128((void *)y, v);
    else
        _mm_storel_epi64((void *)y, v);
}

TARGET_END
#endif
