"""Repair a calibrated plan without training: one file a method.

An entry is a frozen pydantic dataclass that fits :class:`qtool.steps.step.Step`; its fields are
the options of the recipe, its docstring is the help of ``qtool list ptq``.
"""

from qtool.ptq.adaround import AdaRound
from qtool.ptq.analytic_bias_correction import AnalyticBiasCorrection
from qtool.ptq.batchnorm_reestimation import BatchNormReestimation
from qtool.ptq.bias_correction import BiasCorrection
from qtool.ptq.brecq import Brecq
from qtool.ptq.channel_affine_compensation import ChannelAffineCompensation
from qtool.ptq.comq import Comq
from qtool.ptq.distillation import Distillation
from qtool.ptq.gptq import Gptq
from qtool.ptq.high_bias_absorption import HighBiasAbsorption
from qtool.ptq.qdrop import QDrop
from qtool.ptq.ridge_compensation import RidgeCompensation
from qtool.ptq.seqmse import SeqMSE
from qtool.steps.step import Step

PTQ_STEPS: dict[str, type[Step]] = {
    "adaround": AdaRound,
    "analytic_bias_correction": AnalyticBiasCorrection,
    "batchnorm_reestimation": BatchNormReestimation,
    "bias_correction": BiasCorrection,
    "brecq": Brecq,
    "channel_affine_compensation": ChannelAffineCompensation,
    "comq": Comq,
    "distillation": Distillation,
    "gptq": Gptq,
    "high_bias_absorption": HighBiasAbsorption,
    "qdrop": QDrop,
    "ridge_compensation": RidgeCompensation,
    "seqmse": SeqMSE,
}
