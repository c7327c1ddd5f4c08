/* The int8 pointwise kernel of processors that have a dot product of 4 bytes by 4: a template. Before each inclusion:
 *   POINTWISE  the function's name
 *   DOT        (sums, 16 weights, 16 inputs, lane): sums of 4 outputs, with 4 of the inputs
 *   FLIP       what each input is xored with: 128 where the processor takes inputs as signed, else 0
 */
#define PIXELS 4 /* by 16 outputs: 16 sums, 4 weights and 4 inputs of the 32 registers */

#define STEP(lane)                                                                                                     \
    do {                                                                                                               \
        IN_ORDER();                                                                                                    \
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16), w2 = vld1q_s8(w + 32), w3 = vld1q_s8(w + 48);         \
        for (int p = 0; p < n; p++) {                                                                                  \
            a[p][0] = DOT(a[p][0], w0, v[p], lane);                                                                    \
            a[p][1] = DOT(a[p][1], w1, v[p], lane);                                                                    \
            a[p][2] = DOT(a[p][2], w2, v[p], lane);                                                                    \
            a[p][3] = DOT(a[p][3], w3, v[p], lane);                                                                    \
        }                                                                                                              \
        w += PANEL * 4;                                                                                                \
    } while (0)

static inline __attribute__((always_inline)) void NAMED(tile)(const struct walk *at, int n, const int8_t *w, int k4,
                                                              int c, int last, const int32x4_t *begin,
                                                              const struct requant *q, struct rounding to)
{
    int32x4_t a[PIXELS][4];
    uint8x16_t v[PIXELS];
    for (int p = 0; p < n; p++)
        for (int o = 0; o < 4; o++)
            a[p][o] = begin[o];
    int j = 0;
    for (; j + 4 <= k4; j += 4) {
        for (int p = 0; p < n; p++)
            v[p] = veorq_u8(vld1q_u8(at[p].x + (ptrdiff_t)j * 4), vdupq_n_u8(FLIP));
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
    }
    for (; j < k4; j++) {
        for (int p = 0; p < n; p++) {
            uint32_t four;
            memcpy(&four, at[p].x + (ptrdiff_t)j * 4, sizeof four);
            v[p] = veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), vdupq_n_u8(FLIP));
        }
        STEP(0);
    }
    for (int p = 0; p < n; p++) {
        store(at[p].y, c, a[p][0], a[p][1], q, to);
        if (last - c > LANES)
            store(at[p].y, c + LANES, a[p][2], a[p][3], q, to);
    }
}

/* The bias, and 128 times the sum of the weights where inputs are 128 less. */
static inline __attribute__((always_inline)) void NAMED(beginnings)(const struct pointwise *p, const int8_t *w, int k4,
                                                                    int c, int32x4_t *begin)
{
    for (int o = 0; o < 4; o++) {
        begin[o] = vld1q_s32(p->q.bias + c + o * 4);
        if (FLIP) {
            int32x4_t sum = vdupq_n_s32(0);
            for (int j = 0; j < k4; j++)
                sum = DOT(sum, vld1q_s8(w + (ptrdiff_t)j * PANEL * 4 + o * 16), vdupq_n_u8(1), 0);
            begin[o] = vaddq_s32(begin[o], vshlq_n_s32(sum, 7));
        }
    }
}

void POINTWISE(const struct pointwise *p)
{
    const int k4 = (p->k + 3) / 4, count = p->rows * p->width;
    const struct rounding to = rounding(p->q.zero, p->q.low, p->q.high);
    for (int c = p->first; c < p->last; c += PANEL) {
        const int8_t *w = p->w + (ptrdiff_t)c * k4 * 4;
        struct walk at = {p->x.at, p->y.at, 0}, pixels[PIXELS];
        int32x4_t begin[4];
        NAMED(beginnings)(p, w, k4, c, begin);
        for (int done = 0; done < count; done += PIXELS) {
            const int n = count - done < PIXELS ? count - done : PIXELS;
            for (int i = 0; i < n; i++) {
                pixels[i] = at;
                next_pixel(&at, &p->x, &p->y, p->width);
            }
            switch (n) {
            case 1: NAMED(tile)(pixels, 1, w, k4, c, p->last, begin, &p->q, to); break;
            case 2: NAMED(tile)(pixels, 2, w, k4, c, p->last, begin, &p->q, to); break;
            case 3: NAMED(tile)(pixels, 3, w, k4, c, p->last, begin, &p->q, to); break;
            default: NAMED(tile)(pixels, PIXELS, w, k4, c, p->last, begin, &p->q, to);
            }
        }
    }
}

#undef STEP
#undef PIXELS
#undef POINTWISE
#undef NAMED
#undef DOT
#undef FLIP
