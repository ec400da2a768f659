"""Where the part lies in a frame: a template picture searched by normalised correlation, coarse to fine.

```text
search area ─ grey ─ halved n times ─ every angle ─ best few places ─ at each finer size: near them only ─▶ Located
```

The score is the normalised cross-correlation (Lewis, Fast Normalized Cross-Correlation, 1995; OpenCV's
`TM_CCOEFF_NORMED`): 1 is the same picture up to brightness and contrast. The one that is told is computed anew in
float64 at full size, where a window without contrast scores 0: OpenCV's own is noise there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from agent.config import LocateConfig
from agent.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Located", "Locator", "NotFound", "shift_matrix", "turn_matrix"]

Grey: TypeAlias = "NDArray[np.uint8]"
Matrix: TypeAlias = "NDArray[np.float64]"

MIN_SIDE_PX = 8
"""A smaller template is found everywhere."""

COARSE_SIDE_PX = 32
"""How small halving may make the template's shorter side: below it, what tells it from its surroundings is gone."""

MOST_HALVINGS = 5
MIN_CONTRAST = 2.0
"""Standard deviation of the template in grey levels: less is noise, and matches noise."""

CANDIDATES = 48
"""Places that each angle gives at the coarsest size, and that all angles together hand on; the best half of them goes
on from each finer one. What is best when small need not be the part: on a plane of thin tilted lines 12 lost it in 5
of 100 cases, 48 in none."""

HOPELESS = 0.3
"""A place whose score is so much lower than the best one's does not go on."""

LOOK_ALIKE = 0.02
"""Two places whose scores are no farther apart can't be told from each other."""

TURN_SLACK_DEG = 0.5
"""How far beyond `turn_deg` a part may seem to be turned: what the angle is measured to, and more."""

NEAR_PX = 2
"""How far a place may move from one size to the next finer one, in pixels of that."""

NEAR_STEPS = 2
"""And how far its angle; the last search at full size looks twice as far, as angle and place make up for each other."""

MOST_CACHED = 64
"""Turned templates that are kept."""

MAX_TEMPLATE_BYTES = 50_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Located:
    """Where the part was found.

    Attributes:
        score: normalised correlation there, -1 to 1.
        shift_px: from the template's middle in the reference to its middle here, x and y.
        turn_deg: how far it is turned against the reference, clockwise.
        matrix: (3, 3) float64, from places in the reference frame to places in this one.
    """

    score: float
    shift_px: tuple[float, float]
    turn_deg: float
    matrix: Matrix

    def described(self) -> str:
        """In words, for a reason."""
        x, y = self.shift_px
        turned = f", turned by {self.turn_deg:.1f} degrees" if self.turn_deg else ""
        return f"score {self.score:.2f}, shifted by {x:+.0f}, {y:+.0f} px{turned}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """Why there is no region: the part was not found, or not where it may lie; a person must look.

    Attributes:
        reason: in words, with the score.
        score: of the best place.
    """

    reason: str
    score: float


def shift_matrix(x: float, y: float) -> Matrix:
    """(3, 3): moves places by x and y."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def turn_matrix(degrees: float) -> Matrix:
    """(3, 3): turns places clockwise about (0, 0), as y runs down; quarter turns are exact."""
    quarters = degrees / 90
    if quarters == round(quarters):
        cosine, sine = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[round(quarters) % 4]
    else:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A place of the template's piece in the search area at one size.

    Attributes:
        score: correlation.
        x: of its top left corner, in pixels of that size.
        y: the same.
        step: its angle, in steps of that size.
    """

    score: float
    x: int
    y: int
    step: int


class Locator:
    """Finds the template; one thread at a time.

    With `turn_deg` only the template's middle is compared, as much of it as lies in every turned copy: 0.8 of each side
    for a square and 15 degrees.

    Attributes:
        sha256: of the template's file, hex.

    Args:
        config: the template and where to search.

    Raises:
        ConfigError: the template can't be read, shows nothing, or is larger than the search area.
    """

    def __init__(self, config: LocateConfig) -> None:
        self._config = config
        self._template, self.sha256 = _read(config.template)
        high, wide = self._template.shape
        if config.search is not None:
            self._refuse_larger(config.search[2], config.search[3])
        inner_wide, inner_high = _inner(wide, high, config.turn_deg)
        self._halvings = _halvings(min(inner_wide, inner_high))
        unit = 2**self._halvings
        self._wide, self._high = inner_wide // unit * unit, inner_high // unit * unit
        self._left, self._top = (wide - self._wide) // 2, (high - self._high) // 2
        self._cache: dict[tuple[int, int], Grey] = {}
        if self._turned(0, 0).std() < MIN_CONTRAST:
            raise ConfigError(
                f"roi.locate.template: {config.template}: shows nothing that could be found",
                hint="cut out a piece with edges: a corner, a hole, a mark",
            )

    def refuse_small(self, width: int, height: int) -> None:
        """Check that the search area lies in frames of this size, and holds the template.

        Raises:
            ImageError: it does not.
        """
        x, y, wide, high = self._config.search or (0, 0, width, height)
        if x + wide > width or y + high > height:
            raise ImageError(
                f"roi.locate.search: got {[x, y, wide, high]}, which reaches beyond the frame of {width} x {height} px",
                hint="give it in pixels of this camera's frames",
            )
        try:
            self._refuse_larger(wide, high)
        except ConfigError as error:
            raise ImageError(error.message, hint=error.hint) from error

    def find(self, image: NDArray[np.uint8]) -> Located | NotFound:
        """Search one frame.

        Args:
            image: (H, W, 3) uint8 BGR, which holds the search area.

        Returns:
            Where the part lies; or why not, with the score of the best place.
        """
        x, y, wide, high = self._config.search or (0, 0, image.shape[1], image.shape[0])
        area = np.asarray(cv2.cvtColor(image[y : y + high, x : x + wide], cv2.COLOR_BGR2GRAY), dtype=np.uint8)
        places = self._search(area)
        best, turn_deg = places[0], self._turn_deg(area, places[0])
        window = area[best.y : best.y + self._high, best.x : best.x + self._wide]
        score = _correlation(window, self._turned(0, best.step))
        found = self._located(x + best.x, y + best.y, score, turn_deg)
        problem = self._problem(found, places)
        return found if problem is None else NotFound(reason=problem, score=score)

    def _problem(self, found: Located, places: list[_Place]) -> str | None:
        """Why what was found is not the part where it may lie; None when it is."""
        config, best = self._config, places[0]
        if not found.score >= config.min_score:  # a score that is no number is not found either
            return f"the part was not found: score {found.score:.3f} under {config.min_score:g}"
        out_of_bounds = f"the part was found out of bounds: {found.described()}, expected at most"
        if config.max_shift_px is not None and math.hypot(*found.shift_px) > config.max_shift_px:
            return f"{out_of_bounds} {config.max_shift_px:g} px"
        if abs(found.turn_deg) > config.turn_deg + TURN_SLACK_DEG:
            return f"{out_of_bounds} {config.turn_deg:g} degrees"
        if (other := self._look_alike(places)) is not None:
            return (
                f"the part was found in two places that look alike: {found.described()}; "
                f"score {other.score:.2f} {other.x - best.x:+d}, {other.y - best.y:+d} px from there"
            )
        return None

    def _search(self, area: Grey) -> list[_Place]:
        """The best places at full size, the best first."""
        sizes = _halved(area, self._halvings)
        places = self._coarsest(sizes[-1])
        for level in range(self._halvings - 1, -1, -1):
            finer = [self._refine(sizes[level], level, 2 * each.x, 2 * each.y, 2 * each.step) for each in places]
            places = _best(finer, max(len(places) // 2, 2))
        best = places[0]
        # The last steps at full size: each was only looked for near what the coarser size held to be the best.
        reach = 2 * NEAR_STEPS
        while (better := self._refine(area, 0, best.x, best.y, best.step, reach)).score > best.score + 1e-6:
            best = better
        return [best, *places[1:]]

    def _turn_deg(self, area: Grey, best: _Place) -> float:
        """The angle between the steps."""
        if not self._config.turn_deg:
            return 0.0
        window = area[best.y : best.y + self._high, best.x : best.x + self._wide]
        scores = [_correlation(window, self._turned(0, best.step + more)) for more in (-1, 0, 1)]
        return (best.step + _vertex(scores)) * self._step_deg(0)

    def _look_alike(self, places: list[_Place]) -> _Place | None:
        """Another place, far from the best, that is as good."""
        best, far = places[0], min(self._wide, self._high) / 4
        return next(
            (
                place
                for place in places[1:]
                if place.score > best.score - LOOK_ALIKE and math.hypot(place.x - best.x, place.y - best.y) > far
            ),
            None,
        )

    def _coarsest(self, area: Grey) -> list[_Place]:
        level = self._halvings
        most = int(self._config.turn_deg / self._step_deg(level))
        places: list[_Place] = []
        for step in range(-most, most + 1):
            scores = _scores(area, self._turned(level, step))
            places += [_Place(score, x, y, step) for score, x, y in _peaks(scores)]
        return _best(places, CANDIDATES)

    def _refine(self, area: Grey, level: int, x: int, y: int, step: int, reach: int = NEAR_STEPS) -> _Place:
        """The best place near another one at one size."""
        high, wide = self._high >> level, self._wide >> level
        left = min(max(x - NEAR_PX, 0), area.shape[1] - wide)
        top = min(max(y - NEAR_PX, 0), area.shape[0] - high)
        window = area[top : top + high + 2 * NEAR_PX, left : left + wide + 2 * NEAR_PX]
        found = []
        for turned in range(step - reach, step + reach + 1) if self._config.turn_deg else (0,):
            _, score, _, (right, down) = cv2.minMaxLoc(_scores(window, self._turned(level, turned)))
            found.append(_Place(float(score), left + right, top + down, turned))
        return max(found, key=lambda each: each.score)

    def _step_deg(self, level: int) -> float:
        """The angle that moves the template's corners by a pixel of the coarsest size, halved with each finer one."""
        coarse = math.hypot(self._wide, self._high) / 2**self._halvings / 2
        return float(math.degrees(1 / coarse) / 2 ** (self._halvings - level))

    def _turned(self, level: int, step: int) -> Grey:
        """The template's middle, turned by so many steps and halved so many times."""
        if (level, step) not in self._cache:
            if len(self._cache) >= MOST_CACHED:
                self._cache.clear()
            self._cache[level, step] = self._make(level, step)
        return self._cache[level, step]

    def _make(self, level: int, step: int) -> Grey:
        middle = self._left + self._wide / 2, self._top + self._high / 2
        turn = shift_matrix(*middle) @ turn_matrix(step * self._step_deg(level)) @ shift_matrix(-middle[0], -middle[1])
        # From places to the middles of pixels, and to the cut.
        turn = shift_matrix(-0.5 - self._left, -0.5 - self._top) @ turn @ shift_matrix(0.5, 0.5)
        size = self._wide, self._high
        cut = cv2.warpAffine(self._template, turn[:2], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(_halved(np.asarray(cut), level)[-1])

    def _located(self, x: int, y: int, score: float, turn_deg: float) -> Located:
        at_x, at_y = self._config.at
        before = at_x + self._left + self._wide / 2, at_y + self._top + self._high / 2
        here = x + self._wide / 2, y + self._high / 2
        matrix = shift_matrix(*here) @ turn_matrix(turn_deg) @ shift_matrix(-before[0], -before[1])
        shift = here[0] - before[0], here[1] - before[1]
        return Located(score=score, shift_px=shift, turn_deg=turn_deg, matrix=matrix)

    def _refuse_larger(self, wide: int, high: int) -> None:
        own_high, own_wide = self._template.shape
        if own_wide > wide or own_high > high:
            raise ConfigError(
                f"roi.locate.template: {self._config.template}: {own_wide} x {own_high} px, which is larger than its "
                f"search area of {wide} x {high} px",
                hint="cut out a smaller piece, or give a larger roi.locate.search",
            )


def _read(path: Path) -> tuple[Grey, str]:
    """The template in grey, and the digest of its file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"roi.locate.template: {path}: can't be read ({error.strerror})", hint="give a picture file"
        ) from error
    try:
        picture = cv2.imdecode(np.frombuffer(data[:MAX_TEMPLATE_BYTES], dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise ConfigError(f"roi.locate.template: {path}: is no picture", hint="give a PNG cut out of a frame")
    high, wide = picture.shape[:2]
    if min(high, wide) < MIN_SIDE_PX:
        raise ConfigError(
            f"roi.locate.template: {path}: {wide} x {high} px, expected {MIN_SIDE_PX} px or more each way",
            hint="cut out a larger piece",
        )
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)), hashlib.sha256(data).hexdigest()


def _inner(wide: int, high: int, turn_deg: float) -> tuple[int, int]:
    """The largest piece of the template's shape that lies in it however far it is turned, up to `turn_deg`."""
    cosine, sine = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
    share = min(wide / (wide * cosine + high * sine), high / (high * cosine + wide * sine))
    return max(int(wide * share), 1), max(int(high * share), 1)


def _halvings(side: int) -> int:
    count = 0
    while count < MOST_HALVINGS and side >> (count + 1) >= COARSE_SIDE_PX:
        count += 1
    return count


def _halved(picture: Grey, times: int) -> list[Grey]:
    """The picture at every size, from its own on; an odd row or column is left out."""
    sizes = [picture]
    for _ in range(times):
        last = sizes[-1]
        high, wide = last.shape[0] // 2, last.shape[1] // 2
        sizes.append(np.asarray(cv2.resize(last[: 2 * high, : 2 * wide], (wide, high), interpolation=cv2.INTER_AREA)))
    return sizes


def _scores(area: Grey, template: Grey) -> Any:
    scores = cv2.matchTemplate(area, template, cv2.TM_CCOEFF_NORMED)
    scores[~np.isfinite(scores) | (np.abs(scores) > 1 + 1e-3)] = 0  # windows without contrast
    return scores


def _peaks(scores: Any) -> Iterator[tuple[float, int, int]]:
    """The best places among those that are better than their neighbours."""
    rows, columns = np.nonzero(scores >= cv2.dilate(scores, np.ones((3, 3), dtype=np.uint8)))
    values = scores[rows, columns]
    for index in np.argsort(-values, kind="stable")[:CANDIDATES]:
        yield float(values[index]), int(columns[index]), int(rows[index])


def _best(places: list[_Place], count: int) -> list[_Place]:
    """The best, one of each place and angle."""
    kept: list[_Place] = []
    for place in sorted(places, key=lambda each: -each.score):
        if kept and place.score < kept[0].score - HOPELESS:
            break
        if not any(_is_near(place, other) for other in kept):
            kept.append(place)
        if len(kept) == count:
            break
    return kept


def _is_near(a: _Place, b: _Place) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y), abs(a.step - b.step)) <= 1


def _correlation(window: Grey, template: Grey) -> float:
    """Normalised correlation of two pieces of one size, in float64; 0 without contrast."""
    a, b = (piece.astype(np.float64) - piece.mean() for piece in (window, template))
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _vertex(scores: list[float]) -> float:
    """Where a parabola through three neighbours has its top, in steps from the middle one, half a step at most."""
    before, middle, after = scores
    bend = before - 2 * middle + after
    return min(max((before - after) / (2 * bend), -0.5), 0.5) if bend < 0 else 0.0
