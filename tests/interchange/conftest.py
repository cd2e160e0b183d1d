"""Tests here share the small GGUF writer of test_gguf.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
