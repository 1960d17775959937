"""Print the table of docs/processes.md: a step of ResNet-50 on 1 to 1,024 GPUs, simulated.

Nothing is measured here: the step of one GPU is published, and the exchange is the ring all-reduce of `swa plan
--processes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from swa_cli.engine.estimate import Cluster, Scaled

GPUS = (1, 8, 16, 64, 256, 1024)
GPUS_PER_MACHINE = 8
BATCH = 256  # images per GPU and step
# NVIDIA, DeepLearningExamples, ResNet-50 v1.5 in PyTorch: one A100 80 GB, mixed precision, input included.
IMAGES_PER_SECOND = 2470
GRADIENT_BYTES = 4 * 25_557_032  # fp32, also in mixed precision
BACKWARD = 2 / 3  # of the step: about twice the operations of the forward pass
NVLINK_GIGABITS = 2400  # 300 GB/s in each direction
NETWORKS = (10, 25, 100)  # Gbit/s of a machine in each direction


def step_s(*, gpus: int, gigabits: float, overlaps: bool) -> float:
    """Return the seconds of a step; with `overlaps` the exchange runs beside the backward pass, as far as it fits."""
    compute_s = BATCH / IMAGES_PER_SECOND
    link = NVLINK_GIGABITS if gpus <= GPUS_PER_MACHINE else gigabits
    cluster = Cluster(gpus, -(-gpus // GPUS_PER_MACHINE), link)
    scaled = Scaled(cluster, BATCH, compute_s, compute_s, GRADIENT_BYTES)
    return scaled.step_s - (min(scaled.exchange_s, BACKWARD * compute_s) if overlaps else 0.0)


def rows() -> Iterator[str]:
    """Yield the lines of the table: from an exchange that is hidden as far as possible to one that is not at all."""
    yield "| GPUs | " + " | ".join(f"{gigabits} Gbit/s" for gigabits in NETWORKS) + " |"
    yield "|" + "---|" * (1 + len(NETWORKS))
    alone = step_s(gpus=1, gigabits=NETWORKS[0], overlaps=False)
    for gpus in GPUS:
        cells = []
        for gigabits in NETWORKS:
            times = [step_s(gpus=gpus, gigabits=gigabits, overlaps=overlaps) for overlaps in (True, False)]
            cells.append(f"{_range(1e3 * time for time in times)} ms, {_range(100 * alone / time for time in times)} %")
        yield f"| {gpus:,} | " + " | ".join(cells) + " |"


def _range(values: Iterable[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.0f}" for value in values))


if __name__ == "__main__":
    print("\n".join(rows()))
