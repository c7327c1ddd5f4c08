"""What tests of detectors begin with."""

from __future__ import annotations

import pytest
import shapes

from mobilenets.data.dataset import Data
from mobilenets.model.bundle import Bundle


@pytest.fixture(scope="module")
def shown() -> Data:
    """Rectangles: 16 pictures to train on, 8 to validate."""
    return shapes.data(16, 8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A detector of rectangles with random weights."""
    return shapes.detector()
