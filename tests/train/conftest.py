"""Makes small_run importable: it is a module of the tests and a script of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
