"""The share of each new weight set in an exponential moving average, as a function of how many came before.

One idea: the average is `avg += (w - avg) * share(n)` from the first weight set on, whatever the variant; so the
count says it all, and there is nothing else to save. Legend: n weight sets before this one, d decays.
"""

from __future__ import annotations

import math


def share(n: int, *, decay: float, warmup: bool, bias_correction: bool) -> float:
    """The weight of the new one: 1 for the first, which replaces whatever there was.

    The decay of update n is d_n = decay, with `warmup` min(decay, (1 + n) / (10 + n)).
    Plain: 1 - d_n, so the first weight set keeps the weight d_1 d_2 ... d_n, as if it had always been there.
    With `bias_correction`: (1 - d_n) / (1 - d_0 d_1 ... d_n), which makes the average the sum of the weight sets
    taken, each with (1 - d_i) d_i+1 ... d_n, over the sum of those weights (Adam: Kingma & Ba 2015, section 3).

    Args:
        n: How many were taken before.
        decay: In [0, 1).
        warmup: Let short averages forget faster.
        bias_correction: Do not let the first weight set stand for the past that never was.
    """
    if n == 0:
        return 1.0
    new = 1 - (min(decay, (1 + n) / (10 + n)) if warmup else decay)
    return new / (1 - _product(n + 1, decay=decay, warmup=warmup)) if bias_correction else new


def _product(count: int, *, decay: float, warmup: bool) -> float:
    """The first `count` decays multiplied; of them the warm ones, (1 + i) / (10 + i) below `decay`, come first.

    Their product over i = 0 ... k - 1 is 9! / ((k + 1) ... (k + 9)).
    """
    num_warm = min(count, max(0, math.ceil((10 * decay - 1) / (1 - decay)))) if warmup else 0
    return math.factorial(9) / math.prod(range(num_warm + 1, num_warm + 10)) * decay ** (count - num_warm)
