"""`python -m optimize` is `defect-opt`."""

from __future__ import annotations

import sys

from optimize.cli import main

sys.exit(main())
