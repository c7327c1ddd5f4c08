/* AVX2: products of float weights that are mostly zeros. */
#if defined(__x86_64__) || defined(_M_X64)
#include "x86.h"

TARGET_BEGIN(AVX2_FEATURES)

#define VECTOR __m256
#define WIDTH 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define STORE_SOME(at, v, n) _mm256_storeu_ps(at, v)
#define SET _mm256_set1_ps
#define ADD_PRODUCT _mm256_fmadd_ps
#define CLAMP(v, low, high) _mm256_min_ps(_mm256_max_ps(v, low), high)
#define PRODUCT mnet_avx2_sparse

/* Eight numbers of each of eight rows: r[i] is every row's i-th. */
INLINE void transposed(__m256 r[8], const float *const *rows, ptrdiff_t at)
{
    __m256 t[8];
    UNROLL
    for (int i = 0; i < 4; i++) { /* halves of rows i and i + 4 */
        const __m256 a = _mm256_loadu_ps(rows[i] + at), b = _mm256_loadu_ps(rows[i + 4] + at);
        t[i] = _mm256_permute2f128_ps(a, b, 0x20);
        t[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) {
        const __m256 a = _mm256_unpacklo_ps(t[i], t[i + 1]), b = _mm256_unpacklo_ps(t[i + 2], t[i + 3]);
        const __m256 c = _mm256_unpackhi_ps(t[i], t[i + 1]), d = _mm256_unpackhi_ps(t[i + 2], t[i + 3]);
        r[i] = _mm256_shuffle_ps(a, b, 0x44);
        r[i + 1] = _mm256_shuffle_ps(a, b, 0xee);
        r[i + 2] = _mm256_shuffle_ps(c, d, 0x44);
        r[i + 3] = _mm256_shuffle_ps(c, d, 0xee);
    }
}

#include "sparse.h"

TARGET_END
#endif
