"""The stepwise search, on numbers instead of models."""

from __future__ import annotations

from typing import Any

from edgekiln.quantize.search import Search, Trial, search_stepwise


def search(bound: float, **options: Any) -> Search[tuple[int, ...], int]:
    return search_stepwise(
        (),
        (1, 2, 3, 4),
        attempt=lambda state, candidate: (*state, candidate),
        measure=lambda state: float(10 - sum(state)),
        accept=lambda score: score >= bound,
        **options,
    )


def test_it_ends_at_the_first_refusal_with_the_last_good_state() -> None:
    result = search(7)
    assert result.state == (1, 2)
    assert result.trials == (Trial(1, 9, True), Trial(2, 7, True), Trial(3, 4, False))
    assert result.accepted == Trial(2, 7, True)


def test_it_ends_when_the_candidates_do() -> None:
    result = search(0)
    assert result.state == (1, 2, 3, 4) and all(trial.accepted for trial in result.trials)


def test_the_start_is_kept_when_nothing_is_accepted() -> None:
    result = search(9.5)
    assert result.state == () and result.accepted is None
    assert result.trials == (Trial(1, 9, False),)


def test_it_ends_when_the_target_is_reached() -> None:
    assert search(0, done=lambda state: len(state) == 2).state == (1, 2)
    assert search(0, done=lambda state: True) == Search((), ())


def test_candidates_are_taken_one_at_a_time_and_reported() -> None:
    log: list[Any] = []

    def candidates() -> Any:
        for candidate in (1, 2, 3):
            log.append(candidate)
            yield candidate

    search_stepwise(
        0,
        candidates(),
        attempt=lambda state, candidate: state + candidate,
        measure=float,
        accept=lambda score: score < 3,
        report=log.append,
    )
    assert log == [1, Trial(1, 1.0, True), 2, Trial(2, 3.0, False)]
