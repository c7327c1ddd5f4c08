"""Detectors as data: families, their anchors and heads on any backbone, exact cost. No torch, no numpy."""

from mobilenets.arch.detectors.anchors import anchor_shapes as anchor_shapes
from mobilenets.arch.detectors.config import detection_config as detection_config
from mobilenets.arch.detectors.families import FAMILIES as FAMILIES
from mobilenets.arch.detectors.families import Family as Family
from mobilenets.arch.detectors.families import detector_arch as detector_arch
from mobilenets.arch.detectors.families import family as family
from mobilenets.arch.detectors.heads import maps as maps
from mobilenets.arch.detectors.heads import ssd_head as ssd_head
from mobilenets.arch.detectors.two_stage import PYRAMIDS as PYRAMIDS
from mobilenets.arch.detectors.two_stage import two_stage_anchors as two_stage_anchors
from mobilenets.arch.detectors.two_stage import two_stage_arch as two_stage_arch
from mobilenets.arch.detectors.two_stage import two_stage_head as two_stage_head
