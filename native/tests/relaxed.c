/* The kernels for browsers whose relaxed dot product takes pixels as unsigned or as signed bytes, in any browser: on
 * pixels that leave it no choice, 0..127 and 128..255 (which are 0..127 after the xor). */
#include "../src/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct kernels mnet_wasm_unsigned, mnet_wasm_signed;

static int differs(const struct kernels *table, int from)
{
    enum { MOST = 70 };
    static uint8_t x[MOST * MOST + 128], y[MOST * 2 * MOST], z[sizeof y];
    static int8_t w[2 * MOST * MOST];
    static int32_t bias[2 * MOST];
    static float multiplier[2 * MOST];
    const int k = (1 + rand() % (MOST / 4)) * 4, n = 1 + rand() % MOST, outputs = (1 + rand() % (MOST / 8)) * 8;
    const int spread = rand() % 2 ? 256 : 16;
    for (size_t i = 0; i < sizeof x; i++)
        x[i] = (uint8_t)(from + rand() % 128);
    for (size_t i = 0; i < sizeof w; i++)
        w[i] = (int8_t)(rand() % spread - spread / 2);
    for (int i = 0; i < 2 * MOST; i++) {
        bias[i] = rand() % 20000 - 10000;
        multiplier[i] = 0.0005f * (float)(1 + rand() % 20);
    }
    const struct requant q = {multiplier, bias, 100, 0, 255, NULL};
    struct pointwise p = {{x, k, 0}, {y, outputs, 0}, 1, n, k, 0, outputs, w, q, NULL};
    memset(y, 0, sizeof y);
    memset(z, 0, sizeof z);
    p.scratch = malloc(table->pointwise_scratch(k));
    table->pointwise(&p);
    free(p.scratch);
    p.y.at = z;
    mnet_scalar.pointwise(&p);
    return memcmp(y, z, sizeof y) != 0;
}

int main(void)
{
    int wrong = 0;
    for (int i = 0; i < 500; i++)
        wrong += differs(&mnet_wasm_unsigned, 0) + differs(&mnet_wasm_signed, 128);
    printf("%d of 1000 cases differ\n", wrong);
    return wrong != 0;
}
