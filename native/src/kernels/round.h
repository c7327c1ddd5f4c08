/* How a real number becomes a byte, once for every table (see kernels.h). */
#ifndef MNET_ROUND_H
#define MNET_ROUND_H

#include <math.h>
#include <stdint.h>

/* A product and a sum must stay two roundings: bytes are to be the same on processors with and without fused ones. And
 * nobody asks which exceptions floats have raised, for which gcc would keep comparisons from becoming vectors. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#endif

/* Beyond this no byte changes, and the conversion to int32 can't overflow upwards. Written as the vectors' minimum
 * computes it: the limit for what is not a number. */
#define ROUND_LIMIT 1073741824.0f

static inline int32_t round_even(float v)
{
    v = v < ROUND_LIMIT ? v : ROUND_LIMIT;
    v = v > -ROUND_LIMIT ? v : -ROUND_LIMIT;
    return (int32_t)lrintf(v);
}

static inline uint8_t to_byte(float v, int32_t zero, int32_t low, int32_t high)
{
    int32_t b = round_even(v) + zero;
    b = b > low ? b : low;
    return (uint8_t)(b < high ? b : high);
}

#endif
