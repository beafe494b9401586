"""Filling a table: killed anywhere it ends with the same bytes; what does not fit is refused before or named."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.teacher_table import build as building
from pipeline.teacher_table import storage
from pipeline.teacher_table.build import build
from pipeline.teacher_table.storage import Layout, ShardWriter
from pipeline.teacher_table.table import Table
from tests.table_parts import FINITE, REPLAY, Pixels, chosen, filled, images, key

EPOCHS = 5


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    """Two slices a shard, so that every test has several shards of several slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "SHARD_BYTES", 2 * 26 * 5 * 2)
        patch.setattr(storage, "FEWEST_SHARDS", 2)
        yield


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an undisturbed build."""
    folder = tmp_path_factory.mktemp("whole")
    filled(folder, key(REPLAY), slices=EPOCHS)
    return contents(folder)


def test_a_finished_table_has_its_files_and_nothing_else(whole):
    assert list(whole) == ["header.json", "index.json", "shard-00000.f16", "shard-00001.f16", "shard-00002.f16"]
    assert [len(data) for name, data in whole.items() if name.endswith("f16")] == [520, 520, 260]
    header = json.loads(whole["header.json"])
    assert header["outputs"] == {"logits": 5} and header["slices"] == 5 and header["samples"] == 26


@pytest.mark.parametrize("stop_after", range(1, 21))
def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(tmp_path, whole, stop_after):
    # 20 batches in all, and one look at the widths
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=Pixels(stop_after=stop_after))
    again = Pixels()
    filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=again)
    assert contents(tmp_path) == whole
    assert again.calls == 21 - stop_after, "work was done twice"


def test_a_torn_or_lying_partial_shard_is_done_again(tmp_path, whole):
    for harm in ("torn", "flipped", "no record", "torn record"):
        folder = tmp_path / harm
        with pytest.raises(KeyboardInterrupt):
            filled(folder, key(REPLAY), slices=EPOCHS, teacher=Pixels(stop_after=4))
        partial, record = folder / "shard-00000.f16.partial", folder / "shard-00000.json"
        data = bytearray(partial.read_bytes())
        assert len(data) == 210 and json.loads(record.read_text())["rows"] == 21
        if harm == "torn":
            partial.write_bytes(data[:100])
        elif harm == "flipped":
            data[50] ^= 1
            partial.write_bytes(data)
        elif harm == "no record":
            record.unlink()
        else:
            record.write_bytes(record.read_bytes()[:10])
        filled(folder, key(REPLAY), slices=EPOCHS)
        assert contents(folder) == whole, harm


def test_rows_written_after_the_last_save_are_cut_off(tmp_path):
    layout = Layout(samples=10, slices=1, outputs={"logits": 1}, slices_per_shard=1)
    writer = ShardWriter(tmp_path, layout, 0)
    writer.__enter__()
    writer.append(b"aabbcc")
    writer.save()
    writer.append(b"dd")  # and now the power fails
    del writer
    with ShardWriter(tmp_path, layout, 0) as again:
        assert again.rows == 3
        again.append(b"DDeeffgghhiijj")
    assert (tmp_path / "shard-00000.f16").read_bytes() == b"aabbccDDeeffgghhiijj"


def test_a_shard_that_was_finished_but_not_yet_renamed_is_taken(tmp_path, whole):
    filled(tmp_path, key(REPLAY), slices=EPOCHS)
    index = json.loads((tmp_path / "index.json").read_text())["shards"]
    (tmp_path / "index.json").unlink()
    for shard, rows in ((0, 52), (1, 52), (2, 26)):
        record = {"rows": rows, "sha256": index[shard]["sha256"]}
        (tmp_path / f"shard-{shard:05d}.json").write_text(json.dumps(record))
    (tmp_path / "shard-00001.f16").rename(tmp_path / "shard-00001.f16.partial")
    teacher = Pixels()
    filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=teacher)
    assert teacher.calls == 0 and contents(tmp_path) == whole


@pytest.mark.parametrize("harm", ["progress", "shard", "index", "hash"])
def test_what_a_kill_after_the_index_left_is_mended(tmp_path, whole, harm):
    """Progress files would be hashed with the table, and so would what the disk made of it since."""
    filled(tmp_path, key(REPLAY), slices=EPOCHS)
    path = tmp_path / ("shard-00001.f16" if harm == "shard" else "index.json")
    data = path.read_bytes()
    place = data.rindex(b"sha256") + 12 if harm == "hash" else 0
    if harm == "progress":
        (tmp_path / "shard-00002.json").write_text("{}")
    else:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    again = Pixels()
    filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=again)
    assert contents(tmp_path) == whole
    assert again.calls == {"progress": 0, "shard": 8, "index": 20, "hash": 4}[harm], "shards that are whole stay"


def test_a_finished_table_is_left_alone(tmp_path, whole):
    filled(tmp_path, key(REPLAY), slices=EPOCHS)
    teacher = Pixels()
    filled(tmp_path, key(REPLAY), slices=EPOCHS - 1, teacher=teacher)
    assert teacher.calls == 0 and contents(tmp_path) == whole


def test_ranks_fill_disjoint_shards(tmp_path, whole):
    waits = []

    def barrier() -> None:
        waits.append(len(waits))

    first, second = Pixels(), Pixels()
    filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=second, rank=1, world=2, barrier=barrier)
    assert {path.name for path in tmp_path.glob("*.f16")} == {"shard-00001.f16"}
    filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=first, rank=0, world=2, barrier=barrier)
    assert contents(tmp_path) == whole
    assert (first.calls, second.calls) == (12, 9) and len(waits) == 8


def test_a_build_goes_on_with_another_number_of_ranks(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=Pixels(stop_after=6), rank=1, world=2)
    filled(tmp_path, key(REPLAY), slices=EPOCHS)
    assert contents(tmp_path) == whole


def test_a_folder_with_another_table_is_not_written_into(tmp_path):
    filled(tmp_path, key(FINITE), slices=18)
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        filled(tmp_path, key(FINITE, teacher="b" * 64), slices=18)
    there = key(FINITE).teacher[:12]
    assert str(error.value) == (
        f"table: {tmp_path} is another table: teacher (sha256 of its weights): {there}… there, bbbbbbbbbbbb… here; "
        "give the table of this teacher, data and augmentation, or leave table empty to build one"
    )
    assert contents(tmp_path) == before


def test_a_disk_too_small_is_refused_before_the_teacher_is_asked_twice(tmp_path):
    teacher = Pixels()
    with pytest.raises(UserError) as error:
        filled(tmp_path, key(FINITE), slices=18, teacher=teacher, free_bytes=lambda folder: 10_000_000)
    assert str(error.value) == (
        f"table: {tmp_path} needs 67.1 MB for 18 x 26 x 5 values, 10.0 MB are free; free some, set teacher_outputs = "
        "'live', or train fewer epochs"
    )
    assert teacher.calls == 1 and not list(tmp_path.glob("shard*"))
    filled(tmp_path, key(FINITE), slices=18, free_bytes=lambda folder: building.needed_bytes(18 * 26 * 5 * 2))
    # What is there already needs no room.
    filled(tmp_path, key(FINITE), slices=18, free_bytes=lambda folder: 0)


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-65505.0, "-65505")])
def test_an_answer_that_float16_cannot_hold_names_the_image(tmp_path, value, shown):
    ids = chosen()

    def teacher(view):
        logits = torch.zeros(len(view.sample_ids), 5)
        logits[view.sample_ids == 13, 2] = value
        return {"logits": logits}

    for spec, where in ((FINITE, "view"), (REPLAY, "epoch")):
        with pytest.raises(UserError) as error:
            build(tmp_path / where, key(spec), teacher, images(), ids, slices=5, say=lambda line: None)
        assert str(error.value) == (
            f"table: the teacher's logits for image 13 in {where} 0 hold {shown}, which float16 (up to 65504) cannot; "
            "mend the teacher, or set teacher_outputs = 'live'"
        )


def test_the_largest_float16_is_stored(tmp_path):
    def teacher(view):
        return {"logits": torch.full((len(view.sample_ids), 2), -65504.0)}

    build(tmp_path, key(FINITE), teacher, images(), chosen(), slices=18, say=lambda line: None)
    table = Table(tmp_path, key(FINITE), chosen(), slices=18)
    assert float(np.min(table.maps[0])) == -65504


def test_progress_is_said_with_images_per_second_and_time_left(tmp_path, monkeypatch):
    from pipeline import progress

    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(progress, "interactive", lambda: False)
    said = []
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=Pixels(stop_after=9), say=said.append)
    assert said[:2] == ["table: 16%  0.7 images/s  2:36 left", "table: 31%  0.7 images/s  2:15 left"]
    said.clear()
    filled(tmp_path, key(REPLAY), slices=EPOCHS, say=said.append)
    assert said[0] == "table: resumed at 40%"
    assert said[-1] == "table: 5 slices of 26 answers, 1.3 kB"


def test_only_the_first_of_several_ranks_says_anything(tmp_path, monkeypatch):
    from pipeline import progress

    monkeypatch.setattr(progress, "LINE_S", 0.0)
    monkeypatch.setattr(progress, "interactive", lambda: True)
    said = []
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, key(REPLAY), slices=EPOCHS, teacher=Pixels(stop_after=3), say=said.append, rank=1, world=2)
    filled(tmp_path, key(REPLAY), slices=EPOCHS, say=said.append, rank=1, world=2)
    assert said == []


def harm_missing(folder):
    (folder / "shard-00001.f16").unlink()
    return "shard-00001.f16 is missing (520 bytes expected); "


def harm_short(folder):
    path = folder / "shard-00001.f16"
    path.write_bytes(path.read_bytes()[:-1])
    return "shard-00001.f16 is cut short (519 of 520 bytes); "


def harm_long(folder):
    path = folder / "shard-00001.f16"
    path.write_bytes(path.read_bytes() + b"x")
    return "shard-00001.f16 is too long (521 of 520 bytes); "


def harm_bit(folder):
    path = folder / "shard-00001.f16"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    return "shard-00001.f16 is corrupted (sha256 differs); "


def harm_index(folder):
    path = folder / "index.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({"shards": value["shards"][:2]}))
    return "index.json lists 2 shards of 3; "


def harm_header(folder):
    (folder / "header.json").write_text("{}")
    return "header.json is not the header of a table (keys are missing); "


def harm_version(folder):
    path = folder / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    return "header.json has schema_version 9, this edgestill reads 1; "


HARMS = (harm_missing, harm_short, harm_long, harm_bit, harm_index, harm_header, harm_version)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    filled(folder, key(REPLAY), slices=EPOCHS)
    return folder


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_table_names_the_file(folder, tmp_path, harm):
    damaged = tmp_path / "table"
    shutil.copytree(folder, damaged)
    expected = harm(damaged)
    with pytest.raises(UserError) as error:
        Table(damaged, key(REPLAY), chosen(), slices=EPOCHS, hashes=True)
    assert str(error.value) == (
        f"table: {damaged}/{expected}copy the table again, or delete the folder to have it built anew"
    )


def test_an_unfinished_or_missing_table_says_so(folder, tmp_path):
    with pytest.raises(UserError) as error:
        Table(tmp_path, key(REPLAY), chosen(), slices=EPOCHS)
    assert str(error.value) == (
        f"table: {tmp_path}/header.json is missing; give the folder of a table, or leave table empty to build one"
    )
    damaged = tmp_path / "table"
    shutil.copytree(folder, damaged)
    (damaged / "index.json").unlink()
    (damaged / "shard-00002.f16").rename(damaged / "shard-00002.f16.partial")
    with pytest.raises(UserError) as error:
        Table(damaged, key(REPLAY), chosen(), slices=EPOCHS)
    assert str(error.value) == (
        f"table: {damaged} is not finished (2 of 3 shards); build it again, which goes on where it stopped"
    )
