"""What an options record uses of what users registered, looked up once, when the record is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .cache_policies.policy import CachePolicy
from .cache_policies.registry import CACHE_POLICIES
from .criteria.score_registry import SCORES, Score
from .declaration import PASSES, Pass
from .errors import ExtensionError
from .policies.policy import Policy
from .policies.registry import POLICIES


@dataclass(frozen=True)
class Extensions:
    """The functions behind the names in the options; equal only if they are the same functions.

    Attributes:
        policy: what decides.
        score: what ranks the tokens.
        passes: registered passes to run.
        cache_policy: what says which cached rows stay.
    """

    policy: type[Policy]
    score: Score
    passes: tuple[Pass[Any, Any], ...]
    cache_policy: type[CachePolicy]

    @classmethod
    def named(cls, policy: str, score: str, passes: tuple[str, ...], cache_policy: str) -> Extensions:
        """Look the names up.

        Raises:
            OptionError: one of them is not registered.
        """
        return cls(
            POLICIES.find("policy", policy),
            SCORES.find("score", score),
            tuple(PASSES.find("passes", name) for name in passes),
            CACHE_POLICIES.find("cache_policy", cache_policy),
        )

    def refuse_stale(self) -> None:
        """Refuse to run where a name has come to stand for something else since the model was compiled.

        Dynamo finds compiled code by the options' text, so it cannot see such a change.

        Raises:
            ExtensionError: a name was registered anew.
        """
        used: list[tuple[str, str, object, object]] = [
            ("policy", self.policy.name, POLICIES.get(self.policy.name), self.policy),
            ("score", self.score.name, SCORES.get(self.score.name), self.score),
        ]
        used += [("pass", entry.name, PASSES.get(entry.name), entry) for entry in self.passes]
        for kind, name, now, then in used:
            if now is not None and now is not then:
                raise ExtensionError(
                    f"{kind} {name!r} was registered anew after the model was compiled with it: "
                    "expected a call of torch.compiler.reset() in between, or another name"
                )
