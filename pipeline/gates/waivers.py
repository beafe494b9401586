"""Waivers: a named person lets one limit go, for a reason, until a day. What is waived is listed, never hidden.

A waiver that names no owner, no reason or no day, or whose day has passed, has no effect, and one line says so.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecipeError, nearest
from pipeline.gates.metrics import METRICS

KEYS = ("metric", "owner", "reason", "expires", "against", "subject", "slice")


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """`metric` (and where given `against`, `subject` and `slice`) say which checks; `expires` is the last day it holds.

    `expires` is None, and the texts are empty, where the recipe left them out.
    """

    metric: str
    owner: str = ""
    reason: str = ""
    expires: datetime.date | None = None
    against: str = ""
    subject: str = ""
    slice: str = ""

    def fits(self, rule: Any, subject: str) -> bool:
        """Whether it speaks of `rule`, which was asked of `subject`."""
        asked = {"against": rule.against, "subject": subject, "slice": rule.slice}
        return rule.metric == self.metric and all(getattr(self, key) in ("", value) for key, value in asked.items())

    def fault(self, today: datetime.date) -> str | None:
        """Why it has no effect on `today`, in one line; None when it has one."""
        where = f"waiver of {self.metric}"
        for key in ("owner", "reason"):
            if not getattr(self, key).strip():
                return f"{where}: it names no {key}, so it has no effect; add {key}"
        if self.expires is None:
            return f"{where}: it never expires, so it has no effect; add expires, such as 2026-12-31"
        if today > self.expires:
            return f"{where}: it expired on {self.expires} ({self.owner}), so it has no effect; renew or remove it"
        return None

    def __str__(self) -> str:
        return f"waived by {self.owner} until {self.expires}: {self.reason}"


def waivers_of(tables: Iterable[Any]) -> tuple[Waiver, ...]:
    """Waivers from the tables of a recipe, a report or a rules file. Raises `RecipeError`, one line."""
    return tuple(_waiver(table, f"waiver.{i}") for i, table in enumerate(tables))


def _waiver(table: Any, where: str) -> Waiver:
    if isinstance(table, Waiver):
        return table
    values = {key: getattr(table, key, None) for key in KEYS} if not isinstance(table, Mapping) else dict(table)
    for key in values:
        if key not in KEYS:
            raise RecipeError(f"{where}: unknown key {key!r}{nearest(str(key), list(KEYS))}")
    metric = values.get("metric")
    if not isinstance(metric, str) or metric not in METRICS:
        raise RecipeError(f"{where}: unknown metric {metric!r}{nearest(str(metric), list(METRICS))}")
    texts = {key: values.get(key) or "" for key in KEYS if key != "expires"}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise RecipeError(f"{where}: {key} = {value!r}: write it as text")
    return Waiver(**texts, expires=_day(values.get("expires"), where))


def _day(value: Any, where: str) -> datetime.date | None:
    if value is None or value == "":
        return None
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise RecipeError(f"{where}: expires = {value!r}: give a day, such as 2026-12-31") from None
