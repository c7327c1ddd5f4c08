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
void mnet_avx512_add_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *s);
void mnet_avx512_mul_u8(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *s);
void mnet_avx512_quantize(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero);
void mnet_avx512_lut_u8(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut);
void mnet_avx512_lut_pixels(const struct pointwise *p); /* where there is a table: over all that p wrote */
void mnet_avx512_lut_row(uint8_t *y, int width, ptrdiff_t pixel, int bytes, const uint8_t *lut); /* `bytes` of each pixel */

#if defined(__clang__) /* loops that end early too, which it leaves alone unless told */
#undef UNROLL
#define UNROLL MNET_PRAGMA(clang loop unroll(full))
#endif

TARGET_BEGIN(AVX512_FEATURES)

/* sum += four bytes of v times four of w. For gcc as an instruction, not as the function of its header, with which it copies
 * accumulators back and forth and runs out of registers; with w in memory, which it else loads far too early. */
INLINE void dot512(__m512i *sum, __m512i v, __m512i w)
{
#if defined(__clang__)
    *sum = _mm512_dpbusd_epi32(*sum, v, w);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(v), "vm"(w));
#endif
}

INLINE void dot512_at(__m512i *sum, __m512i v, const int8_t *w)
{
#if defined(__clang__)
    dot512(sum, v, _mm512_loadu_si512(w));
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(v), "m"(*(const __m512i_u *)(const void *)w));
#endif
}

/* For gcc: that a value is in a register from here on, not read from memory again wherever it is used; that an address is
 * not known before, so that it doesn't keep a sum of it and each offset. */
INLINE void held512(__m512i *v)
{
#if !defined(__clang__)
    __asm__("" : "+v"(*v));
#else
    (void)v;
#endif
}

INLINE const int8_t *anew(const int8_t *w)
{
#if !defined(__clang__)
    __asm__("" : "+r"(w));
#endif
    return w;
}

/* Sums become bytes in one of two ways. Any sum: converted to a float, multiplied, held below what int32 can take,
 * rounded; then zero point and bounds. "Lean", where zero and low are 0, high is 255 and no sum reaches ORIGIN: sums begin
 * with the bits of the float ORIGIN added, so that as a float a sum s is ORIGIN + s, and one fused s * m - ORIGIN * m,
 * exact until its only rounding, is the product. Below ORIGIN floats are twice as dense and s comes out as s / 2: it stays
 * negative, and saturates to 0 as s would. */
#define ORIGIN 8388608.0f
enum { ORIGIN_BITS = 0x4b000000, ORIGIN_SUM = 8388608 };

/* Whether that holds for channels [first, last), multiples of 8, of sums of k products. */
INLINE int lean512(const struct requant *q, int first, int last, int k)
{
    const int64_t room = ORIGIN_SUM - 1 - (int64_t)k * 255 * 128;
    if (q->zero || q->low || q->high != 255 || room < 0)
        return 0;
    const __m256i most = _mm256_set1_epi32((int)room), least = _mm256_set1_epi32(-(int)room);
    const __m256 none = _mm256_setzero_ps(), large = _mm256_set1_ps(256);
    __mmask8 fits = 0xff;
    for (int c = first; c < last; c += 8) {
        const __m256i bias = _mm256_loadu_si256((const void *)(q->bias + c));
        const __m256 m = _mm256_loadu_ps(q->multiplier + c);
        fits &= _mm256_cmple_epi32_mask(bias, most) & _mm256_cmpge_epi32_mask(bias, least);
        fits &= _mm256_cmp_ps_mask(m, none, _CMP_GE_OQ) & _mm256_cmp_ps_mask(m, large, _CMP_LT_OQ);
    }
    return fits == 0xff;
}

/* What sums begin with, from their bias. */
INLINE __m512i start512(const int lean, __m512i bias)
{
    return lean ? _mm512_add_epi32(bias, _mm512_set1_epi32(ORIGIN_BITS)) : bias;
}

/* The multiplier of ORIGIN: what a lean sum is to lose. */
INLINE __m512 excess512(__m512 multiplier) { return _mm512_mul_ps(multiplier, _mm512_set1_ps(-ORIGIN)); }

INLINE __m512i scaled512(const int lean, __m512i sum, __m512 multiplier, __m512 excess)
{
    if (lean)
        return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_castsi512_ps(sum), multiplier, excess));
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier);
    return _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(ROUND_LIMIT)));
}

struct bounds512 {
    __m512i zero, low, high;
};

INLINE struct bounds512 bounds512_of(int32_t zero, int32_t low, int32_t high)
{
    struct bounds512 b = {_mm512_set1_epi16((int16_t)zero), _mm512_set1_epi8((char)low), _mm512_set1_epi8((char)high)};
    return b;
}

/* Four vectors of scaled sums as bytes; packing works in quarters, so that four of each come in turn: a b c d a b c d. */
INLINE __m512i narrow512(const int lean, __m512i a, __m512i b, __m512i c, __m512i d, const struct bounds512 *s)
{
    const __m512i lower = _mm512_packs_epi32(a, b), upper = _mm512_packs_epi32(c, d);
    if (lean)
        return _mm512_packus_epi16(lower, upper);
    const __m512i v = _mm512_packus_epi16(_mm512_adds_epi16(lower, s->zero), _mm512_adds_epi16(upper, s->zero));
    return _mm512_min_epu8(_mm512_max_epu8(v, s->low), s->high);
}

/* The same in order: sixteen of a, of b, of c, of d. */
INLINE __m512i to_bytes512(const int lean, __m512i a, __m512i b, __m512i c, __m512i d, const struct bounds512 *s)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, narrow512(lean, a, b, c, d, s));
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

/* 64 outputs of 4 / m pixels by m panels (3 leave a quarter unused), `bytes` of a pixel's exist; y is where pixels are. */
INLINE void store_pixels(const int m, uint8_t *const *y, int c, int bytes, __m512i v)
{
    if (m == 4 && bytes >= 64) {
        _mm512_storeu_si512(y[0] + c, v);
    } else if (m > 2) {
        const int most = m * PANEL;
        _mm512_mask_storeu_epi8(y[0] + c, ((__mmask64)1 << (bytes < most ? bytes : most)) - 1, v);
    } else if (m == 2 && bytes >= 32) {
        if (y[1] == y[0] + 32) {
            _mm512_storeu_si512(y[0] + c, v);
            return;
        }
        _mm256_storeu_si256((void *)(y[0] + c), _mm512_castsi512_si256(v));
        _mm256_storeu_si256((void *)(y[1] + c), _mm512_extracti64x4_epi64(v, 1));
    } else if (m == 2) {
        const __mmask32 mask = ((__mmask32)1 << bytes) - 1;
        _mm256_mask_storeu_epi8(y[0] + c, mask, _mm512_castsi512_si256(v));
        _mm256_mask_storeu_epi8(y[1] + c, mask, _mm512_extracti64x4_epi64(v, 1));
    } else if (bytes >= PANEL && y[1] == y[0] + 16 && y[2] == y[0] + 32 && y[3] == y[0] + 48) {
        _mm512_storeu_si512(y[0] + c, v);
    } else {
        UNROLL
        for (int e = 0; e < 4; e++)
            store_quarter(y[e] + c, v, e, bytes >= PANEL);
    }
}

TARGET_END
#endif
