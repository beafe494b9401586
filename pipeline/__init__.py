"""edgestill: from a teacher and a folder of images to a verdict on what may ship.

    import pipeline
    report = pipeline.run("digits")
    print(report["verdict"])

Importing this is cheap: neither torch nor any runtime is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.store import StageStatus

__all__ = ["plan", "run", "sweep"]


def run(
    recipe: str | Path | Recipe,
    *,
    out: str | Path = "artifacts",
    overrides: Sequence[str] = (),
    smoke: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the whole chain and return the report; see `pipeline.chain.run`."""
    from pipeline import chain

    return chain.run(recipe, out=out, overrides=overrides, smoke=smoke, say=say)


def plan(
    recipe: str | Path | Recipe, *, out: str | Path = "artifacts", overrides: Sequence[str] = (), smoke: bool = False
) -> list[StageStatus]:
    """Each stage of the recipe, fresh or stale, and why; computes nothing."""
    from pipeline import chain

    return chain.plan(recipe, out=out, overrides=overrides, smoke=smoke)


def sweep(
    recipe: str | Path | Recipe,
    *,
    grid: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    repeats: int | None = None,
    out: str | Path = "artifacts",
    overrides: Sequence[str] = (),
    smoke: bool = False,
    only: Sequence[str] = (),
    engine: Literal["local", "ray"] = "local",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the recipe over a grid of settings and seeds and return the table; see `pipeline.sweeps.run.sweep`."""
    from pipeline.sweeps import run as runs

    return runs.sweep(
        recipe,
        grid=grid,
        repeats=repeats,
        out=out,
        overrides=overrides,
        smoke=smoke,
        only=only,
        engine=engine,
        say=say,
    )
