"""Steps that repair a plan after calibration; a later version fills the table."""

from qtool.protocols import PtqStep

PTQ_STEPS: dict[str, PtqStep] = {}
