/* The maximum of 2 x 2 pixels, side by side, for images that lie channels last; of an odd size the last row or column is
 * in no window. Which pixel it was is kept in a byte, for the gradient; the first of equal ones, as in torch.
 */
#include <omp.h>

#include "scalar.h"

enum { WINDOW = 2 };

/* images: (batch, height, width, channels), largest and which: (batch, height / 2, width / 2, channels). */
void max_pool_forward(const scalar *images, scalar *largest, uint8_t *which, long batch, long height, long width,
                      long channels, int threads) {
    const long rows = height / WINDOW, columns = width / WINDOW;
#pragma omp parallel for num_threads(threads)
    for (long r = 0; r < batch * rows; r++) {
        const scalar *upper = images + (r / rows * height + r % rows * WINDOW) * width * channels;
        for (long w = 0; w < columns; w++) {
            const scalar *restrict one = upper + w * WINDOW * channels, *restrict two = one + channels;
            const scalar *restrict three = one + width * channels, *restrict four = three + channels;
            scalar *restrict to = largest + (r * columns + w) * channels;
            uint8_t *restrict at = which + (r * columns + w) * channels;
            for (long c = 0; c < channels; c++) {
                const float values[] = {load(one[c]), load(two[c]), load(three[c]), load(four[c])};
                float best = values[0];
                int index = 0;
                for (int k = 1; k < WINDOW * WINDOW; k++) {
                    const int is_new = values[k] > best || values[k] != values[k];
                    best = is_new ? values[k] : best;
                    index = is_new ? k : index;
                }
                to[c] = store(best);
                at[c] = index;
            }
        }
    }
}

/* grad and which: (batch, height / 2, width / 2, channels), grad_images: (batch, height, width, channels). */
void max_pool_backward(const scalar *grad, const uint8_t *which, scalar *grad_images, long batch, long height,
                       long width, long channels, int threads) {
    const long rows = height / WINDOW, columns = width / WINDOW, row = width * channels;
#pragma omp parallel for num_threads(threads)
    for (long r = 0; r < batch * rows; r++) {
        scalar *upper = grad_images + (r / rows * height + r % rows * WINDOW) * row;
        for (long w = 0; w < columns; w++) {
            const scalar *restrict from = grad + (r * columns + w) * channels;
            const uint8_t *restrict at = which + (r * columns + w) * channels;
            scalar *restrict to = upper + w * WINDOW * channels;
            for (int k = 0; k < WINDOW * WINDOW; k++) {
                scalar *restrict pixel = to + k / WINDOW * row + k % WINDOW * channels;
                for (long c = 0; c < channels; c++) pixel[c] = at[c] == k ? from[c] : 0;
            }
        }
        for (int k = 0; k < WINDOW; k++)
            memset(upper + k * row + columns * WINDOW * channels, 0, width % WINDOW * channels * sizeof *upper);
        if (r % rows == rows - 1) memset(upper + WINDOW * row, 0, height % WINDOW * row * sizeof *upper);
    }
}
