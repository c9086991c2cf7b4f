"""Text encoders: a small one trained with the scenes model, and T5 for the official models."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, OptionError, PromptError
from ..user_line import warn_at_user_line
from .configs import MOST_CHANNELS, MOST_LAYERS, MOST_TOKENS
from .sizes import check_whole
from .text import TextFeatures, padding_mask


class TextEncoder(Protocol):
    """What the pipeline needs of a text encoder."""

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts; raises ``PromptError`` for one that the encoder cannot read."""
        ...


class TextLayer(nn.Module):
    """Pre-norm bidirectional transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        """Create a layer of ``width`` channels split into ``heads``."""
        super().__init__()
        self.heads = heads
        self.attn_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map ``x [B, T, C]`` under the additive ``mask [B, 1, 1, T]``."""
        rows, tokens, width = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.proj(attended.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x)), approximate="tanh"))


class SceneTextEncoder(nn.Module):
    """Bidirectional transformer over the words of a scene description, trained jointly with the image model.

    Attributes:
        max_words: longest prompt.
        sizes: the constructor's arguments, for saving.
    """

    def __init__(
        self, vocab_size: int, width: int = 256, layers: int = 4, heads: int = 8, max_words: int = 24
    ) -> None:
        """Create the encoder; word 0 is padding."""
        super().__init__()
        self.max_words = max_words
        self.sizes = {
            "vocab_size": vocab_size,
            "width": width,
            "layers": layers,
            "heads": heads,
            "max_words": max_words,
        }
        check_whole(self.sizes, vocab_size=MOST_TOKENS, width=MOST_CHANNELS, max_words=MOST_TOKENS)
        check_whole(self.sizes, layers=MOST_LAYERS, heads=width)
        if width % heads:
            raise OptionError(f"heads {heads}: expected a divisor of width {width}")
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(max_words, width))
        self.layers = nn.ModuleList(TextLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self._initialise(layers, width)

    @torch.no_grad()
    def _initialise(self, layers: int, width: int) -> None:
        std = 0.9 / width**0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.words.weight, std=1 / width**0.5)
        nn.init.trunc_normal_(self.positions, std=1 / width**0.5)
        for layer in self.layers:
            layer.get_parameter("proj.weight").mul_(1 / (2 * layers) ** 0.5)
            layer.get_parameter("fc2.weight").mul_(1 / (2 * layers) ** 0.5)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Encode words.

        Args:
            ids: ``[B, T]`` int64, T at most ``max_words``; entries past a prompt's length do not matter.
            lengths: words of each prompt, ``[B]``, at least 1.

        Returns:
            Features ``[B, T, C]``.
        """
        x = self.words(ids) + self.positions[: ids.shape[1]]
        mask = padding_mask(lengths, ids.shape[1], x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts of the scenes grammar, padded to ``max_words``.

        Raises:
            PromptError: a word is unknown, or a prompt is empty or too long.
        """
        from ..scenes.vocab import encode_prompt

        device = self.positions.device
        words = [encode_prompt(prompt) for prompt in prompts]
        ids = torch.zeros(len(words), self.max_words, dtype=torch.int64)
        for row, prompt_ids in enumerate(words):
            ids[row, : len(prompt_ids)] = torch.tensor(prompt_ids)
        lengths = torch.tensor([len(prompt_ids) for prompt_ids in words], device=device)
        return TextFeatures(self(ids.to(device), lengths), lengths)


def default_t5_dtype(device: torch.device | str) -> torch.dtype:
    """Float16 as upstream, float32 on a CPU."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.float16


def require_transformers() -> None:
    """Raise ``OptionError`` unless ``transformers`` is installed, without importing it."""
    if importlib.util.find_spec("transformers") is None:
        raise OptionError("the T5 text encoder needs transformers: pip install 'toprovar-fx[text]'")


class T5TextEncoder:
    """The T5 encoder of the official models (flan-t5-xl), through ``transformers``.

    Attributes:
        tokenizer, encoder: of ``transformers``.
        max_tokens: longest prompt in tokens, its end token included.
        truncate: cut longer prompts to ``max_tokens`` with a warning, as upstream does without one; False
            refuses them.
    """

    def __init__(self, tokenizer: Any, encoder: Any, max_tokens: int = 512, truncate: bool = False) -> None:
        """Wrap a tokenizer and an encoder model of ``transformers``."""
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.max_tokens = max_tokens
        self.truncate = truncate

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        truncate: bool = False,
    ) -> T5TextEncoder:
        """Load tokenizer and encoder from a local folder; nothing is downloaded, no code in it is run.

        Args:
            folder: ``config.json``, weights and tokenizer files, as ``transformers`` lays them out.
            device: of the encoder.
            dtype: of the encoder; float16 as upstream, float32 on a CPU.
            truncate: see the attribute.

        Raises:
            OptionError: the extra ``text`` is not installed.
            CheckpointError: the folder is not there, or lacks a file or weights.
        """
        require_transformers()
        from transformers import AutoTokenizer, T5EncoderModel

        if not Path(folder).is_dir():
            raise CheckpointError(
                f"text encoder {folder} does not exist: expected the folder of a T5 encoder"
            )
        dtype = default_t5_dtype(device) if dtype is None else dtype
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
            encoder, found = T5EncoderModel.from_pretrained(
                str(folder), dtype=dtype, weights_only=True, output_loading_info=True, **local
            )
        except Exception as error:  # of several libraries, in many lines
            text = " ".join(str(error).split())[:200]
            raise CheckpointError(f"text encoder {folder} cannot be loaded: {text}") from None
        absent = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        if absent:  # transformers would go on with random weights
            raise CheckpointError(
                f"text encoder {folder}: {len(absent)} weights are missing or mis-shaped, "
                f"such as {', '.join(absent[:3])}"
            )
        return cls(tokenizer, encoder.to(device).eval().requires_grad_(False), truncate=truncate)

    def to(self, device: torch.device | str) -> T5TextEncoder:
        """Move the encoder; returns itself."""
        self.encoder.to(device)
        return self

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts, padded to the longest.

        Raises:
            PromptError: a prompt is empty, or longer than ``max_tokens`` tokens and not to be truncated.
        """
        for prompt in prompts:
            if not prompt.strip():
                raise PromptError(f"prompt {prompt!r} is empty: expected some text")
        tokens = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        longest = int(tokens.attention_mask.sum(-1).max())
        if longest > self.max_tokens:
            if not self.truncate:
                raise PromptError(f"prompt of {longest} tokens: expected at most {self.max_tokens}")
            warn_at_user_line(
                f"prompt of {longest} tokens cut to {self.max_tokens}: what comes after is not drawn",
                UserWarning,
            )
            tokens = self.tokenizer(
                list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
        device = self.encoder.device
        mask = tokens.attention_mask.to(device)
        encoded = self.encoder(input_ids=tokens.input_ids.to(device), attention_mask=mask)
        return TextFeatures(encoded.last_hidden_state, mask.sum(-1))
