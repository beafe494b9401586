"""Rules of a recipe that span several keys of [distill], or several tables: who teaches whom, and until when.

All are checked with the recipe, so that a mistake is said before anything is computed. Raises ValueError with one line,
which begins with the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.losses import NEEDS_LABELS, NEEDS_TEACHER
from pipeline.recipe_training import Distill, LossTerm, Part

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

FROM_TEACHER = "teacher"  # as a student's weights
OF_THE_STUDENT = ("control", "repeats")  # keys of [distill] that a generation has no use for


def check_distill(distill: Distill) -> None:
    """What holds within one [distill] table."""
    terms = [(f"losses.{index}", term) for index, term in enumerate(distill.losses) if term.weight > 0]
    _check_mode(distill, [term for _, term in terms])
    if distill.table and distill.teacher_outputs == "live":
        raise ValueError("table is not read with teacher_outputs = 'live'; leave one of them out")
    for place, term in terms:
        if term.until_epoch > distill.epochs:
            raise ValueError(
                f"{place}: until_epoch = {term.until_epoch:g} is beyond epochs = {distill.epochs}; "
                "leave it out for a term that never ends"
            )
        if term.until_epoch and term.warmup_epochs > term.until_epoch:
            raise ValueError(
                f"{place}: warmup_epochs = {term.warmup_epochs:g} is beyond until_epoch = {term.until_epoch:g}; "
                "the term would end before it has its whole weight"
            )
        if term.loss in NEEDS_LABELS and mixes(distill):
            raise ValueError(
                f"{place}: loss {term.loss!r} needs one true class an image; leave augment.mixup and augment.cutmix "
                "out, or take a loss that does without, such as kd"
            )
    if not any(_lasts(term, distill) for _, term in terms):
        raise ValueError(
            f"losses: every term ends before the last of epochs = {distill.epochs}; "
            "let one go on that needs no teacher, such as { loss = 'cross_entropy', weight = 1.0 }"
        )


def _check_mode(distill: Distill, terms: list[LossTerm]) -> None:
    mode = distill.mode
    if mode == "online" and not distill.peers:
        raise ValueError("mode = 'online' needs the other students: peers = [{ model = 'cifar-resnet20' }]")
    if mode == "self" and not distill.exits:
        raise ValueError("mode = 'self' needs module paths, after each of which an exit is put: exits = ['layer1']")
    for key, values, of in (("peers", distill.peers, "online"), ("exits", distill.exits, "self")):
        if values and mode != of:
            raise ValueError(f"{key} are for mode = '{of}', and mode is '{mode}'; change mode or leave {key} out")
    for index, path in enumerate(distill.exits):
        if path in distill.exits[:index]:
            raise ValueError(f"exits: {path!r} is given twice; leave one out")
    for index, peer in enumerate(distill.peers):
        if peer.weights == FROM_TEACHER:
            raise ValueError(f"peers.{index}: weights = 'teacher' is for the student; name a file or leave them out")
    if mode == "offline":
        return
    if not any(term.loss in NEEDS_TEACHER for term in terms):
        raise ValueError(f"losses: mode = '{mode}' without a term that teaches; add one such as kd")
    if not any(term.loss not in NEEDS_TEACHER for term in terms):
        raise ValueError(f"losses: mode = '{mode}' needs a term on the labels, such as cross_entropy")
    if distill.teacher_outputs == "table" or distill.table:
        key = "table" if distill.table else "teacher_outputs"
        raise ValueError(f"{key}: with mode = '{mode}' no teacher is asked, so there is no table; leave {key} out")


def mixes(distill: Distill) -> bool:
    """Whether images are mixed, and with them their labels."""
    augment = distill.augment
    return augment.mix_probability > 0 and (augment.mixup > 0 or augment.cutmix > 0)


def _lasts(term: LossTerm, distill: Distill) -> bool:
    """Whether the term still counts in the last epoch, whatever happens."""
    if term.loss in NEEDS_TEACHER and distill.end_on_plateau:
        return False
    return not term.until_epoch or term.until_epoch >= distill.epochs


def check_lessons(recipe: Recipe) -> None:
    """What holds between the networks of a recipe."""
    from pipeline.models import check_name, parse_name

    for place, model, _ in networks(recipe):
        check_name(model, where=f"{place}.model")
    for index, other in enumerate(recipe.teacher.others):
        if len(other.mean) != len(other.std) or any(value <= 0 for value in other.std):
            raise ValueError(f"teacher.others.{index}: mean and std go together, one value a channel, std above 0")
    before, taught_by = "teacher", recipe.teacher.model
    for place, own, distill in chain(recipe):
        where = "distill" if place == "student" else f"{place}.distill"
        if distill.mode != "offline" and before != "teacher":
            raise ValueError(
                f"{where}.mode = '{distill.mode}' asks nobody outside, so {before} would teach nobody; "
                f"set {where}.mode = 'offline' or leave {before} out"
            )
        if distill.mode != "offline" and recipe.teacher.others:
            raise ValueError(
                f"{where}.mode = '{distill.mode}' asks nobody outside, so teacher.others would teach nobody; "
                "leave them out"
            )
        for index, term in enumerate(distill.losses):
            if recipe.data.unlabelled and term.loss in NEEDS_LABELS and term.weight > 0:
                raise ValueError(
                    f"{where}.losses.{index}: loss {term.loss!r} needs the true class of every image; leave "
                    "data.unlabelled out, or take a loss that does without, such as kd"
                )
        if own.weights == FROM_TEACHER and parse_name(taught_by) not in (
            parse_name(own.model),
            parse_name(own.model).unpruned,
        ):
            raise ValueError(
                f"{place}.weights = 'teacher': {before} is {taught_by!r}, whose weights do not fit {own.model!r}; "
                f"take model = {taught_by!r}, or 'pruned:' before it, or leave weights out"
            )
        before, taught_by = place, own.model


def chain(recipe: Recipe) -> Iterator[tuple[str, Any, Distill]]:
    """(key, its model and weights, its [distill]) of all that are taught, in order: generations, then the student."""
    for index, generation in enumerate(recipe.generation):
        place = f"generation.{index}"
        yield place, generation, merged(recipe.distill, generation.distill, where=place)
    yield "student", recipe.student, recipe.distill


def networks(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(key, model, weights) of every network that the recipe names."""
    yield "teacher", recipe.teacher.model, recipe.teacher.weights
    for index, other in enumerate(recipe.teacher.others):
        yield f"teacher.others.{index}", other.model, other.weights
    yield "student", recipe.student.model, recipe.student.weights
    for index, peer in enumerate(recipe.distill.peers):
        yield f"distill.peers.{index}", peer.model, peer.weights
    for index, (place, generation, distill) in enumerate(chain(recipe)):
        if index == len(recipe.generation):
            return
        yield place, generation.model, generation.weights
        for number, peer in enumerate(distill.peers):
            yield f"{place}.distill.peers.{number}", peer.model, peer.weights


class _Table(Part):
    distill: Distill


def merged(distill: Distill, changes: Mapping[str, Any], *, where: str) -> Distill:
    """`[distill]` with a generation's own values, table by table; a list replaces a list.

    Raises `RecipeError` with one line, which begins with `where`, for one that is not valid.
    """
    from pipeline.recipe_errors import lines_of
    from pipeline.recipe_file import merge

    for key in OF_THE_STUDENT:
        if key in changes:
            raise RecipeError(f"{where}.distill: {key!r} is for the student alone; leave it out here")
    try:
        return _Table.model_validate({"distill": merge(distill.model_dump(exclude_unset=True), changes)}).distill
    except ValidationError as error:
        raise RecipeError(f"{where}.{lines_of(error, '')[0]}") from error
