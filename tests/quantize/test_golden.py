"""The kept models are those that their README speaks of."""

from __future__ import annotations

import re
from pathlib import Path

from edgekiln.files import sha256_file

GOLDEN = Path(__file__).parent.parent / "golden"


def test_the_readme_lists_every_kept_file_of_our_making() -> None:
    text = (GOLDEN / "README.txt").read_text()
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.M)}
    assert listed.keys() >= {"digits_mlp_int8.tflite", "digits_cnn_int8.tflite"}
    assert listed == {name: sha256_file(GOLDEN / name) for name in listed}
    assert all((GOLDEN / name).stat().st_size < 64 * 1024 for name in listed)
