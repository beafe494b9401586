"""Super-resolution: a photograph from a smaller one. PSNR and SSIM on Y, border shaved by the scale. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.data.bicubic import resize, to_uint8
from pipeline.tasks.dense import Dense
from pipeline.tasks.image_quality import luma, psnr, ssim

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

WORST_PSNR, WORST_SSIM = 0.0, -1.0  # of 8-bit pictures nothing is worse than 0 dB: black for white
COLOURS = 3


class SuperResolution(Dense):
    """The metric is the mean PSNR of Y in dB; a drop is counted in dB.

    A target has a fourth channel (`data.super_resolution.Judged`): 255 where a pixel is judged, 0 in the border. One
    without it, a patch in training, is judged whole.
    """

    name = "super-resolution"
    metric = "psnr_y"
    title = "PSNR (Y)"
    show = "dB"
    unit = "dB"
    metrics: ClassVar[dict[str, str]] = {"psnr_y": "dB", "ssim_y": "pt", "psnr_rgb": "dB"}
    overlap = 16
    objective = ({"loss": "l1", "weight": 1.0},)
    score_on = "centre"
    baseline_name = "bicubic interpolation"
    smoke: ClassVar[dict[str, Any]] = {
        "data": {"name": "sample-photographs", "patch": 24, "patches": 4, "scale": 0, "blur": 0.0}
    }

    @classmethod
    def outcomes(cls, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """float64 (N,) each: `psnr_y` and `psnr_rgb` in dB, `ssim_y` in -1..1, of the clipped and rounded outputs.

        An output with a value that is not finite has 0 dB and -1.
        """
        found = [cls._judge(output, target) for output, target in zip(outputs, targets, strict=True)]
        columns = np.array(found, np.float64).reshape(-1, 3).T
        return dict(zip(("psnr_y", "ssim_y", "psnr_rgb"), columns, strict=True))

    @classmethod
    def _judge(cls, output: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
        if not np.isfinite(output).all():
            return WORST_PSNR, WORST_SSIM, WORST_PSNR
        ours, theirs = _inside(cls.postprocess(output), target)
        y, wanted = luma(ours), luma(theirs)
        return psnr(y, wanted), ssim(y, wanted), psnr(ours, theirs)

    @classmethod
    def scores(cls, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
        found = []
        for output, target in zip(outputs, targets, strict=True):
            ours, theirs = _inside(cls.postprocess(np.nan_to_num(output)), target)
            found.append(psnr(luma(ours), luma(theirs)) if np.isfinite(output).all() else WORST_PSNR)
        return np.array(found, np.float64)

    @classmethod
    def postprocess(cls, output: np.ndarray) -> np.ndarray:
        """Clipped to 0..1 and rounded to 8 bits; not-a-number is black."""
        return to_uint8(np.nan_to_num(output) * np.float64(255))

    @classmethod
    def baseline(cls, image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Bicubic, which every network has to beat."""
        return resize(image, shape[0] // image.shape[0]).astype(np.float32) / 255

    @classmethod
    def target_picture(cls, target: np.ndarray) -> np.ndarray:
        return target[..., :COLOURS]

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        from pipeline.models.options import SCALES

        super().check(recipe)
        if recipe.data.scale and recipe.data.scale not in SCALES:
            raise ValueError(f"data.scale = {recipe.data.scale}; expected one of {', '.join(map(str, SCALES))}")
        if recipe.data.consensus:
            raise ValueError("data.consensus: photographs have no annotators; leave it out")


def _inside(picture: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the border that the target's fourth channel leaves out."""
    colours = target[..., : picture.shape[2]]
    if target.shape[2] == picture.shape[2]:
        return picture, colours
    judged = target[..., -1] > 0
    rows, columns = np.flatnonzero(judged.any(1)), np.flatnonzero(judged.any(0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return picture[inside], colours[inside]
