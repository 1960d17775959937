/* BatchNorm in training mode, with the ReLU after it or without, of images that lie channels last (Ioffe and Szegedy
 * 2015, arXiv:1502.03167, algorithm 1).
 *
 * An image batch is `rows` rows (B*H*W) of `channels` values. It is gone through twice forward (mean and variance; the
 * normalised values) and twice back (two sums; the gradient), on all threads.
 *
 * Loops run over strips: as many rows as make about 1,024 lanes, so vectors are full and loops long for any channels.
 * Within a block of strips sums are float; blocks and threads are merged in double, by Chan's formula and in a fixed
 * order: the same number of threads gives the same bits.
 *
 * Functions give 0, or 1 if there is no memory.
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "scalar.h"

enum { LANES = 1024, STRIPS = 32 };

typedef struct {
    long channels;
    long lanes; /* of a strip: a multiple of the channels */
    long block; /* values of a block: STRIPS strips, or less where not every thread would have one */
    long values, blocks;
    int team; /* threads that there are: as many as were asked for, or fewer */
} Shape;

static Shape shape_of(long rows, long channels, int threads) {
    Shape shape = {.channels = channels, .values = rows * channels};
    shape.lanes = channels < LANES ? LANES / channels * channels : channels;
    const long strips = shape.values / shape.lanes / threads;
    shape.block = (strips < 1 ? 1 : smaller(strips, STRIPS)) * shape.lanes;
    shape.blocks = (shape.values + shape.block - 1) / shape.block;
    return shape;
}

/* Where the blocks of a thread begin; those of the next one end them. */
static inline long first_block(const Shape *shape, int thread) { return shape->blocks * thread / shape->team; }

/* One value a channel, in all lanes of a strip. */
static void spread(const Shape *shape, const float *restrict channel, float *restrict lane) {
    for (long l = 0; l < shape->lanes; l += shape->channels)
        memcpy(lane + l, channel, shape->channels * sizeof *lane);
}

/* The lanes of each channel added up, in the first ones: by halves, which keeps more digits than one after another. */
static void gather(const Shape *shape, float *lane) {
    for (long groups = shape->lanes / shape->channels, half; groups > 1; groups = half) {
        half = (groups + 1) / 2;
        for (long l = 0; l < (groups - half) * shape->channels; l++) lane[l] += lane[half * shape->channels + l];
    }
}

/* `count` rows of moments merged into those of `before` rows. */
static inline void merge(double *mean, double *m2, double before, double other_mean, double other_m2, double count) {
    double step = other_mean - *mean, share = count / (before + count);
    *mean += step * share;
    *m2 += other_m2 + step * step * before * share;
}

/* Mean and sum of squared distances from it, a channel; `lane` has 3 strips.
 *
 * A block is summed around the mean of those before it, the first around its own: a mean far from 0 costs nothing. */
static double moments(const Shape *shape, const scalar *restrict x, int thread, float *restrict lane,
                      double *restrict mean, double *restrict m2) {
    const long channels = shape->channels, lanes = shape->lanes, first = first_block(shape, thread);
    float *restrict sum = lane, *restrict square = lane + lanes, *restrict centre = lane + 2 * lanes;
    double seen = 0;
    memset(mean, 0, channels * sizeof *mean);
    memset(m2, 0, channels * sizeof *m2);
    for (long b = first; b < first_block(shape, thread + 1); b++) {
        const scalar *restrict from = x + b * shape->block;
        const long size = smaller(shape->block, shape->values - b * shape->block);
        const double count = (double)(size / channels);
        if (b == first) {
            memset(sum, 0, lanes * sizeof *sum);
            for (long k = 0; k < size; k += lanes) {
                const long width = smaller(lanes, size - k);
                for (long l = 0; l < width; l++) sum[l] += load(from[k + l]);
            }
            gather(shape, sum);
            for (long c = 0; c < channels; c++) sum[c] /= (float)count;
        } else
            for (long c = 0; c < channels; c++) sum[c] = (float)mean[c];
        spread(shape, sum, centre);
        memset(sum, 0, lanes * sizeof *sum);
        memset(square, 0, lanes * sizeof *square);
        for (long k = 0; k < size; k += lanes) {
            const long width = smaller(lanes, size - k);
            for (long l = 0; l < width; l++) {
                const float off = load(from[k + l]) - centre[l];
                sum[l] += off;
                square[l] += off * off;
            }
        }
        gather(shape, sum);
        gather(shape, square);
        for (long c = 0; c < channels; c++) {
            const double off = sum[c] / count;
            merge(mean + c, m2 + c, seen, centre[c] + off, square[c] - off * sum[c], count);
        }
        seen += count;
    }
    return seen;
}

static inline __attribute__((always_inline)) void normalise(const Shape *shape, const scalar *restrict x,
                                                            scalar *restrict y, int thread, const float *restrict mean,
                                                            const float *restrict scale, const float *restrict bias,
                                                            const int relu) {
    const long begin = first_block(shape, thread) * shape->block;
    const long end = smaller(first_block(shape, thread + 1) * shape->block, shape->values);
    for (long k = begin; k < end; k += shape->lanes) {
        const long width = smaller(shape->lanes, end - k);
        for (long l = 0; l < width; l++) {
            const float value = (load(x[k + l]) - mean[l]) * scale[l] + bias[l];
            y[k + l] = store(relu && value < 0 ? 0 : value);
        }
    }
}

/* kept: (4, channels): mean, 1/sqrt(variance + eps), scale, bias. Running statistics, weight and bias may be NULL. */
int batch_norm_forward(const scalar *x, scalar *y, long rows, long channels, const float *weight, const float *bias,
                       float *running_mean, float *running_var, double momentum, double eps, int relu, int threads,
                       float *kept) {
    Shape shape = shape_of(rows, channels, threads);
    float *lanes = malloc(sizeof *lanes * 3 * shape.lanes * threads);
    double *parts = malloc(sizeof *parts * (2 * channels + 1) * threads);
    if (!lanes || !parts) {
        free(lanes);
        free(parts);
        return 1;
    }
    float *mean = kept, *rstd = kept + channels, *scale = kept + 2 * channels, *shift = kept + 3 * channels;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
#pragma omp single
        shape.team = omp_get_num_threads();
        float *lane = lanes + 3 * shape.lanes * thread;
        double *part = parts + (2 * channels + 1) * thread;
        part[2 * channels] = moments(&shape, x, thread, lane, part, part + channels);
#pragma omp barrier
#pragma omp single
        {
            double seen = parts[2 * channels];
            for (int t = 1; t < shape.team; t++) {
                const double *other = parts + (2 * channels + 1) * t, count = other[2 * channels];
                if (count == 0) continue;
                for (long c = 0; c < channels; c++)
                    merge(parts + c, parts + channels + c, seen, other[c], other[channels + c], count);
                seen += count;
            }
            for (long c = 0; c < channels; c++) {
                /* Squares that float cannot hold are told as NaN; as infinity they would end in a constant. */
                const double m2 = isinf(parts[channels + c]) ? NAN : parts[channels + c];
                mean[c] = (float)parts[c];
                rstd[c] = (float)(1 / sqrt(m2 / rows + eps));
                scale[c] = (weight ? weight[c] : 1) * rstd[c];
                shift[c] = bias ? bias[c] : 0;
                if (running_mean) running_mean[c] = (float)((1 - momentum) * running_mean[c] + momentum * parts[c]);
                if (running_var) running_var[c] = (float)((1 - momentum) * running_var[c] + momentum * m2 / (rows - 1));
            }
        }
        spread(&shape, mean, lane);
        spread(&shape, scale, lane + shape.lanes);
        spread(&shape, shift, lane + 2 * shape.lanes);
        if (relu)
            normalise(&shape, x, y, thread, lane, lane + shape.lanes, lane + 2 * shape.lanes, 1);
        else
            normalise(&shape, x, y, thread, lane, lane + shape.lanes, lane + 2 * shape.lanes, 0);
    }
    free(lanes);
    free(parts);
    return 0;
}

/* What of a gradient passes the ReLU, which the value that it was given tells. */
static inline float passed(float grad, float off, float scale, float bias, int relu) {
    return relu && off * scale + bias <= 0 ? 0 : grad;
}

/* A channel's sum of the gradient, and of its products with the distance from the mean; `lane` has 5 strips, of which
 * the first three are mean, scale and bias. */
static inline __attribute__((always_inline)) void sums(const Shape *shape, const scalar *restrict grad,
                                                       const scalar *restrict x, int thread, float *restrict lane,
                                                       double *restrict sum, double *restrict product, const int relu) {
    const long channels = shape->channels, lanes = shape->lanes;
    const float *restrict mean = lane, *restrict scale = lane + lanes, *restrict bias = lane + 2 * lanes;
    float *restrict block_sum = lane + 3 * lanes, *restrict block_product = lane + 4 * lanes;
    memset(sum, 0, channels * sizeof *sum);
    memset(product, 0, channels * sizeof *product);
    for (long b = first_block(shape, thread); b < first_block(shape, thread + 1); b++) {
        const long begin = b * shape->block, end = smaller(begin + shape->block, shape->values);
        memset(block_sum, 0, lanes * sizeof *block_sum);
        memset(block_product, 0, lanes * sizeof *block_product);
        for (long k = begin; k < end; k += lanes) {
            const long width = smaller(lanes, end - k);
            for (long l = 0; l < width; l++) {
                const float off = load(x[k + l]) - mean[l];
                const float kept = passed(load(grad[k + l]), off, scale[l], bias[l], relu);
                block_sum[l] += kept;
                block_product[l] += kept * off;
            }
        }
        gather(shape, block_sum);
        gather(shape, block_product);
        for (long c = 0; c < channels; c++) {
            sum[c] += block_sum[c];
            product[c] += block_product[c];
        }
    }
}

/* `lane` has 5 strips: mean, scale, bias, and by what the gradient falls: a constant, and a factor of the distance. */
static inline __attribute__((always_inline)) void descend(const Shape *shape, const scalar *restrict grad,
                                                          const scalar *restrict x, scalar *restrict grad_x, int thread,
                                                          const float *restrict lane, const int relu) {
    const long lanes = shape->lanes;
    const float *restrict mean = lane, *restrict scale = lane + lanes, *restrict bias = lane + 2 * lanes;
    const float *restrict constant = lane + 3 * lanes, *restrict factor = lane + 4 * lanes;
    const long begin = first_block(shape, thread) * shape->block;
    const long end = smaller(first_block(shape, thread + 1) * shape->block, shape->values);
    for (long k = begin; k < end; k += lanes) {
        const long width = smaller(lanes, end - k);
        for (long l = 0; l < width; l++) {
            const float off = load(x[k + l]) - mean[l];
            const float kept = passed(load(grad[k + l]), off, scale[l], bias[l], relu);
            grad_x[k + l] = store(scale[l] * kept - (constant[l] + factor[l] * off));
        }
    }
}

/* kept: as batch_norm_forward left it. grads: (4, channels): of the weight, of the bias, and two used inside. */
int batch_norm_backward(const scalar *grad, const scalar *x, scalar *grad_x, long rows, long channels,
                        const float *kept, int relu, int threads, float *grads) {
    Shape shape = shape_of(rows, channels, threads);
    float *lanes = malloc(sizeof *lanes * 5 * shape.lanes * threads);
    double *parts = malloc(sizeof *parts * 2 * channels * threads);
    if (!lanes || !parts) {
        free(lanes);
        free(parts);
        return 1;
    }
    const float *mean = kept, *rstd = kept + channels, *scale = kept + 2 * channels, *bias = kept + 3 * channels;
    float *constant = grads + 2 * channels, *factor = grads + 3 * channels;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
#pragma omp single
        shape.team = omp_get_num_threads();
        float *lane = lanes + 5 * shape.lanes * thread;
        double *part = parts + 2 * channels * thread;
        spread(&shape, mean, lane);
        spread(&shape, scale, lane + shape.lanes);
        spread(&shape, bias, lane + 2 * shape.lanes);
        if (relu)
            sums(&shape, grad, x, thread, lane, part, part + channels, 1);
        else
            sums(&shape, grad, x, thread, lane, part, part + channels, 0);
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < channels; c++) {
            double sum = 0, product = 0;
            for (int t = 0; t < shape.team; t++) {
                sum += parts[2 * channels * t + c];
                product += parts[2 * channels * t + channels + c];
            }
            grads[c] = (float)(product * rstd[c]);
            grads[channels + c] = (float)sum;
            constant[c] = (float)(scale[c] * sum / rows);
            factor[c] = (float)((double)scale[c] * rstd[c] * rstd[c] * product / rows);
        }
        spread(&shape, constant, lane + 3 * shape.lanes);
        spread(&shape, factor, lane + 4 * shape.lanes);
        if (relu)
            descend(&shape, grad, x, grad_x, thread, lane, 1);
        else
            descend(&shape, grad, x, grad_x, thread, lane, 0);
    }
    free(lanes);
    free(parts);
    return 0;
}
