"""A set as distributed becomes a prepared folder: counts, rows, images, manifest, and nothing half-done."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrpo.choices import DataKind, OpenRule
from mrpo.config import Config, DataConfig, ModelConfig, RolloutConfig
from mrpo.data.load import load_dataset
from mrpo.errors import ConfigError, DataError, UserError
from tests.locations import vqa_rad_folder
from tests.unit.prepared_sets import noise, rows_of, run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four images; test shares `a` with training, and shows `b` shrunk and recompressed as `b_small`."""
    root = tmp_path / "rad"
    (root / "images").mkdir(parents=True)
    for seed, name in enumerate("abcd"):
        noise(seed).save(root / "images" / f"{name}.png")
    noise(1).resize((36, 36)).save(root / "images" / "b_small.jpg", quality=80)
    write(root, "train", [row(1, "a.png"), row(2, "b.png"), row(3, "c.png"), row(4, "d.png", answer="Yes")])
    write(root, "test", [row(5, "a.png"), row(6, "b_small.jpg"), row(7, "d.png", answer="no")])
    return root


def row(qid: object, image: str, **changes: Any) -> dict[str, Any]:
    return {
        "qid": qid,
        "image_name": image,
        "question": f"What is shown in {qid}?",
        "answer": "a lung",
        "answer_type": "OPEN",
        **changes,
    }


def contents(folder: Path) -> dict[str, str]:
    """Path to digest of every file below."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write(root: Path, split: str, rows: object) -> None:
    (root / f"{split}.json").write_text(json.dumps(rows))


# The real files


def test_the_real_vqa_rad(tmp_path: Path) -> None:
    root = vqa_rad_folder()
    if root is None:
        pytest.skip("no VQA-RAD here; set MRPO_VQA_RAD=<folder with train.json, test.json and images/>")
    prepared = run(root, tmp_path / "out")
    counts = prepared.manifest["rows"]["test"]
    assert counts["by_rule"] == {"all": 451, "non_yes_no": 200, "open": 179}
    assert (counts["read"], counts["kept"], len(rows_of(tmp_path / "out", "test"))) == (451, 200, 200)
    (leaks,) = prepared.leaks
    assert (leaks.split, leaks.num_images, leaks.num_identical, leaks.num_near) == ("test", 203, 203, 0)
    run(root, tmp_path / "again" / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "again" / "out")


# Rows, images, manifest


def test_rows_point_to_images_of_the_prepared_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    (first, *_) = rows_of(out, "train")
    assert first == {
        "id": "vqa_rad-train-1",
        "image": "images/a.png",
        "question": "What is shown in 1?",
        "answer": "a lung",
        "rationale": None,
        "dataset": "vqa_rad",
        "split": "train",
        "license": "CC0-1.0",
    }
    assert (out / "images" / "a.png").read_bytes() == (source / "images" / "a.png").read_bytes()
    assert sorted(file.name for file in (out / "images").iterdir()) == ["a.png", "b.png", "b_small.jpg", "c.png"]


def test_the_funnel_adds_up(source: Path, tmp_path: Path) -> None:
    counts = run(source, tmp_path / "out").funnel.splits
    assert (counts["train"].read, counts["train"].kept) == (4, 3)
    assert counts["train"].left_out == {"answered yes or no": 1}
    for split in counts.values():
        assert split.read == split.bad + sum(split.left_out.values()) + split.kept


def test_two_runs_write_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(source, tmp_path / name / "out", rationales=None)
    one, two = (
        {f.name: f.read_bytes() for f in (tmp_path / n / "out").iterdir() if f.is_file()} for n in ("one", "two")
    )
    assert one == two
    assert str(tmp_path) not in one["manifest.json"].decode()


def test_the_manifest_has_the_digests_of_all_that_went_in_and_came_out(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = run(source, out).manifest
    assert manifest == json.loads((out / "manifest.json").read_text())
    digest = hashlib.sha256((source / "train.json").read_bytes()).hexdigest()
    assert manifest["inputs"]["train.json"] == {"bytes": (source / "train.json").stat().st_size, "sha256": digest}
    for name, digest in manifest["outputs"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    for line in (out / "images.sha256").read_text().splitlines():
        digest, path = line.split("  ")
        assert hashlib.sha256((out / path).read_bytes()).hexdigest() == digest


def test_the_command_in_the_manifest_names_settings_and_no_place(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", open_rule=OpenRule.ALL, where={"answer_type": "OPEN"}).manifest
    assert manifest["command"] == (
        "python -m mrpo.data prepare data.set=vqa_rad data.out=<out> data.source=<source> "
        'data.open_rule=all data.where={"answer_type": "OPEN"}'
    )


def test_a_prepared_folder_trains_as_jsonl(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    config = Config(
        data=DataConfig(kind=DataKind.JSONL, root=str(tmp_path / "out"), num_train=3, num_test=None),
        rollout=RolloutConfig(prompts_per_step=3),
        model=ModelConfig(path="a-real-policy"),  # no phantoms for a warm start
    )
    dataset = load_dataset(config)
    assert [example.id for example in dataset.train] == ["vqa_rad-train-1", "vqa_rad-train-2", "vqa_rad-train-3"]
    assert [example.answer for example in dataset.test] == ["a lung", "a lung"]


@pytest.mark.parametrize(("rule", "kept"), [(OpenRule.NON_YES_NO, 2), (OpenRule.OPEN, 1), (OpenRule.ALL, 3), (None, 2)])
def test_the_open_rule_is_a_setting(source: Path, tmp_path: Path, rule: OpenRule | None, kept: int) -> None:
    rows = [row(1, "a.png", answer_type="CLOSED "), row(2, "b.png"), row(3, "c.png", answer="No", answer_type="CLOSED")]
    write(source, "test", rows)
    prepared = run(source, tmp_path / "out", open_rule=rule)
    assert prepared.funnel.splits["test"].kept == kept
    assert prepared.manifest["open_rule"] == (rule or "non_yes_no")


def test_where_keeps_the_questions_with_these_values(source: Path, tmp_path: Path) -> None:
    write(
        source, "test", [row(1, "a.png", question_type="PRES"), row(2, "b.png", question_type="POS"), row(3, "c.png")]
    )
    prepared = run(source, tmp_path / "out", where={"question_type": "POS"}, max_bad_rows=0)
    assert [item["id"] for item in rows_of(tmp_path / "out", "test")] == ["vqa_rad-test-2"]
    assert prepared.funnel.splits["test"].left_out == {"question_type is not POS": 2}


# License


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of {image, problem, solution}."""
    (tmp_path / "own").mkdir()
    noise(1).save(tmp_path / "own" / "a.png")
    write(tmp_path / "own", "train", [{"image": "a.png", "problem": "Which?", "solution": "this"}])
    return tmp_path / "own"


def test_who_has_published_files_says_what_may_be_done_with_them(own: Path, tmp_path: Path) -> None:
    manifest = run(own, tmp_path / "out", "published", license="CC-BY-4.0", external_judge_allowed=True).manifest
    assert (manifest["set"], manifest["license"], manifest["external_judge_allowed"]) == (
        "published",
        "CC-BY-4.0",
        True,
    )
    assert manifest["command"].endswith("data.license=CC-BY-4.0 data.external_judge_allowed=true")
    assert rows_of(tmp_path / "out", "train")[0]["license"] == "CC-BY-4.0"
    said = run(own, tmp_path / "out", "published", license="CC0-1.0").manifest
    assert (said["license"], said["external_judge_allowed"]) == ("CC0-1.0; no external judge", False)


def test_unless_it_is_said_no_judge_outside_may_see_published_files(own: Path, tmp_path: Path) -> None:
    manifest = run(own, tmp_path / "out", "published").manifest
    assert (manifest["license"], manifest["external_judge_allowed"]) == (
        "as its source sets; no external judge",
        False,
    )


def test_the_license_of_a_known_set_is_not_a_setting(source: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.license: those of VQA-RAD are known \(CC0-1\.0; external judge allowed"
    ):
        run(source, tmp_path / "out", license="MIT")
    with pytest.raises(ConfigError, match=r"data\.external_judge_allowed: those of Quilt-VQA .*external judge refused"):
        run(source, tmp_path / "out", "quilt_vqa", external_judge_allowed=True)
    with pytest.raises(ConfigError, match=r"data\.license is empty"):
        run(own, tmp_path / "out", "published", license=" ")


def test_the_manifest_says_of_every_set_whether_a_judge_outside_may_see_it(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out").manifest
    assert (manifest["set"], manifest["external_judge_allowed"]) == ("vqa_rad", True)


# Leaks


def test_shared_images_are_found_exact_and_near(source: Path, tmp_path: Path) -> None:
    (report,) = run(source, tmp_path / "out").leaks
    found = {leak.held_out: (leak.train, leak.distance is None) for leak in report.leaks}
    assert found == {
        "images/a.png": ("images/a.png", True),
        "images/b_small.jpg": ("images/b.png", False),
        "images/d.png": ("images/d.png", True),  # its question is left out, the image leaks all the same
    }
    assert (report.num_images, report.num_identical, report.num_near) == (3, 2, 1)


def test_leaks_are_dropped_from_training_only(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared = run(source, out, exclude_leaks=True)
    assert [item["id"] for item in rows_of(out, "train")] == ["vqa_rad-train-3"]
    assert len(rows_of(out, "test")) == 2
    assert prepared.funnel.splits["train"].left_out == {"answered yes or no": 1, "image also held out": 2}
    assert prepared.funnel.splits["train"].kept == 1
    assert sorted(file.name for file in (out / "images").iterdir()) == ["a.png", "b_small.jpg", "c.png"]


# Bad rows and bad places


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "expected an object, got str"),
        (row(9, "a.png", answer=" "), r"field 'answer' is empty or not text: ' '"),
        (row(9, "a.png", question=None), "field 'question' is empty or not text: None"),
        ({"qid": 9}, "field 'image_name' is missing"),
        (row(1, "a.png"), "id '1' occurs a second time"),
        (row(9, "absent.png"), "image 'absent.png' is not in the source folder"),
        (row(9, "../images/a.png"), "is not in the source folder"),
        (row(9, "/etc/passwd"), "is not in the source folder"),
        (row(9, "text.png"), r"image images/text\.png is none of JPEG.* starts with b'no image'"),
        (row(9, "cut.png"), r"image images/cut\.png cannot be read \("),
        (row(9, "lfs.png"), r"images/lfs\.png is a Git LFS pointer"),
        (row(9, "page.png"), r"images/page\.png is a web page"),
        (row(9, "deep.png"), r"deep\.png has more than 8 bits a channel"),
        (row(9, "film.gif"), r"film\.gif is a GIF with several frames"),
        (row(9, "large.png"), r"large\.png has 90000 × 1 pixels, more than data\.max_pixels=9000"),
    ],
)
def test_every_bad_row_is_named_with_file_row_and_reason(
    source: Path, tmp_path: Path, bad: object, reason: str
) -> None:
    images = source / "images"
    (images / "text.png").write_text("no image")
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (images / "page.png").write_text("<!DOCTYPE html><p>log in")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(images / "deep.png")
    noise(1).save(images / "film.gif", save_all=True, append_images=[noise(2)])
    Image.new("L", (90_000, 1)).save(images / "large.png")
    write(source, "train", [row(1, "a.png"), bad])
    with pytest.raises(DataError, match=rf"{source}/train\.json, row 2: .*{reason}.*data\.max_bad_rows=0"):
        run(source, tmp_path / "out", max_pixels=9000)
    assert [item.name for item in tmp_path.iterdir()] == ["rad"]
    prepared = run(source, tmp_path / "out", max_pixels=9000, max_bad_rows=1)
    assert prepared.funnel.splits["train"].bad == len(prepared.manifest["bad_rows"]) == 1
    assert str(tmp_path) not in prepared.manifest["bad_rows"][0]


def test_an_image_that_lies_about_its_type_is_renamed_with_a_report(source: Path, tmp_path: Path) -> None:
    noise(9).save(source / "images" / "liar.png", "JPEG")
    write(source, "train", [row(1, "liar.png")])
    prepared = run(source, tmp_path / "out")
    assert prepared.manifest["renamed_images"] == ["images/liar.png is named .png and holds JPEG"]
    assert rows_of(tmp_path / "out", "train")[0]["image"] == "images/liar.jpg"


def test_one_name_for_two_different_images_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "more").mkdir()
    noise(5).save(source / "more" / "c.png")
    with pytest.raises(
        DataError, match=r"train\.json, row 3: image 'c\.png' may be .*c\.png or .*c\.png, which differ"
    ):
        run(source, tmp_path / "out")


def test_a_folder_that_was_not_prepared_is_never_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    (out / "train.jsonl").write_text("damaged")
    run(source, out)
    assert len(rows_of(out, "train")) == 3
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists and is no prepared set"):
        run(source, mine)
    assert (mine / "thesis.tex").exists()


def test_out_and_source_do_not_lie_in_each_other(source: Path) -> None:
    for out in (source, source / "out", source.parent):
        with pytest.raises(ConfigError, match=r"data\.out="):
            run(source, out)


def test_a_failed_run_leaves_the_earlier_folder_as_it_was(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    before = (out / "manifest.json").read_bytes()
    write(source, "train", [row(1, "absent.png")])
    with pytest.raises(DataError):
        run(source, out)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "rad"]


def test_what_a_killed_run_left_is_cleared_away(source: Path, tmp_path: Path) -> None:
    names = ("out.99999999", f"out.{os.getppid()}", "output.99999999")
    dead, alive, other = (tmp_path / f".{name}.tmp" for name in names)
    for folder in (dead, alive, other):
        (folder / "images").mkdir(parents=True)
    run(source, tmp_path / "out")
    assert [folder.exists() for folder in (dead, alive, other)] == [False, True, True]


def test_nothing_left_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no question is left of 7 rows read \(0 bad, 7 answer_type is not X\)"):
        run(source, tmp_path / "out", where={"answer_type": "X"})
    assert not (tmp_path / "out").exists()


def test_unknown_sets_and_missing_folders(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such set; expected one of vqa_rad, slake"):
        run(source, tmp_path / "out", name="imagenet")
    with pytest.raises(UserError, match=r"data\.source=.*absent is not a folder"):
        run(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ConfigError, match="no MedThink rationales for pmc_vqa"):
        run(source, tmp_path / "out", name="pmc_vqa", rationales=str(source))
