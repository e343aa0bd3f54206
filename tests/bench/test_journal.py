"""A run that is broken off goes on where it stopped, with answers that are its own."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.bench.device import run_on_board
from edgekiln.bench.journal import Entry, Journal
from edgekiln.bench.protocol import Device
from edgekiln.errors import BadInputError, BoardError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.counting import InferenceCount
from edgekiln.firmware.image import Image, build_image

DigitsImage = Callable[[str, str], Image]

KEY = {"image": "abc", "inferences": 3}
ENTRIES = [
    Entry(b"\x00\xff", 12, None),
    Entry(b"*%\n", 2**33, InferenceCount(9, (4, 3))),
    Entry(b"", 0, InferenceCount(1, ())),
]


def noise(samples: int) -> NDArray[np.int8]:
    return np.random.default_rng(5).integers(-128, 128, (samples, 8, 8, 1), np.int8)


@pytest.fixture(scope="module")
def digits_image(root: Path, tmp_path_factory: pytest.TempPathFactory) -> DigitsImage:
    """Returns the image of a digits model (``mlp`` or ``cnn``) for a board."""

    @functools.cache
    def make(model: str, slug: str) -> Image:
        board, directory = load_board(slug), tmp_path_factory.mktemp(f"{model}-{slug}")
        data = (root / f"tests/golden/digits_{model}_int8.tflite").read_bytes()
        write_bundle(compile_model(data, name="digits", target=board.target), directory / "c")
        return build_image(directory / "c", board, directory)

    return make


class Interrupted:
    """Counts the inferences that are sent to the board, and breaks the run off at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.break_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        run_timed = Device.run_timed

        def counted(device: Device, data: bytes) -> tuple[bytes, int]:
            if self.calls == self.break_at:
                raise self.error
            self.calls += 1
            return run_timed(device, data)

        monkeypatch.setattr(Device, "run_timed", counted)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    return Interrupted(monkeypatch)


def run(image: Image, inputs: NDArray[np.int8], journal: Path | None, **named: Any) -> Any:
    return run_on_board(
        image, load_board(image.board), inputs, progress=False, journal=journal, **named
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BoardError("gone")], ids=repr)
def test_a_run_goes_on_where_it_stopped(
    digits_image: DigitsImage,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    image, inputs, journal = digits_image("mlp", "host"), noise(12), tmp_path / "new" / "journal"
    whole = run(image, inputs, None)
    for break_at in (4, 3):  # the second time it gets from 4 to 6: one of them is done again
        interrupted.calls, interrupted.break_at = 0, break_at
        interrupted.error = error
        with pytest.raises(type(error)):
            run(image, inputs, journal)
    interrupted.calls, interrupted.break_at = 0, None
    found = run(image, inputs, journal)
    assert interrupted.calls == 12 - 6 + 1
    np.testing.assert_array_equal(found.outputs[0], whole.outputs[0])
    said = capsys.readouterr().err
    assert "4 of 12 inferences were done before" in said
    assert "6 of 12 inferences were done before" in said
    assert not journal.exists()


@pytest.mark.emulator
def test_what_an_emulator_counted_is_kept(
    digits_image: DigitsImage, tmp_path: Path, interrupted: Interrupted
) -> None:
    image, inputs = digits_image("mlp", "mps2-an386"), noise(5)
    whole = run(image, inputs, None)
    interrupted.calls, interrupted.break_at = 0, 3
    with pytest.raises(KeyboardInterrupt):
        run(image, inputs, tmp_path / "journal")
    interrupted.break_at = None
    found = run(image, inputs, tmp_path / "journal")
    assert found.counts == whole.counts and len(found.counts) == 5
    assert found.stack_bytes == whole.stack_bytes


def test_another_run_begins_anew(
    digits_image: DigitsImage, tmp_path: Path, interrupted: Interrupted
) -> None:
    journal = tmp_path / "journal"
    interrupted.break_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(digits_image("mlp", "host"), noise(6), journal)
    for image, inputs in (("mlp", noise(6)[::-1].copy()), ("mlp", noise(5)), ("cnn", noise(6))):
        kept = journal.read_bytes()
        interrupted.calls, interrupted.break_at = 0, None
        run(digits_image(image, "host"), inputs, journal)
        assert interrupted.calls == len(inputs)
        journal.write_bytes(kept)


def test_a_board_that_answers_otherwise_begins_anew(
    digits_image: DigitsImage,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image, inputs, journal = digits_image("mlp", "host"), noise(4), tmp_path / "journal"
    interrupted.break_at = 2
    with pytest.raises(KeyboardInterrupt):
        run(image, inputs, journal)
    with Journal(journal, read_key(journal)) as other:
        first, last = other.entries
        other.begin_anew()
        other.add(first)
        other.add(Entry(last.output[::-1], last.elapsed_us, None))
    interrupted.calls, interrupted.break_at = 0, None
    found = run(image, inputs, journal)
    assert interrupted.calls == 1 + 4
    np.testing.assert_array_equal(found.outputs[0], run(image, inputs, None).outputs[0])
    assert "answers otherwise than before" in capsys.readouterr().err


def read_key(journal: Path) -> dict[str, Any]:
    return dict(json.loads(journal.read_text().splitlines()[0].rpartition("*")[0]))


def write(path: Path) -> bytes:
    with Journal(path, KEY) as journal:
        assert journal.entries == []
        for entry in ENTRIES:
            journal.add(entry)
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    data = write(tmp_path / "journal")
    with Journal(tmp_path / "journal", KEY) as journal:
        assert journal.entries == ENTRIES
    assert (tmp_path / "journal").read_bytes() == data


def test_only_what_is_whole_is_read(tmp_path: Path) -> None:
    """Every byte changed, and every length that a crash can leave: a prefix, or nothing."""
    path = tmp_path / "journal"
    data = write(path)
    generator = random.Random(0)
    damaged = [data[:length] for length in range(len(data))]
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << generator.randrange(8)
        damaged.append(bytes(changed))
    for text in damaged:
        path.write_bytes(text)
        with Journal(path, KEY) as journal:
            count = len(journal.entries)
            assert journal.entries == ENTRIES[:count]
            for entry in ENTRIES[count:]:
                journal.add(entry)
        assert path.read_bytes() == data


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="journal: cannot be written"):
        Journal(tmp_path / "file" / "journal", KEY)
