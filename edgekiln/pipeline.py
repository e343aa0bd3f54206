"""Chains the stages: from a recipe or a .tflite file to a measured board.

::

    build/<model>/train/         model.keras, history.json
                  quantize/      pruned.keras, float.tflite, int8.tflite, quantize.json
                  export/        .tflite, .onnx, the C array for TensorFlow Lite Micro
                  inputs/        inputs.npz: what the model is measured with
                  host/c/        the generated C for this machine
                  <board>/c/     the generated C for the board
                  <board>/image/ image.elf, image.bin, image.hex
                  <board>/run/   results.json, made by running the image
                  <board>/       results.json and report.html, for people

Each directory is a stage that runs only when what it was made from has changed. A .tflite from
outside enters at export. What fails leaves the stages before it as they are, so that the next
run goes on from there.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekiln
from edgekiln.console import make_table, say, show
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.files import (
    MANIFEST_NAME,
    Stage,
    read_input_file,
    sha256_file,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    from edgekiln.bench.inputs import ModelInputs
    from edgekiln.bench.measure import Background, Subject
    from edgekiln.bench.results import Artifact, BenchResult, Results
    from edgekiln.export.onnx import OnnxCheck
    from edgekiln.firmware.boards import Board
    from edgekiln.firmware.image import Image
    from edgekiln.train.recipe import Recipe

PACKAGE = Path(edgekiln.__file__).parent
RANDOM_SAMPLES = 20
RANDOM_SEED = 0
BENCH_SAMPLES = 3

_HOST = "host"
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
_MODEL_SUFFIXES = (".tflite", ".keras", ".h5", ".onnx", ".pb")
_WHAT_FILES_ARE = {
    "model.keras": "Keras model, float",
    "pruned.keras": "Keras model, pruned",
    "float.tflite": "TensorFlow Lite, float",
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
    ".c": "generated C",
    ".h": "generated C, header",
}


def deploy(model: str, board: str, build: Path, optimize: str = "balanced") -> Path:
    """Takes a model to a board, runs it there, and proves that every output byte is right.

    Args:
        model: A recipe's name or a .tflite file.
        board: The board's slug.
        build: The root of the build tree.
        optimize: What the compiler favours.

    Returns:
        The path of results.json; report.html lies beside it.

    Raises:
        CheckFailedError: A byte differs between the board, the generated C on the host and
            TensorFlow Lite Micro. Results of an earlier deploy are removed.
        EdgekilnError: Something else is wrong or missing; the message says what.
    """
    from edgekiln.bench.report import render_report
    from edgekiln.bench.results import read_results
    from edgekiln.firmware.boards import load_board

    chosen = load_board(board)
    work = find_model(model, build, optimize)
    check_tools(work, chosen, run=True)
    results_path, report_path = results_paths(work, board)
    made = work.measure(chosen, stale=(results_path, report_path))
    _write_if_changed(results_path, made.read_bytes())
    results = read_results(results_path)
    _write_if_changed(report_path, render_report(results).encode())
    show_results(results)
    say(f"results: {results_path}")
    say(f"report:  {report_path}")
    return results_path


def bench_model(model: str, board: str, build: Path, optimize: str = "balanced") -> BenchResult:
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
    work = find_model(model, build, optimize)
    check_tools(work, chosen, run=True)
    image = work.image(chosen)
    few = read_inputs_file(work.inputs).head(BENCH_SAMPLES)
    return measure_few(work.name, image, chosen, work.host_bundle, few)


def flash(model: str, board: str, build: Path, optimize: str = "balanced") -> Image:
    """Makes the image that `deploy` runs, and boots it once.

    An emulator keeps no image: it is handed the file each time it starts. What is proved here
    is that the image boots there and answers one input as the generated C does on the host.

    Args and errors as for `deploy`.

    Returns:
        The image.
    """
    from edgekiln.bench.inputs import read_inputs_file
    from edgekiln.bench.measure import measure_few
    from edgekiln.firmware.boards import load_board

    chosen = load_board(board)
    work = find_model(model, build, optimize)
    check_tools(work, chosen, run=True)
    image = work.image(chosen)
    one = read_inputs_file(work.inputs).head(1)
    measure_few(work.name, image, chosen, work.host_bundle, one)
    say(f"{image.elf} boots on {board} and answers as it should")
    return image


def train(model: str, build: Path) -> Path:
    """Trains a recipe; returns the directory with model.keras and history.json.

    Raises:
        BadInputError: MODEL is not a recipe.
    """
    check_packages("train")
    return find_model(model, build).trained


def quantize(model: str, build: Path) -> Path:
    """Trains, prunes and quantizes a recipe; returns the directory with int8.tflite.

    Raises:
        BadInputError: MODEL is not a recipe.
    """
    check_packages("train", "litert")
    return find_model(model, build).quantized


def export(model: str, build: Path) -> Path:
    """Makes the files that other tools take; returns their directory.

    Raises:
        BadInputError: MODEL is neither a recipe nor a .tflite file.
    """
    work = find_model(model, build)
    check_packages(*(_RECIPE_EXTRAS if work.recipe else ()))
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


def find_model(model: str, build: Path, optimize: str = "balanced") -> Work:
    """Finds out what a user means by MODEL: a recipe's name or a .tflite file.

    Args:
        model: What was typed.
        build: The root of the build tree.
        optimize: What the compiler favours.

    Returns:
        The model's stages, none of which has run.

    Raises:
        BadInputError: It is neither.
    """
    from edgekiln.export.compiler import c_name_of
    from edgekiln.export.passes import run_passes
    from edgekiln.export.tflite_reader import read_tflite
    from edgekiln.train.registry import load_recipe, recipe_names

    path = Path(model)
    if model in recipe_names():
        return Work(model, build / model, load_recipe(model), None, optimize)
    if not model or (path.suffix not in _MODEL_SUFFIXES and not path.exists()):
        load_recipe(model)  # raises, and knows the names that come near
    if path.suffix != ".tflite":
        raise BadInputError(
            "not a model that can be deployed", where=path, allowed="a recipe or a .tflite file"
        )
    run_passes(read_tflite(read_input_file(path), str(path)))  # refuses before anything is made
    name = c_name_of(path)
    return Work(name, build / name, None, path, optimize)


def results_paths(work: Work, board: str) -> tuple[Path, Path]:
    """Returns where the results.json and the report.html of a model on a board lie."""
    directory = work.directory / board
    return directory / "results.json", directory / "report.html"


def check_tools(work: Work, board: Board, *, run: bool) -> None:
    """Looks for the programs and packages that will be needed, before anything that takes long.

    Args:
        work: The model.
        board: The board.
        run: Whether the image will be run and reported on.

    Raises:
        ToolMissingError: One is missing; the message says how to get it.
    """
    from edgekiln.bench.compiled import find_host_compiler
    from edgekiln.firmware.toolchain import find_tool, install_hint

    check_packages("board", *(("report",) if run else ()), *(_RECIPE_EXTRAS if work.recipe else ()))
    find_tool(board.toolchain, "gcc")
    if run:
        find_host_compiler()
    if run and board.emulator and shutil.which(board.emulator.program) is None:
        raise ToolMissingError(
            f"{board.emulator.program} is not installed",
            where=board.slug,
            hint=install_hint(board.emulator.packages),
        )


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
        file: The .tflite file that it comes from, or None.
        optimize: What the compiler favours.
    """

    name: str
    directory: Path
    recipe: Recipe | None
    file: Path | None
    optimize: str

    @functools.cached_property
    def trained(self) -> Path:
        """The directory with model.keras and history.json."""
        recipe = self._need_recipe()

        def make(directory: Path) -> None:
            from edgekiln.train.loop import train_recipe

            train_recipe(recipe, directory)

        return _run(
            Stage(
                name="train",
                directory=self.directory / "train",
                inputs=(),
                options={"recipe": recipe.name, **_versions("keras", "tensorflow", "scikit-learn")},
                code=_train_code(recipe),
            ),
            make,
        )

    @functools.cached_property
    def quantized(self) -> Path:
        """The directory with int8.tflite and quantize.json."""
        recipe, model = self._need_recipe(), self.trained / "model.keras"

        def make(directory: Path) -> None:
            from edgekiln.quantize.stage import quantize_recipe

            quantize_recipe(recipe, model, directory)

        return _run(
            Stage(
                name="quantize",
                directory=self.directory / "quantize",
                inputs=(model,),
                options={"recipe": recipe.name, **_versions("keras", "tensorflow")},
                code=(PACKAGE / "quantize", *_train_code(recipe)),
            ),
            make,
        )

    @property
    def int8(self) -> Path:
        """The int8 model: quantize's, or the file from outside."""
        return self.quantized / "int8.tflite" if self.recipe else self._need_file()

    @functools.cached_property
    def inputs(self) -> Path:
        """inputs.npz: the held-out set in the model's codes, or random codes."""
        if self.recipe:
            options: dict[str, Any] = {"recipe": self.recipe.name}
        else:
            options = {"random": RANDOM_SAMPLES, "seed": RANDOM_SEED}

        def make(directory: Path) -> None:
            from edgekiln.bench.inputs import write_inputs

            write_inputs(directory / "inputs.npz", self._make_inputs())

        stage = Stage(
            name="inputs",
            directory=self.directory / "inputs",
            inputs=(self.int8,),
            options=options,
            code=(
                *(PACKAGE / "bench" / name for name in ("inputs.py", "verify.py")),
                *(PACKAGE / name for name in ("quantize/affine.py", "train/datasets.py")),
            ),
        )
        return _run(stage, make) / "inputs.npz"

    @functools.cached_property
    def exported(self) -> Path:
        """The directory with what other tools take: .tflite, .onnx, the C array, export.json."""
        sources, options = [self.int8], {"name": self.name}
        if self.recipe:
            sources += [self._float_model, self.inputs]
            options |= _versions("keras", "onnx", "onnxruntime", "tf2onnx")
        stage = Stage(
            name="export",
            directory=self.directory / "export",
            inputs=sources,
            options=options,
            code=[PACKAGE / "export" / name for name in _EXPORT_MODULES],
        )
        return _run(stage, self._export)

    @property
    def tflite(self) -> Path:
        """The int8 model, as the export stage leaves it."""
        return self.exported / f"{self.name}.tflite"

    @functools.cached_property
    def host_bundle(self) -> Path:
        """The generated C for this machine."""
        return self._bundle(_HOST, _HOST)

    def image(self, board: Board) -> Image:
        """Returns the image for a board.

        Raises:
            DoesNotFitError: The model is larger than the board's flash or RAM.
        """
        from edgekiln.firmware import image, toolchain

        bundle = self.host_bundle if board.is_host else self._bundle(board.slug, board.target)

        def make(directory: Path) -> None:
            image.build_image(bundle, board, directory)

        stage = Stage(
            name=f"image for {board.slug}",
            directory=self.directory / board.slug / "image",
            inputs=sorted(path for path in bundle.iterdir() if path.name != MANIFEST_NAME),
            options={"compiler": toolchain.compiler_version(board.toolchain)},
            code=(PACKAGE / "firmware",),
        )
        return image.load_image(_run(stage, make))

    def measure(self, board: Board, stale: Sequence[Path]) -> Path:
        """Runs the image on the board and compares all outputs.

        Args:
            board: The board.
            stale: Files to remove before anything is measured anew.

        Returns:
            The path of the stage's results.json.
        """
        from edgekiln.bench.measure import PACKAGES, measure
        from edgekiln.bench.results import write_results

        image, host_bundle = self.image(board), self.host_bundle

        def make(directory: Path) -> None:
            for path in stale:
                path.unlink(missing_ok=True)
            results = measure(self._subject(board, image, host_bundle))
            write_results(directory / "results.json", results)

        report = self.directory / board.slug / "c" / "compile_report.json"
        stage = Stage(
            name=f"run on {board.slug}",
            directory=self.directory / board.slug / "run",
            inputs=(image.elf, report, self.tflite, self.inputs),
            options=_versions("edgekiln", *PACKAGES),
            code=(PACKAGE / "export", PACKAGE / "firmware", *_bench_code()),
        )
        return _run(stage, make) / "results.json"

    def _subject(self, board: Board, image: Image, host_bundle: Path) -> Subject:
        from edgekiln.bench.compiled import read_compile_report
        from edgekiln.bench.inputs import read_inputs_file
        from edgekiln.bench.measure import Subject

        onnx = self.exported / f"{self.name}_int8.onnx"
        return Subject(
            name=self.name,
            tflite=read_input_file(self.tflite),
            onnx_int8=onnx if self.recipe else None,
            compile_report=read_compile_report(self.directory / board.slug / "c"),
            host_bundle=host_bundle,
            image=image,
            board=board,
            inputs=read_inputs_file(self.inputs),
            background=self._background(),
            artifacts=self._artifacts(board),
        )

    def _background(self) -> Background:
        from edgekiln.bench.measure import Background

        if self.recipe is None:
            return Background(None, None, {}, {"inputs": RANDOM_SEED})
        summary = json.loads(read_input_file(self.quantized / "quantize.json"))
        history = json.loads(read_input_file(self.trained / "history.json"))
        epochs = history["epochs"]
        return Background(
            float_accuracy=summary["accuracy"]["float"],
            pruned_accuracy=summary["accuracy"]["pruned"],
            training={
                key: tuple(float(epoch[key]) for epoch in epochs) for key in _TRAINING_METRICS
            },
            seeds={"training": self.recipe.seed, "split": history["split"]["seed"]},
        )

    def _artifacts(self, board: Board) -> tuple[Artifact, ...]:
        """Lists what the stages made, in the order of the data's way; kernels are left out."""
        from edgekiln.bench.results import Artifact

        own = ("train", "quantize") if self.recipe else ()
        folders = (*own, "export", f"{board.slug}/c", f"{board.slug}/image")
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

    def _bundle(self, board: str, target: str) -> Path:
        def make(directory: Path) -> None:
            from edgekiln.bench.inputs import read_inputs_file
            from edgekiln.export.compiler import compile_model, write_bundle

            compiled = compile_model(
                read_input_file(self.tflite),
                name=self.name,
                target=target,
                optimize=self.optimize,
                golden_input=read_inputs_file(self.inputs).head(1).tensors,
                where=str(self.file or self.tflite),
            )
            write_bundle(compiled, directory)

        return _run(
            Stage(
                name=f"compile for {board}",
                directory=self.directory / board / "c",
                inputs=(self.tflite, self.inputs),
                options={"name": self.name, "target": target, "optimize": self.optimize},
                code=(PACKAGE / "export",),
            ),
            make,
        )

    @functools.cached_property
    def _float_model(self) -> Path:
        """The Keras model that was quantized: pruned, where the recipe prunes."""
        if self._need_recipe().pruning:
            return self.quantized / "pruned.keras"
        return self.trained / "model.keras"

    def _make_inputs(self) -> ModelInputs:
        from edgekiln.bench.inputs import ModelInputs
        from edgekiln.bench.verify import random_inputs
        from edgekiln.export.tflite_reader import read_tflite
        from edgekiln.quantize.affine import quantize_array
        from edgekiln.train.datasets import load_dataset

        model = read_input_file(self.int8)
        if self.recipe is None:
            return ModelInputs(
                tensors=random_inputs(model, RANDOM_SAMPLES, RANDOM_SEED),
                labels=None,
                class_names=(),
                description=f"{RANDOM_SAMPLES} random inputs with seed {RANDOM_SEED}",
            )
        graph = read_tflite(model, str(self.int8))
        tensor = graph.tensor(graph.inputs[0])
        data = load_dataset(self.recipe.dataset)
        codes = quantize_array(data.x_test, tensor.q.scale, tensor.q.zero_point, tensor.dtype.value)
        return ModelInputs(
            tensors=(codes,),
            labels=data.y_test,
            class_names=data.class_names,
            description=f"The whole held-out set of {data.name}, {len(codes):,} samples",
        )

    def _export(self, directory: Path) -> None:
        from edgekiln.export.c_array import write_c_array

        data = read_input_file(self.int8)
        write_bytes(directory / f"{self.name}.tflite", data)
        write_c_array(data, self.name, directory)
        checks = [asdict(check) for check in self._export_onnx(directory)]
        write_json(directory / "export.json", {"onnx": checks})

    def _export_onnx(self, directory: Path) -> list[OnnxCheck]:
        """Writes the ONNX files; a model from outside has no data to check them on."""
        if self.recipe is None:
            return []
        from edgekiln.bench.inputs import read_inputs_file
        from edgekiln.export.onnx import export_onnx_float, export_onnx_int8
        from edgekiln.train.datasets import load_dataset

        images = load_dataset(self.recipe.dataset).x_test
        codes = read_inputs_file(self.inputs).tensors[0]
        floating, int8 = (directory / f"{self.name}_{kind}.onnx" for kind in ("float", "int8"))
        return [
            export_onnx_float(self._float_model, images, floating),
            export_onnx_int8(directory / f"{self.name}.tflite", codes, int8),
        ]

    def _need_file(self) -> Path:
        if self.file is None:
            raise AssertionError("a model comes from a recipe or from a file")
        return self.file

    def _need_recipe(self) -> Recipe:
        if self.recipe is None:
            raise BadInputError(
                "a .tflite file has nothing to train or quantize",
                where=self.file or self.name,
                allowed="a recipe",
                hint="see: edgekiln models",
            )
        return self.recipe


def show_results(results: Results) -> None:
    """Prints the outcome of a deploy as a table on stderr."""
    from edgekiln.bench.report import grouped, percent

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
    rows.append(("flash", f"{grouped(results.flash_bytes)} bytes"))
    rows.append(("flash, of it code", f"{grouped(results.flash_code_bytes)} bytes"))
    rows.append(("RAM", f"{grouped(results.ram_bytes)} bytes"))
    rows.append(("RAM, of it arena", f"{grouped(results.arena_bytes)} bytes"))
    if results.instructions is not None:
        rows.append(("instructions per inference", grouped(results.instructions)))
    if results.latency_us is not None:
        rows.append(("latency", f"{results.latency_us:,.0f} µs"))
    where = f"{results.board}, emulated" if results.emulated else results.board
    show(make_table(f"{results.model} on {where}", ("measured", "result"), rows))


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


def _run(stage: Stage, make: Callable[[Path], None]) -> Path:
    """Runs a stage unless it is current, says which, and returns its directory."""
    start_s = time.monotonic()
    if stage.run(make):
        say(f"{stage.name}: done in {time.monotonic() - start_s:.1f} s")
    else:
        say(f"{stage.name}: unchanged")
    return stage.directory


def _write_if_changed(path: Path, data: bytes) -> None:
    """Writes a file unless it holds these bytes already."""
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
