"""The ladder: from a large accurate network down to what a device can run, and what each rung costs."""

from __future__ import annotations

from optimize.ladder.assess import Ladder, LadderOptions, assess, hardly_found
from optimize.ladder.choice import Breach, Budget, LadderChoice, breaches_of, choose_rung, pareto_front
from optimize.ladder.climb import PlannedRung, Step, climb, content_digest, file_digest
from optimize.ladder.deploy import deploy
from optimize.ladder.figures import figures_of, flips_of, lost_classes
from optimize.ladder.model import RungFile, RungModel, open_rung, task_of
from optimize.ladder.picture import draw_ladder
from optimize.ladder.resort import Again, JudgedRung, recovered
from optimize.ladder.rung import ClassCount, FellClass, Figures, Flip, LostClass, Recovery, Rung, Side
from optimize.ladder.sheet import draw_flips

__all__ = [
    "Again",
    "Breach",
    "Budget",
    "ClassCount",
    "FellClass",
    "Figures",
    "Flip",
    "JudgedRung",
    "Ladder",
    "LadderChoice",
    "LadderOptions",
    "LostClass",
    "PlannedRung",
    "Recovery",
    "Rung",
    "RungFile",
    "RungModel",
    "Side",
    "Step",
    "assess",
    "breaches_of",
    "choose_rung",
    "climb",
    "content_digest",
    "deploy",
    "draw_flips",
    "draw_ladder",
    "figures_of",
    "file_digest",
    "flips_of",
    "hardly_found",
    "lost_classes",
    "open_rung",
    "pareto_front",
    "recovered",
    "task_of",
]
