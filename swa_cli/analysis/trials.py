"""Try averages: give each BatchNorm statistics of its own, score it on validation images, and keep a row of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import passes
from swa_cli.analysis.snapshot_series import SnapshotSeries
from swa_cli.analysis.sources import Mean, Source, Sources
from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.averaging.model_state import cloned
from swa_cli.checkpoint import loading
from swa_cli.engine import evaluate
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.metrics.tasks import SampleScores

NAME = "soup"  # of the weight set that comes out


@dataclass(frozen=True)
class Refreshed:
    """A mean in the types of the model; `update` records its BatchNorm pass, None without one."""

    mean: Mean
    state_dict: dict[str, Tensor]
    update: BatchNormUpdate | None


@dataclass
class Trials:
    """The means that were tried: a row and the scores per sample of each, and the BatchNorm passes they took."""

    sources: Sources
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleScores] = field(default_factory=list)
    alone: dict[str, SampleScores] = field(default_factory=dict)  # of each source, by its file
    num_passes: int = 0
    network: nn.Module | None = None  # with the mean that was refreshed last

    @property
    def metrics(self) -> TaskMetrics:
        """The metrics of the task."""
        return self.sources.context.task.metrics

    def refresh(self, mean: Mean, *, skip: bool = False) -> Refreshed:
        """Put a mean into a network and give it BatchNorm statistics of its own, unless they are to stay."""
        context = self.sources.context
        self.network = model = context.build_model()
        loading.load_unchecked(model, mean.state)
        update = None
        if not skip:
            update = context.refresh_batchnorm(model, name=NAME)
            self.num_passes += update.num_layers > 0
        return Refreshed(mean, cloned(model.state_dict()), update)

    def hold(self, refreshed: Refreshed) -> None:
        """Put a mean that was refreshed before into the network again."""
        self.network = self.sources.context.build_model()
        loading.load_unchecked(self.network, refreshed.state_dict)

    def score(self, *, name: str = NAME, loader: passes.Loader | None = None) -> SampleScores:
        """Score some batches, by default every validation image, with the mean that was refreshed last."""
        assert self.network is not None, "a mean is refreshed before it is scored"
        context = self.sources.context
        return passes.score(self.network, loader or context.plain_batches("val"), context=context, name=name)

    def score_alone(self, source: Source) -> SampleScores:
        """Score a source on validation images as it is, once; stale weights get statistics of their own."""
        if source.file not in self.alone:
            self.refresh(self.sources.mean("uniform", [source], [1.0]), skip=source.batchnorm != "stale")
            self.alone[source.file] = self.score(name=source.file)
        return self.alone[source.file]

    def note(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score the mean that was refreshed last, and keep the row with its scores."""
        samples = self.score()
        row |= evaluate.summarize(samples, [metric.key for metric in self.metrics.compared])
        self.rows.append(row)
        self.samples.append(samples)
        return row

    def note_window(self, series: SnapshotSeries, first: int, last: int) -> tuple[Refreshed, dict[str, Any]]:
        """Refresh and score the mean of a window; return it and its row."""
        refreshed = self.refresh(series.mean(first, last))
        start, end = series.bounds(first, last)
        return refreshed, self.note({"start": start, "end": end, "count": refreshed.mean.count})

    def compare_to(self, best: int) -> None:
        """Add the differences to the row of this index, and mark it as chosen."""
        for row, samples in zip(self.rows, self.samples, strict=True):
            row |= evaluate.compare(samples, self.samples[best])
            row["chosen"] = row is self.rows[best]
