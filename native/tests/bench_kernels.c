/* How fast the kernels are, alone: for every instruction set that runs here, for layers of V1 and V2 at 224 x 224,
 * GMAC/s and the share of what the core can multiply at most. Pictures are passed in strips, as the engine does it.
 *
 *   make -C native/tests bench        or        ./bench_kernels [name of one table] [milliseconds a measurement]
 *
 * The clock is measured beside each layer with a chain of additions, one a cycle: neither the time stamp counter nor the
 * name of a processor says how fast it runs now. Each number is the median of nine. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "../src/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPEATS = 9, STRIP = 8 };

struct layer {
    const char *name;
    int side, in, out, kernel, stride; /* kernel 0: pointwise; side of the input */
};

static const struct layer layers[] = {
    {"V1 pointwise 1", 112, 32, 64, 0, 1},     {"V1 pointwise 2", 56, 64, 128, 0, 1},
    {"V1 pointwise 3", 56, 128, 128, 0, 1},    {"V1 pointwise 4", 28, 128, 256, 0, 1},
    {"V1 pointwise 5", 28, 256, 256, 0, 1},    {"V1 pointwise 6", 14, 256, 512, 0, 1},
    {"V1 pointwise 7", 14, 512, 512, 0, 1},    {"V1 pointwise 12", 7, 512, 1024, 0, 1},
    {"V1 pointwise 13", 7, 1024, 1024, 0, 1},  {"V1 classifier", 1, 1024, 1008, 0, 1},
    {"V2 expand 2", 112, 16, 96, 0, 1},        {"V2 project 2", 56, 96, 24, 0, 1},
    {"V2 expand 3", 56, 24, 144, 0, 1},        {"V2 project 3", 56, 144, 24, 0, 1},
    {"V2 expand 5", 28, 32, 192, 0, 1},        {"V2 project 5", 28, 192, 32, 0, 1},
    {"V2 expand 8", 14, 64, 384, 0, 1},        {"V2 project 8", 14, 384, 64, 0, 1},
    {"V2 expand 15", 7, 160, 960, 0, 1},       {"V2 project 15", 7, 960, 160, 0, 1},
    {"V2 last", 7, 320, 1280, 0, 1},           {"V2 first, 3x3x3", 112, 27, 32, 0, 1},
    {"V1 depthwise 1", 112, 32, 32, 3, 1},     {"V1 depthwise 2 /2", 112, 64, 64, 3, 2},
    {"V1 depthwise 3", 56, 128, 128, 3, 1},    {"V1 depthwise 5", 28, 256, 256, 3, 1},
    {"V1 depthwise 7", 14, 512, 512, 3, 1},    {"V1 depthwise 12 /2", 14, 512, 512, 3, 2},
    {"V1 depthwise 13", 7, 1024, 1024, 3, 1},  {"V2 depthwise 2 /2", 112, 96, 96, 3, 2},
    {"V2 depthwise 3", 56, 144, 144, 3, 1},    {"V3 depthwise 5x5", 28, 120, 120, 5, 1},
    {"V3 depthwise 5x5 /2", 14, 672, 672, 5, 2}, {"7x7", 28, 96, 96, 7, 1},
    {"Almost rounding alone", 112, 4, 64, 0, 1}, {"V1 .25 pointwise 1", 112, 8, 16, 0, 1},
    {"V1 .25 pointwise 2", 56, 16, 32, 0, 1},  {"V1 .25 depthwise 1", 112, 8, 8, 3, 1},
    {"V1 .25 depthwise 2 /2", 112, 16, 16, 3, 2},  {"V3 depthwise 1", 112, 16, 16, 3, 1},
};

static double seconds(void)
{
    struct timespec t; /* of this thread alone: others may want the core */
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, compare);
    return v[n / 2];
}

/* Cycles a nanosecond now, or 0 where this has no way to say it. */
static double clock_ghz(void)
{
#if defined(__x86_64__)
    enum { ROUNDS = 3000, CHAIN = 32, LATENCY = 3 }; /* of a multiplication, on every x86 since 2013 */
    double v[5];
    for (int t = 0; t < 5; t++) {
        long x = 1;
        const double start = seconds();
        for (int i = 0; i < ROUNDS; i++)
            __asm__ volatile(".rept 32\n\timul %0, %0\n\t.endr" : "+r"(x));
        v[t] = 1e-9 * ROUNDS * CHAIN * LATENCY / (seconds() - start);
    }
    return median(v, 5);
#else
    return 0;
#endif
}

/* int8 products and additions a cycle, of one core of the processors that have the instructions; 0: not known. */
static double most_macs(const char *name)
{
    static const struct {
        const char *name;
        double macs;
    } table[] = {{"avx2", 32}, {"avxvnni", 64}, {"avx512", 128}, {"amx", 1024}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(name, table[i].name))
            return table[i].macs;
    return 0;
}

static void *memory(size_t bytes)
{
    char *p = aligned_alloc(64, (bytes + 255) / 64 * 64);
    if (!p)
        exit(1);
    for (size_t i = 0; i < bytes; i++)
        p[i] = (char)(rand() >> 8);
    return p;
}

struct job {
    const struct layer *layer;
    const struct kernels *k;
    uint8_t *x, *y;
    void *w, *scratch;
    struct requant q;
};

static void picture(const struct job *j)
{
    const struct layer *l = j->layer;
    const int out_side = (l->side + l->stride - 1) / l->stride, kh = l->kernel, padded = l->side + kh;
    for (int row = 0; row < out_side; row += STRIP) {
        const int n = out_side - row < STRIP ? out_side - row : STRIP;
        if (l->kernel) {
            const uint8_t *in[STRIP * 2 + 8];
            uint8_t *out[STRIP];
            for (int i = 0; i < (n - 1) * l->stride + kh; i++)
                in[i] = j->x + (ptrdiff_t)((row * l->stride + i) % padded) * padded * l->in;
            for (int i = 0; i < n; i++)
                out[i] = j->y + (ptrdiff_t)(row + i) * out_side * l->out;
            const struct depthwise d = {in, out, n, out_side, kh, kh, l->stride, 0, l->in, l->in, l->out, j->w, l->in, j->q};
            j->k->depthwise(&d);
        } else {
            const ptrdiff_t x_row = (ptrdiff_t)l->side * l->in, y_row = (ptrdiff_t)l->side * l->out;
            const struct pointwise p = {{j->x + row * x_row, l->in, x_row}, {j->y + row * y_row, l->out, y_row},
                                        n, l->side, l->in, 0, l->out, j->w, j->q, j->scratch};
            j->k->pointwise(&p);
        }
    }
}

static void bench(const struct kernels *k, const struct layer *l, double least)
{
    const size_t side = (size_t)(l->side + l->kernel + 1), panels = ((size_t)l->out + PANEL) / PANEL * PANEL;
    const size_t k4 = ((size_t)l->in + 3) / 4 * 4;
    float *multiplier = memory(panels * sizeof(float));
    int32_t *bias = memory(panels * sizeof(int32_t));
    for (size_t i = 0; i < panels; i++) {
        multiplier[i] = 1e-4f;
        bias[i] = (int32_t)i;
    }
    struct job j = {l, k, memory(side * side * (size_t)l->in + 64), memory(side * side * (size_t)l->out), NULL, NULL,
                    {multiplier, bias, 0, 0, 255, NULL}}; /* as behind most activations */
    void *w = memory(l->kernel ? (size_t)(l->kernel * l->kernel * l->in) : panels * k4);
    if (l->kernel) {
        j.w = memory(k->depthwise_bytes(l->kernel, l->kernel, l->in));
        k->depthwise_pack(w, l->kernel, l->kernel, l->in, j.w);
    } else {
        j.w = w;
        j.scratch = memory(k->pointwise_scratch(l->in) + 64);
    }
    const int out_side = (l->side + l->stride - 1) / l->stride;
    const double macs = (double)out_side * out_side * l->out * (l->kernel ? l->kernel * l->kernel : l->in);
    long times = 1;
    for (double took = 0; took < least; times *= 2) {
        const double start = seconds();
        for (long i = 0; i < times; i++)
            picture(&j);
        took = seconds() - start;
    }
    double v[REPEATS], ghz[REPEATS];
    for (int t = 0; t < REPEATS; t++) {
        ghz[t] = clock_ghz();
        const double start = seconds();
        for (long i = 0; i < times; i++)
            picture(&j);
        v[t] = (seconds() - start) / (double)times;
    }
    const double took = median(v, REPEATS), clock = median(ghz, REPEATS), most = most_macs(k->name);
    printf("%-8s %-20s %3dx%-3d %4d -> %-4d  %9.1f us  %8.1f GMAC/s", k->name, l->name, l->side, l->side, l->in, l->out,
           took * 1e6, macs / took * 1e-9);
    if (clock > 0 && most > 0)
        printf("  %7.1f MAC/cycle of %4.0f  %3.0f%%", macs / took * 1e-9 / clock, most, 100 * macs / took * 1e-9 / clock / most);
    printf("\n");
    fflush(stdout);
    if (j.w != w)
        free(j.w);
    free(w), free(multiplier), free(bias), free(j.x), free(j.y), free(j.scratch);
}

/* What is done value by value, over the map of a residual of V2 (56 x 56 x 24). */
static void bench_values(const struct kernels *k, double least)
{
    enum { PIXELS = 56 * 56, CHANNELS = 24, KINDS = 5, N = PIXELS * CHANNELS };
    static const char *const names[KINDS] = {"add", "mul", "lut", "sum", "quantize"};
    uint8_t *a = memory(N), *b = memory(N), *y = memory(N), *lut = memory(256);
    float *m = memory(CHANNELS * sizeof *m), *f = memory(N * sizeof *f);
    int32_t *sums = memory(CHANNELS * sizeof *sums);
    const struct add_u8 add = {0.7f, 0.4f, 120, 131, 125, 0, 255};
    const struct mul_u8 mul = {m, 3, 0, 0, 255};
    for (int i = 0; i < CHANNELS; i++)
        m[i] = 0.5f, sums[i] = 0;
    for (int i = 0; i < N; i++)
        f[i] = (float)(i % 97);
    for (int kind = 0; kind < KINDS; kind++) {
        double v[REPEATS];
        long times = 1;
        for (int t = -1; t < REPEATS; t++) {
            double took = 0;
            for (int more = 1; more; times *= more ? 2 : 1) {
                const double start = seconds();
                for (long i = 0; i < times; i++)
                    switch (kind) {
                    case 0: k->add_u8(a, b, y, N, &add); break;
                    case 1: k->mul_u8(a, y, PIXELS, CHANNELS, &mul); break;
                    case 2: k->lut_u8(a, y, N, lut); break;
                    case 3: memset(sums, 0, CHANNELS * sizeof *sums), k->sum_u8(a, CHANNELS, PIXELS, CHANNELS, sums); break;
                    default: k->quantize(f, y, N, 1.5f, 3); break;
                    }
                took = seconds() - start;
                more = t < 0 && took < least;
            }
            if (t >= 0)
                v[t] = took / (double)times;
        }
        const double took = median(v, REPEATS), clock = clock_ghz();
        printf("%-8s %-20s %d values  %9.1f us", k->name, names[kind], N, took * 1e6);
        if (clock > 0)
            printf("  %7.1f values/cycle", N / took * 1e-9 / clock);
        printf("\n");
    }
    fflush(stdout);
    free(a), free(b), free(y), free(lut), free(m), free(f), free(sums);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm"};
    const double least = argc > 2 ? atof(argv[2]) * 1e-3 : 5e-3;
    printf("clock %.2f GHz\n", clock_ghz());
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct kernels *k = argc > 1 && strcmp(argv[1], names[i]) ? NULL : mnet_kernels(names[i]);
        for (size_t l = 0; k && l < sizeof layers / sizeof *layers; l++)
            bench(k, &layers[l], least);
        if (k)
            bench_values(k, least);
    }
    return 0;
}
