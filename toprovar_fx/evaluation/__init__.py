"""Judging generated images: SceneEval, and their distance to reference images."""

from .checker import Detection, detect
from .fidelity import frechet_distance, psnr, ssim
from .scene_eval import EvalReport, SceneEval, fulfils, mismatched_prompts, score_images

__all__ = [
    "Detection",
    "EvalReport",
    "SceneEval",
    "detect",
    "frechet_distance",
    "fulfils",
    "mismatched_prompts",
    "psnr",
    "score_images",
    "ssim",
]
