"""Procedural scenes with captions: the training data and the prompts of the demo model."""

from .captions import caption_ids, caption_text, captions_from_keys
from .hashing import image_keys
from .prompts import EvalPrompt, Requirement, eval_prompts, scenes_for_prompts
from .render import render
from .sampler import HELD_OUT, sample_scenes, scenes_from_keys
from .scene import SceneBatch
from .vocab import MAX_WORDS, VOCAB_SIZE, decode_ids, encode_prompt

__all__ = [
    "HELD_OUT",
    "MAX_WORDS",
    "VOCAB_SIZE",
    "EvalPrompt",
    "Requirement",
    "SceneBatch",
    "caption_ids",
    "caption_text",
    "captions_from_keys",
    "decode_ids",
    "encode_prompt",
    "eval_prompts",
    "image_keys",
    "render",
    "sample_scenes",
    "scenes_for_prompts",
    "scenes_from_keys",
]
