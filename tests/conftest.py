"""Tests see the shipped chips, whatever this machine was calibrated to."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["BLOCHFOLD_CALIBRATION"] = str(Path(__file__).parent / "no-calibration")
