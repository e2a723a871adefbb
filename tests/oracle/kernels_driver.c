/* Runs every kernel of one variant on rows from a file: for sanitizers, valgrind, and processors other than this one.
 *
 *   driver ROWS COLUMNS IMPORTANCE|- OUT      float32 in; out: the types of TYPES, one after another
 *
 * Compiled together with kernels.c, with the same -DGGUFY_VARIANT. Every buffer is exactly as large as it must be.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PASTE_(a, b) ggufy_quantize_##a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define TYPES(X) \
    X(q2_k, 256, 84) X(q3_k, 256, 110) X(q4_k, 256, 144) X(q5_k, 256, 176) X(q6_k, 256, 210) X(q8_0, 32, 34) \
    X(q4_0, 32, 18) X(q5_0, 32, 22) X(iq4_nl, 32, 18) X(iq4_xs, 256, 136)
#define DECLARE(type, width, bytes) \
    void PASTE(type, GGUFY_VARIANT)(const float *, void *, int64_t, int64_t, const float *);
TYPES(DECLARE)

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
        PASTE(type, GGUFY_VARIANT)(rows, out, n, columns, importance);           \
        if (fwrite(out, 1, length, file) != length) return 2;                    \
        free(out);                                                               \
    }
    TYPES(RUN)
    free(rows);
    free(importance);
    return fclose(file) ? 2 : 0;
}
