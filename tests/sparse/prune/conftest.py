"""Makes the folder's own modules importable, for the tests and for the scripts they start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
