/* What an instruction set has to give: one table of functions, each of which computes rows of one operation.
 *
 * Maps are held pixel by pixel (NHWC). A pixel's channels are followed by padding up to a multiple of 8 (LANES); what is
 * in the padding is never undefined, and weights for it are 0. In whole numbers a value is uint8: (v - zero) * scale.
 *
 * Exactness: every instruction set gives the same bytes as the scalar table. Sums are exact in int32. A sum becomes a
 * byte as  clamp(rint((float)sum * multiplier[c]) + zero, low, high),  rint to the nearest even, in float32, the product
 * rounded before the rint (no fused multiply-add). In float32 the order of additions differs, within 1e-5 of the largest.
 *
 * Packed weights of a dense product ("pointwise"; a full convolution is one over the pixels of its window; the
 * classifier too), K inputs and C outputs, both padded:
 *   int8   w[C/16][K/4][16][4]   K padded to 4, C to 16: what vpdpbusd, tdpbusd and sdot read as it lies
 *   float  w[C/16][K][16]        C padded to 16
 * Bias, multiplier: [C padded to 16]. The input's zero point is inside the bias: bias - zero * sum of the weights.
 * Depthwise weights come as w[kh*kw][C padded to 8], int8 or float; an instruction set may lay them out anew, once, when
 * a file is loaded (depthwise_pack).
 */
#ifndef MNET_KERNELS_H
#define MNET_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define LANES 8 /* channels that a pixel is padded to a multiple of */
#define PANEL 16 /* output channels that lie together in packed weights */

/* How sums become bytes; then, where lut is not NULL, each byte b becomes lut[b] (an activation that is rounded itself). */
struct requant {
    const float *multiplier; /* [C] */
    const int32_t *bias;     /* [C], what sums begin with */
    int32_t zero, low, high;
    const uint8_t *lut; /* [256] or NULL */
};

/* A map, or some rows of it: where its first pixel is, and bytes from pixel to pixel and from row to row. */
struct view {
    const uint8_t *at;
    ptrdiff_t pixel, row;
};
struct target {
    uint8_t *at;
    ptrdiff_t pixel, row;
};

/* y[r][c] = w * x[r][c] for rows x width pixels; outputs from channel `first` (a multiple of PANEL) up to `last` (a
 * multiple of LANES), so that threads can share a small map. Reading up to 3 bytes behind a pixel's K inputs is allowed
 * (their weights are 0), and up to 64 behind the map's last. `scratch`: pointwise_scratch(k) bytes of the thread's own. */
struct pointwise {
    struct view x;
    struct target y;
    int rows, width, k, first, last;
    const int8_t *w;
    struct requant q;
    void *scratch;
};

/* Rows of a depthwise layer: n output rows of `width` pixels. in[j], j < (n-1)*stride + kh, are the input rows, each from
 * its first padded pixel on (the padding is in them; a row of padding alone is a row like any other); out[i] the output
 * rows. Channels [first, last), multiples of LANES, of pixels of `pixel` bytes (in and out alike). */
struct depthwise {
    const uint8_t *const *in;
    uint8_t *const *out;
    int n, width, kh, kw, stride, first, last;
    ptrdiff_t in_pixel, out_pixel;
    const void *w; /* as depthwise_pack left it; of channel 0 */
    int channels;  /* padded to LANES: what was packed */
    struct requant q;
};

/* Rows of a full convolution, in[] and out[] as a depthwise layer's; w as `pack` left it. Reading up to 63 bytes behind a
 * row of a window is allowed. */
struct conv {
    const uint8_t *const *in;
    uint8_t *const *out;
    int n, width, kh, run, stride, first, last; /* run: bytes of a row of a window */
    ptrdiff_t in_pixel, out_pixel;
    const void *w;
    struct requant q;
    void *scratch; /* of pointwise_scratch(kh * run) bytes */
};

/* Of instruction sets that read windows where they lie, not gathered for a product, in rows of `least` outputs or more.
 * pack: from a product's packed weights, K being the window's bytes row by row. */
struct windows {
    void (*conv)(const struct conv *);
    size_t (*bytes)(int kh, int run, int channels);
    void (*pack)(const int8_t *w, int kh, int run, int channels, void *out);
    int least;
};

/* In float32: the same, with activation by clamping to [low, high], then by `act`. */
enum act { ACT_NONE, ACT_HARD_SWISH, ACT_HARD_SIGMOID };
struct finish {
    const float *bias; /* [C] */
    float low, high;   /* -inf, inf where there is no clip */
    enum act act;
};
struct pointwise_f32 { /* views' units are bytes here too */
    struct view x;
    struct target y;
    int rows, width, k, first, last;
    const float *w;
    struct finish f;
};
struct depthwise_f32 {
    const float *const *in;
    float *const *out;
    int n, width, kh, kw, stride, first, last;
    ptrdiff_t in_pixel, out_pixel; /* floats */
    const float *w;                /* [kh*kw][channels] */
    int channels;
    struct finish f;
};

/* Float weights that are mostly zeros, those alone that aren't: of each block of SPARSE_BLOCK inputs, output after output.
 * Block b has of output c the weights from begin[b * outputs + c] up to the next. `at`: where SPARSE_PIXELS pixels' numbers
 * of the input begin, where a block's channels lie one after another. `strip` is the thread's own: SPARSE_PIXELS numbers
 * for each input of a block, and for each output. Up to SPARSE_STEP pixels go on together; reading up to 63 bytes behind a
 * pixel's inputs is allowed. */
enum { SPARSE_BLOCK = 96, SPARSE_PIXELS = 112, SPARSE_STEP = 16 };
struct sparse_weight {
    uint32_t at;
    float w;
};
struct sparse {
    const uint32_t *begin;
    const struct sparse_weight *weights;
    int outputs;
};
typedef void sparse_product(const struct pointwise_f32 *p, const struct sparse *s, float *strip); /* p's w isn't read */

/* Of n values each; every one reads and writes exactly n. */
struct add_u8 { /* y = clamp(rint((a - za) * ma + (b - zb) * mb) + zero, low, high); each product rounded, then their sum */
    float ma, mb;
    int32_t za, zb, zero, low, high;
};
struct mul_u8 { /* y[p][c] = clamp(rint((a[p][c] - za) * m[c]) + zero, low, high) over pixels of `channels` (multiple of 8) */
    const float *m; /* [channels], made by the caller of the other factor */
    int32_t za, zero, low, high;
};

struct kernels {
    const char *name; /* "scalar", "avx2", ... */
    void (*pointwise)(const struct pointwise *);
    size_t (*pointwise_scratch)(int k);
    void (*depthwise)(const struct depthwise *);
    size_t (*depthwise_bytes)(int kh, int kw, int channels);
    void (*depthwise_pack)(const int8_t *w, int kh, int kw, int channels, void *out);
    void (*pointwise_f32)(const struct pointwise_f32 *);
    void (*depthwise_f32)(const struct depthwise_f32 *);
    void (*add_u8)(const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n, const struct add_u8 *);
    void (*mul_u8)(const uint8_t *a, uint8_t *y, size_t pixels, int channels, const struct mul_u8 *);
    void (*lut_u8)(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *lut);
    /* sums[c] += over pixels, int32; x has `channels` (multiple of 8) bytes a pixel, pixels `pixel` bytes apart */
    void (*sum_u8)(const uint8_t *x, ptrdiff_t pixel, size_t pixels, int channels, int32_t *sums);
    void (*quantize)(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero); /* clamp(rint(x*inverse)+zero) */
    void (*dequantize)(const uint8_t *x, float *y, size_t n, float scale, int32_t zero);
    void (*add_f32)(const float *a, const float *b, float *y, size_t n);
    void (*mul_f32)(const float *a, const float *m, float *y, size_t pixels, int channels);
    void (*act_f32)(float *x, size_t n, float low, float high, enum act);
    void (*sum_f32)(const float *x, size_t pixels, int channels, float *sums);
    const struct windows *windows; /* or NULL */
};

extern const struct kernels mnet_scalar; /* always there; the others, where the compiler has them, by mnet_kernels() */
#if defined(__x86_64__) || defined(_M_X64)
extern const struct kernels mnet_avx2, mnet_avxvnni, mnet_avx512, mnet_amx; /* avx512: with VNNI */
sparse_product mnet_avx2_sparse, mnet_avx512_sparse;
#endif
#if defined(__aarch64__)
extern const struct kernels mnet_neon, mnet_dotprod, mnet_i8mm;
#endif
#if defined(__wasm_simd128__)
extern const struct kernels mnet_wasm;
#if defined(__wasm_relaxed_simd__)
const struct kernels *mnet_wasm_relaxed(void); /* NULL where the browser's relaxed dot product is not exact */
#endif
#endif

/* The best table that this processor has; or the named one, NULL where it can't run here. */
const struct kernels *mnet_kernels(const char *name);

/* What goes with a table for weights that are mostly zeros, or NULL. */
sparse_product *mnet_sparse_kernel(const struct kernels *k);

#endif
