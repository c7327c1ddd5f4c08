"""What tests of detectors begin with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mobilenets.data.dataset import Data
from mobilenets.model.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def shown() -> Data:
    """Rectangles: 16 pictures to train on, 8 to validate."""
    import shapes

    return shapes.data(16, 8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A detector of rectangles with random weights."""
    import shapes

    return shapes.detector()
