"""Batch rows that meet each other, and caches that lack rows: nothing is read that is not there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from toprovar_fx.errors import GraphError

from .models import families as parts
from .models import family_caches as caches
from .models import odd
from .models.families import Family
from .models.family_combinations import EVERY_LAYER
from .models.subjects import SQUARE, Outcome, generate, worst

pytestmark = pytest.mark.usefixtures("many_graphs")

KEEP = {3: {0: 0.5}, 4: {0: 0.25, 1: 0.5}, 5: {0: 0.3, 1: 0.6}}
PRUNING = {**EVERY_LAYER, "preset": "criterion", "lowering": "eager", "keep": KEEP, "cfg_rows": "per_row"}


def compiled(model: torch.nn.Module, **options: object):
    return torch.compile(model, backend="toprovar", options={**PRUNING, **options})


class Plainly:
    """The layers of `odd.Plain`, of which attention, or all of a layer, runs on some tokens."""

    def __init__(self, model: odd.Plain, outcome: Outcome) -> None:
        self.model, self.keeps = model, outcome.keeps
        self.known: list[list[torch.Tensor]] = [[], [], [], []]

    def attention(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        q, k, v = self.model.heads(self.model.qkv[layer](F.layer_norm(x, (odd.WIDTH,))))
        self.known[2 * layer].append(k)
        self.known[2 * layer + 1].append(v)
        keys, values = (torch.cat(self.known[2 * layer + at], 2) for at in (0, 1))
        mixed = F.scaled_dot_product_attention(q, keys, values)
        return x + self.model.out[layer](mixed.transpose(1, 2).flatten(2))

    def rest(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        y = self.model.feed(F.layer_norm(x, (odd.WIDTH,)), 0)
        return x + self.model.mlp[layer](F.silu(y))

    def some(self, x: torch.Tensor, place: tuple[int, int], *parts) -> torch.Tensor:
        keep = self.keeps.get(place)
        if keep is None:
            rows = x
        else:
            row = torch.arange(len(x))[:, None]
            rows = x[row, keep]
        for part in parts:
            rows = part(rows, place[1])
        if keep is None:
            return rows
        x = x.clone()
        x[row, keep] = rows
        return x

    def logits(self, subject: odd.OddSubject) -> list[torch.Tensor]:
        found = []
        with torch.inference_mode():
            for scale in range(len(SQUARE)):
                x = subject.hidden(1, scale, SQUARE)
                for layer in range(2):
                    if isinstance(self.model, odd.Guided) and layer == 1:
                        mixed = 1.5 * x[:1] - 0.5 * x[1:]
                        x = torch.cat((mixed, mixed))
                    if isinstance(self.model, odd.GuidedInside):
                        x = self.rest(self.some(x, (scale, layer), self.attention), layer)
                    else:
                        x = self.some(x, (scale, layer), self.attention, self.rest)
                found.append(self.model.head(x))
        return found


@pytest.mark.parametrize("kind", [odd.Plain, odd.Guided, odd.GuidedInside])
def test_rows_that_meet_outside_a_block_may_keep_other_tokens(kind):
    """The entropies of the rows differ, so each keeps its own tokens; where they meet, all are there."""
    subject = odd.OddSubject(kind)
    outcome = generate(subject, compiled(subject.model, score="entropy", entropy_source="previous_scale"))
    assert outcome.arms(5) == ["pruned", "pruned"]
    keep = outcome.keeps[5, 0]
    assert not torch.equal(keep[0], keep[1])
    expected = Plainly(subject.model, outcome).logits(subject)
    assert worst(outcome.logits, expected) < 2e-5


def test_a_graph_that_cannot_prune_does_not_read_a_cache_that_lacks_rows():
    subject = odd.OddSubject(odd.LateRoll)
    outcome = generate(subject, compiled(subject.model, strict=False, keep={5: 0.5}))
    assert outcome.arms(5) == [] or "pruned" not in outcome.arms(5)
    with pytest.raises(
        GraphError, match="lacks the rows of pruned tokens: expected to be read by its own layer"
    ):
        generate(subject, compiled(subject.model, strict=False, keep={3: 0.5}))


class Copying(Family):
    """Hands every scale copies of its caches."""

    def arguments(self, hidden, state, end):
        if end > SQUARE.ends[3]:
            rows = state.cache.rows
            rows[:] = [[cache.clone() for cache in pair] for pair in rows]
        return super().arguments(hidden, state, end)


@pytest.mark.parametrize("kind", [caches.Joined, caches.Sliced])
def test_a_copy_of_a_cache_that_lacks_rows_is_refused(kind):
    subject = Copying(parts.Layer, parts.Absolute(), kind())
    generate(subject, compiled(subject.model, keep={4: {0: 1.0}}))
    with pytest.raises(GraphError, match=r"is not the cache that layer 0 wrote at the scale before"):
        generate(subject, compiled(subject.model, keep={3: {0: 0.5}}))
    torch.compiler.reset()
    generate(subject, compiled(subject.model, keep={3: {0: 0.5}}, pruned_kv="keep"))
