/* llama.cpp's quantizations at vector speed, with the same bytes.
 *
 * The searches of ggml-quants.c are chains of float sums whose order makes the bytes, so a chain cannot be split. But
 * blocks are independent: here every vector lane holds another (super-)block, and does for it what the scalar code does,
 * in the scalar code's order. Branches become selects. The formulas and their constants are those of llama.cpp's
 * ggml/src/ggml-quants.c (MIT), named at each function; the block layouts those of ggml/src/ggml-common.h.
 *
 * This file is compiled once for each variant:
 *   -DGGUFY_VARIANT=avx2 -DGGUFY_LANES=8 -mavx2      symbols end in _avx2
 *   -DGGUFY_DISPATCH (one of the variants)           also holds ggufy_kernels_supported and ggufy_kernels_source
 * with -O3 -ffp-contract=off. Fast-math is out; a fused multiply-add would round once where llama.cpp rounds twice.
 * Byte order is little-endian, as GGUF's.
 */
#include "lanes.h"
#include "q8_0.h"

/* n values at p[lane] + offset of every lane, into n vectors; n is a multiple of LANES. */
INLINE void load(const float *const *p, int64_t offset, int n, V *out) {
    for (int start = 0; start < n; start += LANES) {
        V rows[LANES], turned[LANES];
        for (int i = 0; i < LANES; i++) memcpy(&rows[i], p[i] + offset + start, sizeof(V));
        for (int width = 1; width < LANES; width *= 2) {
            for (int i = 0; i < LANES / 2; i++) {
                turned[2 * i] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], LOW);
                turned[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], HIGH);
            }
            for (int i = 0; i < LANES; i++) rows[i] = turned[i];
        }
        for (int i = 0; i < LANES; i++) out[start + i] = rows[i];
    }
}

/* ---- Rounding ---- */

/* nearest_int adds 1.5 * 2^23 and reads the mantissa. Out of its range it gives what the bits give, and so do these. */
#define MAGIC 12582912.0f

INLINE I nearest(V v) { return ((I)(v + MAGIC) & 0x007fffff) - 0x00400000; }

/* MAGIC + max(low, min(high, nearest_int(v))); faster where |v| is known to be below 2^22 (near). */
INLINE V on_grid(V v, float low, float high, int near) {
    V r = v + MAGIC;
    if (!near) r = (V)(((I)r & 0x007fffff) | 0x4b000000);
    return smaller(larger(r, splat(MAGIC + low)), splat(MAGIC + high));
}
INLINE V clamped(V v, float low, float high) { return on_grid(v, low, high, 0) - MAGIC; }
INLINE I clamped_int(V v, float low, float high) { return (I)on_grid(v, low, high, 0) - 0x4b400000; }
INLINE I at_least(I a, int low) { return select_int(below(a, splat_int(low)), splat_int(low), a); }
INLINE I signed_byte(I a) { return (I)((U)a << 24) >> 24; }

/* ---- A batch: one (super-)block in each lane ---- */

typedef struct {
    const float *x[LANES];
    const float *w[LANES]; /* its columns' importance, where there is one */
    uint8_t *y[LANES];
    int count; /* lanes that are written; the others repeat the last */
    V sigma2;  /* mean square of the lane's row, for the types that weigh by it */
} Batch;

INLINE void put_half(const Batch *b, int offset, I value) {
    for (int i = 0; i < b->count; i++) {
        uint16_t half = (uint16_t)value[i];
        memcpy(b->y[i] + offset, &half, 2);
    }
}
INLINE void put_word(const Batch *b, int offset, U value) {
    uint32_t words[LANES];
    memcpy(words, &value, sizeof(words));
    for (int i = 0; i < b->count; i++) memcpy(b->y[i] + offset, &words[i], 4);
}
/* n bytes of every lane, the low ones of n vectors; n is a multiple of 4. */
INLINE void put_bytes(const Batch *b, int offset, const I *bytes, int n) {
    for (int i = 0; i < n; i += 4, bytes += 4) {
        put_word(b, offset + i, (U)((bytes[0] & 255) | (bytes[1] & 255) << 8 | (bytes[2] & 255) << 16 | bytes[3] << 24));
    }
}

/* make_qx_quants and the block loops weigh with qw * sqrt(sigma2 + x^2) where there is an importance matrix. */
INLINE void weigh(const Batch *b, int offset, int n, const V *x, V sigma2, V *w) {
    load(b->w, offset, n, w);
    for (int i = 0; i < n; i++) w[i] = w[i] * square_root(sigma2 + x[i] * x[i]);
}

INLINE V sum_of_squares(const V *x, int n) {
    V sum = splat(0);
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* ---- Searches ---- */

/* x is about scale * l - offset with l from 0; l came from iscale * (x - origin). */
typedef struct {
    V scale, offset, iscale, origin;
} Affine;
typedef struct {
    V l, l2, xl;
} Sums;

INLINE Sums affine_sums(const V *x, const V *w, int n, V iscale, V min, float nmax, int near, V *l) {
    Sums sum = {splat(0), splat(0), splat(0)};
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) {
        l[i] = on_grid(iscale * (x[i] - min), 0, nmax, near) - MAGIC;
        V wl = w[i] * l[i];
        sum.l += wl;
        sum.l2 += wl * l[i];
        sum.xl += wl * x[i];
    }
    return sum;
}
INLINE V affine_error(const V *x, const V *w, const V *l, int n, V scale, V min, int mad) {
    V error = splat(0);
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) {
        V diff = scale * l[i] + min - x[i];
        error += w[i] * (mad ? absolute(diff) : diff * diff);
    }
    return error;
}

/* make_qkx2_quants and make_qkx3_quants, which differ in nothing that is reached from here. */
INLINE Affine search_affine(const V *x, const V *w, int n, int nmax, float rmin, float rdelta, int nstep, int mad) {
    V least = x[0], hi = x[0], sum_w = w[0], sum_x = w[0] * x[0], l[32];
    for (int i = 1; i < n; i++) {
        least = smaller(x[i], least);
        hi = larger(x[i], hi);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    V min = smaller(splat(0), least);
    M flat = equal(hi, min);
    V iscale = splat((float)nmax) / (hi - min);
    Affine a = {1.0f / iscale, min, iscale, min};
    for (int i = 0; i < n; i++) l[i] = clamped(iscale * (x[i] - min), 0, (float)nmax);
    V best = affine_error(x, w, l, n, a.scale, min, mad);
    for (int step = 0; step <= nstep; step++) {
        iscale = splat(rmin + rdelta * (float)step + (float)nmax) / (hi - min);
        /* x - min and its product grow with x, so the extremes say whether all are in nearest_int's range. */
        V far = larger(absolute(iscale * (hi - min)), absolute(iscale * (least - min)));
        Sums sum = any(not_lt(far, splat(4e6f))) ? affine_sums(x, w, n, iscale, min, (float)nmax, 0, l)
                                                 : affine_sums(x, w, n, iscale, min, (float)nmax, 1, l);
        V det = sum_w * sum.l2 - sum.l * sum.l;
        V this_scale = (sum_w * sum.xl - sum_x * sum.l) / det;
        V this_min = (sum.l2 * sum_x - sum.l * sum.xl) / det;
        M above = lt(splat(0), this_min);
        this_scale = select(above, sum.xl / sum.l2, this_scale);
        this_min = select(above, splat(0), this_min);
        V error = affine_error(x, w, l, n, this_scale, this_min, mad);
        M better = but(both(lt(splat(0), det), lt(error, best)), flat);
        best = select(better, error, best);
        a.scale = select(better, this_scale, a.scale);
        a.iscale = select(better, iscale, a.iscale);
        a.origin = select(better, min, a.origin);
        min = select(better, this_min, min); /* the later steps start from it */
    }
    a.scale = select(flat, splat(0), a.scale);
    a.iscale = select(flat, splat(0), a.iscale); /* so that every l is 0 */
    a.offset = -min;
    return a;
}

/* x is about scale * l with l from -nmax; l came from iscale * x. Where all is zero, l + nmax is 0 too. */
typedef struct {
    V scale, iscale;
    M zero;
} Symmetric;

/* The first value of the greatest magnitude. */
INLINE V extreme(const V *x, int n, V *magnitude) {
    V most = splat(0), max = splat(0);
    for (int i = 0; i < n; i++) {
        V ax = absolute(x[i]);
        M more = lt(most, ax);
        max = select(more, x[i], max);
        most = select(more, ax, most);
    }
    *magnitude = most;
    return max;
}

#define TINY 1e-15f /* GROUP_MAX_EPS */

INLINE V symmetric_sums(const V *wx, const V *w, const V *x, int n, V iscale, int nmax, int near, V *suml2) {
    V sumlx = splat(0);
    *suml2 = splat(0);
    _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
        V l = on_grid(iscale * x[i], (float)-nmax, (float)(nmax - 1), near) - MAGIC;
        sumlx += wx[i] * l;
        *suml2 += w[i] * l * l;
    }
    return sumlx;
}

/* make_qx_quants with rmse_type 1; weighed with w, or with x^2 where w is null. */
INLINE Symmetric search_symmetric(const V *x, const V *w, int n, int nmax) {
    V most, max = extreme(x, n, &most), wx[32], squares[32], odd = splat(0), best = splat(0);
    for (int i = 0; i < n; i++) {
        squares[i] = x[i] * x[i];
        wx[i] = (w ? w[i] : squares[i]) * x[i];
        odd += x[i] - x[i]; /* 0, or NaN where a value is not finite */
    }
    if (!w) w = squares;
    Symmetric s = {splat(0), splat(0), lt(most, splat(TINY))};
    const int finite = !any(not_lt(odd, splat(1))); /* then |iscale * x| is at most about nmax + 1 */
    for (int step = -10; step <= 9; step++) {
        if (step == 0) continue;
        /* The first round is that of the plain scale; no other is as early. */
        V iscale = (step == -10 ? splat((float)-nmax) : splat(-((float)nmax + 0.1f * (float)step))) / max, suml2;
        V sumlx = finite ? symmetric_sums(wx, w, x, n, iscale, nmax, 1, &suml2)
                         : symmetric_sums(wx, w, x, n, iscale, nmax, 0, &suml2);
        M better = both(lt(splat(0), suml2), lt(best * suml2, sumlx * sumlx));
        if (step > -10 && !any(better)) continue;
        V scale = sumlx / suml2;
        if (step == -10) {
            better = not_lt(splat(0), splat(0)); /* all */
            scale = select(is_zero(suml2), splat(0), scale);
        }
        s.scale = select(better, scale, s.scale);
        s.iscale = select(better, iscale, s.iscale);
        best = select(better, scale * sumlx, best);
    }
    s.scale = select(s.zero, splat(0), s.scale);
    return s;
}

/* What make_qx_quants leaves in L. */
INLINE I symmetric_level(const Symmetric *s, V x, int nmax) {
    return select_int(s->zero, splat_int(0), clamped_int(s->iscale * x, (float)-nmax, (float)(nmax - 1)) + nmax);
}

/* make_q3_quants with do_rmse. Leaves the levels, from 0 to 7, in l; returns the scale. */
INLINE V search_descent(const V *x, V *l) {
    V most, max = extreme(x, 16, &most), w[16], wx[16];
    V iscale = -4.0f / max, sumlx = splat(0), suml2 = splat(0);
    M zero = lt(most, splat(TINY));
    for (int i = 0; i < 16; i++) {
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        l[i] = clamped(iscale * x[i], -4, 3);
        sumlx += wx[i] * l[i];
        suml2 += w[i] * l[i] * l[i];
    }
    for (int round = 0, changed = 1; round < 5 && changed; round++) {
        changed = 0; /* a lane that stood still in a round stands still for good */
        for (int i = 0; i < 16; i++) {
            V slx = sumlx - wx[i] * l[i], sl2 = suml2 - w[i] * l[i] * l[i];
            V level = clamped(x[i] * sl2 / slx, -4, 3);
            M take = but(both(lt(splat(0), slx), differ((I)level, (I)l[i])), zero); /* neither is ever -0 */
            if (!any(take)) continue; /* mostly; and the next step need not wait for this one's division */
            slx += wx[i] * level;
            sl2 += w[i] * level * level;
            take = both(take, both(lt(splat(0), sl2), lt(sumlx * sumlx * sl2, slx * slx * suml2)));
            l[i] = select(take, level, l[i]);
            sumlx = select(take, slx, sumlx);
            suml2 = select(take, sl2, suml2);
            changed |= any(take);
        }
    }
    for (int i = 0; i < 16; i++) l[i] = select(zero, splat(0), l[i] + 4.0f);
    return select(but(lt(splat(0), suml2), zero), sumlx / suml2, splat(0));
}

/* make_qp_quants: levels from 0, as bytes. Returns the scale. */
INLINE V search_positive(const V *x, const V *w, int n, int nmax, I *l) {
    V max = splat(0), best = splat(0);
    for (int i = 0; i < n; i++) max = larger(max, x[i]);
    M zero = lt(max, splat(TINY));
    V iscale = splat((float)nmax) / max, scale = 1.0f / iscale;
    for (int i = 0; i < n; i++) {
        V diff = x[i] - scale * to_float(nearest(iscale * x[i]) & 255);
        best += w[i] * diff * diff;
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0) continue;
        V iscale_is = splat(0.1f * (float)step + (float)nmax) / max, scale_is = 1.0f / iscale_is, error = splat(0);
        for (int i = 0; i < n; i++) {
            V diff = x[i] - scale_is * to_float(at_most(nearest(iscale_is * x[i]), nmax));
            error += w[i] * diff * diff;
        }
        M better = lt(error, best);
        best = select(better, error, best);
        iscale = select(better, iscale_is, iscale);
    }
    V sumlx = splat(0), suml2 = splat(0);
    for (int i = 0; i < n; i++) {
        I level = at_most(nearest(iscale * x[i]), nmax);
        V f = to_float(level);
        l[i] = level & 255;
        sumlx += w[i] * x[i] * f;
        suml2 += w[i] * f * f;
    }
    for (int round = 0; round < 5; round++) {
        M changed = lt(splat(0), splat(0));
        for (int i = 0; i < n; i++) {
            V f = to_float(l[i]);
            V slx = sumlx - w[i] * x[i] * f, sl2 = suml2 - w[i] * f * f;
            M take = both(lt(splat(0), slx), lt(splat(0), sl2));
            I level = at_most(nearest(x[i] * sl2 / slx), nmax);
            take = both(take, differ(level, l[i]));
            f = to_float(level);
            slx += w[i] * x[i] * f;
            sl2 += w[i] * f * f;
            take = both(take, lt(sumlx * sumlx * sl2, slx * slx * suml2));
            l[i] = select_int(take, level & 255, l[i]);
            sumlx = select(take, slx, sumlx);
            suml2 = select(take, sl2, suml2);
            changed |= take;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < n; i++) l[i] = select_int(zero, splat_int(0), l[i]);
    return select(both(lt(splat(0), suml2), ~zero), sumlx / suml2, splat(0));
}

/* ---- Super-blocks of 256 ---- */

/* The last rounding of an affine sub-block: a scale of zero leaves what the search found. */
typedef struct {
    V d, dm;
    M none;
    int some;
} Step;

INLINE Step step_of(V d, V dm) {
    M none = is_zero(d);
    return (Step){d, dm, none, any(none)};
}
INLINE I affine_level(const Step *s, const Affine *a, V x, int nmax) {
    I l = clamped_int((x + s->dm) / s->d, 0, (float)nmax);
    if (s->some) l = select_int(s->none, clamped_int(a->iscale * (x - a->origin), 0, (float)nmax), l);
    return l;
}

typedef struct {
    V x[256], d, dmin;
    I ls[16], lm[16]; /* the sub-blocks' scales and minimums, as bytes */
    Affine found[16];
    Step step[16];
} AffineBlock;

/* Searches `count` sub-blocks, then one scale for their scales and one for their minimums, of at most `limit`. */
INLINE void search_block(const Batch *b, AffineBlock *s, int count, int nmax, int limit, int cap, int weighted) {
    const int n = 256 / count;
    V w[32], scales[16], mins[16], sums[16], sigma2 = splat(0);
    load(b->x, 0, 256, s->x);
    if (weighted) sigma2 = (n == 32 ? 2.0f : 1.0f) * sum_of_squares(s->x, 256) / 256.0f;
    for (int j = 0; j < count; j++) {
        const V *x = s->x + n * j;
        V average = splat(0);
        if (weighted) {
            weigh(b, n * j, n, x, sigma2, w);
            sums[j] = splat(0);
            for (int i = 0; i < n; i++) sums[j] += w[i];
            s->found[j] = search_affine(x, w, n, nmax, -0.9f, 0.05f, 36, 0);
        } else {
            if (n == 32) average = square_root(sum_of_squares(x, 32) / 32.0f);
            for (int i = 0; i < n; i++) w[i] = average + absolute(x[i]);
            s->found[j] = nmax == 15 ? search_affine(x, w, n, nmax, -1.0f, 0.1f, 20, 0)
                                     : search_affine(x, w, n, nmax, -0.5f, 0.1f, 15, nmax == 3);
        }
        scales[j] = s->found[j].scale;
        mins[j] = s->found[j].offset;
    }
    if (weighted) {
        s->d = search_positive(scales, sums, count, limit, s->ls);
        s->dmin = search_positive(mins, sums, count, limit, s->lm);
    } else {
        V max_scale = splat(0), max_min = splat(0);
        for (int j = 0; j < count; j++) {
            max_scale = larger(scales[j], max_scale);
            max_min = larger(mins[j], max_min);
        }
        V inv_scale = select(lt(splat(0), max_scale), (float)limit / max_scale, splat(0));
        V inv_min = select(lt(splat(0), max_min), (float)limit / max_min, splat(0));
        for (int j = 0; j < count; j++) {
            s->ls[j] = nearest(inv_scale * scales[j]) & 255;
            s->lm[j] = nearest(inv_min * mins[j]) & 255;
        }
        s->d = max_scale / (float)limit;
        s->dmin = max_min / (float)limit;
    }
    for (int j = 0; j < count; j++) s->ls[j] = at_most(s->ls[j], cap), s->lm[j] = at_most(s->lm[j], cap);
}

/* d and dmin as two float16 at `offset`, and then as what these are. */
INLINE void put_scales(const Batch *b, AffineBlock *s, int offset) {
    I d = to_half(s->d), dmin = to_half(s->dmin);
    put_word(b, offset, (U)d | (U)dmin << 16);
    s->d = from_half(d);
    s->dmin = from_half(dmin);
}

/* quantize_row_q4_K_ref, quantize_row_q5_K_ref and their _impl. block_q4_K: d, dmin, scales[12], qs[128]; block_q5_K
 * has qh[32] before qs. */
INLINE void batch_q4_q5(const Batch *b, int bits, int weighted) {
    const int nmax = (1 << bits) - 1;
    AffineBlock s;
    search_block(b, &s, 8, nmax, 63, weighted && bits == 4 ? 255 : 63, weighted);
    put_scales(b, &s, 0);
    I packed[12];
    const I *ls = s.ls, *lm = s.lm;
    for (int j = 0; j < 4; j++) { /* six bits each; the upper two of the last four ride on the first */
        packed[j] = ls[j] | ls[j + 4] >> 4 << 6;
        packed[j + 4] = lm[j] | lm[j + 4] >> 4 << 6;
        packed[j + 8] = (ls[j + 4] & 15) | (lm[j + 4] & 15) << 4;
    }
    put_bytes(b, 4, packed, 12);
    for (int j = 0; j < 8; j++) { /* get_scale_min_k4 */
        I sc = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | ((packed[j - 4] & 255) >> 6) << 4;
        I m = j < 4 ? packed[j + 4] & 63 : ((packed[j + 4] & 255) >> 4) | ((packed[j] & 255) >> 6) << 4;
        s.step[j] = step_of(s.d * to_float(sc), s.dmin * to_float(m));
    }
    I l[256], high[32], bytes[32];
    for (int i = 0; i < 256; i++) l[i] = affine_level(&s.step[i / 32], &s.found[i / 32], s.x[i], nmax);
    for (int j = 0; j < 8; j += 2) {
        for (int i = 0; i < 32; i++) {
            const I low = l[32 * j + i], up = l[32 * j + 32 + i];
            bytes[i] = (low & 15) | (up & 15) << 4;
            high[i] = (j ? high[i] : splat_int(0)) | (low >> 4 | up >> 4 << 1) << j;
        }
        put_bytes(b, (bits == 4 ? 16 : 48) + 16 * j, bytes, 32);
    }
    if (bits == 5) put_bytes(b, 16, high, 32);
}

/* quantize_row_q2_K_ref and quantize_row_q2_K_impl. block_q2_K: scales[16], qs[64], d, dmin. */
INLINE void batch_q2(const Batch *b, int weighted) {
    AffineBlock s;
    search_block(b, &s, 16, 3, 15, 255, weighted);
    put_scales(b, &s, 80);
    I pairs[16], bytes[32];
    for (int j = 0; j < 16; j++) {
        pairs[j] = (s.ls[j] | (I)((U)s.lm[j] << 4)) & 255;
        s.step[j] = step_of(s.d * to_float(pairs[j] & 15), s.dmin * to_float(pairs[j] >> 4));
    }
    put_bytes(b, 0, pairs, 16);
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < 32; i++) {
            bytes[i] = splat_int(0);
            for (int q = 0; q < 4; q++) {
                const int j = 8 * half + 2 * q + i / 16;
                bytes[i] |= affine_level(&s.step[j], &s.found[j], s.x[16 * j + i % 16], 3) << (2 * q);
            }
        }
        put_bytes(b, 16 + 32 * half, bytes, 32);
    }
}

/* quantize_row_q3_K_ref and quantize_row_q3_K_impl. block_q3_K: hmask[32], qs[64], scales[12], d. */
INLINE void batch_q3(const Batch *b, int weighted) {
    V x[256], w[16], l[16], scales[16], sums[16], d;
    I ls[16];
    load(b->x, 0, 256, x);
    V sigma2 = weighted ? 2.0f * sum_of_squares(x, 256) / 256.0f : splat(0);
    Symmetric found[16];
    for (int j = 0; j < 16; j++) {
        if (weighted) {
            weigh(b, 16 * j, 16, x + 16 * j, sigma2, w);
            sums[j] = splat(0);
            for (int i = 0; i < 16; i++) sums[j] += w[i];
            found[j] = search_symmetric(x + 16 * j, w, 16, 4);
            scales[j] = found[j].scale;
        } else {
            scales[j] = search_descent(x + 16 * j, l);
        }
    }
    if (weighted) {
        Symmetric block = search_symmetric(scales, sums, 16, 32);
        d = block.scale;
        for (int j = 0; j < 16; j++) ls[j] = symmetric_level(&block, scales[j], 32);
    } else {
        V most, max = extreme(scales, 16, &most), iscale = -32.0f / max;
        M none = is_zero(max);
        for (int j = 0; j < 16; j++) {
            I level = at_least(at_most(signed_byte(nearest(iscale * scales[j])), 31), -32) + 32;
            ls[j] = select_int(none, splat_int(0), level);
        }
        d = select(none, splat(0), 1.0f / iscale);
    }
    I half = to_half(d);
    put_half(b, 108, half);
    d = from_half(half);
    I packed[12], high[32], low[64];
    for (int j = 0; j < 4; j++) { /* the lower four bits, then the upper two */
        packed[j] = (ls[j] & 15) | (ls[j + 8] & 15) << 4;
        packed[j + 4] = (ls[j + 4] & 15) | (ls[j + 12] & 15) << 4;
        packed[j + 8] = ls[j] >> 4 | ls[j + 4] >> 4 << 2 | ls[j + 8] >> 4 << 4 | ls[j + 12] >> 4 << 6;
    }
    put_bytes(b, 96, packed, 12);
    memset(high, 0, sizeof(high));
    memset(low, 0, sizeof(low));
    for (int j = 0; j < 16; j++) {
        V dj = d * to_float(ls[j] - 32);
        M none = is_zero(dj);
        int some = any(none);
        if (some && !weighted) search_descent(x + 16 * j, l); /* its levels stay: seldom, so again */
        for (int i = 0; i < 16; i++) {
            I level = clamped_int(x[16 * j + i] / dj, -4, 3) + 4;
            if (some) {
                I kept = weighted ? symmetric_level(&found[j], x[16 * j + i], 4) : __builtin_convertvector(l[i], I);
                level = select_int(none, kept, level);
            }
            const int place = 16 * (j % 2) + i; /* element 32 * (j / 2) + place */
            high[place] |= level >> 2 << (j / 2);
            low[32 * (j / 8) + place] |= (level & 3) << (2 * (j / 2 % 4));
        }
    }
    put_bytes(b, 0, high, 32);
    put_bytes(b, 32, low, 64);
}

/* quantize_row_q6_K_ref and quantize_row_q6_K_impl. block_q6_K: ql[128], qh[64], scales[16], d. */
INLINE void batch_q6(const Batch *b, int weighted) {
    V x[256], w[16], scales[16], most, steps[16];
    Symmetric found[16];
    M none[16];
    int some[16];
    load(b->x, 0, 256, x);
    for (int j = 0; j < 16; j++) {
        if (weighted) load(b->w, 16 * j, 16, w);
        found[j] = search_symmetric(x + 16 * j, weighted ? w : 0, 16, 32);
        scales[j] = found[j].scale;
    }
    V max = extreme(scales, 16, &most), iscale = -128.0f / max;
    M empty = lt(most, splat(TINY));
    I half = select_int(empty, splat_int(0), to_half(1.0f / iscale));
    put_half(b, 208, half);
    V d = from_half(half);
    I levels[16], ql[64], qh[32];
    for (int j = 0; j < 16; j++) {
        levels[j] = signed_byte(at_most(nearest(iscale * scales[j]), 127));
        levels[j] = select_int(empty, splat_int(0), levels[j]);
        steps[j] = d * to_float(levels[j]);
        none[j] = is_zero(steps[j]);
        some[j] = any(none[j]);
    }
    put_bytes(b, 192, levels, 16);
    for (int part = 0; part < 2; part++) {
        for (int i = 0; i < 32; i++) {
            I q[4];
            for (int n = 0; n < 4; n++) {
                const int j = 8 * part + 2 * n + i / 16;
                V value = x[16 * j + i % 16];
                q[n] = clamped_int(value / steps[j], -32, 31) + 32;
                if (some[j]) {
                    q[n] = select_int(none[j], symmetric_level(&found[j], value, 32), q[n]);
                    q[n] = select_int(empty, splat_int(0), q[n]);
                }
            }
            ql[i] = (q[0] & 15) | (q[2] & 15) << 4;
            ql[i + 32] = (q[1] & 15) | (q[3] & 15) << 4;
            qh[i] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
        }
        put_bytes(b, 64 * part, ql, 64);
        put_bytes(b, 128 + 32 * part, qh, 32);
    }
}

/* ---- Blocks of 32 ---- */

/* quantize_row_q4_0_ref, quantize_row_q5_0_ref and their _impl. block_q4_0: d, qs[16]; block_q5_0: d, qh[4], qs[16]. */
INLINE void batch_q4_0_q5_0(const Batch *b, int bits, int weighted) {
    const int half = 1 << (bits - 1);
    V x[32], w[32], most, id = splat(0);
    I q[32], high = splat_int(0);
    Symmetric found = {id, id, lt(id, id)};
    load(b->x, 0, 32, x);
    if (weighted) {
        weigh(b, 0, 32, x, b->sigma2, w);
        found = search_symmetric(x, w, 32, half);
        put_half(b, 0, to_half(found.scale));
    } else {
        V d = extreme(x, 32, &most) / (float)-half;
        id = select(is_zero(d), splat(0), 1.0f / d);
        put_half(b, 0, to_half(d));
    }
    for (int i = 0; i < 32; i++) {
        if (weighted) {
            q[i] = symmetric_level(&found, x[i], half);
        } else { /* truncated, and to a byte before the limit */
            q[i] = __builtin_convertvector(x[i] * id + ((float)half + 0.5f), I);
            q[i] = at_most(signed_byte(q[i]), 2 * half - 1) & 255;
        }
        high |= (I)((U)(q[i] >> 4 & 1) << i);
        if (bits == 5) q[i] &= 15;
        if (i >= 16) q[i - 16] |= q[i] << 4;
    }
    put_bytes(b, bits == 4 ? 2 : 6, q, 16);
    if (bits == 5) put_word(b, 2, (U)high);
}

/* kvalues_iq4nl of ggml-common.h. Its best_index_int8 finds the nearest, of two as near the upper: the count of the
 * middles that the value is not below (the differences it compares are exact where they are close to each other). */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
#define MIDDLE(k) (0.5f * (float)(iq4_values[k] + iq4_values[(k) + 1]))

INLINE V iq4_nearest(V v, int index) { /* the value, or its index */
    V q = splat(index ? 0.0f : (float)iq4_values[0]);
    _Pragma("GCC unroll 15") for (int k = 0; k < 15; k++) {
        q = add_if(not_lt(v, splat(MIDDLE(k))), q, index ? 1.0f : (float)(iq4_values[k + 1] - iq4_values[k]));
    }
    return q;
}
INLINE I iq4_index(V v) { return __builtin_convertvector(iq4_nearest(v, 1), I); }

INLINE V iq4_round(const V *x, const V *w, V id, V *sumqx) {
    V sumq2 = splat(0);
    *sumqx = splat(0);
    for (int i = 0; i < 32; i++) {
        V q = iq4_nearest(id * x[i], 0), wq = w[i] * q;
        *sumqx += wq * x[i];
        sumq2 += wq * q;
    }
    return sumq2;
}

/* The search of quantize_row_iq4_nl_impl, with ntry 7. */
INLINE V search_iq4(const V *x, const V *w) {
    V most, max = extreme(x, 32, &most), sumqx, sumq2;
    sumq2 = iq4_round(x, w, 1.0f / (-max / (float)iq4_values[0]), &sumqx);
    V d = select(lt(splat(0), sumq2), sumqx / sumq2, splat(0)), best = d * sumqx;
    for (int step = -7; step <= 7; step++) {
        sumq2 = iq4_round(x, w, splat((float)(step + iq4_values[0])) / max, &sumqx);
        M better = both(lt(splat(0), sumq2), lt(best * sumq2, sumqx * sumqx));
        d = select(better, sumqx / sumq2, d);
        best = select(better, d * sumqx, best);
    }
    return select(lt(most, splat(TINY)), splat(0), d);
}

INLINE void put_iq4(const Batch *b, int offset, const V *x, V id) {
    I bytes[16];
    for (int i = 0; i < 16; i++) bytes[i] = iq4_index(id * x[i]) | iq4_index(id * x[16 + i]) << 4;
    put_bytes(b, offset, bytes, 16);
}

/* quantize_row_iq4_nl_impl: a block alone (block_iq4_nl: d, qs[16]) or eight (block_iq4_xs: d, scales_h, scales_l[4],
 * qs[128]). */
INLINE void batch_iq4(const Batch *b, int blocks, int weighted) {
    V x[256], w[32], scales[8], most;
    load(b->x, 0, 32 * blocks, x);
    V sigma2 = sum_of_squares(x, 32 * blocks) * (2.0f / (float)(32 * blocks));
    for (int j = 0; j < blocks; j++) {
        const V *xj = x + 32 * j;
        if (weighted) {
            weigh(b, 32 * j, 32, xj, sigma2, w);
        } else {
            for (int i = 0; i < 32; i++) w[i] = xj[i] * xj[i];
        }
        scales[j] = search_iq4(xj, w);
    }
    if (blocks == 1) {
        put_half(b, 0, to_half(scales[0]));
        put_iq4(b, 2, x, select(is_zero(scales[0]), splat(0), 1.0f / scales[0]));
        return;
    }
    V d = -extreme(scales, blocks, &most) / 32.0f, id = select(is_zero(d), splat(0), 1.0f / d);
    U low = (U)splat_int(0), high = (U)to_half(d);
    for (int j = 0; j < blocks; j++) {
        I level = clamped_int(id * scales[j], -32, 31);
        V dl = d * to_float(level);
        put_iq4(b, 8 + 16 * j, x + 32 * j, select(is_zero(dl), splat(0), 1.0f / dl));
        low |= ((U)(level + 32) & 15) << (4 * j);
        high |= (U)(level + 32) >> 4 << (16 + 2 * j);
    }
    put_word(b, 0, high);
    put_word(b, 4, low);
}

/* ---- Rows ---- */

typedef void (*Quantizer)(const Batch *);

/* Blocks of `width` values and `bytes` bytes, in the order of the rows, LANES at a time. */
INLINE void in_order(const float *src, uint8_t *dst, int64_t rows, int64_t columns, const float *importance, int width,
                     int bytes, Quantizer quantize) {
    const int64_t in_row = columns / width, blocks = rows * in_row;
    for (int64_t start = 0; start < blocks; start += LANES) {
        Batch b;
        b.count = blocks - start < LANES ? (int)(blocks - start) : LANES;
        for (int i = 0; i < LANES; i++) {
            const int64_t block = start + (i < b.count ? i : b.count - 1);
            b.x[i] = src + block * width;
            b.w[i] = importance ? importance + block % in_row * width : 0;
            b.y[i] = dst + block * bytes;
        }
        quantize(&b);
    }
}

/* The same with LANES rows side by side, for the weights that need the whole row's mean square. */
INLINE void side_by_side(const float *src, uint8_t *dst, int64_t rows, int64_t columns, const float *importance,
                         int width, int bytes, Quantizer quantize) {
    for (int64_t start = 0; start < rows; start += LANES) {
        Batch b;
        V sum = splat(0), x[32];
        b.count = rows - start < LANES ? (int)(rows - start) : LANES;
        for (int i = 0; i < LANES; i++) {
            const int64_t row = start + (i < b.count ? i : b.count - 1);
            b.x[i] = src + row * columns;
            b.w[i] = importance;
            b.y[i] = dst + row * (columns / width) * bytes;
        }
        for (int64_t column = 0; column < columns; column += 32) {
            load(b.x, column, 32, x);
            for (int i = 0; i < 32; i++) sum += x[i] * x[i];
        }
        b.sigma2 = sum / (float)columns;
        for (int64_t block = 0; block < columns / width; block++) {
            quantize(&b);
            for (int i = 0; i < LANES; i++) b.x[i] += width, b.w[i] += width, b.y[i] += bytes;
        }
    }
}

/* void ggufy_quantize_<type>_<variant>(src, dst, rows, columns, importance or null): float32 rows, packed; importance
 * is one float32 a column. Columns are a multiple of the block's width (256 for the K types and iq4_xs, else 32). */
#define ENTRY(type)                                                                                         \
    EXPORTED void NAME(ggufy_quantize_##type)(const float *src, uint8_t *dst, int64_t rows, int64_t columns, \
                                              const float *importance)

/* `order` is how a search with an importance matrix goes through the rows. */
#define KERNEL(type, width, bytes, order, batch)                                                              \
    static void plain_##type(const Batch *b) { enum { WEIGHTED = 0 }; batch; }                               \
    static void weighted_##type(const Batch *b) { enum { WEIGHTED = 1 }; batch; }                            \
    ENTRY(type) {                                                                                            \
        if (importance) order(src, dst, rows, columns, importance, width, bytes, weighted_##type);           \
        else in_order(src, dst, rows, columns, 0, width, bytes, plain_##type);                               \
    }

KERNEL(q2_k, 256, 84, in_order, batch_q2(b, WEIGHTED))
KERNEL(q3_k, 256, 110, in_order, batch_q3(b, WEIGHTED))
KERNEL(q4_k, 256, 144, in_order, batch_q4_q5(b, 4, WEIGHTED))
KERNEL(q5_k, 256, 176, in_order, batch_q4_q5(b, 5, WEIGHTED))
KERNEL(q6_k, 256, 210, in_order, batch_q6(b, WEIGHTED))
KERNEL(q4_0, 32, 18, side_by_side, batch_q4_0_q5_0(b, 4, WEIGHTED))
KERNEL(q5_0, 32, 22, side_by_side, batch_q4_0_q5_0(b, 5, WEIGHTED))
KERNEL(iq4_nl, 32, 18, in_order, batch_iq4(b, 1, WEIGHTED))
KERNEL(iq4_xs, 256, 136, in_order, batch_iq4(b, 8, WEIGHTED))

ENTRY(q8_0) {
    (void)importance; /* as in llama.cpp */
    rows_q8_0(src, dst, rows * (columns / 32));
}

#ifdef GGUFY_DISPATCH
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#ifndef GGUFY_SOURCE
#define GGUFY_SOURCE ""
#endif
/* From which source this library is: build.py's digest of it. */
EXPORTED const char *ggufy_kernels_source(void) { return GGUFY_SOURCE; }

/* The variants of this library that this processor can run, the fastest first. */
EXPORTED const char *ggufy_kernels_supported(void) {
#if defined(__x86_64__) || defined(__i386__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    __builtin_cpu_init();
    /* __builtin_cpu_supports("f16c") is unknown to older compilers. Where avx2 may be used, so may it. */
    if (!__builtin_cpu_supports("avx2") || !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return "sse2";
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? "avx512 avx2 sse2" : "avx2 sse2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "generic";
#endif
}
#endif
