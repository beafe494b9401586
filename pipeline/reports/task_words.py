"""How a report writes its own metric: its name, the unit of a value and that of a difference. Reads a report alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.quantities import show, signed

TOP1 = {
    "name": "classification",
    "answers": "classes",
    "metric": "top1",
    "title": "top-1 accuracy",
    "show": "fraction",
    "unit": "pt",
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """The `task` of a report. `show` and `unit`: of a value and of a difference, as `quantities.show` knows them."""

    name: str
    answers: str
    metric: str
    title: str
    show: str
    unit: str

    @property
    def head(self) -> str:
        """Of a column or a section."""
        return "Accuracy" if self.metric == TOP1["metric"] else self.title

    @property
    def noun(self) -> str:
        """In a sentence."""
        return "accuracy" if self.metric == TOP1["metric"] else self.title

    @property
    def factor(self) -> float:
        """From a value to what an axis shows."""
        return 100.0 if self.show == "fraction" else 1.0

    @property
    def axis(self) -> str:
        sign = {"fraction": ", %", "": ""}.get(self.show, f", {self.show}")
        return f"{self.title}{sign}"

    @property
    def pictures(self) -> bool:
        return self.answers == "pictures"

    def value(self, value: Any) -> str:
        return show(value, self.show)

    def change(self, value: Any) -> str:
        """A difference, in its unit, with its sign."""
        return signed(value, self.unit)

    def gap(self, value: float, other: float) -> float:
        """The difference of two values in the unit of a difference."""
        return (100.0 if self.unit == "pt" else 1.0) * (value - other)

    def bare(self, text: str) -> str:
        """A range without its units: they stand at the value above it."""
        for unit in ("%", self.unit):
            text = text.replace(f" {unit}", "") if unit else text
        return text

    @property
    def flat(self) -> float:
        """A difference below it is shown as none."""
        return {"pt": 0.05, "dB": 0.005}.get(self.unit, 0.0005)


def words_of(report: Mapping[str, Any]) -> Words:
    """Of the report's task; reports from before there were others are of classification."""
    found = report.get("task") or TOP1
    return Words(**{key: str(found.get(key, default)) for key, default in TOP1.items()})
