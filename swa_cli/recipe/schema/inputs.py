"""Sections `model` and `dataset`: the network and its data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from swa_cli.recipe.values import STRICT, Argument, Flag, Flip, Portion, Rate, Text, Whole


class Model(BaseModel):
    """The network to train."""

    model_config = STRICT
    name: Text = Field(description="zoo name, torchvision:NAME, timm:NAME, or package.module:Attribute")
    args: dict[str, Argument] = Field(
        default={}, description="constructor arguments; num_classes and in_channels are filled in"
    )


class Jitter(BaseModel):
    """Random changes of color in a random order; each value is the largest change, 0 for none."""

    model_config = STRICT
    brightness: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    contrast: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    saturation: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    hue: Rate = Field(default=0.0, le=0.5, description="rotation of the color circle from -x to x, in turns")


class Augment(BaseModel):
    """Random changes of the training images; each depends on the seed alone, whatever else is on."""

    model_config = STRICT
    crop: Whole = Field(default=0, ge=0, description="zero padding in pixels, then a random window of the old size")
    translate: Whole = Field(default=0, ge=0, description="the same with reflected pixels around the image")
    flip: Flip = Field(
        default=False,
        description="mirror left-right: true, every second image on average; alternating, each in every other epoch",
    )
    cutout: Whole = Field(default=0, ge=0, description="side in pixels of a square that is blanked out")
    jitter: Jitter = Jitter()
    mixup: Rate = Field(
        default=0.0,
        le=1000,
        description="classification: alpha of the share of an image blended with another; 0 for none",
    )
    cutmix: Rate = Field(
        default=0.0, le=1000, description="classification: alpha of the share of an image beside a box of another"
    )


class Dataset(BaseModel):
    """Where the samples come from."""

    model_config = STRICT
    name: Text = Field(description="a named dataset, image_folder, or package.module:factory")
    root: Text = Field(default="data", description="folder that holds, or will hold, the files")
    val: Portion = Field(
        default="10%", description="validation samples taken from train by the seed: 10%, 5000, or 0 for none"
    )
    stratify: Flag = Field(
        default=True, description="the validation samples keep the proportions of the classes, where these are known"
    )
    augment: Augment = Augment()
    cache: Literal["auto", "ram", "none"] = Field(
        default="auto", description="images in memory (ram), streamed from disk (none), or by size (auto)"
    )
    workers: Whole = Field(default=2, ge=0, description="loader processes of a dataset that is streamed")
    download: Flag = Field(default=True, description="fetch missing files where the dataset can be fetched")
    args: dict[str, Argument] = Field(default={}, description="arguments of the dataset, such as size: 32")
