/* What ggufy_merge_<variant> takes; native.py has the same. */
#ifndef GGUFY_MERGE_H
#define GGUFY_MERGE_H
#include <stdint.h>

enum { BF16, F16, F32 };

/* The outputs are null where nobody wants them. Nothing but `exact` may overlap `stored`. */
typedef struct {
    const void *stored; /* rows * columns numbers, of any alignment */
    const float *delta; /* is added, times the scaling; or null */
    int64_t rows, columns;
    int64_t head; /* rows of a head, whose halves are to be interleaved; or 0 */
    float *exact; /* as merged; the others are of its float16 */
    uint16_t *bf16; /* but this is of `exact`, nearest even */
    uint16_t *half;
    uint16_t *permuted_half;
    float *permuted;
    int32_t kind;
    float scaling;
} Merge;
#endif
