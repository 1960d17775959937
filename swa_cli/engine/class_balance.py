"""Classes of different sizes: class weights of the loss, and what the plan says of the class prior.

The labels of all training samples have to be known before the run, so that weights and draws are a function of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swa_cli.data.sources import TELLING_RATIO, Source
from swa_cli.data.splits import class_counts
from swa_cli.errors import Problem
from swa_cli.metrics.losses import balanced_positive_weights, balanced_weights
from swa_cli.recipe.schema import Recipe
from swa_cli.units import some_of


def class_weights(recipe: Recipe, source: Source) -> Tensor | None:
    """Return the class weights (K,) of the training loss, float32; None without any.

    The recipe has no `problems` with this source.
    """
    given = recipe.train.class_weights
    if given == "none":
        return None
    return torch.tensor(given, dtype=torch.float32) if isinstance(given, list) else _balanced(source).float()


def problems(recipe: Recipe, source: Source) -> list[Problem]:
    """Return what is wrong with class weights and sampler for this source."""
    found, given, number = [], recipe.train.class_weights, source.num_classes
    if isinstance(given, list):
        if len(given) != number:
            message = f"{len(given)} weights for {number} classes ({some_of(source.class_names)})"
            found.append(Problem("train.class_weights", message, f"write {number} weights in the order of the classes"))
    elif given == "balanced":
        found += _problems_of_balance(source)
    if recipe.dataset.sampler == "balanced":
        if source.target != "class":
            message = f"the labels of {source.name} are {source.target}, and a class is drawn by the label of a sample"
            beside = ", and class_weights: balanced below train" if source.target == "multilabel" else ""
            found.append(Problem("dataset.sampler", message, f"write sampler: uniform{beside}"))
        elif not _has_known_labels(source):
            hint = "write sampler: uniform, or give the dataset an attribute `targets`"
            found.append(Problem("dataset.sampler", _unknown_labels(source), hint))
    return found


def _problems_of_balance(source: Source) -> list[Problem]:
    key = "train.class_weights"
    if source.target not in ("class", "multilabel", "mask") or not source.num_classes:
        what = f"the labels of {source.name} are {source.target}" if source.num_classes else "its classes are unknown"
        return [Problem(key, f"there are no classes to count: {what}", "leave it out")]
    if not _has_known_labels(source):
        if source.target == "mask":
            hint = "write one weight per class, such as [1, 2.5], or dataset.cache=ram without augmentations by image"
        else:
            hint = "write one weight per class, such as [1, 2.5], or give the dataset an attribute `targets`"
        return [Problem(key, _unknown_labels(source), hint)]
    weights, is_several = _balanced(source), source.target == "multilabel"
    formula = "the samples without a label / those with it" if is_several else "n / (K n_k)"
    for label, what in (
        (~weights.isfinite(), "there are no training samples of"),
        (weights == 0, "all training samples are"),
    ):
        if wrong := label.nonzero()[:, 0].tolist():
            names = some_of([source.class_names[number] for number in wrong])
            message = f"balanced is {formula}, and {what} {names}"
            return [Problem(key, message, "write one weight per class, or take those classes out of the dataset")]
    return []


def _has_known_labels(source: Source) -> bool:
    return source.train is not None and isinstance(source.train.labels, Tensor)


def _unknown_labels(source: Source) -> str:
    return f"the training labels of {source.name} are unknown until its samples are read"


def _balanced(source: Source) -> Tensor:
    assert source.train is not None
    if source.target == "multilabel":
        return balanced_positive_weights(source.train.labels)
    return balanced_weights(source.train.labels, num_classes=source.num_classes)


def describe_loss(recipe: Recipe, source: Source) -> str:
    """Describe a training loss that is not the task's plain one; empty for that.

    `focal (gamma 2), class weights balanced: 0.51 (cat) to 25 (dog), label smoothing 0.1`.
    """
    train, weights = recipe.train, class_weights(recipe, source)
    parts = [] if train.loss_text is None else [train.loss_text]
    if weights is not None:
        least, most = int(weights.argmin()), int(weights.argmax())
        low, high = (f"{float(weights[label]):.3g} ({source.class_names[label]})" for label in (least, most))
        kind = "balanced: " if train.class_weights == "balanced" else ""
        parts.append(f"class weights {kind}{low} to {high}")
    if parts and train.label_smoothing:
        parts.append(f"label smoothing {train.label_smoothing:g}")
    return ", ".join(parts)


def describe_sampler(recipe: Recipe, source: Source) -> str:
    """Say that classes are drawn equally often, or hint at it where their sizes differ much."""
    if recipe.dataset.sampler == "balanced":
        return "balanced sampler: each class is drawn equally often, also for BatchNorm statistics"
    split = source.train
    if split is None or split.target not in ("class", "multilabel") or not _has_known_labels(source):
        return ""
    counts = class_counts(split, num_classes=source.num_classes)
    is_uneven = int(counts.max()) >= TELLING_RATIO * int(counts[counts > 0].min())
    if not is_uneven or recipe.train.class_weights != "none" or recipe.task not in ("classification", "multilabel"):
        return ""
    if recipe.task == "multilabel":
        return "a class and its absence count alike with train.class_weights=balanced"
    return (
        "classes of such different sizes count alike with train.class_weights=balanced, and are drawn equally often"
        " with dataset.sampler=balanced"
    )
