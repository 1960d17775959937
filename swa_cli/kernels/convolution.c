/* A convolution of 3 x 3 with stride 1 and padding 1 in bf16, for images that lie channels last, and for few inputs:
 *
 *   outputs[n][h][w][o] = bias[o] + sum over kh, kw, i of images[n][h + kh - 1][w + kw - 1][i] * weight[o][kh][kw][i]
 *
 * The processor multiplies bf16 by pairs, and adds both products to a float; a pair is two inputs. A tile of 8 pixels
 * by 16 outputs, for the three rows that a row of the images has a part in, stays in registers from row to row: each
 * pixel is loaded once for three products, and sums go over all inputs and columns at once, however few there are.
 *
 * Sums are float, and rounded once. They are made alike whatever the number of threads.
 */
#if defined BF16 && defined __AVX512BF16__ && !defined __AMX_BF16__ /* a matrix unit is left to torch's own */
#include <immintrin.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

enum { KERNEL = 3, PIXELS = 8, OUTPUTS = 16, PAIR = 2 };
enum { STEP = KERNEL * OUTPUTS * PAIR }; /* weights for a pair of inputs in a column of a kernel */

/* (outputs, 3, 3, inputs) as (outputs / 16, columns, inputs / 2, rows, 16, 2): in the order of their use. */
static void pack(const scalar *weight, long inputs, long outputs, scalar *packed) {
    for (long from = 0; from < outputs; from += OUTPUTS)
        for (long column = 0; column < KERNEL; column++)
            for (long i = 0; i < inputs; i += PAIR)
                for (long row = 0; row < KERNEL; row++)
                    for (long o = from; o < from + OUTPUTS; o++, packed += PAIR) {
                        const scalar *pair = weight + ((o * KERNEL + row) * KERNEL + column) * inputs + i;
                        memcpy(packed, pair, PAIR * sizeof *pair);
                    }
}

static inline void store_pixels(scalar *outputs, long step, const __m512 *sums) {
    for (int p = 0; p < PIXELS; p++)
        _mm256_storeu_si256((void *)(outputs + p * step), (__m256i)_mm512_cvtneps_pbh(sums[p]));
}

/* 8 columns of an image and 16 outputs of rows `top` and on. `padded` is the row above them, or, at the upper edge of
 * the image, the first; `packed` are the weights, and `start` the bias. */
static void convolve(const Block *block, long height, long width, long inputs, long num_outputs, const scalar *padded,
                     const scalar *packed, __m512 start, scalar *outputs) {
    __m512 next[PIXELS], level[PIXELS], last[PIXELS]; /* sums of the rows below, at and above a row of the images */
    for (int p = 0; p < PIXELS; p++) next[p] = level[p] = last[p] = start;
    const long end = smaller(block->top + block->rows + 1, height);
    for (long h = larger(block->top - 1, 0); h < end; h++, padded += (width + 2) * inputs) {
        const scalar *weight = packed;
        for (long column = 0; column < KERNEL; column++)
            for (long i = 0; i < inputs; i += PAIR, weight += STEP) {
                const __m512bh first = (__m512bh)_mm512_load_si512(weight);
                const __m512bh second = (__m512bh)_mm512_load_si512(weight + PAIR * OUTPUTS);
                const __m512bh third = (__m512bh)_mm512_load_si512(weight + 2 * PAIR * OUTPUTS);
                const scalar *pixel = padded + column * inputs + i;
#pragma GCC unroll 8
                for (int p = 0; p < PIXELS; p++) {
                    int both;
                    memcpy(&both, pixel + p * inputs, sizeof both);
                    const __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
                    next[p] = _mm512_dpbf16_ps(next[p], first, factor);
                    level[p] = _mm512_dpbf16_ps(level[p], second, factor);
                    last[p] = _mm512_dpbf16_ps(last[p], third, factor);
                }
            }
        if (h > block->top) {
            store_pixels(outputs, num_outputs, last);
            outputs += width * num_outputs;
        }
        for (int p = 0; p < PIXELS; p++) {
            last[p] = level[p];
            level[p] = next[p];
            next[p] = start;
        }
    }
    if (block->top + block->rows == height) store_pixels(outputs, num_outputs, last);
}

/* The rows of an image that a block needs, with a pixel of padding on either side, which is 0 already. */
static void pad(const Block *block, const scalar *image, long height, long width, long inputs, scalar *padded) {
    const long end = smaller(block->top + block->rows + 1, height);
    for (long h = larger(block->top - 1, 0); h < end; h++, padded += (width + 2) * inputs)
        memcpy(padded + inputs, image + h * width * inputs, width * inputs * sizeof *padded);
}

/* images: (batch, height, width, inputs), weight: (outputs, 3, 3, inputs), bias: (outputs) or NULL, outputs: (batch,
 * height, width, outputs); the width is a multiple of 8, inputs and outputs of 16. Gives 0, or 1 without memory. */
int conv2d_forward(const scalar *images, const scalar *weight, const float *bias, scalar *outputs, long batch,
                   long height, long width, long inputs, long num_outputs, int threads) {
    const Blocks blocks = blocks_of(batch, height, (width + 2) * inputs * sizeof *images, threads);
    const long weights = KERNEL * KERNEL * inputs * num_outputs;
    const long size = (most_rows(&blocks) + 2) * (width + 2) * inputs;
    scalar *packed = aligned_alloc(64, weights * sizeof *packed), *padding = calloc(size * threads, sizeof *padding);
    if (!packed || !padding) {
        free(packed);
        free(padding);
        return 1;
    }
    pack(weight, inputs, num_outputs, packed);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        scalar *padded = padding + size * thread;
        for (long b = first_of_thread(&blocks, thread, team); b < first_of_thread(&blocks, thread + 1, team); b++) {
            const Block block = block_at(&blocks, b);
            for (long n = block.first; n < block.first + block.images; n++) {
                pad(&block, images + n * height * width * inputs, height, width, inputs, padded);
                scalar *to = outputs + (n * height + block.top) * width * num_outputs;
                for (long o = 0; o < num_outputs; o += OUTPUTS) {
                    const __m512 start = bias ? _mm512_loadu_ps(bias + o) : _mm512_setzero_ps();
                    for (long w = 0; w < width; w += PIXELS)
                        convolve(&block, height, width, inputs, num_outputs, padded + w * inputs,
                                 packed + o * KERNEL * KERNEL * inputs, start, to + w * num_outputs + o);
                }
            }
        }
    }
    free(packed);
    free(padding);
    return 0;
}
#endif
