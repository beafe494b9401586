"""The points of a sweep: `--grid` and the recipe's `[sweep]` table as validated recipes. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, nearest
from pipeline.recipe import Recipe
from pipeline.recipe_file import check_files, find, load_recipe, override, read_toml, shrink, validate
from pipeline.sweeps.grid import Grid, given_grid, labels, leaves, read_value, recipe_grid, short_keys

MOST_POINTS = 10_000
REPEATS = "distill.repeats"
BASE = "base"
_SLUG = 80
_OWN = ("name", "smoke", "sweep")  # one store and one table for all points


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    name: as tables show it: its named run and what the grid says, `kd teacher.model=cifar-resnet20`.
    slug: the same as the name of a folder, unique in the sweep.
    run: its named run, or empty.
    changes: `key=value` texts, as `edgestill run --set` takes them.
    """

    name: str
    slug: str
    run: str
    changes: tuple[str, ...]
    recipe: Recipe

    @property
    def values(self) -> dict[str, Any]:
        """Key -> value of everything in which the points differ."""
        return {key: read_value(text) for key, _, text in (change.partition("=") for change in self.changes)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All points of a sweep; `name` is the recipe's, `fixed` are the `--set` texts that hold for every point."""

    name: str
    points: tuple[Point, ...]
    grid: Grid
    fixed: tuple[str, ...]


def plan(
    recipe: str | Path | Recipe,
    *,
    grid: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    overrides: Sequence[str] = (),
    smoke: bool = False,
    repeats: int | None = None,
    only: Sequence[str] = (),
) -> Plan:
    """Every point as a validated recipe, in the order of the table: named runs outside, the last grid key innermost.

    `grid` (texts `key=a,b,c`, or a mapping from key to values) takes the place of the recipe's own grid and named
    runs. `only` keeps points by name, slug or named run. Raises `RecipeError`, one line a fault, before anything is
    computed: unknown keys, empty lists, keys given twice, values that do not validate, more than 10,000 points.
    """
    values, where, places = base_values(recipe, overrides, smoke=smoke)
    base = validate(values, where, places)
    named = not grid and base.sweep.runs
    runs = {run.name: dict(leaves(run.set)) for run in named} if named else {"": {}}
    if named and len(runs) < len(named):
        twice = next(run.name for i, run in enumerate(named) if run.name in {r.name for r in named[:i]})
        raise RecipeError(f"{where}: sweep.runs: two runs are named {twice!r}; give each a name of its own")
    axes = given_grid(grid) if grid else recipe_grid(base.sweep.grid, where)
    fixed = list(overrides) + repeats_of(base, axes, places, repeats)
    _check_keys(axes, runs, places)
    if not grid and not named and not axes and base.distill.repeats == 1 and len(fixed) == len(overrides):
        raise RecipeError(f"{where}: nothing to vary; give --grid key=a,b,c or --repeats N, or write a [sweep] table")
    count = math.prod(len(texts) for texts in axes.values()) * len(runs)
    if count > MOST_POINTS:
        raise RecipeError(f"--grid: {count:,} points; at most {MOST_POINTS:,} are run, so leave out a key or values")
    for text in fixed[len(overrides) :]:
        override(values, text)
    short = short_keys(list(axes))
    choices = [
        [(f"{short[key]}={label}", f"{key}={text}") for text, label in zip(texts, labels(texts), strict=True)]
        for key, texts in axes.items()
    ]
    points = _unique([_point(values, run, runs[run], picks) for run in runs for picks in itertools.product(*choices)])
    chosen = _chosen(points, only)
    for point in chosen:
        check_files(point.recipe)
    return Plan(name=base.name, points=chosen, grid=axes, fixed=tuple(fixed))


def base_values(
    recipe: str | Path | Recipe, overrides: Sequence[str], *, smoke: bool
) -> tuple[dict[str, Any], str, list[tuple[str, ...]]]:
    """Plain values of the recipe, how errors call it, and the places that `overrides` changed."""
    if isinstance(recipe, Recipe):
        values, where = recipe.model_dump(mode="json"), recipe.name
        values["quantize"] = values["quantize"] or False
    else:
        load_recipe(recipe, overrides, smoke=smoke)  # says what is wrong with it as every command does
        path, where = find(recipe)
        values = read_toml(path, where)
        values = shrink(values) if smoke else values
    return values, where, [override(values, text) for text in overrides]


def repeats_of(base: Recipe, grid: Grid, places: Sequence[tuple[str, ...]], repeats: int | None) -> list[str]:
    """The number of seeds as a `--set` text, or nothing where [distill] says it. Raises `RecipeError`."""
    set_by_hand = tuple(REPEATS.split(".")) in places
    if repeats is not None:
        if repeats < 1:
            raise RecipeError(f"--repeats {repeats}: it must be at least 1")
        if REPEATS in grid or set_by_hand:
            raise RecipeError(
                f"--repeats and {'--grid' if REPEATS in grid else '--set'} {REPEATS} say the same; keep one"
            )
        return [f"{REPEATS}={repeats}"]
    return [] if set_by_hand or REPEATS in grid or not base.sweep.repeats else [f"{REPEATS}={base.sweep.repeats}"]


def _check_keys(grid: Grid, runs: Mapping[str, Mapping[str, str]], places: Sequence[tuple[str, ...]]) -> None:
    fixed = {".".join(place) for place in places}
    varied = [("--grid", key) for key in grid]
    varied += [(f"sweep.runs: {name}:", key) for name, changes in runs.items() for key in changes]
    for who, key in varied:
        if key.partition(".")[0] in _OWN:
            raise RecipeError(f"{who} {key}: cannot be varied; all runs of a sweep share one name and one store")
        if key in fixed:
            raise RecipeError(f"{who} {key}: given by --set too; keep one")
        if who != "--grid" and key in grid:
            raise RecipeError(f"{who} {key}: in the grid too; keep one")


def _point(values: Mapping[str, Any], run: str, changes: Mapping[str, str], picks: Sequence[tuple[str, str]]) -> Point:
    """The recipe of a named run (or `""`) with one value of each key; `picks` are (short name, `key=value`)."""
    name = " ".join([run] * bool(run) + [short for short, _ in picks]) or BASE
    texts = (*(f"{key}={text}" for key, text in changes.items()), *(text for _, text in picks))
    own = dict(values)
    try:
        for text in texts:
            override(own, text)
    except RecipeError as error:
        raise RecipeError(str(error).replace("--set", f"sweep point {name!r}:", 1)) from None
    slug = re.sub(r"[^A-Za-z0-9._=+-]+", "-", name.replace(" ", "__")).strip("-._") or BASE
    return Point(name=name, slug=slug, run=run, changes=texts, recipe=validate(own, f"sweep point {name!r}"))


def _unique(points: list[Point]) -> list[Point]:
    """Points whose folders would share a name, or bear a long one, get a few digits of their settings' hash."""
    seen: dict[str, int] = {}
    for point in points:
        seen[point.slug.lower()] = seen.get(point.slug.lower(), 0) + 1
    return [
        replace(point, slug=f"{point.slug[:_SLUG]}-{_hash(point.changes)}")
        if seen[point.slug.lower()] > 1 or len(point.slug) > _SLUG
        else point
        for point in points
    ]


def _hash(changes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8]


def _chosen(points: list[Point], only: Sequence[str]) -> tuple[Point, ...]:
    known = {name for point in points for name in (point.name, point.slug, point.run) if name}
    for name in only:
        if name not in known:
            raise RecipeError(f"--only {name}: no such point{nearest(name, sorted(known)[:50])}")
    return tuple(point for point in points if not only or {point.name, point.slug, point.run} & set(only))
