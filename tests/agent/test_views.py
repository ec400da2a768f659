"""Several cameras of one part: the right pictures together, the worst decision, and an error where one is missing."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.bundle import Bundle
from agent.cameras.folder import FolderCamera
from agent.cameras.opencv import OpenCvCamera
from agent.cameras.triggered import Moment, TriggeredCamera
from agent.config import (
    AgentConfig,
    EngineConfig,
    FolderCameraConfig,
    OpenCvCameraConfig,
    PolicyConfig,
    config_from_mapping,
)
from agent.engines import open_engine
from agent.errors import ConfigError
from agent.frame import Fault, Frame, Part, Stamp
from agent.inspection import Inspector
from agent.triggers.frame import EachFrame
from agent.verdict import Decision, policy_from_config
from agent.views import PartVerdict, View, ViewCameras, ViewJudge, joined_by, judge_from_config, view_settings
from tests.kit.bundles import make_bundle
from tests.kit.frames import BLACK, RED, WHITE, frame_of, part_of, plain_image
from tests.kit.live import PATIENCE_S, LiveCamera, noisy
from tests.kit.pictures import level_of, write_video
from tests.kit.spots import dark_picture, make_detector, plant

DOUBTFUL = (145, 145, 145)
DECISIONS = {WHITE: Decision.OK, DOUBTFUL: Decision.REVIEW, RED: Decision.DEFECT, BLACK: Decision.DEFECT}
MS = 1_000_000


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


@pytest.fixture
def judge(bundle: Bundle) -> ViewJudge:
    return judge_of(bundle, "front", "left")


def judge_of(bundle: Bundle, *names: str) -> ViewJudge:
    """One engine for all views."""
    engine, policy = open_engine(bundle, EngineConfig()), policy_from_config(PolicyConfig(), bundle.manifest)
    return ViewJudge({name: (Inspector(bundle, engine), policy) for name in names})


def folder(path: Path, pictures: Mapping[str, tuple[int, int, int] | None]) -> Path:
    """A folder of pictures of one colour by their names; None is a file that is no picture."""
    path.mkdir()
    for name, colour in pictures.items():
        data = b"torn" if colour is None else bytes(cv2.imencode(".png", plain_image(colour))[1])
        (path / name).write_bytes(data)
    return path


def folders(tmp_path: Path, *pictures: Mapping[str, tuple[int, int, int] | None], **keys: Any) -> ViewCameras:
    """Folders as the cameras `front`, `left` and `right`."""
    names = ("front", "left", "right")[: len(pictures)]
    cameras = [
        FolderCamera(
            FolderCameraConfig(kind="folder", name=name, path=folder(tmp_path / name, each), **keys),
            is_judged=lambda _id: False,
        )
        for name, each in zip(names, pictures, strict=True)
    ]
    further = [View(name=camera.name, camera=camera) for camera in cameras[1:]]
    return ViewCameras(cameras[0], further, join="name")


def run(cameras: ViewCameras, judge: ViewJudge, *, limit: int = 100) -> list[PartVerdict]:
    """The line's steps, until no part comes any more."""
    trigger, verdicts = EachFrame(cameras, kind="frame", prefix="p"), list[PartVerdict]()
    while not trigger.ended and len(verdicts) < limit:
        part = trigger.next(PATIENCE_S)
        assert part is not None
        verdicts.append(judge.judge(cameras.capture(part)))
    cameras.close()
    return verdicts


def outcome(verdicts: list[PartVerdict]) -> dict[str, Decision]:
    return {verdict.inspection.part.id: verdict.decision for verdict in verdicts}


# Folders: joined by the pictures' names


def test_the_same_names_in_two_folders_are_the_same_parts(tmp_path: Path, judge: ViewJudge) -> None:
    """Each view is told, the first camera's first."""
    front = {"p2.png": WHITE, "p10.png": WHITE, "p1.png": WHITE}
    verdicts = run(folders(tmp_path, front, front), judge)

    assert outcome(verdicts) == {"p1.png": Decision.OK, "p2.png": Decision.OK, "p10.png": Decision.OK}
    for verdict in verdicts:
        sources = [view.verdict.inspection.frame.source for view in verdict.views if view.verdict.inspection.frame]
        assert [view.name for view in verdict.views] == ["front", "left"]
        assert sources == [str(tmp_path / name / verdict.inspection.part.id) for name in ("front", "left")]


@pytest.mark.parametrize("missing_in", ["front", "left"])
def test_a_missing_picture_is_an_error_of_its_part_and_shifts_no_other(
    tmp_path: Path, judge: ViewJudge, missing_in: str
) -> None:
    """Whichever camera lost it, the trigger's own too: the black picture stays with its part."""
    front = {f"p{number}.png": WHITE for number in range(1, 6)}
    left = {**front, "p4.png": BLACK}
    del (front if missing_in == "front" else left)["p3.png"]
    verdicts = run(folders(tmp_path, front, left), judge)

    assert outcome(verdicts) == {
        "p1.png": Decision.OK,
        "p2.png": Decision.OK,
        "p3.png": Decision.ERROR,
        "p4.png": Decision.DEFECT,
        "p5.png": Decision.OK,
    }
    reasons = {verdict.inspection.part.id: verdict.reason for verdict in verdicts}
    assert reasons["p3.png"] == f"capture: view {missing_in}: there is no picture named p3.png"
    assert reasons["p4.png"].startswith("view left: scratch ")


def test_pictures_that_only_the_second_folder_has_at_its_end_are_parts_too(tmp_path: Path, judge: ViewJudge) -> None:
    """Nobody is to believe that they were inspected."""
    verdicts = run(folders(tmp_path, {"p1.png": WHITE}, {"p1.png": WHITE, "p2.png": WHITE}), judge)

    assert outcome(verdicts) == {"p1.png": Decision.OK, "p2.png": Decision.ERROR}


def test_a_picture_that_cannot_be_read_is_an_error_of_its_part(tmp_path: Path, judge: ViewJudge) -> None:
    """With the view and the reason; the other view's result is told beside it."""
    verdicts = run(folders(tmp_path, {"a.png": BLACK, "b.png": WHITE}, {"a.png": None, "b.png": WHITE}), judge)

    assert outcome(verdicts) == {"a.png": Decision.ERROR, "b.png": Decision.OK}
    assert verdicts[0].reason.startswith("capture: view left: ")
    assert verdicts[0].reason.endswith("; also front: defect")
    assert [view.decision for view in verdicts[0].views] == [Decision.DEFECT, Decision.ERROR]


def test_a_loop_joins_each_pass_by_itself(tmp_path: Path, judge: ViewJudge) -> None:
    """`a.png#2` comes after `b.png`, whatever is missing."""
    cameras = folders(tmp_path, {"a.png": WHITE, "b.png": WHITE}, {"b.png": WHITE}, loop=True)
    verdicts = run(cameras, judge, limit=4)

    assert [(verdict.inspection.part.id, verdict.decision) for verdict in verdicts] == [
        ("a.png", Decision.ERROR),
        ("b.png", Decision.OK),
        ("a.png#2", Decision.ERROR),
        ("b.png#2", Decision.OK),
    ]


def test_a_folder_that_is_gone_keeps_its_parts_waiting(tmp_path: Path) -> None:
    """As with one camera: the disk comes back, and the parts with it; it is told which view is lost."""
    cameras = folders(tmp_path, {"a.png": WHITE}, {"a.png": WHITE})
    (tmp_path / "left").rename(tmp_path / "unplugged")

    assert not cameras.poll(0)
    lost = cameras.lost
    assert lost is not None
    assert lost.startswith("view left: the folder ")
    (tmp_path / "unplugged").rename(tmp_path / "left")
    assert cameras.poll(0)
    assert cameras.lost is None
    cameras.close()


NAMES = [f"p{number}.png" for number in range(12)]


@given(sets=st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=2, max_size=3))
@settings(max_examples=25, deadline=None)
def test_every_name_is_one_part_and_ok_only_where_all_views_have_it(
    tmp_path_factory: pytest.TempPathFactory, sets: list[set[str]]
) -> None:
    """Whatever is missing where."""
    tmp_path = tmp_path_factory.mktemp("views")
    cameras = folders(tmp_path, *(dict.fromkeys(names, WHITE) for names in sets))
    trigger, seen = EachFrame(cameras, kind="frame", prefix="p"), []
    while not trigger.ended:
        part = trigger.next(PATIENCE_S)
        assert part is not None
        captured = cameras.capture(part)
        seen.append((part.id, [isinstance(item, Frame) for item in captured]))
        assert all(Path(item.source).name == part.id for item in captured if isinstance(item, Frame))
        assert all(item.part == part for item in captured)
    cameras.close()

    expected = [(name, [name in names for names in sets]) for name in NAMES if any(name in names for names in sets)]
    assert seen == expected


# The worst decision


@pytest.mark.parametrize("front", [WHITE, DOUBTFUL, RED, None])
@pytest.mark.parametrize("left", [WHITE, DOUBTFUL, RED, None])
@pytest.mark.parametrize("right", [WHITE, RED, None])
def test_the_worst_decision_wins(
    bundle: Bundle, front: tuple[int, int, int] | None, left: tuple[int, int, int] | None, right: Any
) -> None:
    """Error, then defect, then review, then ok; in whichever view."""
    worst_first = [Decision.ERROR, Decision.DEFECT, Decision.REVIEW, Decision.OK]
    colours = (front, left, right)
    fault = Fault(part=part_of(), stage="capture", reason="unplugged")
    seen = [fault if colour is None else frame_of(plain_image(colour)) for colour in colours]
    verdict = judge_of(bundle, "front", "left", "right").judge(seen)
    each = [Decision.ERROR if colour is None else DECISIONS[colour] for colour in colours]

    assert [view.decision for view in verdict.views] == each
    assert verdict.decision is min(each, key=worst_first.index)
    deciding = verdict.views[each.index(verdict.decision)]
    assert (verdict.score, verdict.top) == (deciding.score, deciding.verdict.top)
    assert f"view {deciding.name}: " in f"view front: {verdict.reason}"
    for view in verdict.views:
        if view is not deciding and view.decision is not Decision.OK:
            assert f"{view.name}: {view.decision.value}" in verdict.reason.partition("; also ")[2]


def test_of_equal_decisions_the_higher_score_is_told(bundle: Bundle) -> None:
    """The picture that a person looks at first."""
    seen = [frame_of(plain_image(colour)) for colour in ((0, 0, 60), (0, 0, 0))]
    verdict = judge_of(bundle, "front", "left").judge(seen)
    scores = {view.name: view.score or 0.0 for view in verdict.views}

    assert verdict.decision is Decision.DEFECT
    assert verdict.score == max(scores.values())


def test_times_are_those_of_all_views(bundle: Bundle) -> None:
    """Capture ran at once; the engine was used one view after the other."""
    seen = [frame_of(plain_image(WHITE), capture_ms=ms) for ms in (3.0, 7.0)]
    verdict = judge_of(bundle, "front", "left").judge(seen)
    infer = [view.verdict.inspection.ms.infer for view in verdict.views]

    assert verdict.inspection.ms.capture == 7.0
    assert verdict.inspection.ms.infer == pytest.approx(sum(infer))


# Live cameras: joined by time


class Rig:
    """A triggered station with two live cameras in the test's hand."""

    def __init__(self, *, join: Any = "trigger", window_ms: float = PATIENCE_S * 1e3, delay_ms: float = 0.0) -> None:
        self.front, self.left = LiveCamera("front"), LiveCamera("left")
        soon = Moment(timeout_ms=PATIENCE_S * 1e3)
        late = Moment(timeout_ms=PATIENCE_S * 1e3, delay_ms=delay_ms)
        view = View(name="left", camera=TriggeredCamera(self.left, late), window_ms=window_ms, delay_ms=delay_ms)
        first = self.front if join == "first" else TriggeredCamera(self.front, soon)
        self.cameras = ViewCameras(first, [view], join=join)

    def be_patient(self) -> None:
        """From now on the second view may take as long as it likes."""
        reader = self.cameras._readers[0]
        reader.view = dataclasses.replace(reader.view, window_ms=PATIENCE_S * 1e3)


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**keys: Any) -> Rig:
        made.append(Rig(**keys))
        return made[-1]

    yield make
    for rig in made:
        rig.cameras.close()


def part_at(mono_ns: int, name: str = "P1") -> Part:
    return Part(id=name, trigger="tcp", sequence=1, triggered=Stamp(0, mono_ns))


def level(item: Frame | Fault) -> int:
    assert isinstance(item, Frame), item
    return level_of(item.image)


def reason(item: Frame | Fault) -> str:
    assert isinstance(item, Fault), item
    return item.reason


def test_both_cameras_expose_after_the_trigger(rigs: Callable[..., Rig]) -> None:
    """What they saw before is the part before."""
    rig, now = rigs(), time.monotonic_ns()
    for live in (rig.front, rig.left):
        live.show(noisy(20), exposed_ns=now - 5 * MS)
        live.show(noisy(70), exposed_ns=now + 1)
    seen = rig.cameras.capture(part_at(now))

    assert [level(item) for item in seen] == [70, 70]
    assert [item.part.id for item in seen] == ["P1", "P1"]


def test_a_view_that_is_late_is_an_error_and_its_picture_is_not_the_next_parts(
    rigs: Callable[..., Rig], judge: ViewJudge
) -> None:
    """It comes while the next part is taken: thrown away."""
    rig, now = rigs(window_ms=1), time.monotonic_ns()
    rig.front.show(noisy(200), exposed_ns=now)
    late = judge.judge(rig.cameras.capture(part_at(now)))
    rig.left.show(noisy(10), exposed_ns=now + 1)  # part one's, too late
    rig.left.wait_until_idle()

    assert late.decision is Decision.ERROR
    assert late.reason == "capture: view left: no picture within 1 ms of the first camera's"
    assert [view.name for view in late.views if view.decision is Decision.ERROR] == ["left"]

    rig.be_patient()
    rig.front.show(noisy(200), exposed_ns=now + 10 * MS)
    rig.left.show(noisy(60), exposed_ns=now + 10 * MS)
    seen = rig.cameras.capture(part_at(now + 9 * MS, "P2"))
    assert (level(seen[1]), seen[1].part.id) == (60, "P2")


class Hanging(LiveCamera):
    """Its driver comes back when the test says so; knows which parts it was read for."""

    def __init__(self) -> None:
        super().__init__("left")
        self.parts: list[str] = []
        self.is_back = threading.Event()

    def read(self, part: Part) -> Frame | Fault:
        self.parts.append(part.id)
        assert self.is_back.wait(PATIENCE_S)
        return dataclasses.replace(frame_of(noisy(90)), part=part)


def test_a_driver_that_hangs_is_not_read_for_parts_that_nobody_waits_for(judge: ViewJudge) -> None:
    """The line goes on meanwhile, with an error for each; then the next part gets its own picture."""
    front, left = LiveCamera("front"), Hanging()
    cameras = ViewCameras(front, [View(name="left", camera=left, window_ms=1)], join="trigger")
    for name in ("P1", "P2", "P3"):
        front.show(noisy(200))
        verdict = judge.judge(cameras.capture(part_of(name)))
        assert (verdict.inspection.part.id, verdict.decision) == (name, Decision.ERROR)
    left.is_back.set()
    cameras._readers[0].view = View(name="left", camera=left, window_ms=PATIENCE_S * 1e3)
    front.show(noisy(200))
    seen = cameras.capture(part_of("P4"))
    cameras.close()

    assert [(level(item), item.part.id) for item in seen] == [(200, "P4"), (90, "P4")]
    assert left.parts[-1] == "P4"
    assert len(left.parts) <= 2  # the one that hung, if its turn came in time


@pytest.mark.parametrize(("apart_ms", "is_in"), [(0, True), (9, True), (-9, True), (11, False), (-11, False)])
def test_a_picture_exposed_far_from_the_first_cameras_is_an_error(
    rigs: Callable[..., Rig], apart_ms: int, is_in: bool
) -> None:
    """The belt has moved on: it may be another part. The view's own delay is counted in."""
    rig, now = rigs(window_ms=10, delay_ms=40), time.monotonic_ns() - 200 * MS
    rig.front.show(noisy(70), exposed_ns=now + 20 * MS)
    rig.left.show(noisy(70), exposed_ns=now + (20 + 40 + apart_ms) * MS)
    rig.left.wait_until_idle()
    seen = rig.cameras.capture(part_at(now))

    assert isinstance(seen[1], Frame) == is_in
    if not is_in:
        assert reason(seen[1]) == (
            f"view left: exposed {apart_ms:+} ms from the first camera's picture, expected at most 10 ms"
        )


def test_where_the_first_cameras_frame_is_the_trigger_the_others_are_later_than_it(rigs: Callable[..., Rig]) -> None:
    """Free run: the part begins with that exposure, not when the line got it."""
    rig, now = rigs(join="first"), time.monotonic_ns()
    rig.front.show(noisy(70), exposed_ns=now - 100 * MS)
    rig.left.show(noisy(20), exposed_ns=now - 101 * MS)
    rig.left.show(noisy(80), exposed_ns=now - 99 * MS)
    rig.left.wait_until_idle()
    seen = rig.cameras.capture(part_at(now))

    assert [level(item) for item in seen] == [70, 80]
    assert {item.part.triggered.mono_ns for item in seen} == {now}


def test_a_lost_view_is_told_and_makes_errors_that_name_it(rigs: Callable[..., Rig], judge: ViewJudge) -> None:
    """The others go on being judged."""
    rig, now = rigs(), time.monotonic_ns()
    rig.left.lose("left: unplugged")
    rig.left.fail("left: unplugged")
    rig.left.wait_until_idle()
    rig.front.show(noisy(200), exposed_ns=now)
    verdict = judge.judge(rig.cameras.capture(part_at(now)))

    assert verdict.decision is Decision.ERROR
    assert "view left: left: unplugged" in verdict.reason
    assert rig.cameras.lost == "view left: left: unplugged"
    assert verdict.views[0].verdict.inspection.frame is not None


class Crashing(LiveCamera):
    """Raises, which no camera may."""

    def read(self, part: Part) -> Frame | Fault:
        raise RuntimeError("our bug")


def test_a_view_whose_camera_raises_is_an_error(judge: ViewJudge) -> None:
    """A bug in one camera stops neither the line nor the thread."""
    front = LiveCamera("front")
    cameras = ViewCameras(front, [View(name="left", camera=Crashing())], join="trigger")
    for _ in range(2):
        front.show(noisy(200))
        verdict = judge.judge(cameras.capture(part_of()))
        assert verdict.decision is Decision.ERROR
        assert verdict.reason == "capture: view left: unexpected RuntimeError: our bug"
    cameras.close()


def test_close_ends_the_threads_and_gives_every_camera_back(rigs: Callable[..., Rig]) -> None:
    """Twice is fine."""
    rig = rigs()
    rig.cameras.close()
    rig.cameras.close()

    assert rig.front.closed.wait(PATIENCE_S)
    assert rig.left.closed.wait(PATIENCE_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "view-left"]


def test_video_files_are_joined_by_their_order(tmp_path: Path) -> None:
    """One frame each per part; a file that ends first is a missing view."""
    write_video(tmp_path / "front.avi", [20, 60, 100])
    write_video(tmp_path / "left.avi", [30, 70])
    front, left = (
        OpenCvCamera(OpenCvCameraConfig(kind="opencv", name=name, source=str(tmp_path / f"{name}.avi")))
        for name in ("front", "left")
    )
    cameras = ViewCameras(front, [View(name="left", camera=left)], join="order")
    seen = []
    while cameras.poll(PATIENCE_S):
        seen.append(cameras.capture(part_of()))
    cameras.close()

    assert [level(item) for item, _ in seen] == [20, 60, 100]
    assert [level(item) for _, item in seen[:2]] == [30, 70]
    assert reason(seen[2][1]).startswith("view left: ")


# The configuration


def config(tmp_path: Path, **keys: Any) -> AgentConfig:
    raw = {
        "station": "a",
        "state_dir": "s",
        "bundle": "b.defect",
        "camera": {"kind": "opencv", "name": "front", "source": "/dev/video0"},
        **keys,
    }
    return config_from_mapping(AgentConfig, raw, source=tmp_path / "agent.yaml")


LIVE = {"kind": "opencv", "source": "/dev/video1"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"views": [{"name": "front", "camera": LIVE}]}, "views: got the names front, front, expected at most 16"),
        ({"views": [{"name": f"v{n}", "camera": LIVE} for n in range(16)]}, "expected at most 16 different ones"),
        ({"views": [{"name": "left", "camera": {"kind": "folder", "path": "p"}}]}, "views: left: got folder beside"),
        (
            {"views": [{"name": "left", "camera": LIVE, "window_ms": 10_001}]},
            "expected at most watchdog.stuck_s (10 s)",
        ),
        ({"views": [{"name": "left"}]}, "views[0].camera: missing"),
        (
            {"policy": {"zones": [{"name": "z", "box": [0, 0, 1, 1], "view": "top"}]}},
            "z: view: got top, expected one of",
        ),
    ],
)
def test_views_that_cannot_be_joined_are_refused(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    """Before any camera is opened."""
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **keys)

    assert words in caught.value.message


def test_how_views_are_joined_follows_from_cameras_and_trigger(tmp_path: Path) -> None:
    """Nobody has to say it."""
    live = [{"name": "left", "camera": LIVE}]
    video = [{"name": "left", "camera": {"kind": "opencv", "source": "left.avi"}}]
    files = {"kind": "folder", "path": "p", "name": "front"}
    interval = {"kind": "interval", "period_ms": 100}

    assert joined_by(config(tmp_path, camera=files, views=[{"name": "l", "camera": {**files, "name": "l"}}])) == "name"
    assert joined_by(config(tmp_path, views=live)) == "first"
    assert joined_by(config(tmp_path, views=live, trigger={"kind": "free"})) == "first"
    assert joined_by(config(tmp_path, views=live, trigger=interval)) == "trigger"
    assert joined_by(config(tmp_path, camera={"kind": "opencv", "source": "a.avi"}, views=video)) == "order"
    with pytest.raises(ConfigError, match="video files beside live cameras"):
        joined_by(config(tmp_path, views=video))


def test_each_view_has_its_own_region_zones_and_pixel_pitch(tmp_path: Path) -> None:
    """A zone without a view holds in all of them."""
    zones = [
        {"name": "all", "box": [0, 0, 9, 9]},
        {"name": "seal", "box": [0, 0, 9, 9], "view": "left"},
        {"name": "label", "box": [0, 0, 9, 9], "view": "front"},
    ]
    made = config(
        tmp_path,
        roi={"crop": [0, 0, 50, 50]},
        views=[{"name": "left", "camera": LIVE, "pixel_mm": 0.2}, {"name": "right", "camera": LIVE}],
        policy={"pixel_mm": 0.1, "zones": zones},
    )
    settings = view_settings(made)

    assert list(settings) == ["front", "left", "right"]
    assert [[zone.name for zone in each.policy.zones] for each in settings.values()] == [
        ["all", "label"],
        ["all", "seal"],
        ["all"],
    ]
    assert [each.policy.pixel_mm for each in settings.values()] == [0.1, 0.2, 0.1]
    assert [each.roi is not None for each in settings.values()] == [True, False, False]


def test_a_spot_in_the_second_view_is_found_in_its_own_region(tmp_path: Path) -> None:
    """The whole way for a detector: two views, two regions, one engine."""
    bundle = make_detector(tmp_path)
    made = config(
        tmp_path,
        views=[{"name": "left", "camera": LIVE, "roi": {"crop": [100, 20, 64, 64]}, "pixel_mm": 0.5}],
        policy={"pixel_mm": 0.1},
    )
    judge = judge_from_config(made, bundle, open_engine(bundle, EngineConfig()))
    left = dark_picture(200, 120)
    plant(left, "scratch", (120, 40, 12, 8), 0.9)
    verdict = judge.judge([frame_of(dark_picture(64, 64)), frame_of(left)])
    finding = verdict.top

    assert verdict.decision is Decision.DEFECT
    assert [view.decision for view in verdict.views] == [Decision.OK, Decision.DEFECT]
    assert finding is not None
    assert finding.box_px is not None
    assert finding.box_px[0] + finding.box_px[2] / 2 == pytest.approx(126, abs=4)
    assert finding.box_px[1] + finding.box_px[3] / 2 == pytest.approx(44, abs=4)
    assert finding.size_mm == pytest.approx(max(finding.box_px[2:]) * 0.5)
