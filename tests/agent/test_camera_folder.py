"""The folder camera: each picture is a part, in an order that people expect, and none is lost."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.cameras.folder import MAX_SKIPPED_PER_POLL, FolderCamera
from agent.config import FolderCameraConfig
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.pictures import encoded, flat, textured, write_pictures
from tests.kit.users import without_root

PART = Part(id="from the trigger", trigger="frame", sequence=7, triggered=Stamp.now())


class HandClock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def folder_camera(
    path: Path,
    *,
    judged: Callable[[str], bool] = lambda _part_id: False,
    clock: Callable[[], float] | None = None,
    **config: Any,
) -> FolderCamera:
    """A folder camera with this configuration."""
    whole = FolderCameraConfig(kind="folder", path=path, **config)
    return (
        FolderCamera(whole, is_judged=judged) if clock is None else FolderCamera(whole, is_judged=judged, clock=clock)
    )


def ids_of(camera: FolderCamera, at_most: int = 100) -> list[str]:
    """The part ids of everything that can be read without waiting."""
    ids: list[str] = []
    while len(ids) < at_most and not camera.ended:
        if camera.poll(0):
            ids.append(id_read(camera))
    return ids


def id_read(camera: FolderCamera) -> str:
    """The part id of the next picture, which is read."""
    part_id = camera.upcoming
    assert part_id is not None
    assert isinstance(camera.read(PART), Frame)
    return part_id


def opening_refusal(path: Path) -> CameraError:
    """What is said when the folder can't be opened."""
    with pytest.raises(CameraError) as caught:
        folder_camera(path)
    assert caught.value.hint
    return caught.value


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A typing error in the path must not look like an empty line."""
    assert "no such folder" in opening_refusal(tmp_path / "none").message


def test_a_file_is_refused(tmp_path: Path) -> None:
    """A folder is expected."""
    (tmp_path / "a.png").write_bytes(encoded(flat(10)))

    assert "a.png: no such folder" in opening_refusal(tmp_path / "a.png").message


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """The message says that other files are there, and the hint which ones would be pictures."""
    (tmp_path / "labels.csv").touch()
    error = opening_refusal(tmp_path)

    assert "no picture in it, 1 other files" in error.message
    assert ".png" in str(error.hint)


def test_a_sub_folder_that_can_not_be_listed_is_refused(tmp_path: Path) -> None:
    """Leaving it out would lose its parts without a word."""
    shown = write_pictures(tmp_path / "shown", ["a.png", "secret/b.png"])
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    (shown / "secret").chmod(0)

    with without_root():
        assert "can't be listed (Permission denied)" in opening_refusal(shown).message


def test_a_truncated_picture_is_a_fault_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """One bad file must neither pass nor end the line."""
    write_pictures(tmp_path, ["1.png", "2.jpg", "3.png"])
    (tmp_path / "2.jpg").write_bytes(encoded(textured(), ".jpg")[:1000])
    camera = folder_camera(tmp_path)

    results = [camera.read(PART) for _ in range(3)]

    fault = results[1]
    assert isinstance(fault, Fault)
    assert fault.part == PART
    assert fault.stage == "capture"
    assert "truncated JPEG" in fault.reason
    assert isinstance(results[2], Frame)


def test_a_picture_that_has_vanished_is_a_fault(tmp_path: Path) -> None:
    """It was listed, so it is a part, so it gets a verdict."""
    write_pictures(tmp_path, ["1.png", "2.png"])
    camera = folder_camera(tmp_path)
    (tmp_path / "1.png").unlink()

    fault = camera.read(PART)

    assert isinstance(fault, Fault)
    assert "1.png: can't be read (No such file or directory)" in fault.reason


def test_a_picture_over_the_limit_is_a_fault(tmp_path: Path) -> None:
    """The limit of the configuration is the one that holds."""
    write_pictures(tmp_path, ["1.png"])
    fault = folder_camera(tmp_path, max_pixels=100).read(PART)

    assert isinstance(fault, Fault)
    assert "megapixels" in fault.reason


def test_a_folder_that_is_gone_is_a_lost_camera_until_it_is_back(tmp_path: Path) -> None:
    """An unplugged disk must not turn every picture that is left into an error verdict."""
    folder = write_pictures(tmp_path / "in", ["1.png", "2.png"])
    camera = folder_camera(folder)
    assert camera.poll(0)
    folder.rename(tmp_path / "away")

    assert not camera.poll(0)
    assert "is gone" in str(camera.lost)
    assert not camera.ended

    (tmp_path / "away").rename(folder)

    assert ids_of(camera) == ["1.png", "2.png"]
    assert camera.lost is None


def test_a_triggered_folder_that_is_gone_is_lost_and_comes_back_by_itself(tmp_path: Path) -> None:
    """Nobody polls it: who asks is told, before the next trigger and without one; the pictures wait for their parts."""
    folder = write_pictures(tmp_path / "in", ["1.png", "2.png"])
    camera = folder_camera(folder)
    folder.rename(tmp_path / "away")
    before_any = camera.lost
    faults = [camera.read(PART) for _ in range(5)]
    ended = camera.ended
    (tmp_path / "away").rename(folder)
    after = camera.lost
    frames = [camera.read(PART) for _ in range(2)]

    assert before_any == f"the folder {folder} is gone, or may not be read any more"
    assert [fault.reason for fault in faults if isinstance(fault, Fault)] == [before_any] * 5
    assert not ended
    assert after is None
    assert [Path(frame.source).name for frame in frames if isinstance(frame, Frame)] == ["1.png", "2.png"]


def test_a_part_that_bears_its_pictures_name_is_over_when_the_folder_goes(tmp_path: Path) -> None:
    """It has its verdict, an error: another part of the same name would be a second one."""
    folder = write_pictures(tmp_path / "in", ["1.png", "2.png"])
    camera = folder_camera(folder)
    assert camera.poll(0)
    folder.rename(tmp_path / "away")
    fault = camera.read(Part(id="1.png", trigger="frame", sequence=1, triggered=Stamp.now()))

    assert isinstance(fault, Fault)
    assert "is gone" in fault.reason
    assert camera.upcoming == "2.png"


def test_names_that_can_not_be_printed_get_printable_ids_that_differ(tmp_path: Path) -> None:
    """Ids go into logs, JSON and MQTT; two pictures must not share one, or the second would count as judged."""
    names = [b"a\nb.png", b"a\tb.png", b"caf\xe9.png", b"caf\xe8.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(flat(10)))
    ids = ids_of(folder_camera(tmp_path))

    assert len(set(ids)) == 4
    assert all(part_id.isprintable() for part_id in ids)


def test_long_names_get_ids_of_at_most_200_characters_that_differ(tmp_path: Path) -> None:
    """The end of a path tells more than its beginning; the rest is told by a digest."""
    deep = f"{'d' * 150}/{'e' * 150}"
    write_pictures(tmp_path, [f"{deep}/1.png", f"f{deep}/1.png"])
    first, second = ids_of(folder_camera(tmp_path))

    assert max(len(first), len(second)) <= 200
    assert first != second
    assert "/1.png~" in first


def test_numbers_in_names_count(tmp_path: Path) -> None:
    """`img_2` was taken before `img_10`, whatever their letters say; each sub-folder stays together."""
    in_order = ["a/img_2.png", "a/img_10.png", "a-b/img_1.png", "img_02.png", "img_2.png", "img_3.jpg", "img_10.png"]
    write_pictures(tmp_path, reversed(in_order))

    assert ids_of(folder_camera(tmp_path)) == in_order


def test_other_files_are_left_alone_and_counted(tmp_path: Path) -> None:
    """Labels lie beside pictures, and systems leave files of their own."""
    write_pictures(tmp_path, ["1.PNG", "2.Jpeg"])
    for name in ("labels.csv", "Thumbs.db", ".hidden.png", "anim.gif", "png"):
        (tmp_path / name).touch()
    write_pictures(tmp_path, [".cache/3.png"])
    camera = folder_camera(tmp_path)

    assert (camera.total, camera.ignored) == (2, 6)
    assert ids_of(camera) == ["1.PNG", "2.Jpeg"]


def test_links_that_lead_out_are_left_alone(tmp_path: Path) -> None:
    """A link must not make the agent read the rest of the disk, nor go round in circles."""
    write_pictures(tmp_path / "outside", ["secret.png"])
    folder = write_pictures(tmp_path / "in", ["1.png"])
    (folder / "2.png").symlink_to("1.png")
    (folder / "3.png").symlink_to("../outside/secret.png")
    (folder / "4.png").symlink_to("nowhere.png")
    (folder / "circle").symlink_to(folder)
    (folder / "out").symlink_to("../outside")
    camera = folder_camera(folder)

    assert ids_of(camera) == ["1.png", "2.png"]
    assert camera.ignored == 4


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    """Plants link `current` to the folder of the day."""
    write_pictures(tmp_path / "today", ["1.png"])
    (tmp_path / "current").symlink_to("today")

    assert ids_of(folder_camera(tmp_path / "current")) == ["1.png"]


def test_a_frame_names_its_file(tmp_path: Path) -> None:
    """Also one whose name is no UTF-8, which goes into a JSON message."""
    name = os.fsdecode(b"caf\xe9.png")
    frame = folder_camera(write_pictures(tmp_path, [name])).read(PART)

    assert isinstance(frame, Frame)
    assert frame.source == f"{tmp_path}/caf\\xe9.png"


def test_the_upcoming_picture_is_named_until_the_end(tmp_path: Path) -> None:
    """The trigger names the part by it; there is no name for nothing."""
    camera = folder_camera(write_pictures(tmp_path, ["1.png", "2.png"]))
    names = [camera.upcoming]
    camera.read(PART)
    names.append(camera.upcoming)
    camera.read(PART)
    names.append(camera.upcoming)

    assert names == ["1.png", "2.png", None]


def test_judged_pictures_are_passed_over(tmp_path: Path) -> None:
    """A station that was killed goes on where it was, without judging a part twice."""
    write_pictures(tmp_path, [f"{i}.png" for i in range(1, 6)])
    camera = folder_camera(tmp_path, judged={"1.png", "2.png", "4.png"}.__contains__)

    assert ids_of(camera) == ["3.png", "5.png"]
    assert camera.already_judged == 3


def test_without_resume_the_journal_is_not_asked(tmp_path: Path) -> None:
    """A replay judges everything again."""
    camera = folder_camera(write_pictures(tmp_path, ["1.png"]), resume=False, judged=lambda _part_id: True)

    assert ids_of(camera) == ["1.png"]


def test_when_everything_was_judged_the_camera_ends(tmp_path: Path) -> None:
    """Starting a finished acceptance run again is no error."""
    camera = folder_camera(write_pictures(tmp_path, ["1.png", "2.png"]), judged=lambda _part_id: True)

    assert not camera.poll(0)
    assert camera.ended


def test_a_long_resume_comes_back_in_between(tmp_path: Path) -> None:
    """The line must be able to feed its watchdog and to stop while a hundred thousand pictures are passed over."""
    one = encoded(flat(10, 1, 1))
    count = MAX_SKIPPED_PER_POLL + 1
    for i in range(count):
        (tmp_path / f"{i}.png").write_bytes(one)
    camera = folder_camera(tmp_path, judged=lambda part_id: part_id != f"{count - 1}.png")

    assert not camera.poll(0)
    assert not camera.ended
    assert camera.poll(0)
    assert id_read(camera) == f"{count - 1}.png"
    assert camera.ended


def test_a_loop_gives_new_names_to_later_passes(tmp_path: Path) -> None:
    """Each pass is new parts, and a resumed loop goes on in the pass where it was."""
    write_pictures(tmp_path, ["1.png", "2.png"])

    assert ids_of(folder_camera(tmp_path, loop=True), 5) == ["1.png", "2.png", "1.png#2", "2.png#2", "1.png#3"]
    judged = {"1.png", "2.png", "1.png#2"}
    assert ids_of(folder_camera(tmp_path, loop=True, judged=judged.__contains__), 2) == ["2.png#2", "1.png#3"]


def test_a_loop_in_which_all_is_judged_does_not_hang(tmp_path: Path) -> None:
    """It only never finds anything."""
    camera = folder_camera(write_pictures(tmp_path, ["1.png"]), loop=True, judged=lambda _part_id: True)

    assert not camera.poll(0)


def test_a_replay_gives_pictures_when_they_are_due(tmp_path: Path) -> None:
    """The n-th picture is due n periods after the first, not one period after the one before."""
    clock = HandClock()
    write_pictures(tmp_path, [f"{i}.png" for i in range(1, 8)])
    camera = folder_camera(tmp_path, rate_hz=10, clock=clock)

    assert camera.poll(0)
    camera.read(PART)
    assert not camera.poll(0)
    clock.now_s = 1000.16
    assert camera.poll(0)
    camera.read(PART)
    clock.now_s = 1000.19
    assert not camera.poll(0)
    clock.now_s = 1000.21
    assert camera.poll(0)


def test_a_replay_that_fell_behind_catches_up(tmp_path: Path) -> None:
    """None is left out, as on a line that has a buffer."""
    clock = HandClock()
    write_pictures(tmp_path, [f"{i}.png" for i in range(1, 8)])
    camera = folder_camera(tmp_path, rate_hz=10, clock=clock)
    assert camera.poll(0)
    camera.read(PART)
    clock.now_s = 1000.35

    due = []
    while camera.poll(0):
        due.append(id_read(camera))

    assert due == ["2.png", "3.png", "4.png"]


def test_the_schedule_begins_with_the_first_poll(tmp_path: Path) -> None:
    """Loading a model between opening and the first part makes no burst."""
    clock = HandClock()
    camera = folder_camera(write_pictures(tmp_path, ["1.png", "2.png"]), rate_hz=1, clock=clock)
    clock.now_s = 1060.0

    assert camera.poll(0)
    camera.read(PART)
    assert not camera.poll(0)


def test_a_poll_waits_for_a_picture_that_is_due_in_time(tmp_path: Path) -> None:
    """The real clock, without a statement about how long it took."""
    camera = folder_camera(write_pictures(tmp_path, ["1.png", "2.png"]), rate_hz=20)
    assert camera.poll(0)
    camera.read(PART)

    assert camera.poll(30)


def test_close_wakes_a_poll_that_waits(tmp_path: Path) -> None:
    """A stop does not wait for the next picture of a slow replay."""
    camera = folder_camera(write_pictures(tmp_path, ["1.png", "2.png"]), rate_hz=0.001)
    camera.poll(0)
    camera.read(PART)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(camera.poll(500)))
    waiting.start()
    camera.close()
    waiting.join(20)

    assert answers == [False]
    assert camera.ended


def test_files_that_come_later_are_not_seen(tmp_path: Path) -> None:
    """The list is made once, so that a run is what it was when it began."""
    write_pictures(tmp_path, ["1.png"])
    camera = folder_camera(tmp_path)
    shutil.copy(tmp_path / "1.png", tmp_path / "2.png")

    assert ids_of(camera) == ["1.png"]
