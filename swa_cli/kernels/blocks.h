/* How a batch of images is gone through: by blocks, of some images or of some rows of one. */
#include "scalar.h"

enum { BLOCK_BYTES = 1 << 19 }; /* half of a cache of the second level */

typedef struct {
    long batch, height;
    long groups, strips; /* of images; of rows of an image */
} Blocks;

typedef struct {
    long first, images; /* of the batch */
    long top, rows;     /* of each of them */
} Block;

static inline long larger(long one, long other) { return one > other ? one : other; }

static inline long parts_of(long total, long part) { return (total + part - 1) / part; }

/* Blocks of BLOCK_BYTES or less, and one at least for every thread, if there are as many rows; `row` in bytes. */
static Blocks blocks_of(long batch, long height, long row, int threads) {
    Blocks blocks = {.batch = batch, .height = height, .groups = batch};
    blocks.strips = smaller(height, larger(parts_of(height * row, BLOCK_BYTES), parts_of(threads, batch)));
    if (blocks.strips == 1) { /* as many for each thread */
        const long groups = parts_of(batch, larger(1, BLOCK_BYTES / (height * row)));
        blocks.groups = smaller(batch, parts_of(groups, threads) * threads);
    }
    return blocks;
}

static inline long most_images(const Blocks *blocks) { return parts_of(blocks->batch, blocks->groups); }

static inline long most_rows(const Blocks *blocks) { return parts_of(blocks->height, blocks->strips); }

/* Where the blocks of a thread begin; those of the next one end them. */
static inline long first_of_thread(const Blocks *blocks, int thread, int team) {
    return blocks->groups * blocks->strips * thread / team;
}

static inline Block block_at(const Blocks *blocks, long index) {
    const long group = index / blocks->strips, strip = index % blocks->strips;
    Block block = {.first = blocks->batch * group / blocks->groups, .top = blocks->height * strip / blocks->strips};
    block.images = blocks->batch * (group + 1) / blocks->groups - block.first;
    block.rows = blocks->height * (strip + 1) / blocks->strips - block.top;
    return block;
}
