"""The `edgekiln` command. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgekiln import __version__
from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.options import CALIBRATIONS, Format, Method, QuantizeOptions
from edgekiln.terminal import print_columns, print_facts, print_json, run, stdout_for_results

if TYPE_CHECKING:
    from edgekiln.bench.results import BenchResult
    from edgekiln.bench.verify import Verification
    from edgekiln.export.inspect import Inspection
    from edgekiln.firmware.boards import Board
    from edgekiln.pipeline import Given

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT_MODEL = "digits_cnn"
_FILE = click.Path(path_type=Path)


class _InOrder(click.Group):
    """Lists the commands in the order of the data's way rather than of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
build_option = click.option(
    "--build-dir",
    type=_FILE,
    default=Path("build"),
    show_default=True,
    help="Where everything is made.",
)
board_option = click.option(
    "--board", required=True, metavar="BOARD", help="See `edgekiln boards`."
)
optimize_option = click.option(
    "--optimize",
    type=click.Choice(["balanced", "time", "ram", "flash"]),
    default="balanced",
    show_default=True,
    help="What to favour where kernels and layouts differ.",
)


def takes_own_model(command: F) -> F:
    """Adds the options for a Keras model from outside; the command gets them as ``given``."""

    @functools.wraps(command)
    def call(*arguments: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in OWN_MODEL_OPTIONS}
        return command(*arguments, given=_given(**chosen), **values)

    for option in reversed(OWN_MODEL_OPTIONS.values()):
        call = option(call)
    return cast("F", call)


def _given(data: Path | None, **chosen: Any) -> Given:
    """Makes one value of all the options; those that were not given are None."""
    from edgekiln.pipeline import Given

    chosen = {name: value for name, value in chosen.items() if value is not None}
    options = QuantizeOptions(
        **{**chosen, "method": Method(chosen["method"]), "scheme": Format(chosen["scheme"])}
    )
    training = [name for name in ("epochs", "learning_rate") if name in chosen]
    if training and not options.trains:
        raise BadInputError(
            f"--{training[0].replace('_', '-')} is for trainings, and there is none",
            hint="give --method qat, --sparsity or --channels with it",
        )
    return Given(data, options)


#: The options of `takes_own_model`, by the name of their value.
OWN_MODEL_OPTIONS: dict[str, Callable[[F], F]] = {
    "data": click.option(
        "--data", type=_FILE, metavar="X.npz", help="Samples for a Keras model from outside."
    ),
    "scheme": click.option(
        "--scheme",
        type=click.Choice([each.value for each in Format]),
        default=Format.INT8.value,
        show_default=True,
        help="Types of weights and activations.",
    ),
    "method": click.option(
        "--method",
        type=click.Choice([each.value for each in Method]),
        default=Method.PTQ.value,
        show_default=True,
        help="Quantize after the training, or train further with the rounding in place.",
    ),
    "calibration": click.option(
        "--calibration",
        type=click.Choice(CALIBRATIONS),
        default=CALIBRATIONS[0],
        show_default=True,
        help="How activations get their ranges.",
    ),
    "equalize": click.option(
        "--equalize", is_flag=True, help="Balance the ranges of successive layers first."
    ),
    "bias_correction": click.option(
        "--bias-correction", is_flag=True, help="Let biases make up for rounded weights."
    ),
    "sparsity": click.option(
        "--sparsity", type=float, metavar="SHARE", help="Make this share of the weights zero."
    ),
    "channels": click.option(
        "--channels",
        type=float,
        metavar="SHARE",
        help="Remove channels until this share of the multiply-accumulate steps is left.",
    ),
    "epochs": click.option(
        "--epochs", type=int, metavar="N", help="Epochs of each training.  [default: 3]"
    ),
    "learning_rate": click.option(
        "--learning-rate", type=float, metavar="RATE", help="Of each training.  [default: 0.0001]"
    ),
}
model_argument = click.argument("model", default=_DEFAULT_MODEL)
file_argument = click.argument("model", type=_FILE)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgekiln")
def cli() -> None:
    """Takes a Keras model to a board, and proves what arrived there.

    MODEL is a recipe's name (`edgekiln models`) or a file; a Keras model comes with --data.
    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a check failed, 2
    input that cannot be used, 3 a tool or board is missing.
    """


@cli.command()
@model_argument
@build_option
def train(model: str, build_dir: Path) -> None:
    """Train MODEL, a recipe."""
    from edgekiln import pipeline

    with stdout_for_results():
        directory = pipeline.train(model, build_dir)
    click.echo(directory)


@cli.command()
@model_argument
@takes_own_model
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Show which layers of a model from outside cost accuracy, and what helps.",
)
@build_option
def quantize(model: str, given: Given, sensitivity: bool, build_dir: Path) -> None:
    r"""Quantize MODEL, and prune it where its recipe says so.

    MODEL is a recipe, or a Keras model from outside: a .keras or .h5 file or a SavedModel
    directory, with --data and the other options.

    \b
    --data names an .npz file with these arrays:
      x       float32 [N, ...], samples as the model takes them
      y       int [N], their classes from 0; without labels the outputs are
              compared with the float model's instead
      x_test  float32 [M, ...], samples to measure on; without them a fifth
              of x is held out
      y_test  int [M]
    With several inputs: an array for each, <name> and <name>_test.
    """
    from edgekiln import pipeline

    with stdout_for_results():
        directory = pipeline.quantize(model, build_dir, given, sensitivity=sensitivity)
    click.echo(directory)


@cli.command()
@model_argument
@takes_own_model
@build_option
def export(model: str, given: Given, build_dir: Path) -> None:
    """Write MODEL as .tflite, as ONNX and as a C array."""
    from edgekiln import pipeline

    with stdout_for_results():
        directory = pipeline.export(model, build_dir, given)
    click.echo(directory)


@cli.command("compile")
@file_argument
@click.option(
    "--target",
    default="generic",
    show_default=True,
    help="Class of processors, such as cortex-m4; `edgekiln supported-ops` lists them.",
)
@optimize_option
@click.option("--name", help="Prefix of all C names.  [default: from the file's name]")
@click.option(
    "--io",
    type=click.Choice(["arena", "separate"]),
    default="arena",
    show_default=True,
    help="Inputs and outputs inside the arena, or in buffers of the caller's.",
)
@click.option("-o", "--output", type=_FILE, required=True, help="Directory for the C files.")
@json_option
def compile_(
    model: Path, target: str, optimize: str, name: str | None, io: str, output: Path, as_json: bool
) -> None:
    """Compile MODEL, a .tflite file, to C."""
    from edgekiln.export.compiler import c_name_of, compile_model, write_bundle
    from edgekiln.files import read_input_file

    compiled = compile_model(
        read_input_file(model),
        name=name or c_name_of(model),
        target=target,
        optimize=optimize,
        io=io,
        where=str(model),
    )
    write_bundle(compiled, output)
    report = compiled.report
    if as_json:
        print_json(report)
    else:
        print_facts(
            ("C files", f"{len(report['files'])} in {output}"),
            ("MACs", report["macs"]),
            ("arena", f"{report['arena_bytes']:,} bytes, {_bound(report)}"),
            ("constants", f"{report['constants_bytes']:,} bytes"),
        )


def _bound(report: dict[str, Any]) -> str:
    """Tells how a memory plan compares with its bound, and what decides that."""
    node = report["peak_node"]
    decider = f"node {node['index']} ({node['op']}) decides" if node else "no node at all"
    return f"at least {report['arena_bound_bytes']:,} needed: {decider}"


@cli.command()
@file_argument
@click.option(
    "--target",
    default="generic",
    show_default=True,
    help="Class of processors to choose kernels for.",
)
@optimize_option
@click.option("--plot", type=_FILE, help="Draw the memory plan into this .svg or .html file.")
@json_option
def inspect(model: Path, target: str, optimize: str, plot: Path | None, as_json: bool) -> None:
    """Show what MODEL, a .tflite file, holds, and how it would be compiled.

    Prints its nodes with shapes, scales, MACs, weights and the kernel chosen for each, then the
    arena's buffers with the nodes between which they are alive.
    """
    from edgekiln.export.inspect import inspect_model
    from edgekiln.export.memory_plot import write_plot
    from edgekiln.files import read_input_file

    found = inspect_model(read_input_file(model), model.name, target=target, optimize=optimize)
    if plot is not None:
        write_plot(plot, found)
    if as_json:
        print_json(found.to_json())
    else:
        _print_inspection(found)


def _print_inspection(found: Inspection) -> None:
    from edgekiln.export.inspect import (
        buffer_rows,
        describe_tensor,
        node_rows,
        short_tensor_name,
    )

    print_facts(
        ("model", f"{found.model}, {found.model_bytes:,} bytes"),
        *(("input", describe_tensor(found, t)) for t in found.inputs),
        *(("output", describe_tensor(found, t)) for t in found.outputs),
    )
    click.echo()
    print_columns(
        ("node", "op", "name", "output", "scale", "zero", "MACs", "weights", "kernel"),
        node_rows(found),
    )
    click.echo()
    print_columns(("offset", "bytes", "from", "to", "nodes", "buffer"), buffer_rows(found))
    click.echo()
    peak = None if found.peak_node is None else found.nodes[found.peak_node]
    name = f", {short_tensor_name(peak.name)}" if peak else ""
    decider = f": node {peak.index} ({peak.op}{name}) decides" if peak else ""
    print_facts(
        ("MACs", found.macs),
        ("weights", f"{found.weights_bytes:,} bytes in the file"),
        ("constants", f"{found.constants_bytes:,} bytes in the generated code"),
        *([("state", f"{found.state_bytes:,} bytes")] if found.state_bytes else []),
        ("arena", f"{found.arena_bytes:,} bytes"),
        ("at least", f"{found.arena_bound_bytes:,} bytes{decider}"),
        ("live set", f"{found.live_set_bytes:,} bytes, were no buffers to overlap"),
    )


@cli.command()
@file_argument
@click.option("--inputs", type=_FILE, help="An .npz or .npy file with inputs of your own.")
@click.option("--random", "samples", type=int, default=20, show_default=True, help="How many.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@click.option("--target", default="host", show_default=True, help="`host`, or a board to run on.")
@optimize_option
@json_option
def verify(
    model: Path,
    inputs: Path | None,
    samples: int,
    seed: int,
    target: str,
    optimize: str,
    as_json: bool,
) -> None:
    """Compare MODEL's C with TensorFlow Lite Micro, byte by byte.

    MODEL is a .tflite file. It is compiled and run, on this machine or on a board, and every output
    byte compared; float32 values may differ by what their operators tolerate. Exits with 1 when a
    byte differs, and names the first node.
    """
    from edgekiln.bench.divergence import describe
    from edgekiln.bench.verify import read_inputs, verify_model
    from edgekiln.files import read_input_file

    with stdout_for_results():
        found = verify_model(
            model,
            inputs=read_inputs(inputs, read_input_file(model)) if inputs else None,
            samples=samples,
            seed=seed,
            target=target,
            optimize=optimize,
        )
    if as_json:
        print_json(found.to_json())
    elif found.match:
        near = found.tolerance is not None
        click.echo(
            f"{found.model}: {found.samples} inferences on {found.target}, all {found.bytes:,} "
            f"output bytes {'within the tolerance of' if near else 'equal to'} {found.oracle}'s"
        )
    elif found.first_mismatch is not None:
        print_facts(*describe(found.first_mismatch))
    if found.first_mismatch is not None:
        raise _mismatch_error(model, found)


def _mismatch_error(model: Path, found: Verification) -> CheckFailedError:
    first = found.first_mismatch
    assert first is not None
    return CheckFailedError(
        f"{found.mismatched_bytes:,} of {found.bytes:,} output bytes differ from "
        f"{found.oracle}'s; the first node that does is {first.node} ({first.op}), by "
        f"{first.engine}, value {first.index} in sample {first.sample}",
        where=model,
        got=first.got,
        allowed=first.want,
    )


@cli.command()
@model_argument
@board_option
@optimize_option
@takes_own_model
@build_option
def flash(model: str, board: str, optimize: str, given: Given, build_dir: Path) -> None:
    """Build MODEL's image for a board and write it there."""
    from edgekiln import pipeline

    with stdout_for_results():
        image = pipeline.flash(model, board, build_dir, optimize, given)
    click.echo(image.elf)


@cli.command()
@model_argument
@board_option
@optimize_option
@takes_own_model
@build_option
@json_option
def deploy(
    model: str, board: str, optimize: str, given: Given, build_dir: Path, as_json: bool
) -> None:
    """Take MODEL the whole way to a board, and report.

    Trains, prunes, quantizes, exports, compiles, builds, runs and measures; what has not changed
    since the last time is not done again. A Keras model from outside begins with its
    quantization, for which --data is needed (see `edgekiln quantize --help`). Exits with 1 when
    an output byte of the board differs from the host's.
    """
    from edgekiln import pipeline

    with stdout_for_results():
        results = pipeline.deploy(model, board, build_dir, optimize, given)
    if as_json:
        click.echo(results.read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(results)


@cli.command()
@model_argument
@board_option
@optimize_option
@takes_own_model
@build_option
@json_option
def bench(
    model: str, board: str, optimize: str, given: Given, build_dir: Path, as_json: bool
) -> None:
    """Measure MODEL on a board: instructions, flash, RAM.

    MODEL is a .tflite file, a recipe, or a Keras model with --data.
    """
    from edgekiln import pipeline
    from edgekiln.bench.results import to_json

    with stdout_for_results():
        found = pipeline.bench_model(model, board, build_dir, optimize, given)
    if as_json:
        print_json(to_json(found))
    else:
        _print_bench(found)


def _print_bench(found: BenchResult) -> None:
    from edgekiln.export.inspect import short_tensor_name

    print_columns(
        ("node", "op", "name", "MACs", "instructions"),
        [
            (each.index, each.op, short_tensor_name(each.name), each.macs, each.instructions)
            for each in found.per_node
        ],
    )
    click.echo()
    print_facts(
        ("model", found.model),
        ("board", f"{found.board}{' (emulated)' if found.emulated else ''}"),
        ("MACs", found.macs),
        ("instructions", found.instructions),
        ("cycles", found.cycles),
        ("latency", None if found.latency_us is None else f"{found.latency_us:,.0f} us"),
        (
            "flash",
            f"{found.flash_bytes:,} bytes: {found.flash_constants_bytes:,} of constants, "
            f"{found.flash_code_bytes:,} of code",
        ),
        (
            "RAM",
            f"{found.ram_bytes:,} bytes: arena {found.arena_bytes:,}, "
            f"peak stack {found.stack_bytes:,}",
        ),
        ("toolchain", found.toolchain),
        ("flags", found.flags),
    )


@cli.command()
@model_argument
@board_option
@build_option
def report(model: str, board: str, build_dir: Path) -> None:
    """Write the report of MODEL's last deploy anew."""
    from edgekiln import pipeline

    click.echo(pipeline.write_last_report(model, board, build_dir))


@cli.command()
@json_option
def models(as_json: bool) -> None:
    """List the recipes, models with their data and schedule, and their compressed variants."""
    from edgekiln.quantize.variants import variants_of
    from edgekiln.train.registry import load_recipe, recipe_names

    known: dict[str, dict[str, str | None]] = {}
    for recipe in map(load_recipe, recipe_names()):
        described = {"dataset": recipe.dataset, "description": recipe.description}
        known[recipe.name] = {**described, "variant_of": None}
        for variant in variants_of(recipe.name):
            described["description"] = variant.description
            known[variant.model_name(recipe.name)] = {**described, "variant_of": recipe.name}
    if as_json:
        print_json(known)
    else:
        rows = [(name, str(is_["dataset"]), str(is_["description"])) for name, is_ in known.items()]
        print_columns(("model", "data", "what it is"), rows)


@cli.command()
@click.argument("recipes", nargs=-1)
@click.option("--train", "anew", is_flag=True, help="Train them and their variants anew instead.")
@click.option(
    "--device-samples",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Most held-out samples to run on the board, for each model.",
)
@build_option
@json_option
def zoo(
    recipes: tuple[str, ...], anew: bool, device_samples: int, build_dir: Path, as_json: bool
) -> None:
    """Measure the project's own models and their compressed variants on a board.

    RECIPES are names; none means all. The models are those that are kept with the project.
    """
    from edgekiln import zoo as own

    with stdout_for_results():
        if anew:
            own.make_zoo(recipes, build_dir)
            return
        report = own.measure_zoo(recipes, build_dir, device_samples)
    if as_json:
        print_json(report)
    else:
        click.echo(own.zoo_markdown(report), nl=False)


@cli.command()
@json_option
def boards(as_json: bool) -> None:
    """List the boards, and whether their tools are installed."""
    from edgekiln.firmware.boards import board_slugs, load_board

    known = [load_board(slug) for slug in board_slugs()]
    if as_json:
        print_json(
            {
                board.slug: {
                    "display_name": board.display_name,
                    "core": board.core,
                    "target": board.target,
                    "flash_bytes": board.flash_bytes,
                    "ram_bytes": board.ram_bytes,
                    "emulator": board.emulator.program if board.emulator else None,
                    "missing": _missing_tools(board),
                }
                for board in known
            }
        )
    else:
        print_columns(
            ("board", "name", "target", "flash", "RAM", "missing"),
            [
                (
                    board.slug,
                    board.display_name,
                    board.target,
                    _kibibytes(board.flash_bytes),
                    _kibibytes(board.ram_bytes),
                    " ".join(_missing_tools(board)) or None,
                )
                for board in known
            ],
        )


def _missing_tools(board: Board) -> list[str]:
    """Returns the programs that a board needs and this machine lacks."""
    prefix = board.toolchain.prefix
    programs = [f"{prefix}gcc" if prefix else "cc"]
    if board.emulator:
        programs.append(board.emulator.program)
    return [program for program in programs if shutil.which(program) is None]


def _kibibytes(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{size_bytes / 1024:,.0f} KiB"


@cli.command("supported-ops")
@click.option("--markdown", is_flag=True, help="Print the page docs/supported-ops.md.")
@json_option
def supported_ops_(markdown: bool, as_json: bool) -> None:
    """List the operators and the targets of the compiler."""
    from edgekiln.export.supported import supported_ops, supported_ops_markdown
    from edgekiln.export.targets import TARGETS

    operators = supported_ops()
    if markdown:
        click.echo(supported_ops_markdown(), nl=False)
    elif as_json:
        targets = {target.name: target.description for target in TARGETS.values()}
        print_json({"targets": targets, "operators": operators})
    else:
        rows = [(each["op"], each["variants"]) for each in operators]
        print_columns(("operator", "what of it"), rows)
        click.echo()
        print_columns(
            ("target", "what it is"),
            [(target.name, target.description) for target in TARGETS.values()],
        )


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed, missing, and how to get it.

    Exits with 3 when something is missing that `make deploy BOARD=mps2-an386` needs.
    """
    from edgekiln import doctor as doctors

    findings = doctors.examine()
    if as_json:
        print_json(doctors.to_json(findings))
    else:
        print_columns(
            ("", "for", "installed", "needed", ""),
            [
                (each.name, each.group, each.version or None, each.wanted or "any", each.state)
                for each in findings
            ],
        )
    doctors.check(findings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run(cli, arguments)


if __name__ == "__main__":
    sys.exit(main())
