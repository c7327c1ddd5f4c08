/* AVX2: what is done value by value: sums, products, tables of 256, roundings, means. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx2_requant.h"

TARGET_BEGIN(AVX2_FEATURES)

/* Eight bytes less their zero point, times a scale. */
INLINE __m256 real(const uint8_t *x, __m256i zero, __m256 scale)
{
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)x));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(v, zero)), scale);
}

INLINE __m256i rounded(__m256 v)
{
    return _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(ROUND_LIMIT)));
}

void mnet_avx2_add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s)
{
    const __m256i za = _mm256_set1_epi32(s->za), zb = _mm256_set1_epi32(s->zb);
    const __m256 ma = _mm256_set1_ps(s->ma), mb = _mm256_set1_ps(s->mb);
    const struct bounds bounds = bounds_of(s->zero, s->low, s->high);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v[4];
        UNROLL
        for (int o = 0; o < 4; o++)
            v[o] = rounded(_mm256_add_ps(real(a + i + o * 8, za, ma), real(b + i + o * 8, zb, mb)));
        _mm256_storeu_si256((void *)(y + i), to_bytes(v[0], v[1], v[2], v[3], &bounds));
    }
    for (; i < n; i++) {
        const float pa = (float)(a[i] - s->za) * s->ma, pb = (float)(b[i] - s->zb) * s->mb;
        y[i] = to_byte(pa + pb, s->zero, s->low, s->high);
    }
}

void mnet_avx2_mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s)
{
    const __m256i za = _mm256_set1_epi32(s->za);
    const struct bounds bounds = bounds_of(s->zero, s->low, s->high);
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels) {
        int c = 0;
        for (; c + 32 <= channels; c += 32) {
            __m256i v[4];
            UNROLL
            for (int o = 0; o < 4; o++)
                v[o] = rounded(real(a + c + o * 8, za, _mm256_loadu_ps(s->m + c + o * 8)));
            _mm256_storeu_si256((void *)(y + c), to_bytes(v[0], v[1], v[2], v[3], &bounds));
        }
        for (; c < channels; c += 8) {
            __m256i v = rounded(real(a + c, za, _mm256_loadu_ps(s->m + c)));
            _mm_storel_epi64((void *)(y + c), _mm256_castsi256_si128(to_bytes(v, v, v, v, &bounds)));
        }
    }
}

/* A table of 256 as 16 tables of 16: each is asked by the lower four bits, and each upper bit chooses between the halves
 * of what is left; a choice is by a byte's highest bit. */
INLINE __m256i found(__m256i v, const uint8_t *lut)
{
    const __m256i lower = _mm256_and_si256(v, _mm256_set1_epi8(15));
    const __m256i bit[4] = {_mm256_slli_epi16(v, 3), _mm256_slli_epi16(v, 2), _mm256_slli_epi16(v, 1), v};
    __m256i half[5];
    UNROLL
    for (int t = 0; t < 16; t++) {
        __m256i one = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(lut + t * 16)));
        one = _mm256_shuffle_epi8(one, lower);
        int level = 0;
        UNROLL
        for (int n = t; n % 2; n /= 2, level++)
            one = _mm256_blendv_epi8(half[level], one, bit[level]);
        half[level] = one;
    }
    return half[4];
}

void mnet_avx2_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm256_storeu_si256((void *)(y + i), found(_mm256_loadu_si256((const void *)(x + i)), lut));
    for (; i < n; i++)
        y[i] = lut[x[i]];
}

/* 64 channels at a time, so that a line of the cache is fetched once; in 16 bits, of as many pixels as those hold. */
INLINE void sum_64(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int32_t *sums)
{
    enum { MOST = 65535 / 255, PARTS = 4 };
    while (pixels) {
        const size_t n = pixels < MOST ? pixels : MOST;
        __m256i sum[PARTS];
        UNROLL
        for (int o = 0; o < PARTS; o++)
            sum[o] = _mm256_setzero_si256();
        for (size_t p = 0; p < n; p++, x += pixel)
            UNROLL
            for (int o = 0; o < PARTS; o++)
                sum[o] = _mm256_add_epi16(sum[o], _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(x + o * 16))));
        UNROLL
        for (int o = 0; o < PARTS * 2; o++) {
            __m256i *to = (void *)(sums + o * 8);
            const __m128i half = o % 2 ? _mm256_extracti128_si256(sum[o / 2], 1) : _mm256_castsi256_si128(sum[o / 2]);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_cvtepu16_epi32(half)));
        }
        pixels -= n;
    }
}

void mnet_avx2_sum_u8(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums)
{
    int c = 0;
    for (; c + 64 <= channels; c += 64)
        sum_64(x + c, pixel, pixels, sums + c);
    for (; c < channels; c += 8) {
        const uint8_t *at = x + c;
        __m256i sum = _mm256_loadu_si256((const void *)(sums + c));
        for (size_t p = 0; p < pixels; p++, at += pixel)
            sum = _mm256_add_epi32(sum, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)at)));
        _mm256_storeu_si256((void *)(sums + c), sum);
    }
}

void mnet_avx2_quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero)
{
    const __m256 scale = _mm256_set1_ps(inverse);
    const struct bounds bounds = bounds_of(zero, 0, 255);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v[4];
        UNROLL
        for (int o = 0; o < 4; o++)
            v[o] = rounded(_mm256_mul_ps(_mm256_loadu_ps(x + i + o * 8), scale));
        _mm256_storeu_si256((void *)(y + i), to_bytes(v[0], v[1], v[2], v[3], &bounds));
    }
    for (; i < n; i++)
        y[i] = to_byte(x[i] * inverse, zero, 0, 255);
}

void mnet_avx2_dequantize(const uint8_t *x, float *y, size_t n, float scale, int32_t zero)
{
    const __m256i z = _mm256_set1_epi32(zero);
    const __m256 s = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, real(x + i, z, s));
    for (; i < n; i++)
        y[i] = (float)(x[i] - zero) * scale;
}

void mnet_avx2_add_f32(const float *a, const float *b, float *y, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
    for (; i < n; i++)
        y[i] = a[i] + b[i];
}

void mnet_avx2_mul_f32(const float *a, const float *m, float *y, size_t pixels, int channels)
{
    for (size_t p = 0; p < pixels; p++, a += channels, y += channels)
        for (int c = 0; c < channels; c += 8)
            _mm256_storeu_ps(y + c, _mm256_mul_ps(_mm256_loadu_ps(a + c), _mm256_loadu_ps(m + c)));
}

void mnet_avx2_sum_f32(const float *x, size_t pixels, int channels, float *sums)
{
    for (int c = 0; c < channels; c += 8) {
        const float *at = x + c;
        __m256 sum = _mm256_loadu_ps(sums + c);
        for (size_t p = 0; p < pixels; p++, at += channels)
            sum = _mm256_add_ps(sum, _mm256_loadu_ps(at));
        _mm256_storeu_ps(sums + c, sum);
    }
}

TARGET_END
#endif
