"""Chains the stages: from a recipe, a Keras model with data, or a .tflite file to a measured board.

::

    build/<model>/train/         model.keras, history.json
                  quantize/      pruned.keras, float.tflite, int8.tflite, quantize.json; of a model
                                 from outside compressed.keras, float.tflite, <scheme>.tflite
                  export/        .tflite, .onnx, the C array for TensorFlow Lite Micro
                  inputs/        inputs.npz: what the model is measured with
                  host/c/        the generated C for this machine
                  <board>/c/     the generated C for the board
                  <board>/image/ image.elf, image.bin, image.hex, for some image.uf2
                  <board>/run/   results.json, made by running the image
                  <board>/       results.json and report.html, for people

Each directory is a stage that runs only when what it was made from has changed. A Keras model
from outside enters at quantize, a .tflite at export. What fails leaves the stages before it as
they are, so that the next run goes on from there.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekiln
from edgekiln.console import choose, make_table, say, show
from edgekiln.errors import BadInputError, CheckFailedError, DoesNotFitError, ToolMissingError
from edgekiln.files import (
    MANIFEST_NAME,
    Stage,
    read_input_file,
    sha256_file,
    write_bytes,
    write_json,
)
from edgekiln.firmware.flash.destination import AUTO, EMULATOR, Destination
from edgekiln.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekiln.bench.inputs import ModelInputs
    from edgekiln.bench.measure import Background, Subject
    from edgekiln.bench.results import Artifact, BenchResult, Results
    from edgekiln.export.onnx import OnnxCheck
    from edgekiln.firmware.boards import Board
    from edgekiln.firmware.image import Image
    from edgekiln.quantize.variants import Variant
    from edgekiln.train.recipe import Recipe

PACKAGE = Path(edgekiln.__file__).parent
RANDOM_SAMPLES = 20
RANDOM_SEED = 0
BENCH_SAMPLES = 3
RELEASE_FILES = "release/files"

_HOST = "host"
_LEAST_SAMPLES = 1000
_MOST_MACS = 3_000_000_000  # of all samples together: a few minutes in an emulator
_EXTRAS = {
    "train": (*("filelock", "h5py", "keras", "platformdirs", "requests", "sklearn", "tensorflow"),),
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
    "litert": ("ai_edge_litert",),
    "board": ("elftools", "serial"),
    "report": ("jinja2",),
}
_RECIPE_EXTRAS = ("train", "litert", "onnx")
_EXPORT_MODULES = ("c_array.py", "onnx.py", "onnx_worker.py")
_TRAINING_METRICS = ("accuracy", "val_accuracy", "loss", "val_loss")
_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
_MODEL_SUFFIXES = (".tflite", *_KERAS_SUFFIXES, ".onnx", ".pb")
_MODELS = "a recipe, a .keras or .h5 file, a SavedModel directory, or a .tflite file"
_WHAT_FILES_ARE = {
    "model.keras": "Keras model, float",
    "pruned.keras": "Keras model, pruned",
    "compressed.keras": "Keras model, compressed",
    "float.tflite": "TensorFlow Lite, float",
    "int16x8.tflite": "TensorFlow Lite, activations int16, weights int8",
    "int4-weights.tflite": "TensorFlow Lite, activations int8, weights int4",
    "float16.tflite": "TensorFlow Lite, weights float16",
    "dynamic.tflite": "TensorFlow Lite, weights int8",
    "int8.tflite": "TensorFlow Lite, int8",
    "_float.onnx": "ONNX, float",
    "_int8.onnx": "ONNX, int8",
    "_tflite.h": "C array for TensorFlow Lite Micro, header",
    "_tflite.c": "C array for TensorFlow Lite Micro",
    "_weights.c": "generated C, weights and tables",
    "_golden.c": "generated C, golden pair",
    ".tflite": "TensorFlow Lite",
    "image.elf": "image with symbols",
    "image.bin": "image as flashed",
    "image.hex": "image, Intel HEX",
    "edgekiln-model": "program with the generated C",
    "edgekiln-run": "runner",
    "model.json": "what the runner knows of the model",
    "image.uf2": "image, UF2",
    ".c": "generated C",
    ".h": "generated C, header",
}


@dataclass(frozen=True)
class Given:
    """What a user gave along with MODEL, for a Keras model from outside.

    Attributes:
        data: The .npz file, or None.
        options: How to compress and quantize.
    """

    data: Path | None = None
    options: QuantizeOptions = field(default_factory=QuantizeOptions)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was given."""
        return self == Given()


_NOTHING = Given()
_ANYWHERE = Destination()


def deploy(
    model: str,
    board: str,
    build: Path,
    optimize: str = "balanced",
    given: Given = _NOTHING,
    where: Destination = _ANYWHERE,
) -> Path:
    """Takes a model to a board, runs it there, and proves that every output byte is right.

    Where the board has an emulator and no destination is given, that is where it runs.

    Args:
        model: A recipe's name, a Keras model's file, a SavedModel directory or a .tflite file.
        board: The board's slug.
        build: The root of the build tree.
        optimize: What the compiler favours.
        given: Data and options for a Keras model.
        where: The real board that is flashed and measured.

    Returns:
        The path of results.json; report.html lies beside it.

    Raises:
        CheckFailedError: A byte differs between the board, the generated C on the host and
            TensorFlow Lite Micro. Results of an earlier deploy are removed.
        EdgekilnError: Something else is wrong or missing; the message says what.
    """
    from edgekiln.bench.results import read_results
    from edgekiln.firmware.boards import load_board

    chosen = load_board(board)
    work = find_model(model, build, optimize, given)
    emulated = _is_emulated(chosen, where)
    check_tools(work, chosen, run=True, emulated=emulated)
    port = None if emulated else _flash_to_measure(work, chosen, where)
    made = work.measure(chosen, stale=results_paths(work, board), port=port)
    results_path = publish_results(work, board, made)
    show_results(read_results(results_path))
    return results_path


def bench_model(
    model: str,
    board: str,
    build: Path,
    optimize: str = "balanced",
    given: Given = _NOTHING,
    where: Destination = _ANYWHERE,
) -> BenchResult:
    """Measures a model on a board with a few inputs: instructions, flash, RAM.

    Arguments as for `deploy`.

    Raises:
        CheckFailedError: The board's output differs from that of the generated C on the host.
        EdgekilnError: Something else is wrong or missing; the message says what.
    """
    from edgekiln.bench.inputs import read_inputs_file
    from edgekiln.bench.measure import measure_few
    from edgekiln.firmware.boards import load_board

    chosen = load_board(board)
    work = find_model(model, build, optimize, given)
    emulated = _is_emulated(chosen, where)
    check_tools(work, chosen, run=True, emulated=emulated)
    image = work.image(chosen)
    port = None if emulated else _flash_to_measure(work, chosen, where)
    few = read_inputs_file(work.inputs).head(BENCH_SAMPLES)
    return measure_few(work.name, image, chosen, work.host_bundle, few, port)


def flash(
    model: str,
    board: str,
    build: Path,
    optimize: str = "balanced",
    given: Given = _NOTHING,
    where: Destination = _ANYWHERE,
) -> Image:
    """Makes the image that `deploy` runs and writes it to the board.

    An emulator keeps no image: it is handed the file each time it starts. What is proved there,
    and on a board whose serial port is known, is that the image boots and answers one input as
    the generated C does on the host.

    Args:
        model: As for `deploy`.
        board: As for `deploy`.
        build: As for `deploy`.
        optimize: As for `deploy`.
        given: As for `deploy`.
        where: The runner, the port and the place to write to.

    Returns:
        The image.

    Raises:
        EdgekilnError: As for `deploy`, or the board could not be written.
    """
    from edgekiln.firmware.boards import load_board, refuse_linux
    from edgekiln.firmware.flash import registry

    chosen = load_board(board)
    refuse_linux(chosen)
    work = find_model(model, build, optimize, given)
    name = registry.choose_runner(chosen, where)
    emulated = name == EMULATOR
    check_tools(work, chosen, run=False, emulated=emulated)
    image = work.image(chosen)
    if emulated:
        _boot(work, chosen, image)
        return image
    job = registry.plan_flash(chosen, image, name, where, choose)
    registry.write_image(registry.find_runner(chosen, name), job)
    if job.port is not None:
        _boot(work, chosen, image, job.port)
    return image


def flash_commands(
    model: str,
    board: str,
    build: Path,
    optimize: str = "balanced",
    given: Given = _NOTHING,
    where: Destination = _ANYWHERE,
) -> list[str]:
    """Makes the image and returns the commands with which `flash` would write it.

    Neither the runner's program nor the board has to be there: a port that is not found is
    shown as ``<port>``. Args and errors as for `flash`.

    Returns:
        Lines for a shell; none where an emulator takes the image.
    """
    from edgekiln.firmware.boards import load_board, refuse_linux
    from edgekiln.firmware.flash import registry

    chosen = load_board(board)
    refuse_linux(chosen)
    work = find_model(model, build, optimize, given)
    name = registry.choose_runner(chosen, where, dry_run=True)
    check_tools(work, chosen, run=False, emulated=False)
    image = work.image(chosen)
    if name == EMULATOR:
        say(f"nothing is written: {board} is handed {image.elf} when it starts")
        return []
    job = registry.plan_flash(chosen, image, name, where, choose, dry_run=True)
    return registry.find_runner(chosen, name).commands(job)


def _boot(work: Work, board: Board, image: Image, port: str | None = None) -> None:
    """Runs one input on the emulator, or on the board at a port, and compares the outputs."""
    from edgekiln.bench.compiled import find_host_compiler
    from edgekiln.bench.inputs import read_inputs_file
    from edgekiln.bench.measure import measure_few
    from edgekiln.firmware.flash.ports import wait_for_port

    find_host_compiler()
    if port is not None:
        wait_for_port(port)
    one = read_inputs_file(work.inputs).head(1)
    measure_few(work.name, image, board, work.host_bundle, one, port)
    emulated = ", emulated," if port is None and board.is_emulated else ""
    say(f"{image.elf} boots on {board.slug}{emulated} and answers as it should")


def _flash_to_measure(work: Work, board: Board, where: Destination) -> str:
    """Writes the image to a real board; returns the serial port at which it answers then."""
    from edgekiln.firmware.flash import registry
    from edgekiln.firmware.flash.ports import find_port, wait_for_port

    name = registry.choose_runner(board, where)
    port = find_port(board, where.port or AUTO, choose).device
    there = replace(where, port=port)
    image = work.image(board)
    runner = registry.find_runner(board, name)
    registry.write_image(runner, registry.plan_flash(board, image, name, there, choose))
    wait_for_port(port)
    return port


def _is_emulated(board: Board, where: Destination) -> bool:
    """Whether the emulator, or this machine, is measured, and not a real board."""
    has_stand_in = board.is_host or board.is_emulated
    return has_stand_in and (where.is_nothing or where.runner == EMULATOR)


def train(model: str, build: Path) -> Path:
    """Trains a recipe; returns the directory with model.keras and history.json.

    Raises:
        BadInputError: MODEL is not a recipe.
    """
    check_packages("train")
    return find_model(model, build).trained


def quantize(
    model: str, build: Path, given: Given = _NOTHING, *, sensitivity: bool = False
) -> Path:
    """Trains, prunes and quantizes a recipe, or quantizes a Keras model from outside.

    Args:
        model: As for `deploy`.
        build: As for `deploy`.
        given: As for `deploy`.
        sensitivity: Whether to measure, and show on stderr, which layers cost accuracy.

    Returns:
        The directory with int8.tflite and quantize.json.

    Raises:
        BadInputError: MODEL is neither, or its data or options cannot be used.
    """
    check_packages("train", "litert")
    work = find_model(model, build, given=given)
    report = work.sensitivity if sensitivity else None
    directory = work.quantized
    if report is not None:
        from edgekiln.quantize.own_sensitivity import read_report

        show(read_report(report).table())
    return directory


def export(model: str, build: Path, given: Given = _NOTHING) -> Path:
    """Makes the files that other tools take; returns their directory.

    Arguments as for `quantize`.

    Raises:
        BadInputError: MODEL is not a model.
    """
    work = find_model(model, build, given=given)
    check_packages(*(_RECIPE_EXTRAS if work.is_quantized_here else ()))
    return work.exported


def write_last_report(model: str, board: str, build: Path) -> Path:
    """Makes report.html anew from the results.json of the last deploy.

    Returns:
        The report's path.

    Raises:
        BadInputError: MODEL or BOARD is not known, or there was no deploy.
    """
    from edgekiln.bench.report import write_report
    from edgekiln.bench.results import read_results
    from edgekiln.firmware.boards import load_board

    check_packages("report")
    slug = load_board(board).slug
    results_path, report_path = results_paths(find_model(model, build), slug)
    if not results_path.exists():
        raise BadInputError(
            "there is no result yet",
            where=results_path,
            hint=f"run: edgekiln deploy --board {slug} {model}",
        )
    write_report(report_path, read_results(results_path))
    return report_path


def find_model(
    model: str, build: Path, optimize: str = "balanced", given: Given = _NOTHING
) -> Work:
    """Finds out what a user means by MODEL.

    Args:
        model: What was typed.
        build: The root of the build tree.
        optimize: What the compiler favours.
        given: Data and options for a Keras model.

    Returns:
        The model's stages, none of which has run.

    Raises:
        BadInputError: It is nothing that is known, or does not go with what was given.
    """
    from edgekiln.export.compiler import c_name_of
    from edgekiln.quantize.saved_model import is_saved_model
    from edgekiln.quantize.variants import find_variant
    from edgekiln.train.registry import load_recipe, recipe_names

    path = Path(model)
    found = find_variant(model)
    if model in recipe_names() or found:
        _refuse_given(given, model, "a recipe brings its own data and its own plan")
        recipe, variant = found or (model, None)
        return Work(model, build / model, load_recipe(recipe), None, optimize, variant=variant)
    if not model or (path.suffix not in _MODEL_SUFFIXES and not path.exists()):
        load_recipe(model)  # raises, and knows the names that come near
    name = c_name_of(path)
    if is_saved_model(path) or path.suffix in _KERAS_SUFFIXES:
        if not is_saved_model(path):
            read_input_file(path)
        return Work(name, build / name, None, path, optimize, given)
    if path.suffix != ".tflite":
        raise BadInputError("not a model that can be deployed", where=path, allowed=_MODELS)
    _refuse_given(given, path, "a .tflite file is quantized already")
    _check_compilable(path)
    return Work(name, build / name, None, path, optimize)


def _refuse_given(given: Given, where: object, why: str) -> None:
    if not given.is_nothing:
        raise BadInputError(
            f"{why}: --data and the options of quantization are for Keras models", where=where
        )


def _check_compilable(path: Path) -> None:
    """Refuses a .tflite file that cannot be compiled, before anything is made."""
    from edgekiln.export.passes import run_passes
    from edgekiln.export.tflite_reader import read_tflite

    run_passes(read_tflite(read_input_file(path), str(path)))


def results_paths(work: Work, board: str) -> tuple[Path, Path]:
    """Returns where the results.json and the report.html of a model on a board lie."""
    directory = work.directory / board
    return directory / "results.json", directory / "report.html"


def publish_results(work: Work, place: str, made: Path) -> Path:
    """Writes a stage's results.json and its report where people look for them.

    Args:
        work: The model.
        place: The directory they go to, below the model's: a board's.
        made: The stage's results.json.

    Returns:
        The path of the results.json that was written.
    """
    from edgekiln.bench.report import render_report
    from edgekiln.bench.results import read_results

    results_path, report_path = results_paths(work, place)
    _write_if_changed(results_path, made.read_bytes())
    _write_if_changed(report_path, render_report(read_results(results_path)).encode())
    say(f"results: {results_path}")
    say(f"report:  {report_path}")
    return results_path


def check_tools(work: Work, board: Board, *, run: bool, emulated: bool = True) -> None:
    """Looks for the programs and packages that will be needed, before anything that takes long.

    Args:
        work: The model.
        board: The board.
        run: Whether the image will be run and reported on.
        emulated: Whether the board's emulator will run it, where it has one.

    Raises:
        BadInputError: The model is to be of types that run on PCs alone.
        ToolMissingError: One is missing; the message says how to get it.
    """
    from edgekiln.bench.compiled import find_host_compiler
    from edgekiln.firmware.boards import refuse_linux
    from edgekiln.firmware.toolchain import find_tool, install_hint

    refuse_linux(board)
    _refuse_scheme(work)
    extras = _RECIPE_EXTRAS if work.is_quantized_here else ()
    check_packages("board", *(("report",) if run else ()), *extras)
    find_tool(board.toolchain, "gcc")
    if run:
        find_host_compiler()
    if emulated and board.emulator and shutil.which(board.emulator.program) is None:
        raise ToolMissingError(
            f"{board.emulator.program} is not installed",
            where=board.slug,
            hint=install_hint(board.emulator.packages),
        )


def _refuse_scheme(work: Work) -> None:
    if work.given is not None and not work.given.options.is_integer:
        raise BadInputError(
            f"--scheme {work.given.options.scheme} is for PCs: boards have no kernels for it",
            where=work.file or work.name,
            allowed="int8, int16x8, int4-weights",
        )


def check_linux_tools(work: Work) -> None:
    """Does the same for boards that run Linux, whose C compiler depends on what they are.

    Raises:
        BadInputError: As for `check_tools`.
        ToolMissingError: As for `check_tools`.
    """
    from edgekiln.bench.compiled import find_host_compiler
    from edgekiln.firmware.linux.ssh import find_program

    _refuse_scheme(work)
    check_packages("board", "report", *(_RECIPE_EXTRAS if work.is_quantized_here else ()))
    find_host_compiler()
    find_program("ssh", "openssh-client")
    find_program("rsync", "rsync")


def check_packages(*extras: str) -> None:
    """Looks for the Python packages of some of this package's extras, without importing them.

    Raises:
        ToolMissingError: One is missing; the message says how to get it.
    """
    missing = {
        extra: [name for name in _EXTRAS[extra] if importlib.util.find_spec(name) is None]
        for extra in extras
    }
    wanted = [extra for extra in extras if missing[extra]]
    if wanted:
        names = ", ".join(name for extra in wanted for name in missing[extra])
        raise ToolMissingError(
            f"Python packages are not installed: {names}",
            hint=f"pip install 'edgekiln[{','.join(wanted)}]'",
        )


@dataclass(frozen=True)
class Work:
    """One model on its way through the stages. Each property runs what it needs, once.

    Attributes:
        name: The model's name, a C identifier; its build directory has the same.
        directory: Where its stages lie.
        recipe: The recipe that makes it, or None.
        file: The file or the SavedModel directory that it comes from, or None.
        optimize: What the compiler favours.
        given: For a Keras model from outside, its data and options; else None.
        variant: The compressed form of the recipe's model, or None.
    """

    name: str
    directory: Path
    recipe: Recipe | None
    file: Path | None
    optimize: str
    given: Given | None = None
    variant: Variant | None = None

    @property
    def is_quantized_here(self) -> bool:
        """Whether there is a quantize stage: a .tflite file has been through another."""
        return self.recipe is not None or self.given is not None

    @functools.cached_property
    def trained(self) -> Path:
        """The directory with model.keras and history.json: the kept model, or a new one."""
        from edgekiln.train.kept import kept_file

        recipe = self._need_recipe()
        kept = tuple(filter(None, (kept_file(recipe.name),)))

        def make(directory: Path) -> None:
            from edgekiln.train.loop import restore_recipe, train_recipe

            if kept:
                restore_recipe(recipe, directory)
            else:
                train_recipe(recipe, directory)

        return run_stage(
            Stage(
                name="train",
                directory=self.directory / "train",
                inputs=kept,
                options={"recipe": recipe.name, **_versions("keras", "tensorflow", "scikit-learn")},
                code=_train_code(recipe),
            ),
            make,
        )

    @functools.cached_property
    def quantized(self) -> Path:
        """The directory with int8.tflite and quantize.json."""
        if self.given is not None:
            return self._quantized_from_outside(self.given)
        from edgekiln.train.kept import kept_file

        recipe, model = self._need_recipe(), self.trained / "model.keras"

        def make(directory: Path) -> None:
            from edgekiln.quantize.stage import quantize_recipe

            quantize_recipe(recipe, model, directory, self.variant)

        return run_stage(
            Stage(
                name="quantize",
                directory=self.directory / "quantize",
                inputs=(model, *filter(None, (kept_file(self.name),))),
                options={"recipe": recipe.name, **_versions("keras", "tensorflow")},
                code=(PACKAGE / "quantize", *_train_code(recipe)),
            ),
            make,
        )

    @functools.cached_property
    def sensitivity(self) -> Path:
        """sensitivity.json: what each layer of a model from outside costs."""
        if self.given is None:
            raise BadInputError(
                "--sensitivity is for Keras models from outside",
                where=self.name,
                hint="give the recipe's model.keras with --data",
            )
        given, (model, data) = self.given, self._need_own_files(self.given)

        def make(directory: Path) -> None:
            from edgekiln.quantize.own_sensitivity import measure_file

            measure_file(model, data, directory, given.options)

        return self._run_own_stage("sensitivity", given, make) / "sensitivity.json"

    def _quantized_from_outside(self, given: Given) -> Path:
        model, data = self._need_own_files(given)

        def make(directory: Path) -> None:
            from edgekiln.quantize.own import quantize_file

            quantize_file(model, data, directory, given.options)

        return self._run_own_stage("quantize", given, make)

    def _need_own_files(self, given: Given) -> tuple[Path, Path]:
        """Returns the model and the data from outside."""
        model = self._need_file()
        if given.data is None:
            raise BadInputError(
                "a Keras model needs data to be quantized with",
                where=model,
                hint="give --data <file>.npz; edgekiln quantize --help describes it",
            )
        read_input_file(given.data)
        return model, given.data

    def _run_own_stage(self, name: str, given: Given, make: Callable[[Path], None]) -> Path:
        model, data = self._need_own_files(given)
        is_directory = model.is_dir()
        return run_stage(
            Stage(
                name=name,
                directory=self.directory / name,
                inputs=(data,) if is_directory else (model, data),
                options={
                    "options": given.options.to_json(),
                    **({"saved_model": _sha256_below(model)} if is_directory else {}),
                    **_versions("keras", "tensorflow", "ai-edge-litert"),
                },
                code=(PACKAGE / "quantize", *sorted((PACKAGE / "train").glob("*.py"))),
            ),
            make,
        )

    @property
    def int8(self) -> Path:
        """The quantized model: the quantize stage's, or the file from outside."""
        if self.given is not None:
            return self.quantized / self.given.options.output_name
        return self.quantized / "int8.tflite" if self.recipe else self._need_file()

    @functools.cached_property
    def inputs(self) -> Path:
        """inputs.npz: the held-out set in the model's codes, or random codes."""
        sources = [self.int8]
        options: dict[str, Any] = {}
        if self.recipe:
            options["recipe"] = self.recipe.name
        elif self.given is not None and self.given.data is not None:
            sources += [self.quantized / "quantize.json", self.given.data]
        else:
            options |= {"random": RANDOM_SAMPLES, "seed": RANDOM_SEED}

        def make(directory: Path) -> None:
            from edgekiln.bench.inputs import write_inputs

            write_inputs(directory / "inputs.npz", self._make_inputs())

        stage = Stage(
            name="inputs",
            directory=self.directory / "inputs",
            inputs=sources,
            options=options,
            code=(
                *(PACKAGE / "bench" / name for name in ("inputs.py", "verify.py")),
                *(PACKAGE / "quantize" / name for name in ("affine.py", "own_data.py")),
                PACKAGE / "train" / "datasets.py",
            ),
        )
        return run_stage(stage, make) / "inputs.npz"

    @functools.cached_property
    def exported(self) -> Path:
        """The directory with what other tools take: .tflite, .onnx, the C array, export.json."""
        sources, options = [self.int8], {"name": self.name}
        if self.is_quantized_here:
            sources += [*([self._float_model] if self._float_model else []), self.inputs]
            options |= _versions("keras", "onnx", "onnxruntime", "tf2onnx")
        stage = Stage(
            name="export",
            directory=self.directory / "export",
            inputs=sources,
            options=options,
            code=[PACKAGE / "export" / name for name in _EXPORT_MODULES],
        )
        return run_stage(stage, self._export)

    @property
    def tflite(self) -> Path:
        """The int8 model, as the export stage leaves it."""
        return self.exported / f"{self.name}.tflite"

    @functools.cached_property
    def host_bundle(self) -> Path:
        """The generated C for this machine."""
        return self.bundle(_HOST, _HOST)

    def image(self, board: Board) -> Image:
        """Returns the image for a board.

        Raises:
            DoesNotFitError: The model is larger than the board's flash or RAM.
        """
        from edgekiln.firmware import image, toolchain

        bundle = self.host_bundle if board.is_host else self.bundle(board.slug, board.target)

        def make(directory: Path) -> None:
            image.build_image(bundle, board, directory)

        stage = Stage(
            name=f"image for {board.slug}",
            directory=self.directory / board.slug / "image",
            inputs=sorted(path for path in bundle.iterdir() if path.name != MANIFEST_NAME),
            options={"compiler": toolchain.compiler_version(board.toolchain)},
            code=(PACKAGE / "firmware",),
        )
        try:
            return image.load_image(run_stage(stage, make))
        except DoesNotFitError as error:
            raise self._explain(error, board) from None

    def _explain(self, error: DoesNotFitError, board: Board) -> DoesNotFitError:
        """Adds what would fit to what does not."""
        from edgekiln.fitting import explain

        return explain(
            error,
            read_input_file(self.int8),
            self.name,
            board,
            optimize=self.optimize,
            dataset=self.recipe.dataset if self.recipe else None,
            shrinks=self.given is not None and self.given.options.channels is None,
        )

    def measure(self, board: Board, stale: Sequence[Path], port: str | None = None) -> Path:
        """Runs the image on the board and compares all outputs.

        Args:
            board: The board.
            stale: Files to remove before anything is measured anew.
            port: Serial port of a real board, which is measured each time: nobody knows what
                is at the port now.

        Returns:
            The path of the stage's results.json.
        """
        from edgekiln.bench.measure import PACKAGES, measure
        from edgekiln.bench.results import write_results

        image, host_bundle = self.image(board), self.host_bundle

        def make(directory: Path) -> None:
            for path in stale:
                path.unlink(missing_ok=True)
            subject = self.subject(board, image, host_bundle, board.slug)
            journal = self.directory / board.slug / "run.journal"
            results = measure(replace(subject, port=port, journal=journal))
            write_results(directory / "results.json", results)

        report = self.directory / board.slug / "c" / "compile_report.json"
        stage = Stage(
            name=f"run on {board.slug}",
            directory=self.directory / board.slug / "run",
            inputs=(image.elf, report, self.tflite, self.inputs),
            options={
                **_versions("edgekiln", *PACKAGES),
                **({"port": port, "measured_ns": time.time_ns()} if port else {}),
            },
            code=(PACKAGE / "export", PACKAGE / "firmware", *_bench_code()),
        )
        return run_stage(stage, make) / "results.json"

    def subject(self, board: Board, image: Image, host_bundle: Path, place: str) -> Subject:
        """Returns what is measured.

        Args:
            board: The board.
            image: What runs there.
            host_bundle: The generated C for this machine.
            place: The directory that the generated C for the board is in.
        """
        from edgekiln.bench.compiled import read_compile_report
        from edgekiln.bench.inputs import read_inputs_file
        from edgekiln.bench.measure import Subject

        onnx = self.exported / f"{self.name}_int8.onnx"
        return Subject(
            name=self.name,
            tflite=read_input_file(self.tflite),
            onnx_int8=onnx if onnx.exists() else None,
            compile_report=read_compile_report(self.directory / place / "c"),
            host_bundle=host_bundle,
            image=image,
            board=board,
            inputs=read_inputs_file(self.inputs),
            background=self._background(),
            artifacts=self._artifacts(place),
        )

    def _background(self) -> Background:
        from edgekiln.bench.measure import Background

        if not self.is_quantized_here:
            return Background(None, None, {}, {"inputs": RANDOM_SEED})
        summary = json.loads(read_input_file(self.quantized / "quantize.json"))
        if self.recipe is None:
            return Background(
                float_accuracy=summary["accuracy"]["float"],
                pruned_accuracy=summary["accuracy"]["pruned"],
                training={},
                seeds={
                    "split": summary["split"]["seed"],
                    "training": summary["options"]["seed"],
                },
            )
        history = json.loads(read_input_file(self.trained / "history.json"))
        epochs = history["epochs"]
        shares = self._accuracy_on_samples()
        return Background(
            float_accuracy=shares["float"],
            pruned_accuracy=shares.get("pruned"),
            training={
                key: tuple(float(epoch[key]) for epoch in epochs) for key in _TRAINING_METRICS
            },
            seeds={"training": self.recipe.seed, "split": history["split"]["seed"]},
        )

    def _accuracy_on_samples(self) -> dict[str, float]:
        """Returns the accuracy of the recipe's Keras models on what is run on the board."""
        import numpy as np

        from edgekiln.train.datasets import load_dataset

        chosen = self._chosen_samples
        labels = load_dataset(self._need_recipe().dataset).y_test[chosen]
        with np.load(self.quantized / "predictions.npz", allow_pickle=False) as predictions:
            return {
                name: float(np.mean(predictions[name][chosen] == labels))
                for name in predictions.files
            }

    @functools.cached_property
    def _chosen_samples(self) -> NDArray[np.int64]:
        """Which held-out samples of the recipe are run: all, or as many as take a while.

        They are right and wrong as often as all of them, as far as the float model goes.
        """
        import numpy as np

        from edgekiln.export.passes import run_passes
        from edgekiln.export.tflite_reader import read_tflite
        from edgekiln.train.datasets import load_dataset, spread_over_strata

        graph = run_passes(read_tflite(read_input_file(self.int8), str(self.int8)))
        macs = sum(op.macs(graph) for op in graph.ops)
        labels = load_dataset(self._need_recipe().dataset).y_test
        with np.load(self.quantized / "predictions.npz", allow_pickle=False) as predictions:
            right = predictions["float"] == labels
        return spread_over_strata((right, labels), max(_LEAST_SAMPLES, _MOST_MACS // max(macs, 1)))

    def _artifacts(self, place: str) -> tuple[Artifact, ...]:
        """Lists what the stages made, in the order of the data's way; kernels are left out."""
        from edgekiln.bench.results import Artifact

        own = ("train",) * (self.recipe is not None) + ("quantize",) * self.is_quantized_here
        last = "image" if (self.directory / place / "image").is_dir() else RELEASE_FILES
        folders = (*own, "export", f"{place}/c", f"{place}/{last}")
        return tuple(
            Artifact(
                name=f"{folder}/{path.name}",
                what=_what_is(path.name),
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
            )
            for folder in folders
            for path in sorted((self.directory / folder).iterdir())
            if _what_is(path.name) and not path.name.startswith("ek_")
        )

    def bundle(self, place: str, target: str) -> Path:
        """Returns the directory with the generated C for a target.

        What other tools take, the export stage, is not made for that.

        Args:
            place: Whose it is: the directory that its own is made in.
            target: The compiler's target.
        """

        def make(directory: Path) -> None:
            from edgekiln.bench.inputs import read_inputs_file
            from edgekiln.export.compiler import compile_model, write_bundle

            compiled = compile_model(
                read_input_file(self.int8),
                name=self.name,
                target=target,
                optimize=self.optimize,
                golden_input=read_inputs_file(self.inputs).head(1).tensors,
                where=str(self.file or self.int8),
            )
            write_bundle(compiled, directory)

        return run_stage(
            Stage(
                name=f"compile for {place}",
                directory=self.directory / place / "c",
                inputs=(self.int8, self.inputs),
                options={"name": self.name, "target": target, "optimize": self.optimize},
                code=(PACKAGE / "export",),
            ),
            make,
        )

    @functools.cached_property
    def _float_model(self) -> Path | None:
        """The Keras model that was quantized, compressed if it was; None for a SavedModel."""
        if self.recipe is not None:
            pruned = self.quantized / "pruned.keras"
            return pruned if pruned.exists() else self.trained / "model.keras"
        compressed, file = self.quantized / "compressed.keras", self._need_file()
        return compressed if compressed.exists() else None if file.is_dir() else file

    def _make_inputs(self) -> ModelInputs:
        from edgekiln.bench.inputs import ModelInputs
        from edgekiln.bench.verify import random_inputs
        from edgekiln.export.tflite_reader import read_tflite
        from edgekiln.quantize.affine import quantize_array
        from edgekiln.train.datasets import load_dataset

        model = read_input_file(self.int8)
        if self.given is not None and self.given.data is not None:
            return self._held_out_inputs(self.given.data)
        if self.recipe is None:
            return ModelInputs(
                tensors=random_inputs(model, RANDOM_SAMPLES, RANDOM_SEED),
                labels=None,
                class_names=(),
                description=f"{RANDOM_SAMPLES} random inputs with seed {RANDOM_SEED}",
            )
        graph = read_tflite(model, str(self.int8))
        tensor = graph.tensor(graph.inputs[0])
        data, chosen = load_dataset(self.recipe.dataset), self._chosen_samples
        codes = quantize_array(
            data.x_test[chosen], tensor.q.scale, tensor.q.zero_point, tensor.dtype.value
        )
        return ModelInputs(
            tensors=(codes,),
            labels=data.y_test[chosen],
            class_names=data.class_names,
            description=f"The whole held-out set of {data.name}, {len(codes):,} samples"
            if len(chosen) == len(data.y_test)
            else f"{len(codes):,} of the {len(data.y_test):,} held-out samples of {data.name}, "
            "evenly spread",
        )

    def _held_out_inputs(self, path: Path) -> ModelInputs:
        """Returns the held-out part of data from outside, as the quantized model takes it."""
        from edgekiln.bench.inputs import ModelInputs
        from edgekiln.quantize.affine import quantize_array
        from edgekiln.quantize.own_data import read_archive, read_shape

        summary = json.loads(read_input_file(self.quantized / "quantize.json"))
        shape = read_shape(summary)
        data = read_archive(path).for_model(shape)
        codes = tuple(
            quantize_array(data.test.x[port["name"]], port["scale"], port["zero_point"], dtype)
            if port["scale"]
            else data.test.x[port["name"]].astype(dtype)
            for port in summary["inputs"]
            for dtype in (port["dtype"],)
        )
        names = () if data.test.y is None else tuple(map(str, range(shape.classes or 0)))
        return ModelInputs(
            tensors=codes,
            labels=data.test.y,
            class_names=names,
            description=f"{data.split.method} of {path.name}, {len(data.test):,} samples"
            + ("" if names else " without labels"),
        )

    def _export(self, directory: Path) -> None:
        from edgekiln.export.c_array import write_c_array

        data = read_input_file(self.int8)
        write_bytes(directory / f"{self.name}.tflite", data)
        write_c_array(data, self.name, directory)
        checks = [asdict(check) for check in self._export_onnx(directory)]
        write_json(directory / "export.json", {"onnx": checks})

    def _export_onnx(self, directory: Path) -> list[OnnxCheck]:
        """Writes the ONNX files; a .tflite from outside has no data to check them on."""
        if not self.is_quantized_here:
            return []
        from edgekiln.bench.inputs import read_inputs_file
        from edgekiln.export.onnx import export_onnx_float, export_onnx_int8

        makers: list[Callable[[], OnnxCheck]] = []
        floating, int8 = (directory / f"{self.name}_{kind}.onnx" for kind in ("float", "int8"))
        codes = read_inputs_file(self.inputs).tensors
        images, source = self.float_inputs(), self._float_model
        if source is not None and len(images) == 1:
            makers.append(lambda: export_onnx_float(source, images[0], floating))
        if len(codes) == 1 and self.int8.name == "int8.tflite":
            makers.append(
                lambda: export_onnx_int8(directory / f"{self.name}.tflite", codes[0], int8)
            )
        return [check for make in makers for check in self._try_onnx(make)]

    def _try_onnx(self, make: Callable[[], OnnxCheck]) -> list[OnnxCheck]:
        """Makes one file; ONNX need not know all layers of a model from outside."""
        try:
            return [make()]
        except (BadInputError, CheckFailedError) as error:
            if self.recipe is not None and self.variant is None:
                raise
            say(f"left out: {error}")
            return []

    def float_inputs(self) -> tuple[Any, ...]:
        """Returns the held-out samples as the float model takes them, float32 [N, ...] each."""
        if self.recipe is not None:
            from edgekiln.train.datasets import load_dataset

            return (load_dataset(self.recipe.dataset).x_test[self._chosen_samples],)
        from edgekiln.quantize.own_data import read_archive, read_shape

        summary = json.loads(read_input_file(self.quantized / "quantize.json"))
        assert self.given is not None and self.given.data is not None
        data = read_archive(self.given.data).for_model(read_shape(summary))
        return tuple(data.test.x.values())

    def _need_file(self) -> Path:
        if self.file is None:
            raise AssertionError("a model comes from a recipe or from a file")
        return self.file

    def _need_recipe(self) -> Recipe:
        if self.recipe is None:
            raise BadInputError(
                "a model from outside is not trained here"
                if self.given is not None
                else "a .tflite file has nothing to train or quantize",
                where=self.file or self.name,
                allowed="a recipe",
                hint="see: edgekiln models",
            )
        return self.recipe


def show_results(results: Results) -> None:
    """Prints the outcome of a deploy as a table on stderr."""
    from edgekiln.bench.report import grouped, percent, tabulate_runtimes

    accuracy = results.accuracy
    shares = [
        ("accuracy, float", accuracy.float_model),
        ("accuracy, pruned", accuracy.pruned),
        (f"accuracy, int8, {accuracy.int8_host_runtime}", accuracy.int8_host),
        ("accuracy, int8, board", accuracy.int8_device),
    ]
    rows = [(name, percent(value)) for name, value in shares if value is not None]
    for pair in results.comparisons:
        equal = f"{grouped(pair.equal_bytes)} of {grouped(pair.bytes)}"
        if pair.tolerated_bytes:
            equal += ", the others within the tolerance"
        rows.append((f"bytes equal, {pair.left} and {pair.right}", equal))
    flash = "program" if results.system else "flash"
    rows.append((flash, f"{grouped(results.flash_bytes)} bytes"))
    rows.append((f"{flash}, of it code", f"{grouped(results.flash_code_bytes)} bytes"))
    rows.append(("RAM", f"{grouped(results.ram_bytes)} bytes"))
    rows.append(("RAM, of it arena", f"{grouped(results.arena_bytes)} bytes"))
    if results.instructions is not None:
        rows.append(("instructions per inference", grouped(results.instructions)))
    if results.cycles is not None:
        rows.append(("clock cycles per inference", grouped(results.cycles)))
    if results.latency_us is not None:
        rows.append(("latency", f"{results.latency_us:,.0f} µs"))
    where = f"{results.board}, emulated" if results.emulated else results.board
    show(make_table(f"{results.model} on {where}", ("measured", "result"), rows))
    if results.runtimes:
        show(make_table("Runtimes there, one thread", *tabulate_runtimes(results)))
    for run in results.runtimes:
        if run.error is not None:
            say(f"{run.name}, {run.model}, {run.format}: {run.error}")


def _what_is(name: str) -> str:
    """Returns what a file is, by the end of its name; nothing when it is of no interest."""
    return next((what for end, what in _WHAT_FILES_ARE.items() if name.endswith(end)), "")


def _bench_code() -> list[Path]:
    """Returns the sources that a measurement depends on; the report is made anew each time."""
    return [path for path in sorted((PACKAGE / "bench").glob("*.py")) if path.name != "report.py"]


def _train_code(recipe: Recipe) -> tuple[Path, ...]:
    """Returns the sources that a trained model depends on: other recipes are not among them."""
    modules = sorted((PACKAGE / "train").glob("*.py"))
    return (*modules, PACKAGE / "train/recipes" / f"{recipe.name}.py")


def _versions(*packages: str) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def run_stage(stage: Stage, make: Callable[[Path], None]) -> Path:
    """Runs a stage unless it is current, says which, and returns its directory."""
    start_s = time.monotonic()
    if stage.run(make):
        say(f"{stage.name}: done in {time.monotonic() - start_s:.1f} s")
    else:
        say(f"{stage.name}: unchanged")
    return stage.directory


def _sha256_below(directory: Path) -> str:
    """Returns one hash over the names and contents of all files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(directory)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _write_if_changed(path: Path, data: bytes) -> None:
    """Writes a file unless it holds these bytes already."""
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
