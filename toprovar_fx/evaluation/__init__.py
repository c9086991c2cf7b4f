"""Judging generated images: SceneEval, and their distance to reference images."""

from .checker import Detection, detect
from .fidelity import frechet_distance, psnr, ssim
from .scene_eval import (
    EvalReport,
    SceneEval,
    Verdict,
    fulfils,
    judge_images,
    mismatched_prompts,
    prompt_match,
    score_images,
)

__all__ = [
    "Detection",
    "EvalReport",
    "SceneEval",
    "Verdict",
    "detect",
    "frechet_distance",
    "fulfils",
    "judge_images",
    "mismatched_prompts",
    "prompt_match",
    "psnr",
    "score_images",
    "ssim",
]
