"""Distillation: who may teach, what is learned from it, and that it repeats itself, interrupted or not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from agent.bundle import ClassSpec
from agent.errors import BundleError
from optimize.dataset import read_dataset
from optimize.ensemble import merge_folds
from optimize.errors import DataError, ModelError, OptimizeError
from tests.kit.bundles import make_bundle
from tests.kit.float_models import CLASSES, conv_classifier, picture, write_model, write_parts
from tests.kit.rungs import with_weights

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from agent.console import Program
from optimize.augment import Augmentation
from optimize.detect.export import export_detector
from optimize.distill import (
    DistillResult,
    FileTeacher,
    NetworkTeacher,
    Shares,
    Source,
    distill,
    open_teacher,
    read_unlabelled,
)
from optimize.distill.teacher import at_size
from optimize.export import export_onnx, normalize
from optimize.networks import build_network
from optimize.networks.detectors.detector import build_detector
from optimize.train import Progress, TrainConfig, train

pytestmark = pytest.mark.torch

PROGRAM = Program(name="defect-opt", description="", commands=("optimize.cli.distill",), version="0")
QUICK = TrainConfig(arch="tiny", epochs=2, batch=8, size_px=32, threads=1, lr=0.05)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three classes on grey noise, with splits."""
    return write_parts(tmp_path / "parts", {"train": 6, "val": 4, "test": 2})


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A flat folder of pictures that nobody labelled."""
    rng = np.random.default_rng(9)
    (tmp_path / "line").mkdir()
    for i in range(48):
        assert cv2.imwrite(str(tmp_path / f"line/{i:02d}.png"), picture(CLASSES[i % 3], rng))
    return tmp_path / "line"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A teacher that knows the three classes: fixed filters and a head that was solved for."""
    return write_model(tmp_path / "large.onnx")


def renamed(path: Path, out: Path, classes: list[str]) -> Path:
    """The same model with other names for its classes."""
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes)})
    out.write_bytes(model.SerializeToString())
    return out


def distilled(
    teacher: Path | FileTeacher, parts: Path | None, out: Path, config: TrainConfig = QUICK, **more: object
) -> DistillResult:
    opened = teacher if isinstance(teacher, FileTeacher) else open_teacher([teacher])
    unlabelled = more.pop("unlabelled", None)
    source = Source(
        labelled=None if parts is None else read_dataset(parts),
        unlabelled=read_unlabelled(unlabelled) if isinstance(unlabelled, Path) else None,
    )
    shares = more.pop("shares", Shares())
    assert isinstance(shares, Shares)
    return distill(config, opened, shares, source, out, **more)  # type: ignore[arg-type]


def looks(count: int = 6) -> NDArray[np.uint8]:
    """(count, 32, 32, 3) uint8, grey."""
    rng = np.random.default_rng(4)
    return np.stack([picture(CLASSES[i % 3], rng) for i in range(count)])


# Who may teach.


def test_what_is_no_model_can_not_teach(tmp_path: Path) -> None:
    """A wrong file is named, before anything is trained."""
    (tmp_path / "notes.onnx").write_text("not a model")

    with pytest.raises(ModelError, match=r"notes\.onnx: is no ONNX model"):
        open_teacher([tmp_path / "notes.onnx"])
    with pytest.raises(ModelError, match=r"gone\.onnx: no such file"):
        open_teacher([tmp_path / "gone.onnx"])
    with pytest.raises(OptimizeError, match="got no file"):
        open_teacher([])


def test_a_model_that_does_not_name_its_classes_can_not_teach(tmp_path: Path) -> None:
    """Guessing their order would teach scratches as spots."""
    silent = write_model(tmp_path / "silent.onnx", with_classes=False)

    with pytest.raises(ModelError, match="does not say which classes its 3 outputs are"):
        open_teacher([silent])


def test_a_teacher_of_other_classes_is_refused_with_both_lists(large: Path, parts: Path, tmp_path: Path) -> None:
    """What is missing, and what is strange, by name."""
    other = renamed(large, tmp_path / "other.onnx", ["ok", "scratch", "dent"])

    with pytest.raises(ModelError) as caught:
        distilled(other, parts, tmp_path / "out.onnx")

    assert "does not know spot" in caught.value.message
    assert "knows dent" in caught.value.message
    assert not (tmp_path / "out.onnx").exists()


def test_teachers_that_disagree_about_classes_are_refused(large: Path, tmp_path: Path) -> None:
    """An average over different questions is no answer."""
    other = renamed(large, tmp_path / "other.onnx", ["ok", "scratch", "dent"])

    with pytest.raises(ModelError, match=r"other\.onnx: does not know spot"):
        open_teacher([large, other])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"label_weight": -0.1}, "label-weight: got -0.1"),
        ({"label_weight": 1.1}, "label-weight: got 1.1"),
        ({"feature_weight": -1.0}, "feature-weight: got -1.0"),
    ],
)
def test_shares_that_make_no_sense_are_refused(change: dict[str, float], words: str) -> None:
    """Before an image is read."""
    with pytest.raises(OptimizeError, match=words):
        Shares(**change)


def test_nothing_to_learn_from_is_refused(large: Path, tmp_path: Path) -> None:
    """No folder, an empty one, one with a handful of pictures, one that is all for judging."""
    with pytest.raises(DataError, match="got no images"):
        Source()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image found"):
        read_unlabelled(tmp_path / "empty")
    judged = write_parts(tmp_path / "judged", {"val": 2, "test": 2})
    with pytest.raises(DataError, match="no image is in a split to learn from"):
        read_unlabelled(judged)
    few = write_parts(tmp_path / "few", {"train": 2})
    with pytest.raises(DataError, match="got 6 unlabelled images, expected at least 8"):
        distilled(large, None, tmp_path / "out.onnx", unlabelled=few)


def test_pictures_of_the_test_split_are_refused_as_unlabelled_ones(
    large: Path, parts: Path, line: Path, tmp_path: Path
) -> None:
    """Under another name, too: taught on them, every test number would be better than it is."""
    (line / "fresh.png").write_bytes((parts / "images/test_ok_000.png").read_bytes())

    with pytest.raises(DataError, match=r"1 of 49 unlabelled images are in the test split: fresh\.png"):
        distilled(large, parts, tmp_path / "out.onnx", unlabelled=line)


def saved_again(source: Path, out: Path) -> None:
    """The same pixels in another file format."""
    pixels = cv2.imread(str(source))
    assert pixels is not None
    assert cv2.imwrite(str(out), pixels)


def test_pictures_of_the_test_split_are_refused_in_another_file_format_too(
    large: Path, parts: Path, line: Path, tmp_path: Path
) -> None:
    """By their pixels: the bytes are others, what is learned is not."""
    saved_again(parts / "images/test_ok_000.png", line / "fresh.bmp")

    with pytest.raises(DataError, match=r"1 of 49 unlabelled images are in the test split: fresh\.bmp"):
        distilled(large, parts, tmp_path / "out.onnx", unlabelled=line)


@pytest.mark.parametrize("link", ["itself", "another spelling", "a symbolic link", "a hard link"])
def test_a_student_never_takes_the_place_of_its_teacher(large: Path, parts: Path, link: str) -> None:
    """It would be lost, and with it what everything is compared with."""
    before, out = large.read_bytes(), large.with_name("link.onnx")
    if link == "a symbolic link":
        out.symlink_to(large)
    elif link == "a hard link":
        out.hardlink_to(large)
    else:
        out = large if link == "itself" else large.parent / "parts" / ".." / large.name

    with pytest.raises(OptimizeError, match="is the teacher itself"):
        distilled(large, parts, out)

    assert large.read_bytes() == before
    assert not list(large.parent.glob("*.train"))


def test_a_teacher_that_gives_no_numbers_is_named(parts: Path, tmp_path: Path) -> None:
    """Not the loss that it ruins, nor the learning rate."""

    def spoil(arrays: dict[str, Any]) -> None:
        arrays["bias"][:] = np.nan

    (tmp_path / "nan.onnx").write_bytes(with_weights(spoil))

    with pytest.raises(ModelError, match=r"nan\.onnx: the teacher gives NaN or infinity"):
        distilled(tmp_path / "nan.onnx", parts, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match=r"nan\.onnx: the teacher gives NaN or infinity"):
        open_teacher([tmp_path / "nan.onnx"]).judge(read_dataset(parts).samples[:1])


def test_a_teacher_that_is_often_wrong_or_smaller_than_its_student_is_named(
    large: Path, parts: Path, tmp_path: Path
) -> None:
    """Neither is forbidden, but nobody wants it unseen."""
    wrong = renamed(large, tmp_path / "wrong.onnx", ["spot", "ok", "scratch"])

    found = distilled(wrong, parts, tmp_path / "a.onnx", dataclasses.replace(QUICK, epochs=1))

    assert any("the teacher is right on 0.00% of val only" in notice for notice in found.notices)
    own = found.teacher.parameters
    assert own == sum(math.prod(t.dims) for t in onnx.load(str(large)).graph.initializer)
    assert any(f"more than its teacher's {own:,}: nothing gets smaller" in notice for notice in found.notices)
    good = distilled(tmp_path / "a.onnx", parts, tmp_path / "b.onnx", dataclasses.replace(QUICK, epochs=1))
    assert not any("nothing gets smaller" in notice for notice in good.notices)


def test_features_that_the_teacher_does_not_give_are_refused(large: Path, parts: Path, tmp_path: Path) -> None:
    """A weight on nothing would quietly do nothing."""
    model = onnx.load(str(large))
    del model.graph.output[1]
    (tmp_path / "mute.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match="feature-weight: the teacher gives no features"):
        distilled(tmp_path / "mute.onnx", parts, tmp_path / "out.onnx", shares=Shares(feature_weight=1.0))


# What a teacher says.


def test_a_file_says_what_its_network_says(tmp_path: Path) -> None:
    """The same lesson from torch and from ONNX Runtime, features too; grey or colour."""
    torch.manual_seed(1)
    network = build_network("tiny", 3, in_channels=1).eval()
    with torch.no_grad():
        network.head.weight.mul_(100)
    config = dataclasses.replace(QUICK, size_px=32)
    export_onnx(network, tmp_path / "tiny.onnx", config.spec, CLASSES, arch="tiny")
    inputs = normalize(looks()[..., :1])

    from_torch, from_file = NetworkTeacher(network)(inputs), open_teacher([tmp_path / "tiny.onnx"])(inputs)

    assert from_file.features is not None
    assert from_torch.features is not None
    assert torch.allclose(from_torch.logits, from_file.logits, atol=1e-4)
    assert torch.allclose(from_torch.features, from_file.features, atol=1e-4)
    assert not from_torch.logits.requires_grad


def test_a_teacher_does_not_change_when_its_network_is_trained_on() -> None:
    """The original may be pruned while its copy teaches."""
    network = build_network("tiny", 3, in_channels=1)
    teacher, inputs = NetworkTeacher(network), normalize(looks()[..., :1])
    before = teacher(inputs).logits

    with torch.no_grad():
        network.head.weight.add_(1)

    assert torch.equal(teacher(inputs).logits, before)
    assert network.training


def test_classes_are_matched_by_name(large: Path, tmp_path: Path) -> None:
    """Their order in the file does not matter."""
    teacher, inputs = open_teacher([large]), normalize(looks())

    turned = teacher.for_classes(["spot", "ok", "scratch"])

    assert torch.equal(turned(inputs).logits, teacher(inputs).logits[:, [2, 0, 1]])
    samples = read_dataset(write_parts(tmp_path / "few", {"train": 1})).samples
    assert np.allclose(turned.judge(samples), teacher.judge(samples)[:, [2, 0, 1]])


def test_a_bundle_teaches_by_its_float_graph(large: Path, tmp_path: Path) -> None:
    """What the INT8 graph lost is no lesson; the digest is the bundle's own."""
    classes = tuple(ClassSpec(name=name, severity="ok" if name == "ok" else "major") for name in CLASSES)
    quiet = conv_classifier(normalization="imagenet")
    bundle = make_bundle(tmp_path, graph=large.read_bytes(), files={"model.cpu.onnx": quiet}, classes=classes)
    inputs = normalize(looks())

    teacher = open_teacher([bundle.path])

    assert torch.equal(teacher(inputs).logits, open_teacher([large])(inputs).logits)
    assert teacher.classes == CLASSES
    assert teacher.digest == bundle.digest


def test_an_ensemble_of_folds_is_one_teacher(tmp_path: Path) -> None:
    """One file, the mean of what its members say."""
    torch.manual_seed(2)
    folds = []
    for i in range(2):
        network = build_network("tiny", 3).eval()
        export_onnx(network, tmp_path / f"fold{i}.onnx", QUICK.spec, CLASSES, arch="tiny")
        folds.append(tmp_path / f"fold{i}.onnx")
    merge_folds(folds, tmp_path / "ensemble.onnx", [1.0, 2.0])
    inputs = normalize(looks())
    wanted = (open_teacher(folds[:1])(inputs).logits + open_teacher(folds[1:])(inputs).logits / 2) / 2

    found = open_teacher([tmp_path / "ensemble.onnx"])(inputs)

    assert torch.allclose(found.logits, wanted, atol=1e-4)
    assert found.features is not None
    assert found.features.shape == (6, 256)


def test_a_detector_or_a_damaged_bundle_can_not_teach(tmp_path: Path) -> None:
    """Each is refused in one sentence."""
    (tmp_path / "broken.defect").write_bytes(b"PK\x03\x04 and nothing else")

    with pytest.raises(BundleError, match=r"broken\.defect"):
        open_teacher([tmp_path / "broken.defect"])
    detector, spec, out = build_detector("yolo-lite0", 2).eval(), QUICK.spec, tmp_path / "boxes.onnx"
    export_detector(detector, out, spec, detector.spec(32, 32), ("dent", "pit"), arch="yolo-lite0")
    with pytest.raises(ModelError, match="is a detector, expected a classifier"):
        open_teacher([out])


def test_several_teachers_are_averaged_by_probability(large: Path, tmp_path: Path) -> None:
    """In numpy: the mean of the softmaxes, whatever the order of their classes; features one after the other."""
    loud = write_model(tmp_path / "loud.onnx", normalization="imagenet")
    turned = renamed(loud, tmp_path / "turned.onnx", ["spot", "ok", "scratch"])
    inputs = normalize(looks())
    first, second = (open_teacher([path])(inputs).logits.double().numpy() for path in (large, turned))
    shares = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (first, second[:, [1, 2, 0]])]

    taught = open_teacher([large, turned])(inputs)

    assert taught.features is not None
    assert np.allclose(taught.logits.exp().numpy(), (shares[0] + shares[1]) / 2, atol=1e-5)
    assert taught.features.shape == (6, 32)


def test_a_teacher_sees_the_students_picture_at_its_own_size(large: Path) -> None:
    """A student of 64 pixels and a teacher of 32: the picture is averaged over areas, not sampled."""
    small = looks()
    doubled = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)

    found, wanted = (open_teacher([large])(normalize(images)).logits for images in (doubled, small))

    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("size", [7, 10, 15, 31])
def test_shrinking_is_the_devices(size: int) -> None:
    """OpenCV's average over areas, also where the factor is no whole number."""
    image = np.random.default_rng(0).random((31, 31), dtype=np.float32)

    found = at_size(torch.from_numpy(image)[None, None], size, size)[0, 0].numpy()

    assert np.allclose(found, cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), atol=1e-5)


# What is learned.


def test_a_student_learns_from_pictures_that_nobody_labelled(large: Path, line: Path, tmp_path: Path) -> None:
    """From its teacher alone; and on pictures that it never saw it says the same."""
    plain = Augmentation(min_area=0.5, light=0, blur=0, noise=0, cutout=0)
    config = dataclasses.replace(QUICK, epochs=60, augmentation=plain)

    result = distilled(large, None, tmp_path / "tiny.onnx", config, unlabelled=line)

    fresh = read_dataset(write_parts(tmp_path / "fresh", {"test": 10}, seed=3)).samples
    teacher = open_teacher([large])
    student = open_teacher([tmp_path / "tiny.onnx"])
    same = (student.judge(fresh).argmax(1) == teacher.judge(fresh).argmax(1)).mean()
    assert same > 0.8
    assert result.student.classes == CLASSES
    assert result.compared.teacher is None
    assert (result.labelled, result.unlabelled) == (0, 48 - result.compared.n)
    assert result.report()["distillation"]["chosen_by"] == "agreement with the teacher"


def test_labels_and_unlabelled_pictures_are_learned_from_together(
    large: Path, parts: Path, line: Path, tmp_path: Path
) -> None:
    """The labels' own loss reads labelled pictures only; labelled ones among the others are left out."""
    saved_again(parts / "images/train_ok_000.png", line / "again.bmp")

    result = distilled(large, parts, tmp_path / "tiny.onnx", unlabelled=line)

    assert (result.labelled, result.unlabelled) == (18, 48)
    assert result.student.counts == (6, 6, 6)
    assert any("1 of 49 unlabelled images are labelled ones" in notice for notice in result.notices)
    assert result.compared.teacher is not None
    assert result.compared.teacher.accuracy >= 0.9


def test_an_image_of_test_is_never_decoded(large: Path, parts: Path, tmp_path: Path) -> None:
    """Broken files there must go unnoticed."""
    for path in (parts / "images").glob("test_*.png"):
        path.write_bytes(b"")

    result = distilled(large, parts, tmp_path / "m.onnx")

    assert {split: len(files) for split, files in result.student.files.items()} == {"train": 18, "val": 12}


def test_the_same_seed_gives_the_same_file_and_the_teacher_counts(large: Path, parts: Path, tmp_path: Path) -> None:
    """To the byte; another weight of the labels gives another one, and so does training without a teacher."""
    first = distilled(large, parts, tmp_path / "a.onnx").student.sha256

    again = distilled(large, parts, tmp_path / "b.onnx").student.sha256
    other = distilled(large, parts, tmp_path / "c.onnx", shares=Shares(label_weight=0.9)).student.sha256
    alone = train(QUICK, read_dataset(parts), tmp_path / "d.onnx").sha256

    assert again == first
    assert len({first, other, alone}) == 3


def stop_after(epochs: int) -> Callable[[Progress], None]:
    """As if someone pressed Ctrl-C in the middle of the next epoch."""

    def progress(where: Progress) -> None:
        if where.epoch > epochs:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("feature_weight", [0.0, 5.0])
def test_an_interrupted_run_ends_as_one_that_was_not(
    large: Path, parts: Path, line: Path, tmp_path: Path, feature_weight: float
) -> None:
    """The projection of the features goes on where it was, too."""
    shares = Shares(feature_weight=feature_weight)
    whole = distilled(large, parts, tmp_path / "whole.onnx", shares=shares, unlabelled=line)
    with pytest.raises(KeyboardInterrupt):
        distilled(large, parts, tmp_path / "cut.onnx", shares=shares, unlabelled=line, progress=stop_after(1))

    resumed = distilled(large, parts, tmp_path / "cut.onnx", shares=shares, unlabelled=line)

    assert resumed.student.resumed_at == 1
    assert resumed.student.sha256 == whole.student.sha256


def test_a_checkpoint_of_another_lesson_is_refused(large: Path, parts: Path, tmp_path: Path) -> None:
    """Half of one teacher and half of another is a student that nobody can make again."""
    out = tmp_path / "m.onnx"
    distilled(large, parts, out)
    loud = write_model(tmp_path / "loud.onnx", loudness=2.0)

    with pytest.raises(OptimizeError, match="is of a run with teacher"):
        distilled(loud, parts, out)
    with pytest.raises(OptimizeError, match=r"is of a run with temperature 2\.0, this one has 4\.0"):
        distilled(large, parts, out, shares=Shares(temperature=4.0))
    with pytest.raises(OptimizeError, match=r"this one has None"):
        train(QUICK, read_dataset(parts), out)


# The command.


def arguments(large: Path, parts: Path, out: Path, *more: str) -> list[str]:
    recipe = ["--size", "32", "--batch", "8", "--threads", "1", "--epochs", "2", "--lr", "0.05"]
    given = ["--teacher", str(large), "--student", "tiny", "--data", str(parts), "--out", str(out)]
    return ["distill", *given, *recipe, "--ledger", str(out.parent / "ledger.jsonl"), *more]


def test_json_tells_of_teacher_and_student(
    large: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One document; the card beside the model and the ledger say the same."""
    out = tmp_path / "tiny.onnx"

    code = PROGRAM.main(arguments(large, parts, out, "--json"))

    report = json.loads(capsys.readouterr().out)
    card = json.loads((tmp_path / "tiny.onnx.json").read_text())
    entry = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    sha256 = open_teacher([large]).sha256[0]
    assert code == 0
    assert report["arch"] == "tiny"
    assert report["teacher"]["sha256"] == [sha256] == card["teacher"]["sha256"]
    assert report["teacher"]["val"]["accuracy"] >= 0.9
    assert report["agreement"]["n"] == 12
    assert card["distillation"]["label_weight"] == 0.1
    assert card["recipe"]["epochs"] == 2
    assert entry["command"] == "distill"
    assert sha256 in {used["sha256"] for used in entry["inputs"]}


def test_a_person_is_told_how_far_both_agree(
    large: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what to do next."""
    assert PROGRAM.main(arguments(large, parts, tmp_path / "tiny.onnx")) == 0

    printed = capsys.readouterr().out
    assert "both say the same of" in printed
    assert "large.onnx: on val" in printed
    assert "Next: defect-opt build --int8" in printed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--teacher is missing"),
        (["--teacher", "t.onnx"], "--student is missing"),
        (["--teacher", "t.onnx", "--student", "tiny"], "got no images"),
        (["--teacher", "t.onnx", "--student", "vgg", "--data", "nowhere"], "arch: got 'vgg'"),
        (["--teacher", "t.onnx", "--student", "tiny", "--data", "nowhere"], "t.onnx: no such file"),
        (["--teacher", "t.onnx", "--student", "tiny", "--data", "x", "--temperature", "0"], "temperature: got 0.0"),
        (["--teacher", ".", "--student", "tiny", "--data", "x"], ".: is a folder, expected a model"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback for what the user can mend."""
    assert PROGRAM.main(["distill", *given]) == 2

    printed = capsys.readouterr()
    assert words in printed.err
    assert "Try: " in printed.err
    assert "Traceback" not in printed.err


def test_the_teacher_of_the_kit_is_what_these_tests_think_it_is() -> None:
    """Else nothing above would mean anything: it knows the classes, and gives features."""
    model = onnx.load_model_from_string(conv_classifier())

    assert [output.name for output in model.graph.output] == ["logits", "embedding", "cam"]
