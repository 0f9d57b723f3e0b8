"""Graph rewrites; all but ``bireal_shortcuts`` keep the float function of a model.

A target lists the rewrites it needs in the order in which they run; a recipe may choose others.
After the rewrites the graph is read-only.
"""

from collections.abc import Sequence

from qtool.rewrites.bireal_shortcuts import bireal_shortcuts
from qtool.rewrites.cleanup import fold_constants, remove_identities, split_shared_constants
from qtool.rewrites.decomposed.gelu import compose_gelu
from qtool.rewrites.decomposed.hard_swish import compose_hard_swish
from qtool.rewrites.decomposed.layer_norm import compose_layer_norm
from qtool.rewrites.decomposed.rms_norm import compose_rms_norm
from qtool.rewrites.decomposed.sigmoid import compose_sigmoid
from qtool.rewrites.first_conv import pad_first_conv_channels, space_to_depth_first_conv
from qtool.rewrites.folding.affine import (
    fold_affine,
    fold_affine_into_next_conv,
    remove_neutral_operands,
)
from qtool.rewrites.folding.fold_batchnorm import fold_batchnorm, fold_batchnorm_into_next_conv
from qtool.rewrites.folding.fold_pad import fold_pad
from qtool.rewrites.global_pool import reduce_mean_to_global_average_pool
from qtool.rewrites.linear import matmul_to_gemm, normalize_gemm
from qtool.rewrites.reshape import make_reshapes_static
from qtool.rewrites.rewrite import Rewrite, SampleRewrite
from qtool.rewrites.rows import keep_rows
from qtool.rewrites.scaling.equalize import equalize
from qtool.rewrites.scaling.equalize_activations import equalize_activations
from qtool.rewrites.scaling.normalize_weights import normalize_weights
from qtool.rewrites.scaling.reparametrize_norm import reparametrize_norm
from qtool.rewrites.scaling.scale_output_channels import scale_output_channels
from qtool.rewrites.scaling.smooth import smooth
from qtool.rewrites.sequence_first import sequence_first
from qtool.rewrites.strided_slice import strided_slice_to_max_pool
from qtool.rewrites.unfuse import unfuse_microsoft

REWRITES: dict[str, Rewrite] = {
    "unfuse_microsoft": unfuse_microsoft,
    "fold_constants": fold_constants,
    "make_reshapes_static": make_reshapes_static,
    "remove_identities": remove_identities,
    "remove_neutral_operands": remove_neutral_operands,
    "compose_hard_swish": compose_hard_swish,
    "compose_gelu": compose_gelu,
    "compose_layer_norm": compose_layer_norm,
    "compose_rms_norm": compose_rms_norm,
    "compose_sigmoid": compose_sigmoid,
    "reduce_mean_to_global_average_pool": reduce_mean_to_global_average_pool,
    "fold_batchnorm": fold_batchnorm,
    "fold_batchnorm_into_next_conv": fold_batchnorm_into_next_conv,
    "fold_affine": fold_affine,
    "fold_affine_into_next_conv": fold_affine_into_next_conv,
    "matmul_to_gemm": matmul_to_gemm,
    "normalize_gemm": normalize_gemm,
    "keep_rows": keep_rows,
    "sequence_first": sequence_first,
    "fold_pad": fold_pad,
    "strided_slice_to_max_pool": strided_slice_to_max_pool,
    "split_shared_constants": split_shared_constants,
    "equalize": equalize,
    "normalize_weights": normalize_weights,
    "space_to_depth_first_conv": space_to_depth_first_conv,
    "pad_first_conv_channels": pad_first_conv_channels,
}

SAMPLE_REWRITES: dict[str, SampleRewrite] = {
    "bireal_shortcuts": bireal_shortcuts,
    "equalize_activations": equalize_activations,
    "reparametrize_norm": reparametrize_norm,
    "scale_output_channels": scale_output_channels,
    "smooth": smooth,
}
"""Rewrites that read calibration samples; a target lists its own apart from the others."""

OPTIONAL = frozenset({"equalize", "normalize_weights", *SAMPLE_REWRITES})
"""Rewrites of no target's own list: a recipe that names only these adds them to that list."""

LATER = OPTIONAL | {"space_to_depth_first_conv", "pad_first_conv_channels"}
"""Rewrites that come when every weight has its final value or channels."""


def rewrite_names(requested: Sequence[str] | None, own: Sequence[str]) -> tuple[str, ...]:
    """Return the rewrites of a run, in order.

    Args:
        requested: of the recipe; None: those of the target.
        own: of the target.
    """
    if requested is None:
        return tuple(own)
    if not requested or not OPTIONAL.issuperset(requested):
        return tuple(requested)
    # Weights have their final values before the first convolution changes its form.
    place = next((k for k, name in enumerate(own) if name in LATER), len(own))
    return (*own[:place], *requested, *own[place:])
