/* AVX-512: products of float weights that are mostly zeros. */
#if defined(__x86_64__) || defined(_M_X64)
#include "avx512.h"

TARGET_BEGIN(AVX512_FEATURES)

#define VECTOR __m512
#define WIDTH 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define STORE_SOME(at, v, n) _mm512_mask_storeu_ps(at, (n) < WIDTH ? 0xff : 0xffff, v) /* 8 channels, where no more are left */
#define SET _mm512_set1_ps
#define ADD_PRODUCT _mm512_fmadd_ps
#define CLAMP(v, low, high) _mm512_min_ps(_mm512_max_ps(v, low), high)
#define PRODUCT mnet_avx512_sparse

/* Sixteen numbers of each of sixteen rows: r[i] is every row's i-th. */
INLINE void transposed(__m512 r[16], const float *const *rows, ptrdiff_t at)
{
    __m512 t[16];
    UNROLL
    for (int i = 0; i < 16; i++)
        t[i] = _mm512_loadu_ps(rows[i] + at);
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        r[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
        r[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4)
        UNROLL
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(r[i + j]), b = _mm512_castps_pd(r[i + j + 2]);
            t[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            t[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    UNROLL
    for (int i = 0; i < 16; i += 8)
        UNROLL
        for (int j = 0; j < 4; j++) {
            r[i + j] = _mm512_shuffle_f32x4(t[i + j], t[i + j + 4], 0x88);
            r[i + j + 4] = _mm512_shuffle_f32x4(t[i + j], t[i + j + 4], 0xdd);
        }
    UNROLL
    for (int i = 0; i < 8; i++) {
        const __m512 a = r[i], b = r[i + 8];
        r[i] = _mm512_shuffle_f32x4(a, b, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, b, 0xdd);
    }
}

#include "sparse.h"

TARGET_END
#endif
