/* The weights of a coded file, once, when it is opened. Every piece is measured before anything of it is written: what it
 * says of itself has to take just the bytes that it has, and all together have to fill the weights' memory. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum { MOST = 1 << 24, SPARE = 8 /* bytes behind a piece, so that whole words can be read */ };

static uint64_t tables_bytes(const struct piece *p)
{
    return p->way == SPARSE ? 0 : (p->way == TABLES ? p->rows : 1) * ((uint64_t)p->item << p->bits);
}
static uint64_t row_bytes(const struct piece *p)
{
    return ((uint64_t)p->inputs * p->bits + 7) / 8;
}

static uint64_t ones(const uint8_t *mask, uint64_t bytes)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < bytes; i++) {
        const uint32_t twos = mask[i] - (mask[i] >> 1 & 85u), fours = (twos & 51u) + (twos >> 2 & 51u);
        n += (fours + (fours >> 4)) & 15u;
    }
    return n;
}

static uint64_t becomes(const struct piece *p) /* bytes of memory */
{
    return p->way == AS_IS ? p->bytes : up(p->rows, p->lanes) * up(p->inputs, p->group) * p->item;
}

/* Whether a piece is what it says, so that all of it can be read. */
static int is_sound(const struct piece *p, const uint8_t *data)
{
    if (p->way == AS_IS)
        return 1;
    if (p->way > TABLES || !p->rows || p->rows > MOST || !p->inputs || p->inputs > MOST || !p->lanes ||
        p->lanes >= p->rows + PANEL || (p->item != 1 && p->item != 2 && p->item != 4) ||
        (p->group != 1 && (p->group != 4 || p->item != 1)) || !p->bits || p->bits > (p->way == SPARSE ? 1 : 8))
        return 0;
    const uint64_t codes = p->rows * row_bytes(p), bytes = tables_bytes(p) + codes + SPARE;
    return bytes <= p->bytes && p->bytes - bytes == (p->way == SPARSE ? ones(data, codes) * p->item : 0);
}

/* A row of codes into a table, eight at a time. In this and the next, `item` is a constant wherever it is called (what is
 * copied is one number), and so is `in`, a group less one; numbers of a group follow one another, groups are `step` bytes
 * apart. */
INLINE void by_table(const uint8_t *codes, const uint8_t *table, size_t n, size_t bits, uint8_t *out, size_t step,
                     const size_t in, const size_t item)
{
    const uint64_t most = (1u << bits) - 1;
    for (size_t k = 0; k < n; k += 8, codes += bits) {
        uint64_t word;
        memcpy(&word, codes, sizeof word);
        uint8_t *at = out + k / (in + 1) * step;
        const size_t all = n - k < 8 ? n - k : 8;
        for (size_t i = 0; i < all; i++, word >>= bits)
            memcpy(at + i / (in + 1) * step + (i & in) * item, table + (word & most) * item, item);
    }
}

/* A row of a mask; gives where the next one's numbers begin. */
INLINE const uint8_t *by_mask(const uint8_t *mask, const uint8_t *values, size_t n, uint8_t *out, size_t step,
                              const size_t in, const size_t item)
{
    for (size_t first = 0; first < n; first += 64, mask += 8) {
        uint64_t bits;
        memcpy(&bits, mask, sizeof bits);
        if (n - first < 64)
            bits &= ((uint64_t)1 << (n - first)) - 1;
        for (; bits; bits &= bits - 1, values += item) {
            const size_t k = first + (size_t)__builtin_ctzll(bits);
            memcpy(out + k / (in + 1) * step + (k & in) * item, values, item);
        }
    }
    return values;
}

INLINE void lay(const struct piece *p, const uint8_t *data, uint8_t *out, const size_t in, const size_t item)
{
    const size_t bytes = (size_t)row_bytes(p), tables = (size_t)tables_bytes(p), lanes = p->lanes;
    const size_t step = lanes * (in + 1) * item, panel = (size_t)up(p->inputs, in + 1) / (in + 1) * step;
    const size_t each = p->way == TABLES ? item << p->bits : 0;
    const uint8_t *codes = data + tables, *values = codes + p->rows * bytes;
    for (size_t r = 0; r < p->rows; r++, codes += bytes) {
        uint8_t *row = out + r / lanes * panel + r % lanes * (in + 1) * item;
        if (p->way == SPARSE)
            values = by_mask(codes, values, p->inputs, row, step, in, item);
        else
            by_table(codes, data + r * each, p->inputs, p->bits, row, step, in, item);
    }
}

static void unpack(const struct piece *p, const uint8_t *data, uint8_t *out)
{
    if (p->way == AS_IS)
        memcpy(out, data, p->bytes);
    else if (p->item == 1 && p->group == 4)
        lay(p, data, out, 3, 1);
    else if (p->item == 1)
        lay(p, data, out, 0, 1);
    else if (p->item == 2)
        lay(p, data, out, 0, 2);
    else
        lay(p, data, out, 0, 4);
}

/* Goes through all pieces: into memory or, where there is none yet, to see whether they are what they say. */
static int each(const struct mnet_model *m, uint8_t *out)
{
    const uint64_t size = m->h.pieces_bytes, room = (uint64_t)m->h.weights_units * UNIT;
    uint64_t at = (uint64_t)m->h.pieces * sizeof(struct piece), made = 0;
    if (at > size)
        return 0;
    for (uint32_t i = 0; i < m->h.pieces; i++) {
        struct piece p;
        memcpy(&p, m->weights + i * sizeof p, sizeof p);
        if (out)
            unpack(&p, m->weights + at, out + made);
        else if (p.bytes > size - at || !is_sound(&p, m->weights + at) || up(becomes(&p), UNIT) > room - made)
            return 0;
        at += p.bytes;
        made += up(becomes(&p), UNIT);
    }
    return made == room;
}

const char *mnet_unpack(struct mnet_model *m)
{
    if (!each(m, NULL))
        return "damaged: the pieces of its weights";
    m->unpacked = calloc(1, (size_t)m->h.weights_units * UNIT + 2 * UNIT); /* kernels may read behind their last */
    if (!m->unpacked)
        return "no memory";
    uint8_t *out = (uint8_t *)m->unpacked + (UNIT - (uintptr_t)m->unpacked % UNIT) % UNIT;
    each(m, out);
    m->weights = out;
    return NULL;
}
