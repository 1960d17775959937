/* What images are made of: float, or bf16 with -DBF16; and what all count with. */
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef BF16
typedef uint16_t scalar;

static inline float load(scalar value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline scalar store(float wide) { /* to the nearest, ties to even; a computed NaN, whose low bits are 0, stays */
    uint32_t bits;
    memcpy(&bits, &wide, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#else
typedef float scalar;

static inline float load(scalar value) { return value; }

static inline scalar store(float wide) { return wide; }
#endif

static inline long smaller(long one, long other) { return one < other ? one : other; }
