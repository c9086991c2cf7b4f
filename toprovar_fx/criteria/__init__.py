"""The method's statistics and decisions as pure tensor functions: no graphs, no models, no state.

Statistics are computed in float32 over the last axes of any number of leading ones. Equation numbers are
those of the ToProVAR paper; where it leaves a choice open, the choice is an argument.
"""

from .depth import depth_from_ratios, join_depths, low_entropy_ratio
from .noise import counter_uniform
from .restore import restore_delta, upsample_map
from .rows import expand_cfg_rows, join_cfg_rows
from .saliency import keep_probability, normalise_entropy, scale_weight
from .scope import layer_detail, sigma_ratio
from .scores import frequency_score, prunability, random_score, ranking_score
from .selection import bernoulli_tokens, retention, round_to_bucket, select_tokens

__all__ = [
    "bernoulli_tokens",
    "counter_uniform",
    "depth_from_ratios",
    "expand_cfg_rows",
    "frequency_score",
    "join_cfg_rows",
    "join_depths",
    "keep_probability",
    "layer_detail",
    "low_entropy_ratio",
    "normalise_entropy",
    "prunability",
    "random_score",
    "ranking_score",
    "restore_delta",
    "retention",
    "round_to_bucket",
    "scale_weight",
    "select_tokens",
    "sigma_ratio",
    "upsample_map",
]
