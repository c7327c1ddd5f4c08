/* Which kernels this processor can run. A feature counts where the processor has it and the system saves its registers. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* syscall */
#endif
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

struct features {
    int avx2, avxvnni, avx512, amx;
};

static unsigned saved_registers(void) /* XCR0 */
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Linux gives tile registers only to a process that asks for them; no other system is known to give them. */
static int tiles_granted(void)
{
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return 0;
#endif
}

static struct features features(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28 };
    enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30, VNNI = 1 << 11 };
    enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, AVX_VNNI = 1 << 4 };
    const unsigned vl = 1u << 31, ymm = 0x6, zmm = 0xe6, tiles = 0x60000;
    struct features f = {0, 0, 0, 0};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (FMA | OSXSAVE | AVX)) != (FMA | OSXSAVE | AVX))
        return f;
    const unsigned saved = saved_registers();
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return f;
    const unsigned subleaves = a;
    f.avx2 = (b & AVX2) != 0;
    f.avx512 = f.avx2 && (saved & zmm) == zmm && (b & (F | DQ | BW)) == (F | DQ | BW) && (b & vl) && (c & VNNI);
    f.amx = f.avx512 && (saved & tiles) == tiles && (d & AMX_TILE) && (d & AMX_INT8) && tiles_granted();
    f.avxvnni = f.avx2 && subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX_VNNI);
    return f;
}
#endif

#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
static int has_i8mm(void) { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int feature(const char *name)
{
    int has = 0;
    size_t n = sizeof has;
    return sysctlbyname(name, &has, &n, NULL, 0) == 0 && has;
}
static int has_dotprod(void) { return feature("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
#include <windows.h>
static int has_dotprod(void) { return IsProcessorFeaturePresent(43) != 0; } /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
static int has_i8mm(void) { return IsProcessorFeaturePresent(66) != 0; }    /* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE */
#else
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif
#endif

const struct kernels *mnet_kernels(const char *name)
{
    const struct kernels *able[8]; /* the best first */
    int n = 0;
#if defined(__x86_64__) || defined(_M_X64)
    const struct features f = features();
    if (f.amx)
        able[n++] = &mnet_amx;
    if (f.avx512)
        able[n++] = &mnet_avx512;
    if (f.avxvnni)
        able[n++] = &mnet_avxvnni;
    if (f.avx2)
        able[n++] = &mnet_avx2;
#endif
#if defined(__aarch64__)
    if (has_i8mm())
        able[n++] = &mnet_i8mm;
    if (has_dotprod())
        able[n++] = &mnet_dotprod;
    able[n++] = &mnet_neon;
#endif
#if defined(__wasm_simd128__)
#if defined(__wasm_relaxed_simd__)
    if (mnet_wasm_relaxed())
        able[n++] = mnet_wasm_relaxed();
#endif
    able[n++] = &mnet_wasm;
#endif
    able[n++] = &mnet_scalar;
    for (int i = 0; i < n; i++)
        if (!name || !strcmp(name, able[i]->name))
            return able[i];
    return NULL;
}

sparse_product *mnet_sparse_kernel(const struct kernels *k)
{
#if defined(__x86_64__) || defined(_M_X64)
    if (k == &mnet_amx || k == &mnet_avx512)
        return mnet_avx512_sparse;
    if (k == &mnet_avxvnni || k == &mnet_avx2)
        return mnet_avx2_sparse;
#endif
    (void)k;
    return NULL;
}
