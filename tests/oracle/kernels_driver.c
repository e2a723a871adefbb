/* Runs every kernel of one variant on rows from a file: for sanitizers, valgrind, and processors other than this one.
 *
 *   driver ROWS COLUMNS IMPORTANCE|- OUT      float32 in
 *
 * OUT gets the types of TYPES, one after another. Then all but two of the weights as two rows, with themselves as the
 * adapter's change, in each form of merge.h; and from its two 16-bit forms once more, alone.
 *
 * Compiled together with kernels.c and merge.c, with the same -DGGUFY_VARIANT. Every buffer is exactly as large as it must be.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "merge.h"

#define PASTE_(a, b, c) ggufy_##a##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define TYPES(X) \
    X(q2_k, 256, 84) X(q3_k, 256, 110) X(q4_k, 256, 144) X(q5_k, 256, 176) X(q6_k, 256, 210) X(q8_0, 32, 34) \
    X(q4_0, 32, 18) X(q5_0, 32, 22) X(iq4_nl, 32, 18) X(iq4_xs, 256, 136)
#define DECLARE(type, width, bytes) \
    void PASTE(quantize_, type, GGUFY_VARIANT)(const float *, void *, int64_t, int64_t, const float *);
TYPES(DECLARE)
int64_t PASTE(merge, , GGUFY_VARIANT)(const Merge *);

static void *all_of(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) exit(2);
    *size = (size_t)ftell(file);
    rewind(file);
    void *data = malloc(*size);
    if (!data || fread(data, 1, *size, file) != *size) exit(2);
    fclose(file);
    return data;
}

static void *copy_of(const void *data, size_t size) {
    void *copy = malloc(size);
    if (!copy) exit(2);
    return memcpy(copy, data, size);
}

/* Merges two rows of `columns` numbers, and writes the forms that are wanted. Keeps the 16-bit ones of F32. */
static void merge(const void *data, int kind, int64_t columns, void *keep[2], FILE *file) {
    const size_t halves = 4 * (size_t)columns, floats = 2 * halves;
    Merge m = {.rows = 2, .columns = columns, .head = 2, .kind = kind, .scaling = 0.3f};
    void *stored = copy_of(data, kind == F32 ? floats : halves);
    m.stored = stored;
    void *delta = 0;
    if (kind == F32) {
        m.delta = delta = copy_of(data, floats);
        m.exact = malloc(floats);
        keep[0] = m.bf16 = malloc(halves);
        keep[1] = m.half = malloc(halves);
        m.permuted_half = malloc(halves);
    }
    m.permuted = malloc(floats);
    if (PASTE(merge, , GGUFY_VARIANT)(&m) != -1) exit(3);
    void *outputs[] = {m.exact, m.bf16, m.half, m.permuted_half, m.permuted};
    for (int i = 0; i < 5; i++) {
        const size_t size = i == 0 || i == 4 ? floats : halves;
        if (outputs[i] && fwrite(outputs[i], 1, size, file) != size) exit(2);
        if (i != 1 && i != 2) free(outputs[i]);
    }
    free(stored);
    free(delta);
}

int main(int count, char **words) {
    if (count != 5) return 2;
    size_t size, ignored;
    float *rows = all_of(words[1], &size), *importance = 0;
    const int64_t columns = atoll(words[2]), n = (int64_t)(size / 4) / columns;
    if (strcmp(words[3], "-")) importance = all_of(words[3], &ignored);
    FILE *file = fopen(words[4], "wb");
    if (!file) return 2;
#define RUN(type, width, bytes)                                                  \
    {                                                                            \
        const size_t length = (size_t)(n * (columns / (width)) * (bytes));       \
        void *out = malloc(length);                                              \
        PASTE(quantize_, type, GGUFY_VARIANT)(rows, out, n, columns, importance);           \
        if (fwrite(out, 1, length, file) != length) return 2;                    \
        free(out);                                                               \
    }
    TYPES(RUN)
    void *kept[2];
    const int64_t odd = n * columns / 2 - 1; /* fills no vector */
    merge(rows, F32, odd, kept, file);
    merge(kept[0], BF16, odd, 0, file);
    merge(kept[1], F16, odd, 0, file);
    free(kept[0]);
    free(kept[1]);
    free(rows);
    free(importance);
    return fclose(file) ? 2 : 0;
}
