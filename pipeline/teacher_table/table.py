"""A finished table as a teacher: answers to a view by a lookup, float32, on the view's device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.data.augment import view_index
from pipeline.data.source import Images
from pipeline.data.view import View
from pipeline.distillers.teacher import TeacherOutputs
from pipeline.errors import UserError
from pipeline.teacher_table.build import outputs_of
from pipeline.teacher_table.key import Key
from pipeline.teacher_table.slices import single_views
from pipeline.teacher_table.storage import check_key, layout_of, read_header, read_index, shard_name

CHECKED_ROWS = 8
# Largest difference between stored and recomputed rows, relative to the largest value: kernels differ with batch,
# memory format and machine. Trained ResNet-20 and -56 on a CPU: 0.0005 in fp32 (the rounding of float16 alone), 0.0007
# in fp16, 0.0045 in bf16; other crops of the same images: 0.17. A GPU's fp32 convolutions may be TF32.
TOLERANCE = {"fp32": 0.005, "fp16": 0.01, "bf16": 0.02}
SMALLEST = 2.0**-14  # of float16's normal numbers: below it nothing is compared relative to anything
GPU_SHARE = 4  # of the free memory of a GPU a table takes at most this part


class Table:
    """Rows of a table for the views of one training run. Read-only; any number of processes may share the files."""

    def __init__(self, folder: Path | str, key: Key, ids: np.ndarray, *, slices: int, hashes: bool = False) -> None:
        """Open and check a finished table.

        ids: int64 (N,), the sorted samples of `key.ids`. slices: epochs that will be asked for, or the view count.
        hashes: hash every shard, for a table that no manifest vouches for.
        Raises `UserError`, one line: another key, fewer epochs, a shard that is missing, cut short or corrupted.
        """
        self.folder, self.key, self.ids = Path(folder), key, ids
        header = read_header(self.folder)
        check_key(self.folder, header, key, slices=slices)
        self.layout = layout_of(header)
        read_index(self.folder, self.layout, hashes=hashes)
        assert len(ids) == self.layout.samples, f"{len(ids)} ids for {self.layout.samples} samples"
        self.places = np.full(int(ids[-1]) + 1, -1, dtype=np.int64)
        self.places[ids] = np.arange(len(ids))
        self.maps = [self._map(shard) for shard in range(self.layout.shards)]
        self.columns = self._columns(key.outputs)
        self.resident: tuple[int, torch.Tensor] | None = None
        self.too_large = False

    def _map(self, shard: int) -> np.ndarray:
        """float16 (slices * samples, width), mapped copy-on-write: torch wants memory that it could write to."""
        rows = len(self.layout.slices_of(shard)) * self.layout.samples
        path = self.folder / shard_name(shard)
        # A plain array: every operation on a memmap object makes another one.
        return np.asarray(np.memmap(path, dtype="<f2", mode="c", shape=(rows, self.layout.width)))

    def _columns(self, names: Sequence[str]) -> dict[str, slice]:
        found, first = {}, 0
        for name, width in self.layout.outputs.items():
            if name in names:
                found[name] = slice(first, first + width)
            first += width
        return found

    def __call__(self, view: View) -> dict[str, torch.Tensor]:
        return self.rows(view)

    def rows(self, view: View) -> dict[str, torch.Tensor]:
        """Name -> float32 (B, D) on the device of `view.images`, for every name in the key's outputs.

        Raises `UserError` when asked for an epoch or a sample that the table does not hold.
        """
        places = self._places(view.sample_ids)
        device = view.images.device
        if self.key.form == "finite":
            assert view.partner_ids is None, "a mixed view has no number"
            rows = self._gather(view_index(view.sample_ids, view.epoch, self.key.augment), places, device)
        else:
            if not 0 <= view.epoch < self.layout.slices:
                raise UserError(
                    f"table: {self.folder} holds epochs 0 to {self.layout.slices - 1}, epoch {view.epoch} was asked "
                    "for; build it for more epochs, or set teacher_outputs = 'live'"
                )
            rows = self._gather_slice(view.epoch, places, device)
        return {name: rows[:, part].float() for name, part in self.columns.items()}

    def _places(self, sample_ids: np.ndarray) -> np.ndarray:
        """Places int64 (B,) of the samples in a slice."""
        if len(sample_ids) and sample_ids.min() >= 0 and sample_ids.max() < len(self.places):
            places = self.places[sample_ids]
            if places.min() >= 0:
                return places
        unknown = [int(sample) for sample in sample_ids if sample not in self.ids]
        raise UserError(
            f"table: {self.folder} holds no answer for image {unknown[0] if unknown else '(none)'}; it is of other "
            "training images"
        )

    def _gather_slice(self, number: int, places: np.ndarray, device: torch.device) -> torch.Tensor:
        """float16 (B, width): every row out of one slice."""
        shard, within = divmod(number, self.layout.slices_per_shard)
        if device.type == "cuda" and (kept := self._on_gpu(number, device)) is not None:
            return kept.index_select(0, torch.from_numpy(places).to(device, non_blocking=True))
        rows = self.maps[shard].take(places + within * self.layout.samples, axis=0)
        return torch.from_numpy(rows).to(device, non_blocking=True)

    def _gather(self, numbers: np.ndarray, places: np.ndarray, device: torch.device) -> torch.Tensor:
        """float16 (B, width): rows out of the slices `numbers` (B,)."""
        if device.type == "cuda" and (kept := self._on_gpu(-1, device)) is not None:
            rows = torch.from_numpy(numbers * self.layout.samples + places)
            return kept.index_select(0, rows.to(device, non_blocking=True))
        shards, within = np.divmod(numbers, self.layout.slices_per_shard)
        rows = within * self.layout.samples + places
        gathered = np.empty((len(places), self.layout.width), dtype="<f2")
        order = np.argsort(shards, kind="stable")
        bounds = np.searchsorted(shards[order], np.arange(self.layout.shards + 1))
        for shard in np.flatnonzero(np.diff(bounds)):
            chosen = order[bounds[shard] : bounds[shard + 1]]
            gathered[chosen] = self.maps[shard].take(rows[chosen], axis=0)
        return torch.from_numpy(gathered).to(device, non_blocking=True)

    def _on_gpu(self, number: int, device: torch.device) -> torch.Tensor | None:
        """Slice `number` (-1: all of them) as float16 (rows, width) on the GPU; None when it does not fit."""
        if self.resident is not None and self.resident[0] == number and self.resident[1].device == device:
            return self.resident[1]
        self.resident = None
        if self.too_large:
            return None
        size = self.layout.nbytes if number < 0 else self.layout.nbytes // self.layout.slices
        if size > torch.cuda.mem_get_info(device)[0] // GPU_SHARE:
            self.too_large = True  # asking again at every step would cost more than it gains
            return None
        if number < 0:
            kept = torch.cat([torch.from_numpy(part).to(device) for part in self.maps])
        else:
            shard, within = divmod(number, self.layout.slices_per_shard)
            first = within * self.layout.samples
            kept = torch.from_numpy(self.maps[shard][first : first + self.layout.samples]).to(device)
        self.resident = (number, kept)
        return kept

    def check(
        self,
        teacher: TeacherOutputs,
        images: Images,
        *,
        k: int = CHECKED_ROWS,
        seed: int | None = None,
        slices: int | None = None,
        device: torch.device | None = None,
    ) -> float:
        """Recompute k random rows with the live teacher; the largest relative difference.

        seed: None draws other rows each time. slices: look at the first so many only.
        Raises `UserError` when they disagree: then the table is of another teacher or of other views.
        """
        generator = np.random.default_rng(seed)
        numbers = generator.integers(0, slices or self.layout.slices, k)
        places = generator.integers(0, self.layout.samples, k)
        view = single_views(
            self.key.form, images, self.ids[places], numbers, spec=self.key.augment, pool=self.ids, device=device
        )
        stored = self._gather(numbers, places, torch.device("cpu")).float()
        worst = 0.0
        for name, value in outputs_of(teacher, view, self.key).items():
            here, there = value.cpu(), stored[:, self.columns[name]]
            scale = max(float(here.abs().max()), float(there.abs().max()), SMALLEST)
            worst = max(worst, float((here - there).abs().max()) / scale)
        if not worst <= TOLERANCE[self.key.dtype]:
            raise UserError(
                f"table: {self.folder} is of another teacher or other views: of {k} rows computed again one is off by "
                f"{worst:.1%} of the largest value (at most {TOLERANCE[self.key.dtype]:.1%}); delete the folder to "
                "have it built anew"
            )
        return worst
