"""Steps that repair a plan after calibration; a later version fills the table."""

from collections.abc import Callable

from qtool.quant.plan import QuantPlan

PTQ_STEPS: dict[str, Callable[..., QuantPlan]] = {}
