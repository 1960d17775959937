/* The gradients of the weight and the bias of convolution.c:
 *
 *   grad_weight[o][kh][kw][i] = sum over n, h, w of grad[n][h][w][o] * images[n][h + kh - 1][w + kw - 1][i]
 *   grad_bias[o]              = sum over n, h, w of grad[n][h][w][o]
 *
 * The processor multiplies bf16 by pairs, and adds both products to a float. Here a pair is two neighbours of a row, so
 * rows are written anew, as pairs channel by channel: the gradient from column 0 on; the images, against which a
 * kernel's columns shift it, once from column 0 and once from column -1, which is padding. A tile of sums, of 8 outputs
 * by 16 inputs for the three rows of a kernel, stays in registers for a block of images.
 *
 * Products are exact and sums float: those of a block, of a thread's blocks, and of the threads, in a fixed order: the
 * same number of threads gives the same bits.
 */
#if defined BF16 && defined __AVX512BF16__ && !defined __AMX_BF16__ /* a matrix unit is left to torch's own */
#include <immintrin.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

enum { KERNEL = 3, OUTPUTS = 8, INPUTS = 16, PAIR = 2 };
enum { VECTOR = 16 }; /* channels whose pairs fill a register */

typedef struct {
    long height, width, inputs, outputs;
    long even, odd, grad; /* scalars of a row of pairs: of an image from column 0 and from -1, and of the gradient */
} Shape;

typedef struct {
    scalar *even, *odd, *grad; /* of a block; of images also the row above and the one below */
} Pairs;

static Shape shape_of(long height, long width, long inputs, long outputs) {
    Shape shape = {.height = height, .width = width, .inputs = inputs, .outputs = outputs};
    shape.even = parts_of(width, PAIR) * PAIR * inputs;
    shape.odd = (width / PAIR + 1) * PAIR * inputs;
    shape.grad = parts_of(width, PAIR) * PAIR * outputs;
    return shape;
}

static inline __m512i first(const scalar *pixel) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)pixel));
}

static inline __m512i second(const scalar *pixel) { return _mm512_slli_epi32(first(pixel), 16); }

/* A row as pairs from column 0 on; where the width is odd, the second of the last is 0. */
static void pair(const scalar *row, long width, long channels, scalar *pairs) {
    long w = 0;
    for (; w + 1 < width; w += PAIR, row += PAIR * channels)
        for (long c = 0; c < channels; c += VECTOR, pairs += PAIR * VECTOR)
            _mm512_store_si512(pairs, _mm512_or_si512(first(row + c), second(row + channels + c)));
    if (w < width)
        for (long c = 0; c < channels; c += VECTOR, pairs += PAIR * VECTOR) _mm512_store_si512(pairs, first(row + c));
}

/* A row as pairs from column -1 on, which is 0. */
static void pair_shifted(const scalar *row, long width, long channels, scalar *pairs) {
    for (long c = 0; c < channels; c += VECTOR, pairs += PAIR * VECTOR) _mm512_store_si512(pairs, second(row + c));
    pair(row + channels, width - 1, channels, pairs);
}

static void write_pairs(const Shape *shape, const Block *block, const scalar *images, const scalar *grad, Pairs to) {
    const long of_image = shape->width * shape->inputs, of_grad = shape->width * shape->outputs; /* scalars of a row */
    for (long n = block->first; n < block->first + block->images; n++) {
        for (long h = block->top - 1; h <= block->top + block->rows; h++, to.even += shape->even, to.odd += shape->odd)
            if (h < 0 || h >= shape->height) {
                memset(to.even, 0, shape->even * sizeof *to.even);
                memset(to.odd, 0, shape->odd * sizeof *to.odd);
            } else {
                const scalar *row = images + (n * shape->height + h) * of_image;
                pair(row, shape->width, shape->inputs, to.even);
                pair_shifted(row, shape->width, shape->inputs, to.odd);
            }
        for (long h = block->top; h < block->top + block->rows; h++, to.grad += shape->grad)
            pair(grad + (n * shape->height + h) * of_grad, shape->width, shape->outputs, to.grad);
    }
}

/* The products of a block for a tile, added to its sums; `step` is a row of the pairs of images. */
static void add_tile(const Shape *shape, const Block *block, const scalar *images, long step, const scalar *grad,
                     long pairs, float *sums) {
    __m512 tile[KERNEL][OUTPUTS];
    for (int k = 0; k < KERNEL; k++)
        for (int o = 0; o < OUTPUTS; o++) tile[k][o] = _mm512_setzero_ps();
    for (long n = 0; n < block->images; n++, images += 2 * step)
        for (long r = 0; r < block->rows; r++, images += step, grad += shape->grad) {
            const scalar *from = images, *by = grad;
            for (long p = 0; p < pairs; p++, from += PAIR * shape->inputs, by += PAIR * shape->outputs) {
                const __m512bh above = (__m512bh)_mm512_load_si512(from);
                const __m512bh level = (__m512bh)_mm512_load_si512(from + step);
                const __m512bh below = (__m512bh)_mm512_load_si512(from + 2 * step);
#pragma GCC unroll 8
                for (int o = 0; o < OUTPUTS; o++) {
                    int both;
                    memcpy(&both, by + PAIR * o, sizeof both);
                    const __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
                    tile[0][o] = _mm512_dpbf16_ps(tile[0][o], above, factor);
                    tile[1][o] = _mm512_dpbf16_ps(tile[1][o], level, factor);
                    tile[2][o] = _mm512_dpbf16_ps(tile[2][o], below, factor);
                }
            }
        }
    for (int o = 0; o < OUTPUTS; o++)
        for (int k = 0; k < KERNEL; k++) {
            float *to = sums + (o * KERNEL + k) * KERNEL * shape->inputs;
            _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), tile[k][o]));
        }
}

/* The first column of a kernel meets the images one pixel to the left, where the odd pairs begin. */
static void add_weight(const Shape *shape, const Block *block, Pairs pairs, float *sums) {
    const long all = parts_of(shape->width, PAIR), right = shape->width / PAIR;
    for (long o = 0; o < shape->outputs; o += OUTPUTS)
        for (long i = 0; i < shape->inputs; i += INPUTS) {
            const scalar *even = pairs.even + PAIR * i, *odd = pairs.odd + PAIR * i, *grad = pairs.grad + PAIR * o;
            float *to = sums + o * KERNEL * KERNEL * shape->inputs + i;
            add_tile(shape, block, odd, shape->odd, grad, all, to);
            add_tile(shape, block, even, shape->even, grad, all, to + shape->inputs);
            add_tile(shape, block, odd + PAIR * shape->inputs, shape->odd, grad, right, to + 2 * shape->inputs);
        }
}

/* The gradient by 1. */
static void add_bias(const Shape *shape, const Block *block, const scalar *grad, float *sums) {
    const __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (long o = 0; o < shape->outputs; o += VECTOR) {
        const scalar *pairs = grad + PAIR * o, *end = pairs + block->images * block->rows * shape->grad;
        __m512 total = _mm512_setzero_ps();
        for (; pairs < end; pairs += PAIR * shape->outputs)
            total = _mm512_dpbf16_ps(total, (__m512bh)_mm512_load_si512(pairs), one);
        _mm512_store_ps(sums + o, _mm512_add_ps(_mm512_load_ps(sums + o), total));
    }
}

/* A sum over the threads, whose own are `size` apart. */
static inline float total_of(const float *sums, long size, int team) {
    float total = *sums;
    for (int t = 1; t < team; t++) total += sums[size * t];
    return total;
}

/* images: (batch, height, width, inputs), grad: (batch, height, width, outputs), grad_weight: (outputs, 3, 3, inputs),
 * grad_bias: (outputs) or NULL; inputs and outputs are multiples of 16. Gives 0, or 1 if there is no memory. */
int conv2d_backward(const scalar *images, const scalar *grad, float *grad_weight, float *grad_bias, long batch,
                    long height, long width, long inputs, long outputs, int threads) {
    const Shape shape = shape_of(height, width, inputs, outputs);
    const Blocks blocks = blocks_of(batch, height, (shape.even + shape.odd + shape.grad) * sizeof *images, threads);
    const long rows = most_images(&blocks) * most_rows(&blocks), outer = rows + 2 * most_images(&blocks);
    const long evens = outer * shape.even, odds = outer * shape.odd, all = evens + odds + rows * shape.grad;
    const long weights = KERNEL * KERNEL * inputs * outputs, size = weights + outputs;
    float *sums = aligned_alloc(64, size * threads * sizeof *sums);
    scalar *pairs = aligned_alloc(64, all * threads * sizeof *pairs);
    if (!sums || !pairs) {
        free(sums);
        free(pairs);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        float *own = sums + size * thread;
        scalar *even = pairs + all * thread;
        const Pairs of_block = {.even = even, .odd = even + evens, .grad = even + evens + odds};
        memset(own, 0, size * sizeof *own);
        for (long b = first_of_thread(&blocks, thread, team); b < first_of_thread(&blocks, thread + 1, team); b++) {
            const Block block = block_at(&blocks, b);
            write_pairs(&shape, &block, images, grad, of_block);
            add_weight(&shape, &block, of_block, own);
            if (grad_bias) add_bias(&shape, &block, of_block.grad, own + weights);
        }
#pragma omp barrier
#pragma omp for nowait
        for (long k = 0; k < weights; k++) grad_weight[k] = total_of(sums + k, size, team);
        if (grad_bias)
#pragma omp for nowait
            for (long o = 0; o < outputs; o++) grad_bias[o] = total_of(sums + weights + o, size, team);
    }
    free(sums);
    free(pairs);
    return 0;
}
#endif
