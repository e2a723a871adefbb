/* A vector type of 4, 8 or 16 lanes, and what C's vector types cannot say by themselves. See kernels.c for the flags. */
#ifndef GGUFY_LANES_H
#define GGUFY_LANES_H
#include <stdint.h>
#include <string.h>

#ifndef GGUFY_VARIANT
#define GGUFY_VARIANT generic
#endif
#ifndef GGUFY_LANES
#define GGUFY_LANES 4
#endif
#if !defined(__GNUC__)
#error "GCC or Clang is needed: vector types"
#endif
#if defined(__FAST_MATH__) || !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "exact arithmetic and a little-endian machine are needed"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "float arithmetic in float is needed: on 32-bit x86, -msse2 -mfpmath=sse"
#endif

enum { LANES = GGUFY_LANES };
#define INLINE static inline __attribute__((always_inline))
#define EXPORTED __attribute__((visibility("default")))
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(stem) PASTE(stem, GGUFY_VARIANT)

typedef float V __attribute__((vector_size(4 * GGUFY_LANES)));
typedef int32_t I __attribute__((vector_size(4 * GGUFY_LANES)));
typedef uint32_t U __attribute__((vector_size(4 * GGUFY_LANES)));

/* A comparison with a NaN is false, as in C. */

INLINE V splat(float f) { return f - (V){0}; } /* f - 0 is f, also for -0 */
INLINE I splat_int(int i) { return i + (I){0}; }

#if defined(__AVX512F__) && GGUFY_LANES == 16
#include <immintrin.h>
typedef __mmask16 M;
INLINE M lt(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE M not_lt(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLT_UQ); }
INLINE M equal(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE M differ(I a, I b) { return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE M below(I a, I b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE M both(M a, M b) { return (M)(a & b); }
INLINE M but(M a, M b) { return (M)(a & ~b); }
INLINE int any(M m) { return m != 0; }
INLINE V select(M m, V a, V b) { return (V)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
INLINE I select_int(M m, I a, I b) { return (I)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
INLINE V add_if(M m, V a, float b) { return (V)_mm512_mask_add_ps((__m512)a, m, (__m512)a, _mm512_set1_ps(b)); }
INLINE V smaller(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); } /* a < b ? a : b */
INLINE V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }  /* a > b ? a : b */
INLINE V square_root(V a) { return (V)_mm512_sqrt_ps((__m512)a); }
#else
typedef I M;
INLINE M lt(V a, V b) { return (M)(a < b); }
INLINE M not_lt(V a, V b) { return ~(M)(a < b); }
INLINE M equal(V a, V b) { return (M)(a == b); }
INLINE M differ(I a, I b) { return (M)(a != b); }
INLINE M below(I a, I b) { return (M)(a < b); }
INLINE M both(M a, M b) { return a & b; }
INLINE M but(M a, M b) { return a & ~b; }
INLINE I select_int(M m, I a, I b) { return (a & m) | (b & ~m); }
INLINE V add_if(M m, V a, float b) { return a + (V)(m & (I)splat(b)); } /* never with a = -0 */
#if defined(__AVX2__) && GGUFY_LANES == 8
#include <immintrin.h>
INLINE int any(M m) { return _mm256_movemask_ps((__m256)m) != 0; }
INLINE V select(M m, V a, V b) { return (V)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
INLINE V smaller(V a, V b) { return (V)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE V larger(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE V square_root(V a) { return (V)_mm256_sqrt_ps((__m256)a); }
#elif defined(__SSE2__) && GGUFY_LANES == 4
#include <emmintrin.h>
INLINE int any(M m) { return _mm_movemask_ps((__m128)m) != 0; }
INLINE V select(M m, V a, V b) { return (V)select_int(m, (I)a, (I)b); }
INLINE V smaller(V a, V b) { return (V)_mm_min_ps((__m128)a, (__m128)b); }
INLINE V larger(V a, V b) { return (V)_mm_max_ps((__m128)a, (__m128)b); }
INLINE V square_root(V a) { return (V)_mm_sqrt_ps((__m128)a); }
#else
INLINE int any(M m) {
    int32_t found = 0;
    for (int i = 0; i < LANES; i++) found |= m[i];
    return found != 0;
}
INLINE V select(M m, V a, V b) { return (V)select_int(m, (I)a, (I)b); }
INLINE V smaller(V a, V b) { return select((M)(a < b), a, b); }
INLINE V larger(V a, V b) { return select((M)(a > b), a, b); }
#if defined(__ARM_NEON) && defined(__aarch64__) && GGUFY_LANES == 4
#include <arm_neon.h>
INLINE V square_root(V a) { return (V)vsqrtq_f32((float32x4_t)a); }
#else
INLINE V square_root(V a) {
    for (int i = 0; i < LANES; i++) a[i] = __builtin_sqrtf(a[i]); /* IEEE: correctly rounded */
    return a;
}
#endif
#endif
#endif

INLINE M is_zero(V a) { return equal(a, splat(0)); }
INLINE V absolute(V a) { return (V)((I)a & 0x7fffffff); }
INLINE V to_float(I a) { return __builtin_convertvector(a, V); }
INLINE I at_most(I a, int high) { return select_int(below(splat_int(high), a), splat_int(high), a); }

/* One stage of a transposition: the rows' first or second halves, element by element in turn. */
#if GGUFY_LANES == 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#elif GGUFY_LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif GGUFY_LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif

/* float32 to float16, to the nearest, ties to even; a NaN becomes 0x7e00 with its sign, as ggml does it. */
INLINE I to_half(V v) {
    U bits = (U)v, a = bits & 0x7fffffff;
    U normal = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
    I small = (I)((V)a + 0.5f) - 0x3f000000; /* half's subnormals are multiples of the last place of 0.5 */
    I half = select_int(below((I)a, splat_int(0x38800000)), small, at_most((I)normal, 0x7c00));
    return select_int(below(splat_int(0x7f800000), (I)a), splat_int(0x7e00), half) | (I)((bits >> 16) & 0x8000);
}

INLINE V from_half(I half) {
    I a = half & 0x7fff;
    V value = (V)(a << 13) * 0x1p112f;
    I wide = select_int(below(a, splat_int(0x7c00)), (I)value, (a << 13) | 0x7f800000);
    return (V)(wide | (I)((U)(half & 0x8000) << 16));
}
#endif
