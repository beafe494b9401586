"""Data: open the source once, split it, measure its channels, prove that calibration and gate sets share no image."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.atomic import write_bytes, write_json
from pipeline.data import open_source, stamp
from pipeline.data.source import Images, Source
from pipeline.errors import UserError
from pipeline.recipe import Data, Recipe
from pipeline.stage import Context, Stage

if TYPE_CHECKING:
    from pipeline.data.split import Splits
    from pipeline.data.unlabelled import Unlabelled

NAME = "data"


def stage(recipe: Recipe) -> Stage:
    data = recipe.data.model_dump(mode="json", exclude={"workers", "memory_limit_mb", "download"})
    if not recipe.data.unlabelled:  # left out, so that stages finished before there was such a key stay fresh
        del data["unlabelled"]
    config = {
        "data": data,
        "seed": recipe.seed,
        "quantize.samples": recipe.quantize.samples if recipe.quantize else 0,
    }
    return Stage(
        name=NAME,
        version=1,
        config=config,
        stamp=lambda: outside(recipe.data),
        run=functools.partial(run, recipe),
    )


def outside(data: Data) -> Any:
    """The stamps of all that is read from outside."""
    if not data.unlabelled:
        return stamp(data)
    from pipeline.data.unlabelled import unlabelled_stamp

    return {"data": stamp(data), "unlabelled": unlabelled_stamp(data)}


def run(recipe: Recipe, context: Context) -> None:
    """Write data.json (facts) and splits.npz (int64 index arrays: train, validation, test, calibration, unlabelled).

    The last one, of the unlabelled images that are in no held-out split, only where the recipe names a folder of them.
    """
    from pipeline.data.split import (
        calibration_indices,
        channel_stats,
        duplicates,
        image_hashes,
        make_splits,
        origin_hashes,
    )

    source = opened(recipe.data)
    splits = make_splits(source, validation=recipe.data.validation, seed=recipe.seed)
    gate_hashes = origin_hashes(source.test, splits.test)
    calibration = np.zeros(0, dtype=np.int64)
    if recipe.quantize:
        calibration = calibration_indices(
            splits,
            source.train.labels,
            recipe.quantize.samples,
            seed=recipe.seed,
            images=source.train,
            exclude=gate_hashes,
        )
    calibration_hashes = image_hashes(source.train, calibration)
    trained_on = origin_hashes(source.train, splits.train)
    if source.target_shape:  # patches of one image are one image
        trained_on = list(dict.fromkeys(trained_on))
    mean, std = (source.mean, source.std) if source.mean and source.std else channel_stats(source.train, splits.train)
    height, width, channels = source.train.shape
    facts = {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "class_names": list(source.class_names),
        "sizes": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "image_shape": [height, width, channels],
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "duplicates": {"train_in_test": duplicates(trained_on, gate_hashes)},
        "calibration": {
            "n": len(calibration),
            "sha256": hashlib.sha256(b"".join(calibration_hashes)).hexdigest(),
            "disjoint": not set(origin_hashes(source.train, calibration)) & set(gate_hashes),
        },
    }
    if source.slices:
        facts["slices"] = {key: list(column.names) for key, column in source.slices.items()}
    if source.target_shape:
        facts["target_shape"] = list(source.target_shape)
    arrays = {
        "train": splits.train,
        "validation": splits.validation,
        "test": splits.test,
        "calibration": calibration,
    }
    said = ""
    if recipe.data.unlabelled:
        from pipeline.data.unlabelled import unseen

        extra = opened_unlabelled(recipe.data, source.train.shape)
        held_out = gate_hashes + image_hashes(source.train, splits.validation)
        arrays["unlabelled"] = unseen(extra.images, held_out)
        count = len(arrays["unlabelled"])
        left_out = len(extra.images) - count
        facts["unlabelled"] = {"n": count, "left_out": left_out, "fingerprint": extra.fingerprint}
        said = f"; {count:,} unlabelled"
        said += f" ({left_out:,} left out: they stand in the test or validation split)" if left_out else ""
    if recipe.data.near_duplicates:
        said += near_duplicates(source, splits, calibration, facts)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(context.folder / "splits.npz", buffer.getvalue())
    write_json(context.folder / "data.json", facts)
    sizes = facts["sizes"]
    shared = facts["duplicates"]["train_in_test"]
    answer = f"{len(source.class_names)} classes, "
    if source.target_shape:
        answer = f"pictures of {'x'.join(map(str, source.target_shape))} for patches of "
    context.say(
        f"data: {source.name}, {answer}{height}x{width}x{channels}; "
        f"{sizes['train']:,} train, {sizes['validation']:,} validation, {sizes['test']:,} test"
        + (f"; {shared} training images stand in the test split too" if shared else "")
        + said
    )


def near_duplicates(source: Source, splits: Splits, calibration: np.ndarray, facts: dict[str, Any]) -> str:
    """Put the counts into `facts`; what is said of them. Dense tasks have patches and images of many sizes."""
    from pipeline.data.near import near_facts

    if source.target_shape:
        raise UserError("data.near_duplicates: only for classification; leave it out")
    sets = {"train": splits.train, "calibration": calibration}
    if source.validation is None:
        sets["validation"] = splits.validation
    facts["near_duplicates"] = found = near_facts(source.train, source.test, **sets)
    counts = [f"{found[f'{name}_in_test']['n']:,} of {len(places):,} {name} images" for name, places in sets.items()]
    return f"; {', '.join(counts)} are near one of the test split"


def opened(data: Data) -> Source:
    """The source of this process, opened once for all stages, and again when its files have changed."""
    return _opened(data.model_dump_json(), json.dumps(stamp(data)))


@functools.lru_cache(maxsize=2)
def _opened(data: str, _: str) -> Source:
    return open_source(Data.model_validate_json(data))


def opened_unlabelled(data: Data, shape: tuple[int, int, int]) -> Unlabelled:
    """As `opened`, of the folder without labels."""
    from pipeline.data.unlabelled import unlabelled_stamp

    return _opened_unlabelled(data.model_dump_json(), shape, json.dumps(unlabelled_stamp(data)))


@functools.lru_cache(maxsize=1)
def _opened_unlabelled(data: str, shape: tuple[int, int, int], _: str) -> Unlabelled:
    from pipeline.data.unlabelled import open_unlabelled

    return open_unlabelled(Data.model_validate_json(data), shape)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data stage's result, with the source open: index arrays are int64, mean and std a channel on 0 to 1.

    `train` and `calibration` index `source.train`; `validation` indexes `validation_images`; `test` `source.test`;
    `distillation_train` indexes `distillation_images`, in which the places of `source.train` are the same.
    """

    source: Source
    facts: dict[str, Any]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    calibration: np.ndarray
    open_extra: Callable[[], Unlabelled] | None = None
    extra: np.ndarray | None = None

    @functools.cached_property
    def unlabelled(self) -> Images | None:
        """The recipe's unlabelled images, opened at the first use: few stages ask for them. None without a folder.

        Raises UserError when the folder's content changed since the data stage ran.
        """
        if self.open_extra is None:
            return None
        folder = self.open_extra()
        if folder.fingerprint != self.facts["unlabelled"]["fingerprint"]:
            raise UserError("data.unlabelled: its images changed while this run was going on; run it again")
        return folder.images

    @property
    def validation_images(self) -> Images:
        """The source's own, where it brings some; else the training images, of which `validation` are left out."""
        return self.source.train if self.source.validation is None else self.source.validation

    @functools.cached_property
    def distillation_images(self) -> Images:
        """The training images, followed by the unlabelled ones where there are some."""
        extra = self.unlabelled
        if extra is None:
            return self.source.train
        from pipeline.data.unlabelled import with_unlabelled

        return with_unlabelled(self.source.train, extra)

    @property
    def distillation_train(self) -> np.ndarray:
        """Sorted int64 places in `distillation_images`: `train`, then the unlabelled ones in no held-out split."""
        if self.extra is None:
            return self.train
        return np.concatenate([self.train, len(self.source.train) + self.extra])

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.facts["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.facts["std"])

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.facts["class_names"])

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Of a network's answer to one input: (classes,), or (C', s*H, s*W) where targets are pictures."""
        if "target_shape" not in self.facts:
            return (len(self.class_names),)
        height, width, channels = self.facts["target_shape"]
        return channels, height, width

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        height, width, channels = self.facts["image_shape"]
        return channels, height, width


def prepared(recipe: Recipe, folder: Path) -> Prepared:
    """Read the finished data stage; a source whose content changed since then is refused."""
    facts = json.loads((folder / "data.json").read_text())
    source = opened(recipe.data)
    if source.fingerprint != facts["fingerprint"]:
        raise UserError(f"data: {source.name} changed while this run was going on; run it again")
    with np.load(folder / "splits.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    extra, open_extra = arrays.pop("unlabelled", None), None
    if extra is not None:
        open_extra = functools.partial(opened_unlabelled, recipe.data, source.train.shape)
    return Prepared(source=source, facts=facts, open_extra=open_extra, extra=extra, **arrays)
