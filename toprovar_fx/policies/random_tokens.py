"""Policy `random`: the preset's scales, layers and counts, and tokens drawn at random; the control."""

from __future__ import annotations

from typing import ClassVar

from .toprovar import ToProVAR


class RandomTokens(ToProVAR):
    """As `toprovar`, whatever the preset and the options say, but the kept tokens are uniform draws.

    Draws depend on the option `seed`, the scale and the layer alone, so two runs keep the same tokens.
    """

    name = "random"
    summary = "scales, layers and counts of the preset; tokens at random, the control of every criterion"
    source = "a control, not a method"
    constants: ClassVar = {"score": "random"}
    deviations: ClassVar[tuple[str, ...]] = ()
