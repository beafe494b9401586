"""BSDS500's files: both layouts, folder and .zip, against trees that are written here."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bsds_tree import PEOPLE, drawn, layout, photograph
from PIL import Image
from scipy.io import savemat

from pipeline.data.bsds500_files import SPLITS, Bsds500, each_person, find, stamp
from pipeline.errors import UserError
from pipeline.thinning import outlines

COUNTS = {"train": 3, "val": 2, "test": 2}


def zipped(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return to


@pytest.mark.parametrize("prefix", ["", "BSDS500/data/"])
@pytest.mark.parametrize("truth", ["boundary_mean", "groundTruth"])
def test_both_layouts_give_the_same_pictures_from_folder_and_zip(tmp_path: Path, truth: str, prefix: str):
    layout(tmp_path / "tree", COUNTS, truth=truth, prefix=prefix)
    for root in (tmp_path / "tree", zipped(tmp_path / "tree", tmp_path / "bsds.zip")):
        found = find(root)
        assert (found.truth, found.prefix) == (truth, prefix)
        assert {split: len(found.names[split]) for split in SPLITS} == COUNTS
        for split in SPLITS:
            photographs = list(found.photographs(split))
            boundaries = list(found.boundaries(split))
            assert all(image.dtype == np.uint8 and image.shape == (*mean.shape, 3)
                       for image, (mean, _) in zip(photographs, boundaries, strict=True))  # fmt: skip
            for name, (mean, people) in zip(found.names[split], boundaries, strict=True):
                np.testing.assert_array_equal(mean, np.rint(255 * np.mean(drawn(name), axis=0)))
                assert people.shape == ((PEOPLE if truth == "groundTruth" else 0), *mean.shape)
                assert not len(people) or (people == drawn(name)).all()


def test_photographs_are_decoded_to_rgb_at_their_own_size(tmp_path: Path):
    layout(tmp_path, COUNTS)
    found = find(tmp_path)
    first = next(found.photographs("train"))
    assert np.abs(first.astype(int) - photograph(found.names["train"][0])).mean() < 12  # a JPEG of a smooth picture


def test_photographs_alone_are_enough_until_boundaries_are_asked_for(tmp_path: Path):
    layout(tmp_path, COUNTS, truth="")
    found = find(tmp_path)
    assert found.truth == "" and len(list(found.photographs("test"))) == 2
    with pytest.raises(UserError, match=r"^data\.root: .* has photographs but no boundaries; expected images/train"):
        list(found.boundaries("test"))


def test_people_of_a_published_mat_file():
    cells = np.empty((1, 2), dtype=object)
    one, two = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    one[1, :], two[1, 2] = 1, 1
    for place, boundaries in enumerate((one, two)):
        cells[0, place] = {"Segmentation": np.ones((4, 5), np.uint16), "Boundaries": boundaries}
    buffer = io.BytesIO()
    savemat(buffer, {"groundTruth": cells})
    assert each_person(buffer.getvalue()).tolist() == [(one > 0).tolist(), (two > 0).tolist()]


@pytest.mark.parametrize("apart", [False, True])
def test_label_maps_beside_the_means_say_what_each_person_drew(tmp_path: Path, apart: bool):
    tree = tmp_path / "bsds"
    layout(tree, COUNTS)
    stacks = tmp_path / "maps" if apart else tree
    for split, names in find(tree).names.items():
        (stacks / "segmentations" / split).mkdir(parents=True)
        for name in names:
            labels = np.cumsum(drawn(name), axis=1, dtype=np.uint8) % 2
            Image.fromarray(labels.reshape(-1, labels.shape[2])).save(stacks / "segmentations" / split / f"{name}.png")
    root = tree
    if apart:
        root = zipped(tree, tmp_path / "bsds.zip")
        alone = find(root).fingerprint()
        zipped(stacks, tmp_path / "bsds_segmentations.zip")
        assert find(root).fingerprint() != alone and len(stamp(root)) == 2
    else:
        assert len(stamp(root)) == 3 * sum(COUNTS.values())
    found = find(root)
    for name, (mean, people) in zip(found.names["test"], found.boundaries("test"), strict=True):
        labels = np.cumsum(drawn(name), axis=1, dtype=np.uint8) % 2
        assert mean.shape == people.shape[1:]
        np.testing.assert_array_equal(people, [outlines(person) for person in labels])


def test_the_fingerprint_follows_bytes_and_not_the_container(tmp_path: Path):
    layout(tmp_path / "a", COUNTS)
    layout(tmp_path / "b", COUNTS, prefix="BSDS500/data/")
    roots = (tmp_path / "a", tmp_path / "b", zipped(tmp_path / "a", tmp_path / "z.zip"))
    prints = {find(root).fingerprint() for root in roots}
    assert len(prints) == 1
    name = find(tmp_path / "a").names["val"][0]
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(tmp_path / "a" / "boundary_mean" / "val" / f"{name}.png")
    assert find(tmp_path / "a").fingerprint() not in prints


def test_the_stamp_is_cheap_and_changes_with_a_file(tmp_path: Path):
    layout(tmp_path, COUNTS)
    before = stamp(tmp_path)
    assert len(before) == 2 * sum(COUNTS.values()) and stamp(tmp_path) == before
    victim = next((tmp_path / "images" / "test").iterdir())
    victim.write_bytes(victim.read_bytes() + b"\0")
    assert stamp(tmp_path) != before
    assert stamp(tmp_path / "nothing") == {}


def test_errors_say_where_and_what_to_do(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"^data\.root: '.*nowhere' does not exist; give the folder or \.zip of BSDS500"
    ):
        find(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^data\.root: no BSDS500 in '.*'; expected images/train/\*\.jpg with"):
        find(tmp_path)
    (tmp_path / "file.zip").write_bytes(b"PK, but no archive")
    with pytest.raises(UserError, match=r"is neither a folder nor a readable \.zip of BSDS500"):
        find(tmp_path / "file.zip")
    layout(tmp_path / "tree", COUNTS)
    found = find(tmp_path / "tree")
    name = found.names["test"][1]
    (tmp_path / "tree" / "images" / "test" / f"{name}.jpg").write_bytes(b"torn")
    with pytest.raises(
        UserError, match=rf"images/test/{name}\.jpg: not a readable JPEG or PNG image; get BSDS500 again"
    ):
        list(found.photographs("test"))
    (tmp_path / "tree" / "boundary_mean" / "test" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=rf"lacks boundary_mean/test/{name}\.png \(1 of 2 photographs of test"):
        find(tmp_path / "tree")
    for path in (tmp_path / "tree" / "images" / "val").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"has no images/val/\*\.jpg; expected"):
        find(tmp_path / "tree")


def test_a_torn_mat_file_is_named(tmp_path: Path):
    layout(tmp_path, COUNTS, truth="groundTruth")
    found: Bsds500 = find(tmp_path)
    (tmp_path / "groundTruth" / "train" / f"{found.names['train'][0]}.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(
        UserError, match=r"\.mat: no readable groundTruth\{\}\.Boundaries of BSDS500 in it; get BSDS500"
    ):
        next(found.boundaries("train"))
    assert PEOPLE >= 2
