/* AArch64 processors with dot products: sdot takes both factors as signed (since about 2018), sudot the inputs as
 * unsigned (since about 2021). */
#if defined(__aarch64__) && !defined(MNET_WITHOUT_DOT)
#include "neon.h"

#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define POINTWISE mnet_dotprod_pointwise
#define NAMED(name) name##_dotprod
#define DOT(sums, w, x, lane) vdotq_laneq_s32(sums, w, vreinterpretq_s8_u8(x), lane)
#define FLIP 128
#include "neon_pointwise.h"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif
#define POINTWISE mnet_i8mm_pointwise
#define NAMED(name) name##_i8mm
#define DOT(sums, w, x, lane) vsudotq_laneq_s32(sums, w, x, lane)
#define FLIP 0
#include "neon_pointwise.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
