"""results.json: the keys that others rely on, and refusal of what contradicts itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgekiln.bench.results import (
    Accuracy,
    BenchResult,
    Confusion,
    Results,
    from_json,
    read_results,
    to_json,
    write_results,
)
from edgekiln.errors import BadInputError

BENCH_KEYS = [
    *("board", "emulated", "model", "macs", "instructions", "cycles", "cycles_model"),
    "latency_us",
    *("flash_bytes", "flash_constants_bytes", "flash_code_bytes"),
    *("ram_bytes", "arena_bytes", "stack_bytes", "per_node", "toolchain", "flags"),
]


def bench_part(results: Results) -> BenchResult:
    names = [field.name for field in dataclasses.fields(BenchResult)]
    return BenchResult(**{name: getattr(results, name) for name in names})


def test_bench_json_has_exactly_the_keys_of_the_contract(results: Results) -> None:
    value = to_json(bench_part(results))
    assert list(value) == BENCH_KEYS
    assert list(value["per_node"][0]) == ["index", "op", "name", "macs", "instructions", "cycles"]


def test_results_json_begins_with_the_bench_object(results: Results) -> None:
    value = to_json(results)
    assert list(value)[: len(BENCH_KEYS)] == BENCH_KEYS
    for key in ("float", "int8_host", "int8_device", "samples", "device_equals_host_bytes"):
        assert key in value["accuracy"]
    assert {"bytes", "sha256"} <= set(value["artifacts"][0])
    assert value["oracle"] == "tflm"
    assert {"versions", "seeds"} <= set(value)


def test_results_survive_the_file(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, results)
    assert read_results(path) == results
    assert json.loads(path.read_text(encoding="utf-8")) == to_json(results)


def test_an_emulator_has_no_latency(results: Results) -> None:
    with pytest.raises(BadInputError, match="latency"):
        dataclasses.replace(results, latency_us=12.0)
    assert dataclasses.replace(results, emulated=False, latency_us=12.0).latency_us == 12.0


def test_an_emulator_says_how_it_models_cycles_and_a_board_does_not(results: Results) -> None:
    modelled = dataclasses.replace(results, cycles=7, cycles_model="as the data sheet has it")
    assert from_json(Results, to_json(modelled), "results.json") == modelled
    assert dataclasses.replace(results, emulated=False, cycles=7).cycles == 7
    for wrong in ({"cycles_model": None}, {"cycles": None}, {"emulated": False}):
        with pytest.raises(BadInputError, match="how they are modelled"):
            dataclasses.replace(modelled, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flash_bytes": 8999}, "flash_bytes"),
        ({"ram_bytes": 1323}, "ram_bytes"),
    ],
)
def test_parts_larger_than_the_whole_are_refused(
    results: Results, change: dict[str, int], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        dataclasses.replace(results, **change)  # type: ignore[arg-type]


def test_percent_is_not_taken_for_a_fraction() -> None:
    with pytest.raises(BadInputError, match="not an accuracy"):
        Accuracy(98.6, None, None, None, 1, True, "")


def test_confusion_matrix_is_square() -> None:
    with pytest.raises(BadInputError, match="not square"):
        Confusion(("a", "b"), ((1, 2),))


def change(value: dict[str, Any], key: str, new: object) -> dict[str, Any]:
    return {**value, key: new}


@pytest.mark.parametrize(
    ("key", "new", "message"),
    [
        ("macs", "many", 'macs: wrong type; got "many"; allowed: an integer'),
        ("macs", True, "macs: wrong type; got true"),
        ("per_node", [{"index": 0}], r"per_node\[0\]: not the keys"),
        ("per_node", {}, "per_node: wrong type; got {}; allowed: a list"),
        ("accuracy", None, "accuracy: wrong type; got null; allowed: an object"),
        ("training", {"loss": [1.0, "low"]}, r"training: loss\[1\]: wrong type"),
        ("surprise", 1, r"unknown \['surprise'\]"),
    ],
)
def test_a_wrong_value_is_named(results: Results, key: str, new: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        from_json(Results, change(to_json(results), key, new), "results.json")


def test_a_missing_key_is_named(results: Results) -> None:
    value = to_json(results)
    del value["stack_bytes"]
    with pytest.raises(BadInputError, match=r"missing \['stack_bytes'\]"):
        from_json(Results, value, "results.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"results\.json") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_equality_needs_something_compared(results: Results) -> None:
    assert results.all_equal
    assert not dataclasses.replace(results, comparisons=()).all_equal
    one = dataclasses.replace(results.comparisons[0], mismatched_bytes=1)
    assert not dataclasses.replace(results, comparisons=(*results.comparisons, one)).all_equal
    none = dataclasses.replace(results.comparisons[0], bytes=0)
    assert not dataclasses.replace(results, comparisons=(none,)).all_equal
