/* Damages a .mnet file thousands of times, in one process under the sanitizers: every copy is refused with one line, or
 * runs without touching anything outside its buffers.
 *
 *     fuzz FILE [mutations] [seed]
 *
 * Half of the copies have a few bytes of the header, the plan or a coded file's pieces changed to numbers that break
 * things (0, 1, -1, the largest, near neighbours), the others any byte, or their end cut off. The digest is made right
 * again, or nothing but it would be tested. Prints how many were opened, and run. */
#include "../src/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(PLAIN) /* without cpu.c and the vectors' kernels, which take minutes to compile under the sanitizers */
const struct kernels *mnet_kernels(const char *name)
{
    return !name || !strcmp(name, mnet_scalar.name) ? &mnet_scalar : NULL;
}
sparse_product *mnet_sparse_kernel(const struct kernels *k)
{
    (void)k;
    return NULL;
}
#endif

static uint64_t state;

static uint32_t draw(uint32_t below) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull >> 32) % below);
}

static void *aligned(size_t n, void **block)
{
    *block = malloc(n + UNIT);
    if (!*block)
        abort();
    return (uint8_t *)*block + (UNIT - (uintptr_t)*block % UNIT) % UNIT;
}

static void seal(uint8_t *bytes, size_t n)
{
    const uint64_t size = n;
    memcpy(bytes + 8, &size, 8);
    mnet_sha256(bytes + PREFIX, n - PREFIX, bytes + 16);
}

static size_t damage(uint8_t *bytes, size_t n)
{
    struct header h;
    memcpy(&h, bytes + PREFIX, sizeof h);
    const size_t plan = (size_t)h.plan * UNIT;
    const size_t words = (size_t)h.values * VALUE_WORDS + (size_t)h.operations * OP_WORDS +
                         (size_t)h.groups * GROUP_WORDS + (size_t)h.outputs * OUTPUT_WORDS;
    if (draw(16) == 0)
        return PREFIX + sizeof h + draw((uint32_t)(n - PREFIX - sizeof h));
    for (uint32_t i = 1 + draw(3); i--;) {
        if (draw(8) == 0) {
            bytes[PREFIX + draw((uint32_t)(n - PREFIX))] = (uint8_t)draw(256);
            continue;
        }
        const size_t at = h.pieces && draw(2) ? (size_t)h.weights * UNIT + 4 * draw(h.pieces * sizeof(struct piece) / 4)
                          : draw(6)           ? plan + 4 * draw((uint32_t)words)
                                              : PREFIX + 4 * draw(sizeof h / 4);
        uint32_t v;
        memcpy(&v, bytes + at, 4);
        switch (draw(8)) {
        case 0: v = 0; break;
        case 1: v = 1; break;
        case 2: v = NONE; break;
        case 3: v = 0x7fffffff; break;
        case 4: v += draw(9) - 4; break;
        case 5: v *= 2; break;
        case 6: v = draw(300); break;
        default: v ^= 1u << draw(32); break;
        }
        memcpy(bytes + at, &v, 4);
    }
    return n;
}

/* Multiply-adds, near enough to leave out what would take for ever. */
static double work(const struct mnet_model *m)
{
    double sum = 0;
    for (uint32_t i = 0; i < m->h.operations; i++) {
        const struct op *o = &m->ops[i];
        const struct value *out = &m->values[o->out], *in = &m->values[o->in];
        const double taps = o->kind == DEPTHWISE ? (double)o->kh * o->kw : o->inputs + 1.0;
        sum += (double)out->height * out->width * out->pitch * taps + (double)in->height * in->width * in->pitch;
    }
    return sum;
}

static int run(struct mnet_model *m, int threads)
{
    char why[256] = "";
    int height, width, rank, shape[3];
    if (work(m) > 3e7 || m->h.arena_units > 1u << 19 || m->h.window_units > 1u << 19)
        return 0;
    struct mnet_session *s = mnet_session(m, threads, draw(2) ? NULL : "scalar", why, sizeof why);
    if (!s)
        return 0;
    mnet_image(m, &height, &width);
    const size_t n = (size_t)height * (size_t)width * 3;
    uint8_t *image = malloc(n);
    float **outputs = calloc((size_t)mnet_outputs(m), sizeof *outputs);
    for (size_t i = 0; i < n; i++)
        image[i] = (uint8_t)draw(256);
    for (int i = 0; i < mnet_outputs(m); i++) {
        mnet_output(m, i, &rank, shape);
        outputs[i] = malloc((size_t)shape[0] * (size_t)shape[1] * (size_t)shape[2] * sizeof(float));
    }
    const int code = mnet_run(s, image, 1, outputs);
    for (int i = 0; i < mnet_outputs(m); i++)
        free(outputs[i]);
    free(outputs);
    free(image);
    mnet_end(s);
    return code == MNET_OK;
}

int main(int count, char **arguments)
{
    FILE *f = count > 1 ? fopen(arguments[1], "rb") : NULL;
    const int mutations = count > 2 ? atoi(arguments[2]) : 3000;
    state = 88172645463325252ull + (uint64_t)(count > 3 ? atoi(arguments[3]) : 0);
    if (!f || fseek(f, 0, SEEK_END))
        return 2;
    const size_t n = (size_t)ftell(f);
    void *kept, *copied;
    uint8_t *original = aligned(n, &kept);
    rewind(f);
    if (fread(original, 1, n, f) != n)
        return 2;
    fclose(f);
    int opened = 0, ran = 0;
    for (int i = 0; i < mutations; i++) {
        char why[256] = "";
        uint8_t *scratch = malloc(n);
        memcpy(scratch, original, n);
        const size_t size = i ? damage(scratch, n) : n;
        uint8_t *bytes = aligned(size, &copied); /* of just its size, so that reads behind its end are seen */
        memcpy(bytes, scratch, size);
        free(scratch);
        seal(bytes, size);
        struct mnet_model *m = mnet_open(bytes, size, why, sizeof why);
        if (!m && (!why[0] || strchr(why, '\n')))
            return 3;
        if (m) {
            opened++;
            ran += run(m, 1 + (i % 16 == 0));
            mnet_close(m);
        } else if (i == 0) {
            fprintf(stderr, "%s\n", why);
            return 4;
        }
        free(copied);
    }
    free(kept);
    printf("%d mutations, %d opened, %d ran\n", mutations, opened, ran);
    return 0;
}
