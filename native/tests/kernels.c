/* Every kernel of every instruction set that runs here, against plain C on random shapes: the same bytes (in float32
 * within 1e-5 of the largest), and nothing written beside the outputs. Inputs end where they may be read to, so that an
 * address sanitizer sees a read beyond.
 *
 *   ./kernels [cases of each kind] [seed] [name of one table]
 */
#include "../src/kernels.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 1;

static uint32_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static int between(int low, int high) { return low + (int)(next_random() % (uint32_t)(high - low + 1)); }
static float real(float low, float high) { return low + (high - low) * (float)(next_random() >> 8) / 16777216.0f; }
static int one_in(int n) { return between(1, n) == 1; }

static void *memory(size_t n)
{
    void *p = malloc(n ? n : 1);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return p;
}

static uint8_t *bytes(size_t n, int most)
{
    uint8_t *p = memory(n);
    for (size_t i = 0; i < n; i++)
        p[i] = most ? 255 : (uint8_t)next_random();
    return p;
}

static float *floats(size_t n, float low, float high)
{
    float *p = memory(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = real(low, high);
    return p;
}

static void *copy(const void *p, size_t n) { return memcpy(memory(n), p, n); }

/* Weights: of any value, as a trained layer has them (most of them small), or all at an end. */
static int8_t *weights(size_t n, int kind)
{
    int8_t *w = memory(n);
    for (size_t i = 0; i < n; i++)
        switch (kind) {
        case 0: w[i] = (int8_t)between(-128, 127); break;
        case 1: w[i] = (int8_t)((between(-127, 127) + between(-127, 127) + between(-127, 127) + between(-127, 127)) / 5); break;
        case 2: w[i] = 127; break;
        default: w[i] = -128; break;
        }
    return w;
}

static const struct kernels *table; /* under test */
static int failures;

static void fail(const char *format, ...)
{
    va_list a;
    va_start(a, format);
    printf("%s: ", table->name);
    vprintf(format, a);
    printf("\n");
    va_end(a);
    failures++;
}

static int same(const uint8_t *a, const uint8_t *b, size_t n, size_t *where)
{
    for (*where = 0; *where < n; ++*where)
        if (a[*where] != b[*where])
            return 0;
    return 1;
}

static int close_to(const float *a, const float *b, size_t n, size_t *where)
{
    float largest = 1; /* of sums before they were clipped, at least */
    for (size_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(b[i]));
    for (*where = 0; *where < n; ++*where)
        if (!(fabsf(a[*where] - b[*where]) <= 1e-5f * largest))
            return 0;
    return 1;
}

/* Multipliers bring sums of about `reach` to bytes; one in four is a power of two, with which halves are exact ties. */
static struct requant requant(int channels, float reach)
{
    static uint8_t lut[256];
    float *multiplier = floats((size_t)channels, 20.0f / reach, 300.0f / reach);
    int32_t *bias = memory((size_t)channels * sizeof *bias);
    const int ties = one_in(4), huge = one_in(8);
    for (int c = 0; c < channels; c++) {
        if (ties)
            multiplier[c] = ldexpf(1, -between(0, 12));
        else if (huge)
            multiplier[c] = real(0, 1e5f);
        bias[c] = huge ? between(-(1 << 29), 1 << 29) : between(-(int)reach / 2, (int)reach / 2);
    }
    for (int i = 0; i < 256; i++)
        lut[i] = (uint8_t)next_random();
    const int low = one_in(2) ? 0 : between(0, 200);
    struct requant q = {multiplier, bias, between(0, 255), low, one_in(2) ? 255 : between(low, 255), one_in(3) ? lut : NULL};
    if (one_in(3)) /* as behind most activations: there are shorter ways then */
        q.zero = q.low = 0, q.high = 255;
    return q;
}

static void free_requant(struct requant *q)
{
    free((void *)(uintptr_t)q->multiplier);
    free((void *)(uintptr_t)q->bias);
}

static void test_pointwise(void)
{
    const int large = one_in(12);
    const int k = large ? between(200, 1100) : between(1, 130), channels = LANES * between(1, large ? 5 : 13);
    const int rows = between(1, 5), width = one_in(20) ? between(100, 300) : between(1, 40);
    const int k4 = (k + 3) / 4 * 4, panels = (channels + PANEL - 1) / PANEL * PANEL;
    const int first = PANEL * between(0, (channels - 1) / PANEL);
    const int last = first + LANES * between(1, (channels - first) / LANES);
    const ptrdiff_t xp = (k + 7) / 8 * 8 + 8 * between(0, 2) * one_in(2), yp = channels + 8 * between(0, 2) * one_in(2);
    const ptrdiff_t xr = xp * width + (one_in(2) ? 0 : 8 * between(0, 9)), yr = yp * width + (one_in(2) ? 0 : 8 * between(0, 9));
    const size_t size = (size_t)(yr * rows);
    const int kind = one_in(3) ? 0 : one_in(2) ? 1 : between(0, 3);
    uint8_t *x = bytes((size_t)(xr * (rows - 1) + xp * (width - 1) + (k + 7) / 8 * 8 + 64), kind > 1);
    uint8_t *y = bytes(size, 0), *expected = copy(y, size);
    int8_t *w = weights((size_t)k4 * (size_t)panels, kind);
    for (int c = 0; c < panels; c++) /* of the inputs that are padding */
        for (int j = k; j < k4; j++)
            w[(ptrdiff_t)c / PANEL * k4 * PANEL + j / 4 * 4 * PANEL + c % PANEL * 4 + j % 4] = 0;
    struct requant q = requant(panels, 60.0f * 128.0f * sqrtf((float)k) * (kind > 1 ? 10.0f : 1.0f));
    void *scratch = memory(table->pointwise_scratch(k));
    struct pointwise p = {{x, xp, xr}, {y, yp, yr}, rows, width, k, first, last, w, q, scratch};
    table->pointwise(&p);
    p.y.at = expected;
    p.scratch = NULL;
    mnet_scalar.pointwise(&p);
    size_t at;
    if (!same(y, expected, size, &at))
        fail("pointwise k %d channels %d..%d of %d, %d x %d pixels of %td: byte %zu (row %td pixel %td channel %td) %d, not %d", k,
             first, last, channels, rows, width, yp, at, (ptrdiff_t)at / yr, (ptrdiff_t)at % yr / yp,
             (ptrdiff_t)at % yr % yp, y[at], expected[at]);
    free(scratch), free(x), free(y), free(expected), free(w), free_requant(&q);
}

struct window {
    int kh, kw, stride, n, width, channels, first, last, rows, columns;
    ptrdiff_t in_pixel, out_pixel;
};

static struct window window(void)
{
    static const int sides[] = {1, 2, 2, 3, 3, 3, 5, 5, 7, 9};
    struct window s;
    s.kh = sides[between(0, 9)];
    s.kw = one_in(4) ? sides[between(0, 9)] : s.kh;
    s.stride = one_in(8) ? between(3, 12) : between(1, 2);
    s.n = between(1, 7);
    s.width = one_in(10) ? between(40, 120) : between(1, 30);
    s.channels = LANES * (one_in(8) ? between(12, 26) : one_in(4) ? between(1, 2) : between(1, 13));
    s.first = one_in(2) ? 0 : LANES * between(0, s.channels / LANES - 1);
    s.last = one_in(2) ? s.channels : s.first + LANES * between(1, (s.channels - s.first) / LANES);
    s.rows = (s.n - 1) * s.stride + s.kh;
    s.columns = (s.width - 1) * s.stride + s.kw;
    s.in_pixel = s.channels + 8 * between(0, 2) * one_in(3);
    s.out_pixel = s.channels + 8 * between(0, 2) * one_in(3);
    return s;
}

static void test_depthwise(void)
{
    const struct window s = window();
    const size_t taps = (size_t)(s.kh * s.kw), size = (size_t)(s.out_pixel * s.width);
    const int kind = one_in(3) ? 0 : one_in(2) ? 1 : between(0, 3);
    int8_t *w = weights(taps * (size_t)s.channels, kind);
    struct requant q = requant(s.channels, 60.0f * 128.0f * (float)s.kh * (kind > 1 ? 5.0f : 1.0f));
    uint8_t **in = memory((size_t)s.rows * sizeof *in), **y = memory((size_t)s.n * sizeof *y);
    uint8_t **expected = memory((size_t)s.n * sizeof *expected);
    for (int i = 0; i < s.rows; i++)
        in[i] = bytes((size_t)(s.in_pixel * (s.columns - 1) + s.channels), kind > 1);
    for (int i = 0; i < s.n; i++) {
        y[i] = bytes(size, 0);
        expected[i] = copy(y[i], size);
    }
    void *packed = memory(table->depthwise_bytes(s.kh, s.kw, s.channels));
    table->depthwise_pack(w, s.kh, s.kw, s.channels, packed);
    struct depthwise d = {(const uint8_t *const *)in, y, s.n, s.width, s.kh, s.kw, s.stride, s.first, s.last,
                          s.in_pixel, s.out_pixel, packed, s.channels, q};
    table->depthwise(&d);
    d.out = expected;
    d.w = w;
    mnet_scalar.depthwise(&d);
    for (int i = 0; i < s.n; i++) {
        size_t at;
        if (!same(y[i], expected[i], size, &at))
            fail("depthwise %d x %d / %d, %d..%d of %d channels, %d rows of %d: row %d pixel %td channel %td: %d, not %d",
                 s.kh, s.kw, s.stride, s.first, s.last, s.channels, s.n, s.width, i, (ptrdiff_t)at / s.out_pixel,
                 (ptrdiff_t)at % s.out_pixel, y[i][at], expected[i][at]);
        free(y[i]), free(expected[i]);
    }
    for (int i = 0; i < s.rows; i++)
        free(in[i]);
    free(packed), free(in), free(y), free(expected), free(w), free_requant(&q);
}

/* Windows read in place, against a product over windows gathered side by side. */
static void test_conv(void)
{
    if (!table->windows)
        return;
    const int kh = between(1, 5), kw = between(1, 5), stride = between(1, 3), n = between(1, 4);
    const int pixel = one_in(2) ? 3 : between(1, 90);
    const int width = table->windows->least + between(0, 60), channels = LANES * between(1, 13);
    const int panels = (channels + PANEL - 1) / PANEL * PANEL, run = kw * pixel, k = kh * run, k4 = (k + 3) / 4 * 4;
    const int first = PANEL * between(0, (channels - 1) / PANEL), rows = (n - 1) * stride + kh;
    const int last = first + LANES * between(1, (channels - first) / LANES);
    const int kind = one_in(3) ? 0 : one_in(2) ? 1 : between(0, 3);
    const ptrdiff_t out_pixel = channels + 8 * between(0, 2) * one_in(2);
    const size_t size = (size_t)(out_pixel * width);
    int8_t *w = weights((size_t)k4 * (size_t)panels, kind);
    struct requant q = requant(panels, 60.0f * 128.0f * sqrtf((float)k) * (kind > 1 ? 10.0f : 1.0f));
    uint8_t **in = memory((size_t)rows * sizeof *in), **y = memory((size_t)n * sizeof *y), *expected = memory(size);
    uint8_t *gathered = memory((size_t)k4 * (size_t)width + 64);
    for (int i = 0; i < rows; i++)
        in[i] = bytes((size_t)(((width - 1) * stride + kw) * pixel + 63), kind > 1);
    for (int i = 0; i < n; i++)
        y[i] = bytes(size, 0);
    for (int c = 0; c < panels; c++) /* of the inputs that are padding */
        for (int j = k; j < k4; j++)
            w[(ptrdiff_t)c / PANEL * k4 * PANEL + j / 4 * 4 * PANEL + c % PANEL * 4 + j % 4] = 0;
    void *scratch = memory(table->pointwise_scratch(k)), *packed = memory(table->windows->bytes(kh, run, channels));
    table->windows->pack(w, kh, run, channels, packed);
    struct conv v = {(const uint8_t *const *)in, y, n, width, kh, run, stride, first, last, pixel, out_pixel, packed, q,
                     scratch};
    uint8_t *before = memory(size * (size_t)n);
    for (int i = 0; i < n; i++)
        memcpy(before + (size_t)i * size, y[i], size);
    table->windows->conv(&v);
    for (int r = 0; r < n; r++) {
        for (int i = 0; i < width; i++)
            for (int h = 0; h < kh; h++)
                memcpy(gathered + i * k4 + h * run, in[r * stride + h] + i * stride * pixel, (size_t)run);
        memcpy(expected, before + (size_t)r * size, size);
        const struct pointwise p = {{gathered, k4, 0}, {expected, out_pixel, 0}, 1, width, k, first, last, w, q, NULL};
        mnet_scalar.pointwise(&p);
        size_t at;
        if (!same(y[r], expected, size, &at))
            fail("conv %d x %d / %d of %d bytes a pixel, %d..%d of %d channels, %d rows of %d: row %d byte %zu: %d, not %d", kh,
                 kw, stride, pixel, first, last, channels, n, width, r, at, y[r][at], expected[at]);
        free(y[r]);
    }
    for (int i = 0; i < rows; i++)
        free(in[i]);
    free(in), free(y), free(expected), free(before), free(gathered), free(scratch), free(packed), free(w), free_requant(&q);
}

static struct finish finish(int channels)
{
    const int clip = one_in(2);
    struct finish f = {floats((size_t)channels, -1, 1), clip ? real(-2, 0) : -INFINITY, clip ? real(0, 6) : INFINITY,
                       (enum act)between(0, 2)};
    return f;
}

static void test_pointwise_f32(void)
{
    const int k = one_in(8) ? between(200, 600) : between(1, 97), channels = LANES * between(1, 13);
    const int rows = between(1, 4), width = between(1, 30), panels = (channels + PANEL - 1) / PANEL * PANEL;
    const int first = PANEL * between(0, (channels - 1) / PANEL);
    const int last = first + LANES * between(1, (channels - first) / LANES);
    const ptrdiff_t xp = k + 8 * between(0, 1), yp = channels + 8 * between(0, 1);
    const ptrdiff_t xr = xp * width + 8 * between(0, 3), yr = yp * width + 8 * between(0, 3);
    const size_t size = (size_t)(yr * rows);
    float *x = floats((size_t)(xr * (rows - 1) + xp * (width - 1) + k), -2, 2), *y = floats(size, -1, 1);
    float *expected = copy(y, size * sizeof *y), *w = floats((size_t)k * (size_t)panels, -1, 1);
    struct finish f = finish(panels);
    struct pointwise_f32 p = {{(uint8_t *)x, xp * 4, xr * 4}, {(uint8_t *)y, yp * 4, yr * 4},
                              rows, width, k, first, last, w, f};
    table->pointwise_f32(&p);
    p.y.at = (uint8_t *)expected;
    mnet_scalar.pointwise_f32(&p);
    size_t at;
    if (!close_to(y, expected, size, &at))
        fail("pointwise_f32 k %d channels %d..%d of %d, %d x %d: %zu: %g, not %g", k, first, last, channels, rows, width, at,
             (double)y[at], (double)expected[at]);
    free(x), free(y), free(expected), free(w), free((void *)(uintptr_t)f.bias);
}

/* A product's weights w[C/16][K][16] without the zeros. */
static struct sparse without_zeros(const float *w, int k, int outputs)
{
    const size_t blocks = (size_t)(k + SPARSE_BLOCK - 1) / SPARSE_BLOCK;
    uint32_t *begin = memory((blocks * (size_t)outputs + 1) * sizeof *begin), *next = begin, n = 0;
    struct sparse_weight *kept = memory((size_t)k * (size_t)outputs * sizeof *kept);
    for (int first = 0; first < k; first += SPARSE_BLOCK)
        for (int c = 0; c < outputs; c++) {
            *next++ = n;
            for (int i = 0; i < SPARSE_BLOCK && first + i < k; i++) {
                const float v = w[(c / PANEL * (ptrdiff_t)k + first + i) * PANEL + c % PANEL];
                if (v != 0)
                    kept[n++] = (struct sparse_weight){(uint32_t)(i * SPARSE_PIXELS), v};
            }
        }
    *next = n;
    return (struct sparse){begin, kept, outputs};
}

/* As the dense product of plain C, of weights that are mostly zeros. */
static void test_sparse(void)
{
    sparse_product *const product = mnet_sparse_kernel(table);
    if (!product)
        return;
    const int k = one_in(4) ? between(SPARSE_BLOCK, 600) : between(1, 97), channels = LANES * between(1, 13);
    const int rows = between(1, 4), width = between(1, 90), panels = (channels + PANEL - 1) / PANEL * PANEL;
    const int first = PANEL * between(0, (channels - 1) / PANEL);
    const int last = first + LANES * between(1, (channels - first) / LANES);
    const ptrdiff_t xp = (k + 7) / 8 * 8 + 8 * between(0, 1), yp = channels + 8 * between(0, 1);
    const ptrdiff_t xr = xp * width + 8 * between(0, 3), yr = yp * width + 8 * between(0, 3);
    const size_t size = (size_t)(yr * rows);
    float *x = floats((size_t)(xr * rows) + 16, -2, 2), *y = floats(size, -1, 1), *expected = copy(y, size * sizeof *y);
    float *w = floats((size_t)k * (size_t)panels, -1, 1);
    for (ptrdiff_t i = 0; i < (ptrdiff_t)k * panels; i++)
        w[i] = one_in(4) ? w[i] : 0;
    float *strip = memory(sizeof *strip * SPARSE_PIXELS * (size_t)(SPARSE_BLOCK + panels));
    const struct sparse s = without_zeros(w, k, panels);
    struct finish f = finish(panels);
    struct pointwise_f32 p = {{(uint8_t *)x, xp * 4, xr * 4}, {(uint8_t *)y, yp * 4, yr * 4},
                              rows, width, k, first, last, w, f};
    product(&p, &s, strip);
    p.y.at = (uint8_t *)expected;
    mnet_scalar.pointwise_f32(&p);
    size_t at;
    if (!close_to(y, expected, size, &at))
        fail("sparse k %d channels %d..%d of %d, %d x %d: %zu: %g, not %g", k, first, last, channels, rows, width, at,
             (double)y[at], (double)expected[at]);
    free(x), free(y), free(expected), free(w), free(strip), free((void *)(uintptr_t)f.bias);
    free((void *)(uintptr_t)s.begin), free((void *)(uintptr_t)s.weights);
}

static void test_depthwise_f32(void)
{
    const struct window s = window();
    const size_t taps = (size_t)(s.kh * s.kw), size = (size_t)(s.out_pixel * s.width);
    float *w = floats(taps * (size_t)s.channels, -1, 1);
    struct finish f = finish(s.channels);
    float **in = memory((size_t)s.rows * sizeof *in), **y = memory((size_t)s.n * sizeof *y);
    float **expected = memory((size_t)s.n * sizeof *expected);
    for (int i = 0; i < s.rows; i++)
        in[i] = floats((size_t)(s.in_pixel * (s.columns - 1) + s.channels), -2, 2);
    for (int i = 0; i < s.n; i++) {
        y[i] = floats(size, -1, 1);
        expected[i] = copy(y[i], size * sizeof(float));
    }
    struct depthwise_f32 d = {(const float *const *)in, y, s.n, s.width, s.kh, s.kw, s.stride, s.first, s.last,
                              s.in_pixel, s.out_pixel, w, s.channels, f};
    table->depthwise_f32(&d);
    d.out = expected;
    mnet_scalar.depthwise_f32(&d);
    for (int i = 0; i < s.n; i++) {
        size_t at;
        if (!close_to(y[i], expected[i], size, &at))
            fail("depthwise_f32 %d x %d / %d, %d..%d of %d channels, row %d of %d: %zu: %g, not %g", s.kh, s.kw, s.stride,
                 s.first, s.last, s.channels, i, s.width, at, (double)y[i][at], (double)expected[i][at]);
        free(y[i]), free(expected[i]);
    }
    for (int i = 0; i < s.rows; i++)
        free(in[i]);
    free(in), free(y), free(expected), free(w), free((void *)(uintptr_t)f.bias);
}

#define BYTES_AGREE(name, y, expected, n) \
    do { \
        size_t at_; \
        if (!same((const uint8_t *)(y), (const uint8_t *)(expected), n, &at_)) \
            fail(name " of %zu values, %d channels: byte %zu", count, channels, at_); \
    } while (0)

/* Value by value: buffers of exactly n. */
static void test_small(void)
{
    const int channels = LANES * between(1, 22), wide = channels + 8 * between(0, 2);
    const size_t pixels = (size_t)(one_in(8) ? between(250, 600) : between(0, 12));
    const size_t count = one_in(2) ? pixels * (size_t)channels : (size_t)between(0, 300);
    const size_t map = pixels * (size_t)channels, most = count > map ? count : map;
    uint8_t *a = bytes(most, 0), *b = bytes(most, 0), *y = memory(most), *z = memory(most), *lut = bytes(256, 0);
    float *fa = floats(most, -8, 8), *fb = floats(most, -8, 8), *fy = memory(most * 4), *fz = memory(most * 4);
    float *m = floats((size_t)channels, -2, 2);
    const int low = one_in(2) ? 0 : between(0, 200), ties = one_in(2);
    const float ma = ties ? 0.5f : real(0, 2), mb = ties ? 0.25f : real(0, 2);
    const struct add_u8 add = {ma, mb, between(0, 255), between(0, 255), between(0, 255), low, between(low, 255)};
    const struct mul_u8 mul = {m, between(0, 255), between(0, 255), low, between(low, 255)};
    const enum act act = (enum act)between(0, 2);
    size_t at;
    table->add_u8(a, b, y, count, &add), mnet_scalar.add_u8(a, b, z, count, &add);
    BYTES_AGREE("add_u8", y, z, count);
    table->mul_u8(a, y, pixels, channels, &mul), mnet_scalar.mul_u8(a, z, pixels, channels, &mul);
    BYTES_AGREE("mul_u8", y, z, map);
    table->lut_u8(a, y, count, lut), mnet_scalar.lut_u8(a, z, count, lut);
    BYTES_AGREE("lut_u8", y, z, count);
    table->quantize(fa, y, count, ma * 20, add.zero), mnet_scalar.quantize(fa, z, count, ma * 20, add.zero);
    BYTES_AGREE("quantize", y, z, count);
    table->dequantize(a, fy, count, ma, add.zero), mnet_scalar.dequantize(a, fz, count, ma, add.zero);
    BYTES_AGREE("dequantize", fy, fz, count * 4);
    table->add_f32(fa, fb, fy, count), mnet_scalar.add_f32(fa, fb, fz, count);
    BYTES_AGREE("add_f32", fy, fz, count * 4);
    table->mul_f32(fa, m, fy, pixels, channels), mnet_scalar.mul_f32(fa, m, fz, pixels, channels);
    BYTES_AGREE("mul_f32", fy, fz, map * 4);
    memcpy(fy, fa, count * 4), memcpy(fz, fa, count * 4);
    table->act_f32(fy, count, -4, 5, act), mnet_scalar.act_f32(fz, count, -4, 5, act);
    if (!close_to(fy, fz, count, &at))
        fail("act_f32 %d of %zu values: %zu", (int)act, count, at);

    uint8_t *x = bytes(pixels ? (pixels - 1) * (size_t)wide + (size_t)channels : 0, one_in(4));
    int32_t *sums = memory((size_t)channels * 4), *others = memory((size_t)channels * 4);
    float *fsums = floats((size_t)channels, -1, 1), *fothers = copy(fsums, (size_t)channels * 4);
    for (int c = 0; c < channels; c++)
        sums[c] = others[c] = between(-1000, 1000);
    table->sum_u8(x, wide, pixels, channels, sums), mnet_scalar.sum_u8(x, wide, pixels, channels, others);
    BYTES_AGREE("sum_u8", sums, others, (size_t)channels * 4);
    table->sum_f32(fa, pixels, channels, fsums), mnet_scalar.sum_f32(fa, pixels, channels, fothers);
    if (!close_to(fsums, fothers, (size_t)channels, &at))
        fail("sum_f32 of %zu pixels of %d channels: %zu", pixels, channels, at);
    free(a), free(b), free(y), free(z), free(lut), free(fa), free(fb), free(fy), free(fz), free(m);
    free(x), free(sums), free(others), free(fsums), free(fothers);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm", "wasm",
                                        "wasm-signed", "wasm-unsigned"};
    const int cases = argc > 1 ? atoi(argv[1]) : 400;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    int ran = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (argc > 3 && strcmp(argv[3], names[i]))
            continue;
        table = mnet_kernels(names[i]);
        if (!table)
            continue;
        state = seed * 0x9e3779b97f4a7c15u + 1;
        const int before = failures;
        for (int c = 0; c < cases && failures < 20; c++) {
            test_pointwise();
            test_depthwise();
            test_conv();
            test_pointwise_f32();
            test_sparse();
            test_depthwise_f32();
            test_small();
        }
        printf("%s: %s in %d cases of each kind\n", table->name, failures > before ? "differs" : "agrees", cases);
        ran++;
    }
    return failures || !ran;
}
