"""Compressing step by step while the model stays good enough: the loop, without any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

CandidateT = TypeVar("CandidateT")
StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Trial(Generic[CandidateT]):
    """One candidate that was tried.

    Attributes:
        candidate: What was tried, a sparsity for instance.
        score: What `measure` gave, an accuracy for instance.
        accepted: Whether the score was good enough.
    """

    candidate: CandidateT
    score: float
    accepted: bool


@dataclass(frozen=True)
class Search(Generic[StateT, CandidateT]):
    """How a search ended.

    Attributes:
        state: The state after the last accepted candidate; the start where none was.
        trials: All that was tried, in order; only the last one may be refused.
    """

    state: StateT
    trials: tuple[Trial[CandidateT], ...]

    @property
    def accepted(self) -> Trial[CandidateT] | None:
        """The last accepted trial, which `state` belongs to; None where none was."""
        return next((trial for trial in reversed(self.trials) if trial.accepted), None)


def search_stepwise(
    start: StateT,
    candidates: Iterable[CandidateT],
    *,
    attempt: Callable[[StateT, CandidateT], StateT],
    measure: Callable[[StateT], float],
    accept: Callable[[float], bool],
    done: Callable[[StateT], bool] = lambda state: False,
    report: Callable[[Trial[CandidateT]], None] = lambda trial: None,
) -> Search[StateT, CandidateT]:
    """Goes through ever stronger candidates, each from the state that the last one left.

    Ends at the first candidate that is refused, at the first state that is ``done``, or
    after the last candidate.

    Args:
        start: The state before anything was tried: a model, or the weights of one.
        candidates: What to try, from weak to strong; taken one at a time.
        attempt: Returns the state after a candidate, and leaves the one it is given as it was.
        measure: Returns the score of a state.
        accept: Tells whether a score is good enough.
        done: Tells whether an accepted state, or ``start``, needs no further step.
        report: Called with every trial.

    Returns:
        The last accepted state, and all trials.
    """
    state = start
    trials: list[Trial[CandidateT]] = []
    remaining = iter(candidates)
    while not done(state):
        try:
            candidate = next(remaining)
        except StopIteration:
            break
        tried = attempt(state, candidate)
        score = measure(tried)
        trials.append(Trial(candidate, score, accept(score)))
        report(trials[-1])
        if not trials[-1].accepted:
            break
        state = tried
    return Search(state, tuple(trials))
