/* Rows of a checkpoint plus an adapter's change, rounded once to float16, in whatever forms an export writes.
 *
 * One pass: each weight is read once as it is stored, changed, rounded, and stored in every form that is asked for. Only
 * exact steps and IEEE roundings, each in the order that numpy has them in, so the bytes are numpy's; the product of
 * the adapter's two matrices is not made here, because a BLAS sums in an order of its own. Flags as for kernels.c.
 */
#include "lanes.h"
#include "merge.h"

typedef uint16_t H __attribute__((vector_size(2 * GGUFY_LANES)));

#if defined(__AVX512F__) && GGUFY_LANES == 16
INLINE H round_half(V v) { return (H)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE V widen_half(H h) { return (V)_mm512_cvtph_ps((__m256i)h); }
#elif defined(__F16C__) && GGUFY_LANES == 8
INLINE H round_half(V v) { return (H)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE V widen_half(H h) { return (V)_mm256_cvtph_ps((__m128i)h); }
#else
INLINE H round_half(V v) { return __builtin_convertvector(to_half(v), H); }
INLINE V widen_half(H h) { return from_half(__builtin_convertvector(h, I)); }
#endif

INLINE V read_some(const void *stored, int64_t place, int n, int kind) {
    if (kind == F32) {
        V v = splat(0);
        memcpy(&v, (const char *)stored + 4 * place, 4 * (size_t)n);
        return v;
    }
    H h = {0};
    memcpy(&h, (const char *)stored + 2 * place, 2 * (size_t)n);
    return kind == F16 ? widen_half(h) : (V)(__builtin_convertvector(h, U) << 16);
}

/* n weights, at most LANES, that go to `target` where rows are permuted. Returns what is not 0 for a bad weight. */
INLINE H merge_some(const Merge *m, int64_t place, int64_t target, int n, int kind) {
    const size_t size = 4 * (size_t)n;
    V v = read_some(m->stored, place, n, kind);
    if (m->delta) {
        V delta = splat(0);
        memcpy(&delta, m->delta + place, size);
        v += delta * m->scaling;
    }
    if (m->exact) memcpy(m->exact + place, &v, size);
    U bits = (U)v;
    H top = __builtin_convertvector(bits >> 16, H), brain = top;
    if (m->bf16) {
        brain = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, H);
        memcpy(m->bf16 + place, &brain, size / 2);
    }
    if (!(m->half || m->permuted_half || m->permuted)) {
        /* Nothing is rounded to float16, whose range does not matter then. */
        return (H)((top & 0x7f80) == 0x7f80) | (H)((brain & 0x7f80) == 0x7f80);
    }
    H half = round_half(v);
    if (m->half) memcpy(m->half + place, &half, size / 2);
    if (m->permuted_half) memcpy(m->permuted_half + target, &half, size / 2);
    if (m->permuted) {
        V wide = widen_half(half);
        memcpy(m->permuted + target, &wide, size);
    }
    return (H)((half & 0x7c00) == 0x7c00);
}

/* The first row with a weight that is not finite in what is made of it, or -1. */
INLINE int64_t merge_rows(const Merge *m, int kind) {
    for (int64_t row = 0; row < m->rows; row++) {
        int64_t to = row, columns = m->columns, i = 0;
        if (m->head) { /* (2, head / 2) -> (head / 2, 2) */
            const int64_t in = row % m->head, half = m->head / 2;
            to = row - in + in % half * 2 + in / half;
        }
        H bad = {0};
        for (; i + LANES <= columns; i += LANES) bad |= merge_some(m, row * columns + i, to * columns + i, LANES, kind);
        if (i < columns) bad |= merge_some(m, row * columns + i, to * columns + i, (int)(columns - i), kind);
        for (i = 0; i < LANES; i++) {
            if (bad[i]) return row;
        }
    }
    return -1;
}

EXPORTED int64_t NAME(ggufy_merge)(const Merge *m) {
    switch (m->kind) {
        case BF16: return merge_rows(m, BF16);
        case F16: return merge_rows(m, F16);
        default: return merge_rows(m, F32);
    }
}
