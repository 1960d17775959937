"""The loggers `wandb` and `mlflow`: a run at an experiment tracker, which a resumed run goes on with.

Both get the recipe, every number of metrics.csv at its step, the final scores as `split/weights/score`, and the files.
One idea: the tracker may have lost the last rows of a killed run, or have a row that the run will train again. On
`plan` the rows so far that it lacks are filled in, and after that no number is sent twice. The identity of the
tracker's run is kept in loggers.json. In offline and local mode nothing is written outside the run folder, and no
network is used.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swa_cli import __version__
from swa_cli.checkpoint.run_folder import RunFolder, read_json
from swa_cli.engine.events import EndEvent, EpochEvent, PlanEvent, ResultEvent, Row
from swa_cli.engine.loggers import final_choice, final_scores
from swa_cli.errors import EXIT_DONE, EXIT_FAILED, UserError

FINISH_TIMEOUT_S = 300  # for the upload at the end of a run; the files stay, for `wandb sync`
INIT_TIMEOUT_S = 60
EXTENDED = "swa.extended"  # a tag of MLflow's run: the step and the time at which --extend-to began


class WandB:
    """Logs to Weights & Biases.

    Offline, each session of a run writes a log with all rows so far, and removes the earlier logs that were not synced:
    `wandb sync` of what is in the folder gives the whole run once.

    Args:
        project: Project of the run.
        entity: User or team that owns the project.
        mode: online | offline.

    Raises:
        UserError: Online, without a login.
    """

    def __init__(self, *, project: str, entity: str | None, mode: str) -> None:
        self._where: Any = {"project": project, "entity": entity, "mode": mode}
        self._run: Any = None
        if mode == "online":
            import wandb

            if not wandb.login(prompt=False, verify=False):
                raise UserError(
                    "wandb has no login",
                    hint="run `wandb login`, or write output.loggers=[{name: wandb, mode: offline}]",
                )

    def plan(self, event: PlanEvent) -> None:
        """Begin or continue the run, and fill in the rows that it lacks."""
        if event.folder is None:
            return
        if self._where["mode"] == "offline":  # before the first import: reports of errors would use the network
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._folder = RunFolder(event.folder)
        kept = _kept(self._folder, "wandb", lambda: {"id": secrets.token_hex(4)})
        facts = _facts(self._folder)
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S
        )
        with _environment(**self._caches()):
            self._run = wandb.init(
                **self._where,
                id=kept["id"],
                resume="allow" if self._where["mode"] == "online" else None,
                dir=event.folder.absolute(),  # its process keeps the working directory in which the first run began
                name=self._folder.title,
                group=_group(self._folder),
                tags=[facts["device"], facts["precision"], f"swa {__version__}"],
                settings=settings,
            )
        self._run.config.update(dict(event.recipe), allow_val_change=True)
        self._next = self._run.step  # 0 offline
        for row in event.history:
            self._log(row)
        if self._where["mode"] == "offline":
            session = Path(self._run.dir).parent
            for old in session.parent.glob(f"offline-run-*-{kept['id']}"):
                if old != session and not list(old.glob("*.synced")):
                    shutil.rmtree(old)

    def _caches(self) -> dict[str, Path]:
        """Return environment variables that keep W&B out of the user's home."""
        return {f"WANDB_{name}_DIR": self._folder.path / "wandb/cache" for name in ("CACHE", "DATA")}

    def epoch(self, event: EpochEvent) -> None:
        """Add the row of an epoch."""
        self._log(event.row)

    def _log(self, row: Row) -> None:
        if row["step"] >= self._next:
            self._run.log(dict(_numbers(row)), step=row["step"], commit=True)
            self._next = row["step"] + 1

    def result(self, event: ResultEvent) -> None:
        """Add the final scores."""
        self._run.summary.update(final_scores(event) | final_choice(event))
        self._ship = event.ship

    def end(self, event: EndEvent) -> None:
        """Add the files of a finished run, and close the tracker's run with the exit code."""
        import wandb

        if self._run is None:
            return
        if event.exit_code == EXIT_DONE:
            with _environment(**self._caches()):
                artifact = wandb.Artifact(f"run-{self._run.id}", type="run")
                for path in _files(self._folder):  # copied neither to a cache nor to a staging folder
                    artifact.add_file(str(path), skip_cache=True, policy="immutable")
                artifact.add_reference(self._ship.resolve().as_uri(), checksum=False)
                self._run.log_artifact(artifact)
        self._run.finish(exit_code=event.exit_code)

    def left_out(self) -> None:
        """Close the tracker's run as failed: its log has a gap."""
        if self._run is not None:
            self._run.finish(exit_code=EXIT_FAILED)


class MLflow:
    """Logs to MLflow: a server, or a database with the folder `mlartifacts` beside it.

    Args:
        experiment: Experiment of the run.
        tracking_uri: Server or database; None: a database in the run folder.

    Raises:
        UserError: MLflow cannot use the address.
    """

    def __init__(self, *, experiment: str, tracking_uri: str | None) -> None:
        self._experiment, self._uri = experiment, tracking_uri
        self._id: Any = None
        if tracking_uri is not None and ":" not in tracking_uri.replace("file:", "") and tracking_uri != "databricks":
            raise UserError(
                f"MLflow keeps no runs in a folder of files any more: {tracking_uri}",
                hint="write tracking_uri: sqlite:///mlflow.db, or the address of a server",
            )

    def plan(self, event: PlanEvent) -> None:
        """Begin or continue the run, and fill in the numbers that it lacks."""
        if event.folder is None:
            return
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the first import: it would use the network
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._folder = folder = RunFolder(event.folder)
        local = folder.path.absolute() / "mlflow"
        if self._uri is None:
            local.mkdir(exist_ok=True)
        uri = self._uri or f"sqlite:///{local / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        name = "mlflow" if self._uri is None else f"mlflow {self._uri}"
        self._id = _kept(folder, name, lambda: {"id": self._create(uri)})["id"]
        self._client.update_run(self._id, status="RUNNING")
        data = self._client.get_run(self._id).data
        sent = [one for key in data.metrics for one in self._client.get_metric_history(self._id, key)]
        # What was sent of a decay before --extend-to counts no more: its steps are trained again, at other rates.
        epochs, now, extended = str(event.recipe["train"]["epochs"]), time.time_ns() // 10**6, data.tags.get(EXTENDED)
        if {"train.epochs": epochs, **data.params, **data.tags}["train.epochs"] != epochs:
            extended = f"{event.history[-1]['step'] if event.history else 0} {now}"
            self._client.set_tag(self._id, EXTENDED, extended)
        last, since = map(int, extended.split()) if extended else (0, 0)
        self._sent = {(one.key, one.step) for one in sent if one.step <= last or one.timestamp >= since}
        self._describe(event, data.params)
        for row in event.history:
            self._log(_numbers(row), step=row["step"])

    def _create(self, uri: str) -> str:
        """Create a run in the experiment, which is created if need be, and return its identity."""
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(self._experiment)) is None:
            artifacts = None
            if uri.startswith("sqlite:///"):  # MLflow's default is a folder in the working directory
                artifacts = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
            try:
                self._client.create_experiment(self._experiment, artifact_location=artifacts)
            except MlflowException:  # another process was faster
                if self._client.get_experiment_by_name(self._experiment) is None:
                    raise
            found = self._client.get_experiment_by_name(self._experiment)
            assert found is not None
        return str(self._client.create_run(found.experiment_id, run_name=self._folder.title).info.run_id)

    def _describe(self, event: PlanEvent, known: Mapping[str, str]) -> None:
        """Set parameters and tags; a parameter cannot change, so its new value in a resumed run becomes a tag."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH, MAX_TAG_VAL_LENGTH

        recipe = {key: _cut(text, MAX_PARAM_VAL_LENGTH) for key, text in _flat(event.recipe)}
        params = [Param(key, text) for key, text in recipe.items() if key not in known]
        tags = {**_facts(self._folder), "swa": __version__}
        if group := _group(self._folder):
            tags["group"] = group
        tags |= {key: text for key, text in recipe.items() if known.get(key, text) != text}
        for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])
        self._client.log_batch(
            self._id, tags=[RunTag(key, _cut(text, MAX_TAG_VAL_LENGTH)) for key, text in tags.items()]
        )

    def epoch(self, event: EpochEvent) -> None:
        """Add the row of an epoch."""
        self._log(_numbers(event.row), step=event.row["step"])

    def _log(self, numbers: Iterator[tuple[str, float]] | Mapping[str, float], *, step: int) -> None:
        """Send the numbers that were not sent before."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH

        now = time.time_ns() // 10**6
        new = [(key, value) for key, value in dict(numbers).items() if (key, step) not in self._sent]
        metrics = [Metric(key, value, now, step) for key, value in new]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
        self._sent |= {(key, step) for key, _ in new}

    def result(self, event: ResultEvent) -> None:
        """Add the final scores, at the last step."""
        self._log(final_scores(event), step=event.history[-1]["step"] if event.history else 0)
        for key, text in final_choice(event).items():
            self._client.set_tag(self._id, key, text)

    def end(self, event: EndEvent) -> None:
        """Add the files of a finished run, and set the status of the tracker's run."""
        if self._id is None:
            return
        if event.exit_code == EXIT_DONE:
            for path in _files(self._folder):
                self._client.log_artifact(self._id, str(path))
        status = {EXIT_DONE: "FINISHED", EXIT_FAILED: "FAILED"}.get(event.exit_code, "KILLED")
        self._client.set_terminated(self._id, status=status)

    def left_out(self) -> None:
        """Set the tracker's run to FAILED: its log has a gap."""
        if self._id is not None:
            self._client.set_terminated(self._id, status="FAILED")


TRACKERS: Mapping[str, Callable[..., object]] = {"wandb": WandB, "mlflow": MLflow}


def _kept(folder: RunFolder, name: str, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return what loggers.json holds under a name; at first make it, and write it."""
    known = read_json(folder.loggers) if folder.loggers.is_file() else {}
    if name not in known:
        known[name] = make()
        folder.write_json(folder.loggers.name, known)
    return dict(known[name])


def _facts(folder: RunFolder) -> dict[str, str]:
    """Return device and precision of the run."""
    found = read_json(folder.about)
    return {key: str(found[key]) for key in ("device", "precision")}


def _group(folder: RunFolder) -> str | None:
    """Return the name of the repeat or sweep that the run is in, or None."""
    path = folder.path.resolve()
    own = RunFolder(path)
    return path.parent.name if own.is_in_repeat or own.is_in_sweep else None


def _files(folder: RunFolder) -> Sequence[Path]:
    return [folder.recipe, folder.result]


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    """Return every number of a row but its step; what was not measured is left out."""
    return ((key, value) for key, value in row.items() if key != "step" and value is not None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the keys of a recipe, dotted, with their values as text; lists are JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _cut(text: str, length: int) -> str:
    """Return the text, or its beginning with a word that says so."""
    end = " ... (cut: see recipe.yaml)"
    return text if len(text) <= length else text[: length - len(end)] + end


@contextmanager
def _environment(**values: Path) -> Iterator[None]:
    """Set environment variables while a block runs; the user's own are kept."""
    new = {key: str(value) for key, value in values.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            del os.environ[key]
