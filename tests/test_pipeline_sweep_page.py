"""sweep.html: self-contained, complete, escaped, and a plot in which nothing leaves the frame."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from typing import Any

from sample_report import sample_report

from pipeline.sweeps.page import bounds, plot, render
from pipeline.sweeps.table import ABSENT_POINT, document, over_seeds

STUDENT = {"lr=0.1": (0.90, 0.91, 0.92), "lr=0.05": (0.93, 0.92, 0.94)}  # accuracy by point and seed
CONTROL = (0.89, 0.90, 0.92)


def swept() -> dict[str, Any]:
    """A sweep.json of two points with three seeds each."""
    rows = []
    for name, accuracies in STUDENT.items():
        seeds = [
            {"seed": i, "student": student, "control": control, "gain_pt": 100 * (student - control)}
            for i, (student, control) in enumerate(zip(accuracies, CONTROL, strict=True))
        ]
        figures = {"teacher_accuracy": 0.95, "n": 10_000, "artifact": "onnx-int8@openvino", "artifact_accuracy": 0.91}
        costs = {"total_s": 60.0, "added_s": 20.0, "s_per_epoch": 1.5, "teacher_share": 0.25, "params": 1, "macs": 1}
        smaller = {"compression": {"params": 7.0, "macs": 8.0, "bytes": None}, "verdict": "released"}
        rows.append(
            {**ABSENT_POINT, "name": name, "slug": name, "status": "done", **over_seeds(seeds, {})}
            | figures
            | costs
            | smaller
        )
    made = document(
        recipe="digits",
        command="edgestill sweep digits --grid distill.lr=0.1,0.05",
        created="2026-01-02T03:04:05+00:00",
        engine="local",
        grid={"distill.lr": ["0.1", "0.05"]},
        rows=rows,
    )
    return made | {key: sample_report()[key] for key in ("environment", "data")}


class Outside(HTMLParser):
    """Links and sources of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [str(value) for key, value in attrs if key in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_shows_every_point() -> None:
    found = swept()
    page = Outside()
    page.feed(render(found))
    assert page.links == ["lr%3D0.1/report.html", "lr%3D0.05/report.html"]
    assert page.tags["script"] == 0 and page.tags["svg"] == 2
    assert "most accurate is lr=0.05: 93.00 %, +2.67 pt against its control" in page.text
    assert "93.00 ± 1.00 %" in page.text and "+2.67 ± 1.15 pt" in page.text
    assert found["command"] in page.text


def test_names_and_reasons_are_escaped_and_nothing_done_still_gives_a_page() -> None:
    found = swept()
    row = found["points"][0] | {"status": "failed", "why": "<script>", "name": "a<b", "verdict": None}
    page = render(found | {"points": [row], "saved_s": 0.0, "environment": None, "data": None})
    assert "<script>" not in page and "&lt;script&gt;" in page and "a&lt;b" in page
    assert "0 of 1 points done." in page


def test_the_plot_holds_every_seed_and_cuts_what_lies_far_off() -> None:
    rows = swept()["points"]
    low, high = bounds(rows)
    assert low < 0.89 and high > 0.94
    rows[0]["accuracy"]["ci95"] = [-1.0, 3.0]
    rows[0]["teacher_accuracy"] = rows[1]["teacher_accuracy"] = 0.2
    low, high = bounds(rows)
    assert 0.86 < low < high < 0.97
    for width in (1000, 326):
        drawn = plot(rows, rows[1], width)
        assert len(drawn.lanes) == 2 and drawn.teacher is None and drawn.taught == "20.00 %"
        for lane in drawn.lanes:
            for mark in lane.marks:
                assert all(drawn.left <= x <= drawn.right for x in (mark.x, mark.low, mark.high, *mark.seeds) if x)
                assert lane.y <= drawn.height and 0 < mark.y < drawn.height
