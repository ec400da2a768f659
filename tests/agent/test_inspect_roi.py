"""`defect-agent inspect` with a region of interest: judge in it, or save what training needs to see too."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from agent.cameras import read_image
from agent.config import read_config
from agent.roi import Region, Roi
from tests.kit.bundles import make_bundle
from tests.kit.commands import Ran, run_command
from tests.kit.frames import BLACK, plain_image
from tests.kit.pictures import encoded, textured
from tests.kit.scenes import PART_AT, moved_scene, scene, template_of

X, Y = PART_AT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station that searches its parts, and a second camera that crops."""
    (tmp_path / "part.png").write_bytes(template_of(scene()))
    roi = {"locate": {"template": "part.png", "at": [X, Y]}, "crop": [X - 10, Y - 10, 100, 80]}
    left = {"name": "left", "camera": {"kind": "folder", "name": "l", "path": "l"}, "roi": {"crop": [0, 0, 30, 20]}}
    raw = {
        "station": "acme/line1",
        "state_dir": "state",
        "bundle": "parts.defect",
        "camera": {"kind": "folder", "name": "front", "path": "pictures"},
        "roi": roi,
        "views": [left],
    }
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A data set as `defect-opt` reads it: a folder per class."""
    folder = tmp_path / "pictures"
    for name, image in (
        ("good/a.png", moved_scene((0, 0))),
        ("good/b.jpg", moved_scene((25, -10))),
        ("scratch/a.png", moved_scene((-30, 12))),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(image, Path(name).suffix))
    (folder / "notes.txt").write_text("no picture")
    return folder


def inspect(*arguments: object) -> Ran:
    return run_command("agent.cli.inspect", *arguments)


def test_regions_of_a_folder_keep_their_classes(config: Path, pictures: Path, tmp_path: Path) -> None:
    """What is written is what the line's model would see, without loss."""
    ran = inspect(pictures, "--config", config, "--save-roi", tmp_path / "regions", "--json")
    roi = Roi(read_config(config).roi or pytest.fail("no region"))

    assert ran.code == 0, ran.err
    written = sorted(str(path.relative_to(tmp_path / "regions")) for path in (tmp_path / "regions").rglob("*.*"))
    assert written == ["good/a.png", "good/b.png", "scratch/a.png"]
    for each in ran.json:
        region = roi.take(read_image(Path(each["image"])))
        assert isinstance(region, Region)
        assert np.array_equal(read_image(Path(each["region"])), region.image)


def test_a_picture_without_the_part_is_told_and_not_written(config: Path, pictures: Path, tmp_path: Path) -> None:
    """The others are written; exit 1, so that no script goes on as if all were there."""
    (pictures / "good" / "c.png").write_bytes(encoded(textured(400, 300)))
    (pictures / "good" / "d.png").write_bytes(b"torn")
    ran = inspect(pictures, "--config", config, "--save-roi", tmp_path / "regions", "--json")
    problems = {Path(each["image"]).name: each["problem"] for each in ran.json if each["problem"]}

    assert ran.code == 1
    assert list(problems) == ["c.png", "d.png"]
    assert problems["c.png"].startswith("the part was not found: score ")
    assert not (tmp_path / "regions" / "good" / "c.png").exists()
    assert (tmp_path / "regions" / "scratch" / "a.png").exists()


def test_a_view_has_its_own_region(config: Path, pictures: Path, tmp_path: Path) -> None:
    """`--view`; a name that is none is refused with those that are."""
    source = pictures / "good" / "a.png"
    ran = inspect(source, "--config", config, "--view", "left", "--save-roi", tmp_path / "regions")
    wrong = inspect(source, "--config", config, "--view", "top", "--save-roi", tmp_path / "regions")

    assert (ran.code, wrong.code) == (0, 2)
    assert np.array_equal(read_image(tmp_path / "regions" / "a.png"), read_image(source)[:20, :30])
    assert "--view: got top, expected one of front, left" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save-roi", "regions"], "--save-roi: there is no region of interest"),
        (["--view", "left", "--save-roi", "regions"], "--view: got left, but no configuration has views"),
        ([], "--bundle: missing: nothing else can judge a picture"),
    ],
)
def test_what_is_missing_is_named(pictures: Path, arguments: list[str], words: str) -> None:
    """Exit 2 and a remedy."""
    ran = inspect(pictures / "good" / "a.png", *arguments)

    assert ran.code == 2
    assert words in ran.err
    assert "Try: " in ran.err


def test_nothing_is_written_over(config: Path, pictures: Path) -> None:
    """Neither the pictures themselves, nor one region by another."""
    onto_itself = inspect(pictures, "--config", config, "--save-roi", pictures)
    same_names = inspect(
        pictures / "good" / "a.png", pictures / "scratch" / "a.png", "--config", config, "--save-roi", pictures / "out"
    )

    assert (onto_itself.code, same_names.code) == (2, 2)
    assert "would be written over" in onto_itself.err
    assert "would be written over" in same_names.err
    assert not (pictures / "out").exists()


def test_inspect_judges_in_the_region(config: Path, tmp_path: Path) -> None:
    """As the line would: the black belt around the part does not count, and it is told where the part was found."""
    raw = {**yaml.safe_load(config.read_text()), "views": []}
    config.write_text(yaml.safe_dump(raw))
    image = plain_image(BLACK, width=400, height=300)
    part = cv2.imdecode(np.frombuffer((tmp_path / "part.png").read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert part is not None
    image[150:210, 200:280] = np.asarray(part, dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(encoded(image))
    bundle = make_bundle(tmp_path)
    inside = inspect(tmp_path / "x.png", "--bundle", bundle.path, "--config", config, "--json").json[0]
    whole = inspect(tmp_path / "x.png", "--bundle", bundle.path, "--json").json[0]

    assert inside["located"]["shift_px"] == [200 - X, 150 - Y]
    assert inside["located"]["score"] > 0.99
    assert whole["located"] is None
    assert inside["score"] != whole["score"]
