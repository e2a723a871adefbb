/* Q8_0 needs a maximum and no sum, and a maximum has no order: here the lanes are a block's own values. */
#ifndef GGUFY_Q8_0_H
#define GGUFY_Q8_0_H
#include "lanes.h"

/* 32 values, cut to integers, their low bytes. */
INLINE void low_bytes(uint8_t *y, const V *v) {
#if defined(__AVX2__) && GGUFY_LANES == 8
    __m256i a[4];
    for (int i = 0; i < 4; i++) a[i] = _mm256_and_si256(_mm256_cvttps_epi32((__m256)v[i]), _mm256_set1_epi32(255));
    a[0] = _mm256_packus_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));
    a[0] = _mm256_permutevar8x32_epi32(a[0], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)y, a[0]);
#else
    typedef int8_t Bytes __attribute__((vector_size(GGUFY_LANES)));
    for (int i = 0; i < 32 / LANES; i++) {
        Bytes bytes = __builtin_convertvector(__builtin_convertvector(v[i], I), Bytes);
        memcpy(y + LANES * i, &bytes, sizeof(bytes));
    }
#endif
}

/* quantize_row_q8_0_ref. block_q8_0: d, qs[32]. */
static void rows_q8_0(const float *x, uint8_t *y, int64_t blocks) {
    for (int64_t block = 0; block < blocks; block++, x += 32, y += 34) {
        V v[32 / LANES], most = splat(0);
        for (int i = 0; i < 32 / LANES; i++) memcpy(&v[i], x + LANES * i, sizeof(V));
        for (int i = 0; i < 32 / LANES; i++) most = larger(absolute(v[i]), most);
        for (int width = 1; width < LANES; width *= 2) { /* into every lane the greatest of all */
            most = larger(__builtin_shufflevector(most, most, LOW), __builtin_shufflevector(most, most, HIGH));
        }
        V d = most / 127.0f, id = select(is_zero(d), splat(0), 1.0f / d);
        uint16_t half = (uint16_t)to_half(d)[0];
        memcpy(y, &half, 2);
        for (int i = 0; i < 32 / LANES; i++) {
            /* roundf: the greatest float below a half, with the value's sign, and cut. */
            v[i] *= id;
            v[i] += (V)(((I)v[i] & (int32_t)0x80000000) | (I)splat(0x1.fffffep-2f));
        }
        low_bytes(y + 2, v);
    }
}
#endif
