"""The task: what is judged, what is shaved, what a broken output counts, and what a recipe may not ask."""

import numpy as np
import pytest

from pipeline.data.bicubic import resize
from pipeline.data.super_resolution import Judged, pair
from pipeline.recipe_file import load_recipe
from pipeline.tasks import task_of
from pipeline.tasks.image_quality import luma, psnr, ssim
from pipeline.tasks.super_resolution import SuperResolution as Task


def photograph(seed: int, height: int = 64, width: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return resize(coarse, 8)


def judged(seed: int, scale: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return Judged(pairs=[pair(photograph(seed), scale, 0.0)], border=scale)[0]


def test_it_is_a_row_of_the_table() -> None:
    assert task_of("super-resolution") is Task
    assert Task.metric in Task.metrics and Task.answers == "pictures"


@pytest.mark.parametrize("scale", [2, 4])
def test_only_the_inside_is_judged_on_y_and_on_rgb(scale: int) -> None:
    image, target = judged(0, scale)
    output = Task.baseline(image, (target.shape[0], target.shape[1], 3))
    wild = output.copy()
    wild[:scale], wild[-scale:], wild[:, :scale], wild[:, -scale:] = 9, -9, 9, -9
    found, same = Task.outcomes([output], [target]), Task.outcomes([wild], [target])
    inside = slice(scale, -scale)
    ours, theirs = Task.postprocess(output)[inside, inside], target[inside, inside, :3]
    assert found["psnr_y"][0] == psnr(luma(ours), luma(theirs)) > 20
    assert found["psnr_rgb"][0] == psnr(ours, theirs)
    assert found["ssim_y"][0] == ssim(luma(ours), luma(theirs))
    for name in Task.metrics:
        assert np.array_equal(found[name], same[name]), name
    assert np.array_equal(Task.scores([output], [target]), found["psnr_y"])


def test_the_target_itself_is_the_best_and_not_a_number_the_worst() -> None:
    _, target = judged(1)
    best = target[..., :3].astype(np.float32) / 255
    broken = best.copy()
    broken[0, 0, 0] = np.nan  # in the border: an output that is not finite anywhere is not to be trusted
    found = Task.outcomes([best, broken, np.full_like(best, np.inf)], [target] * 3)
    assert found["psnr_y"].tolist() == [100, 0, 0] and found["psnr_rgb"].tolist() == [100, 0, 0]
    assert found["ssim_y"].tolist() == [pytest.approx(1), -1, -1]
    assert Task.scores([best, broken], [target] * 2).tolist() == [100, 0]


def test_outputs_are_clipped_and_rounded_to_8_bits() -> None:
    raw = np.array([[[-0.5, 0.1, 0.5]], [[1.5, 0.9981, np.nan]]], np.float32)
    assert Task.postprocess(raw).tolist() == [[[0, 26, 128]], [[255, 255, 0]]]
    assert Task.postprocess(raw).dtype == np.uint8


def test_a_patch_without_the_fourth_channel_is_judged_whole() -> None:
    image, target = judged(2)
    output = Task.baseline(image, (target.shape[0], target.shape[1], 3))
    whole = psnr(luma(Task.postprocess(output)), luma(target[..., :3]))
    assert Task.outcomes([output], [target[..., :3]])["psnr_y"][0] == whole


def test_the_paired_difference_is_in_decibels() -> None:
    targets = [judged(seed)[1] for seed in range(4)]
    outputs = [target[..., :3].astype(np.float32) / 255 for target in targets]
    first = Task.outcomes([output + np.float32(4 / 255) for output in outputs], targets)
    second = Task.outcomes([output + np.float32(2 / 255) for output in outputs], targets)
    row = Task.pair(first, second)
    assert (row["metric"], row["unit"], row["n"]) == ("psnr_y", "dB", 4)
    assert row["mean"] == pytest.approx(np.mean(first["psnr_y"] - second["psnr_y"])) and row["mean"] < -4
    assert {entry["metric"]: entry["unit"] for entry in Task.comparisons(first, second)} == Task.metrics


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.scale=5", "data.scale = 5; expected one of 2, 3, 4, 8"),
        ("data.consensus=0.5", "data.consensus: photographs have no annotators; leave it out"),
        ("data.image_size=96", "data.image_size: 'super-resolution' never resizes; give data.patch"),
        ('distill.losses=[{loss="kd",weight=1.0}]', "loss 'kd' compares classes"),
        ("data.name=digits", "'digits' serves 'classification'"),
    ],
)
def test_what_a_recipe_may_not_ask(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe("paper003-super-resolution", [override])
    assert "\n" not in str(caught.value)
