"""The project's own models: the recipes on MNIST and Fashion-MNIST and their compressed variants.

`make_zoo` trains them and keeps what it made with the project. `measure_zoo` takes each of them,
as it is kept, to a board, and compares what compression cost and what it bought.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import console, files
from edgekiln.errors import BadInputError, CheckFailedError

if TYPE_CHECKING:
    from edgekiln.train.recipe import Recipe

BOARD = "mps2-an386"
RECIPES = ("mnist_mlp_100", "mnist_mlp_512", "lenet5", "mnist_cnn", "ds_cnn", "resnet8")


_FAST = ("-O3", "-march=native")


@dataclass(frozen=True)
class Entry:
    """What is measured of one model; the keys of ``zoo.json``.

    Attributes:
        accuracy_float: The trained model's, in Keras, on the whole held-out set.
        accuracy_pruned: The compressed Keras model's; of a recipe, that of its first variant
            that is pruned, or None.
        accuracy_int8_host: The generated C's on this machine, on the whole held-out set.
        accuracy_int8_device: The board's, on ``device_samples`` of it.
        accuracy_float_device_samples: The trained Keras model's on those samples alone.
        device_samples: How many held-out samples ran on the board: of each class, and of those that
            the trained model gets right and wrong, the same share.
        device_equals_host_bytes: Whether every output byte there was the generated C's here.
        flash_bytes: The linked image.
        ram_bytes: Arena, variables and the measured peak of the stack.
        instructions: Instructions of an inference, counted in the emulator.
        macs: Multiply-accumulate steps of an inference.
        arena_bytes: The arena.
        parameters: Weights and biases of the Keras model.
        artifacts: Sizes in bytes of the files.
        steps: What was done to the trained model.
    """

    accuracy_float: float
    accuracy_pruned: float | None
    accuracy_int8_host: float
    accuracy_int8_device: float
    accuracy_float_device_samples: float
    device_samples: int
    device_equals_host_bytes: bool
    flash_bytes: int
    ram_bytes: int
    instructions: int | None
    macs: int
    arena_bytes: int
    parameters: int
    artifacts: dict[str, int]
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class Member:
    """A model of the zoo: a recipe, or one of its variants."""

    recipe: str
    variant: str | None

    @property
    def name(self) -> str:
        """Returns the model's name, a C identifier."""
        from edgekiln.quantize.variants import load_variant

        if self.variant is None:
            return self.recipe
        return load_variant(self.recipe, self.variant).model_name(self.recipe)


def members(names: Sequence[str]) -> tuple[Member, ...]:
    """Returns recipes, each followed by its variants, and single variants.

    Args:
        names: Recipes, or variants as ``<recipe>_<variant>``; none means all recipes.

    Raises:
        BadInputError: One of them is not in the zoo.
    """
    return tuple(dict.fromkeys(m for name in names or RECIPES for m in _members(name)))


def _members(name: str) -> Iterator[Member]:
    from edgekiln.quantize.variants import find_variant, variants_of

    found = find_variant(name)
    if found is not None and found[0] in RECIPES:
        yield Member(found[0], found[1].name)
    elif name in RECIPES:
        yield Member(name, None)
        yield from (Member(name, variant.name) for variant in variants_of(name))
    else:
        allowed = f"{', '.join(RECIPES)}, or a variant as <recipe>_<variant>"
        raise BadInputError("is not in the zoo", where=name or "''", allowed=allowed)


# ---- training ----


def make_zoo(names: Sequence[str], build: Path) -> None:
    """Trains recipes and their variants anew, and keeps the results with the project.

    Args:
        names: As for `members`. A variant that is named is made from the recipe as it is kept.
        build: The root of the build tree.

    Raises:
        BadInputError: One of them is not in the zoo, or a data set is not there.
        CheckFailedError: A training diverged, or ended below the recipe's accuracy.
    """
    # These models take long: oneDNN's kernels halve that, and the weights are kept anyway.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    trained = set()
    for member in members(names):
        directory = build / "zoo" / member.recipe
        if member.variant is None:
            _train(member, directory)
        else:
            if member.recipe not in trained:
                _restore(member, directory)
            _compress(member, directory)
        trained.add(member.recipe)


def _train(member: Member, directory: Path) -> None:
    from edgekiln.train import kept
    from edgekiln.train.datasets import load_dataset
    from edgekiln.train.loop import HISTORY_NAME, MODEL_NAME, accuracy, train_recipe
    from edgekiln.train.model_file import read_model, write_model
    from edgekiln.train.registry import load_recipe

    recipe = load_recipe(member.recipe)
    with files.new_directory(directory / "train") as new:
        train_recipe(recipe, new)
        model = kept.round_model(read_model(new / MODEL_NAME))
        write_model(model, new / MODEL_NAME)
        history = json.loads((new / HISTORY_NAME).read_text())
        data = load_dataset(recipe.dataset)
        history["accuracy"] = {
            "validation": accuracy(model, data.x_val, data.y_val),
            "test": accuracy(model, data.x_test, data.y_test),
        }
        files.write_json(new / HISTORY_NAME, history)
    kept.write_kept(member.name, ".npz", kept.pack_model(model), _signed(history, member))
    console.say(f"{member.name}: {100 * history['accuracy']['test']:.2f} % on the test set")


def _restore(member: Member, directory: Path) -> None:
    from edgekiln.train.loop import restore_recipe
    from edgekiln.train.registry import load_recipe

    with files.new_directory(directory / "train") as new:
        restore_recipe(load_recipe(member.recipe), new)


def _compress(member: Member, directory: Path) -> None:
    from edgekiln.quantize.stage import INT8_NAME, PRUNED_NAME, SUMMARY_NAME, quantize_recipe
    from edgekiln.quantize.variants import load_variant
    from edgekiln.train import kept
    from edgekiln.train.loop import MODEL_NAME
    from edgekiln.train.model_file import read_model
    from edgekiln.train.registry import load_recipe

    recipe, variant = load_recipe(member.recipe), load_variant(member.recipe, member.variant or "")
    if not variant.is_trained:
        return
    with files.new_directory(directory / variant.name) as new:
        quantize_recipe(recipe, directory / "train" / MODEL_NAME, new, variant, anew=True)
        summary = json.loads((new / SUMMARY_NAME).read_text())
    made = directory / variant.name
    if (made / PRUNED_NAME).exists():
        data = kept.pack_model(read_model(made / PRUNED_NAME))
        kept.write_kept(member.name, ".npz", data, _signed(summary, member))
    else:
        data = (made / INT8_NAME).read_bytes()
        kept.write_kept(member.name, ".tflite", data, _signed(summary, member))


def _signed(history: dict[str, Any], member: Member) -> dict[str, Any]:
    return {"command": f"make zoo MODELS={member.name}", **history}


# ---- measuring ----


def measure_zoo(
    names: Sequence[str], build: Path, device_samples: int, jobs: int = 0
) -> dict[str, Any]:
    """Takes the models, as they are kept, to the board and measures them.

    Args:
        names: As for `members`. With a variant its recipe is measured too.
        build: The root of the build tree; ``zoo.json`` is written there.
        device_samples: Most held-out samples to run on the board, for each model.
        jobs: Models that are measured at the same time; 0 means one a processor.

    Returns:
        The content of ``zoo.json``: an object for each recipe, its variants under ``variants``.

    Raises:
        BadInputError: One of them is not in the zoo, or a data set is not there.
        CheckFailedError: A byte differs between the board and the generated C here.
        ToolMissingError: A compiler or the emulator is missing.
    """
    asked = members(names)
    wanted = tuple(dict.fromkeys(each for m in asked for each in (Member(m.recipe, None), m)))
    found = dict(_measure_all(wanted, build, device_samples, jobs or os.cpu_count() or 1))
    report: dict[str, Any] = {}
    for member in wanted:
        entry = asdict(found[member])
        if member.variant is None:
            report[member.recipe] = {**entry, "board": BOARD, "emulated": True, "variants": {}}
        else:
            _add_variant(report[member.recipe], member, entry)
    files.write_json(build / "zoo.json", report)
    return report


def _add_variant(recipe: dict[str, Any], member: Member, entry: dict[str, Any]) -> None:
    from edgekiln.quantize.variants import load_variant

    variant = load_variant(member.recipe, member.variant or "")
    recipe["variants"][variant.name] = entry
    if variant.is_pruned and recipe["accuracy_pruned"] is None:
        recipe["accuracy_pruned"] = entry["accuracy_pruned"]


def _measure_all(
    wanted: Sequence[Member], build: Path, device_samples: int, jobs: int
) -> Iterator[tuple[Member, Entry]]:
    """Measures in processes of their own, as TensorFlow leaves memory behind."""
    with (
        ProcessPoolExecutor(
            jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
        ) as pool,
        console.progress() as bar,
    ):
        task = bar.add_task("models of the zoo", total=len(wanted), note="")
        waiting = {
            pool.submit(measure_member, member, build, device_samples): member for member in wanted
        }
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
                bar.update(task, advance=1, note=waiting[done].name)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def measure_member(member: Member, build: Path, device_samples: int) -> Entry:
    """Quantizes, compiles and runs one model of the zoo. Raises as `measure_zoo`."""
    from edgekiln.quantize.stage import quantize_recipe
    from edgekiln.quantize.variants import load_variant
    from edgekiln.train.loop import MODEL_NAME, restore_recipe
    from edgekiln.train.registry import load_recipe

    recipe = load_recipe(member.recipe)
    variant = load_variant(member.recipe, member.variant) if member.variant else None
    with files.new_directory(build / "zoo-report" / member.name) as directory:
        restore_recipe(recipe, directory)
        quantize_recipe(recipe, directory / MODEL_NAME, directory, variant, run_int8=False)
        return _measure_int8(member, recipe, directory, device_samples)


def _measure_int8(member: Member, recipe: Recipe, directory: Path, device_samples: int) -> Entry:
    from edgekiln.bench.compiled import CompiledRunner
    from edgekiln.bench.device import run_on_board
    from edgekiln.export.compiler import compile_model, write_bundle
    from edgekiln.export.tflite_reader import read_tflite
    from edgekiln.firmware.boards import load_board
    from edgekiln.firmware.image import build_image
    from edgekiln.quantize.affine import quantize_array
    from edgekiln.train.datasets import load_dataset, spread_over_strata

    board, data = load_board(BOARD), load_dataset(recipe.dataset)
    int8 = (directory / "int8.tflite").read_bytes()
    summary = json.loads((directory / "quantize.json").read_text())
    for target in ("host", board.target):
        goal = "time" if target == "host" else "balanced"
        compiled = compile_model(int8, name=member.name, target=target, optimize=goal)
        write_bundle(compiled, directory / target)
    image = build_image(directory / board.target, board, directory / "image")
    graph = read_tflite(int8, member.name)
    tensor = graph.tensor(graph.inputs[0])
    codes = quantize_array(data.x_test, tensor.q.scale, tensor.q.zero_point, tensor.dtype.value)
    (host,) = CompiledRunner(directory / "host", flags=_FAST).run((codes,))
    with np.load(directory / "predictions.npz", allow_pickle=False) as predictions:
        predicted = predictions["float"]
    chosen = spread_over_strata((predicted == data.y_test, data.y_test), device_samples)
    device = run_on_board(image, board, codes[chosen], progress=False)
    wrong = int((device.outputs[0] != host[chosen]).sum())
    if wrong:
        raise CheckFailedError(
            "outputs on the board differ from the generated C's on this machine",
            where=f"{member.name} on {BOARD}",
            got=f"{wrong:,} of {device.outputs[0].size:,} bytes",
        )
    return Entry(
        accuracy_float=summary["accuracy"]["float"],
        accuracy_pruned=summary["accuracy"]["pruned"],
        accuracy_int8_host=_share(host, data.y_test),
        accuracy_int8_device=_share(device.outputs[0], data.y_test[chosen]),
        accuracy_float_device_samples=float(np.mean(predicted[chosen] == data.y_test[chosen])),
        device_samples=len(chosen),
        device_equals_host_bytes=wrong == 0,
        flash_bytes=image.flash_bytes,
        ram_bytes=device.ram_bytes,
        instructions=device.instructions,
        macs=image.macs,
        arena_bytes=image.arena_bytes,
        parameters=summary["parameters"],
        artifacts={
            **{path.name: path.stat().st_size for path in sorted(directory.glob("*.keras"))},
            **{path.name: path.stat().st_size for path in sorted(directory.glob("*.tflite"))},
            "image.bin": image.flash_bytes,
        },
        steps=[_settings(record) for record in summary["compression"]],
    )


def _share(outputs: NDArray[Any], labels: NDArray[np.int64]) -> float:
    return float(np.mean(outputs.reshape(len(labels), -1).argmax(axis=1) == labels))


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a step's record without what came of it epoch by epoch."""
    return {key: value for key, value in record.items() if key not in ("history", "rounds")}


# ---- the table ----


def zoo_markdown(report: dict[str, Any]) -> str:
    """Returns the page about all models; variants are compared with their recipes."""
    rows = [_HEADINGS, ("---", *("--:" for _ in _HEADINGS[1:]))]
    for recipe, entry in report.items():
        rows.append(_row(recipe, entry, entry))
        for name, variant in entry["variants"].items():
            rows.append(_row(f"{recipe} {name}", variant, entry))
    return _PAGE + "".join(f"| {' | '.join(row)} |\n" for row in rows)


_PAGE = f"""# The zoo

The project's own models and their compressed variants, measured on the emulated board
`{BOARD}`, a Cortex-M4F. Made by `make zoo-report` from the models in train/kept, which
`make zoo` trains. MNIST for the names that say so and for lenet5,
Fashion-MNIST for ds_cnn and resnet8; both have 10,000 held-out images.

- float: the trained model in Keras; pruned: the compressed model in Keras, before it is
  int8, or with quantization in the loop. Both on all held-out images.
- int8 host: the generated C on this machine, on all of them.
- device samples: how many of them ran on the board as well, the same share of each class, and
  of those that the trained model gets right and wrong; float there and int8 device: the
  accuracies of the trained model in Keras and of the image on the board on these alone. Every
  output byte of the board has to be the one that the generated C gave on this machine.
- Instructions are counted exactly by QEMU; they are not cycles. Flash is the linked image, RAM
  is arena, variables and the measured peak of the stack, both in bytes. In brackets: the ratio
  to the recipe itself.

"""


_HEADINGS = (
    *("model", "float", "pruned", "int8 host"),
    *("device samples", "float there", "int8 device", "bytes equal"),
    *("MACs", "instructions", "flash", "RAM", "int8.tflite"),
)


def _row(name: str, entry: dict[str, Any], base: dict[str, Any]) -> tuple[str, ...]:
    pruned = None if entry is base else entry["accuracy_pruned"]
    return (
        name,
        _percent(entry["accuracy_float"]),
        "–" if pruned is None else _percent(pruned),
        _percent(entry["accuracy_int8_host"]),
        f"{entry['device_samples']:,}",
        _percent(entry["accuracy_float_device_samples"]),
        _percent(entry["accuracy_int8_device"]),
        "yes" if entry["device_equals_host_bytes"] else "NO",
        *(
            _against(entry[key], base[key])
            for key in ("macs", "instructions", "flash_bytes", "ram_bytes")
        ),
        f"{entry['artifacts']['int8.tflite']:,}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _against(value: int, base: int) -> str:
    """Returns a number, and its ratio to the recipe's own where they differ."""
    return f"{value:,}" if value == base else f"{value:,} ({value / base:.2f})"
