"""The trials of a search: kept in memory, or in a journal that processes share and a later run continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .space import KNOWN, Point

if TYPE_CHECKING:
    import optuna

STUDY = "toprovar tune"
# Settings drawn at random before the sampler learns from them.
STARTUP = 8


@dataclass(frozen=True)
class Journal:
    """A file with the trials of one search.

    Attributes:
        path: the file.
        settings: what trials of one search share; another search is refused.
    """

    path: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """A point that was drawn and judged.

    Attributes:
        value: what the search maximises.
        options: of the backend.
        row: as `PairedStudy.score` reports it, without the verdict on every image.
    """

    value: float
    options: Mapping[str, object]
    row: Mapping[str, Any]


def open_trials(journal: Journal | None, seed: int, worker: int = 0) -> optuna.Study:
    """The search as optuna's study; processes that give one journal share it.

    Args:
        journal: None keeps the trials in memory.
        seed: of the sampler.
        worker: number of the process; 0 prepares the journal before the others open it.

    Raises:
        OptionError: the journal is of another search or cannot be used, or optuna is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise OptionError("tuning needs the package optuna: pip install toprovar-fx[tune]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Points that other processes are drawing count as bad, so that no two draw the same.
    sampler = optuna.samplers.TPESampler(
        seed=seed + worker, n_startup_trials=STARTUP, constant_liar=journal is not None
    )
    given: dict[str, Any] = {"study_name": STUDY, "direction": "maximize", "sampler": sampler}
    if journal is None:
        study = optuna.create_study(**given)
    else:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        try:
            storage = JournalStorage(JournalFileBackend(str(journal.path)))
            study = optuna.create_study(**given, storage=storage, load_if_exists=True)
        except (OSError, ValueError, KeyError) as error:
            raise OptionError(f"'{journal.path}' holds no trials of a search: {error}") from error
    if worker == 0:
        _prepare(study, journal)
    return study


def finished(study: optuna.Study) -> int:
    """How many points were judged, or were too dear to be."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def judged(study: optuna.Study) -> list[Judged]:
    """All points that were judged, in their order."""
    from optuna.trial import TrialState

    return [
        Judged(
            float(trial.value),
            Point.suggested(trial).options(trial.user_attrs["factor"]),
            trial.user_attrs["row"],
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ]


def _prepare(study: optuna.Study, journal: Journal | None) -> None:
    from optuna.trial import TrialState

    if journal is not None:
        known = study.user_attrs.get("settings")
        if known is None:
            study.set_user_attr("settings", dict(journal.settings))
        for name, value in journal.settings.items() if known else ():
            if known.get(name) != value:
                raise OptionError(
                    f"'{journal.path}' is of a search with {name}={known.get(name)}, not {value}: expected "
                    "the same, or another --out"
                )
    # What an interrupted process was drawing is not drawn any more.
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    for params in KNOWN:
        study.enqueue_trial(dict(params), skip_if_exists=True)
