"""Every error the workbench raises.

```text
OptimizeError (a UserError)   the user's mistake, in one sentence, with a hint; exit 2
├── DataError                 images, labels or splits that can't be used as given
├── ModelError                an ONNX file or network that can't be used as given
└── RecipeError               a key or value in defect-opt.yaml
```

A gate that is not met is no error: the command did its work, says so and exits 1.
"""

from __future__ import annotations

from agent.errors import UserError

__all__ = ["DataError", "ModelError", "OptimizeError", "RecipeError"]


class OptimizeError(UserError):
    """The root of what `defect-opt` refuses."""


class DataError(OptimizeError):
    """Images, labels or splits that can't be used as given."""


class ModelError(OptimizeError):
    """An ONNX file or a network that can't be used as given."""


class RecipeError(OptimizeError):
    """A key or value in `defect-opt.yaml`."""
