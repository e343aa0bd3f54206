"""The `edgekiln` command. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgekiln import __version__
from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.firmware.flash.destination import Destination
from edgekiln.quantize.options import CALIBRATIONS, Format, Method, QuantizeOptions
from edgekiln.terminal import print_columns, print_facts, print_json, run, stdout_for_results

if TYPE_CHECKING:
    from edgekiln.bench.linux import LinuxBoard
    from edgekiln.bench.results import BenchResult
    from edgekiln.bench.verify import Verification
    from edgekiln.export.inspect import Inspection
    from edgekiln.firmware.boards import Board
    from edgekiln.firmware.linux.releases import ReleaseInfo
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
    "pattern": click.option(
        "--pattern",
        default="unstructured",
        show_default=True,
        metavar="PATTERN",
        help="Which weights become zero together: unstructured, 1x4 (blocks) or 2:4.",
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


def takes_destination(command: F) -> F:
    """Adds the options that say which real board is meant; the command gets ``where``."""

    @functools.wraps(command)
    def call(*arguments: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in DESTINATION_OPTIONS}
        return command(*arguments, where=Destination(**chosen), **values)

    for option in reversed(DESTINATION_OPTIONS.values()):
        call = option(call)
    return cast("F", call)


#: The options of `takes_destination`, by the name of their value.
DESTINATION_OPTIONS: dict[str, Callable[[F], F]] = {
    "port": click.option(
        "--port", metavar="PORT", help="Serial port of a real board; `auto` finds it by USB."
    ),
    "runner": click.option(
        "--runner", metavar="NAME", help="How to write the image; `edgekiln boards` lists them."
    ),
    "to": click.option(
        "--to", metavar="PLACE", help="The drive for uf2, or host:port of the server for gdb."
    ),
}


def takes_linux_options(command: F) -> F:
    """Adds the options for boards that run Linux; the command gets them as ``linux``."""

    @functools.wraps(command)
    def call(*arguments: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in LINUX_OPTIONS}
        return command(*arguments, linux=chosen, **values)

    for option in reversed(LINUX_OPTIONS.values()):
        call = option(call)
    return cast("F", call)


_NO_LINUX_OPTIONS: Mapping[str, Any] = {
    "hosts": (),
    "as_list": False,
    "rollback": False,
    "service": None,
    "http_port": None,
    "runtimes": True,
}
#: The options of `takes_linux_options`, by the name of their value.
LINUX_OPTIONS: dict[str, Callable[[F], F]] = {
    "hosts": click.option(
        "--host",
        "hosts",
        multiple=True,
        metavar="USER@HOST",
        help="Where a board that runs Linux is; several may be given. `virtual` is a virtual one, "
        "`virtual:raspi3b` an emulated Pi 3, `virtual:armhf` a 32-bit one.",
    ),
    "as_list": click.option(
        "--list", "as_list", is_flag=True, help="List the releases on the hosts instead."
    ),
    "rollback": click.option(
        "--rollback", is_flag=True, help="Go back to the release before instead."
    ),
    "service": click.option(
        "--service/--no-service",
        default=None,
        help="Serve the model on the hosts by systemd, or end that.  [default: as it is]",
    ),
    "http_port": click.option(
        "--http-port",
        type=click.IntRange(1024, 65535),
        help="With --service: answer on this port of the hosts' loopback interface instead of a "
        "Unix socket.",
    ),
    "runtimes": click.option(
        "--runtimes/--no-runtimes",
        default=True,
        show_default=True,
        help="Install and measure LiteRT and ONNX Runtime on the hosts too.",
    ),
}
one_host_option = click.option(
    "--host", metavar="USER@HOST", help="Where a board that runs Linux is, or `virtual`."
)
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
    """Quantize MODEL, and prune it where its recipe says so.

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
    """  # noqa: D301  # The backspace is click's sign for a paragraph that keeps its lines.
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
@click.option(
    "--bundle",
    type=click.Choice(["arduino", "platformio", "zephyr", "esp-idf", "cmake", "single"]),
    help="Make a package for this build system, with a self-test; single: one .c and one .h.",
)
@click.option("-o", "--output", type=_FILE, required=True, help="Directory for the C files.")
@json_option
def compile_(
    model: Path,
    target: str,
    optimize: str,
    name: str | None,
    io: str,
    bundle: str | None,
    output: Path,
    as_json: bool,
) -> None:
    """Compile MODEL, a .tflite file, to C."""
    from edgekiln.export.bundles import write_package
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
    if bundle is None:
        report = compiled.report
        write_bundle(compiled, output)
        written = ("C files", f"{len(report['files'])} in {output}")
    else:
        package = write_package(compiled, bundle, output)
        report = package.report
        written = (f"for {bundle}", str(package.path))
    if as_json:
        print_json(report)
    else:
        print_facts(
            written,
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
@one_host_option
@optimize_option
@json_option
def verify(
    model: Path,
    inputs: Path | None,
    samples: int,
    seed: int,
    target: str,
    host: str | None,
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

    with stdout_for_results(), _linux_board_of(target, host) as linux:
        found = verify_model(
            model,
            inputs=read_inputs(inputs, read_input_file(model)) if inputs else None,
            samples=samples,
            seed=seed,
            target=target,
            optimize=optimize,
            linux=linux,
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


@contextlib.contextmanager
def _linux_board_of(target: str, host: str | None) -> Iterator[LinuxBoard | None]:
    """Yields the board, where it is one that runs Linux."""
    from edgekiln.firmware.boards import load_board
    from edgekiln.linux_deploy import open_board

    board = None if target == "host" else load_board(target)
    if board is None or board.linux is None:
        _refuse_host(target, host)
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="edgekiln-verify-") as disks,
        open_board(board, [host] if host else [], Path(disks)) as there,
    ):
        yield there


def _refuse_host(board: str, host: str | None) -> None:
    if host is not None:
        raise BadInputError("--host is for boards that run Linux", where=board)


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
@takes_destination
@click.option("--dry-run", is_flag=True, help="Print the exact commands, write nothing.")
@takes_own_model
@build_option
def flash(
    model: str,
    board: str,
    optimize: str,
    where: Destination,
    dry_run: bool,
    given: Given,
    build_dir: Path,
) -> None:
    """Build MODEL's image for a board and write it there.

    The first of the board's runners that is installed writes it, and verifies what it wrote. A
    board that answers at a port is asked for one inference. Boards that are emulated are handed
    the image when they start, unless a port or a runner says that a real one is meant.
    """
    from edgekiln import pipeline

    with stdout_for_results():
        if dry_run:
            lines = pipeline.flash_commands(model, board, build_dir, optimize, given, where)
        else:
            image = pipeline.flash(model, board, build_dir, optimize, given, where)
            lines = [str(image.elf)]
    for line in lines:
        click.echo(line)


@cli.command()
@model_argument
@board_option
@optimize_option
@takes_destination
@takes_linux_options
@takes_own_model
@build_option
@json_option
def deploy(
    model: str,
    board: str,
    optimize: str,
    where: Destination,
    linux: dict[str, Any],
    given: Given,
    build_dir: Path,
    as_json: bool,
) -> None:
    """Take MODEL the whole way to a board, and report.

    Trains, prunes, quantizes, exports, compiles, builds, runs and measures; what has not changed
    since the last time is not done again. A Keras model from outside begins with its
    quantization, for which --data is needed (see `edgekiln quantize --help`). Exits with 1 when
    an output byte of the board differs from the host's.

    A board that has an emulator is that emulator, unless --port, --runner or --to says that a
    real one is meant: that is flashed first.

    A board that runs Linux is reached over SSH: --host says where, else RPI_HOST for the board
    rpi. There the model becomes a release, which replaces the one before after its self-test.
    """
    from edgekiln import pipeline
    from edgekiln.firmware.boards import load_board

    chosen = load_board(board)
    _check_deploy_options(chosen, where, linux)
    if chosen.linux is not None:
        _deploy_to_linux(model, chosen, build_dir, optimize, given, linux, as_json)
        return
    with stdout_for_results():
        results = pipeline.deploy(model, board, build_dir, optimize, given, where)
    _print_results([results], as_json)


def _check_deploy_options(board: Board, where: Destination, linux: Mapping[str, Any]) -> None:
    """Refuses options that go with other boards than the one that is meant."""
    if linux["as_list"] and linux["rollback"]:
        raise BadInputError("--list and --rollback are two different things")
    if linux["http_port"] is not None and not linux["service"]:
        raise BadInputError("--http-port goes with --service")
    if board.linux is None and linux != _NO_LINUX_OPTIONS:
        raise BadInputError(
            "--host, --list, --rollback, --service and --no-runtimes are for boards that run Linux",
            where=board.slug,
        )
    if board.linux is not None:
        _refuse_destination(board, where)


def _refuse_destination(board: Board, where: Destination) -> None:
    if where != Destination():
        raise BadInputError(
            "--port, --runner and --to are for boards that are flashed",
            where=board.slug,
            hint="--host says where a board with Linux is",
        )


def _deploy_to_linux(
    model: str,
    board: Board,
    build_dir: Path,
    optimize: str,
    given: Given,
    linux: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Deploys to hosts, lists their releases, or goes back to the one before."""
    from edgekiln import linux_deploy

    as_list, rollback = linux["as_list"], linux["rollback"]
    options = linux_deploy.LinuxOptions(
        linux["hosts"], linux["runtimes"], linux["service"], linux["http_port"]
    )

    with stdout_for_results():
        if as_list:
            listed = linux_deploy.list_on_hosts(model, board, build_dir, options)
        elif rollback:
            done = linux_deploy.roll_back_hosts(model, board, build_dir, options)
        else:
            results = linux_deploy.deploy_to_hosts(
                model, board, build_dir, optimize, given, options
            )
    if as_list and as_json:
        print_json({host: [asdict(info) for info in infos] for host, infos in listed.items()})
    elif as_list:
        rows = [
            (host, info.id, _state_of(info), info.bytes)
            for host, infos in listed.items()
            for info in infos
        ]
        print_columns(("host", "release", "state", "bytes"), rows)
    elif rollback and as_json:
        print_json({host: asdict(each) for host, each in done.items()})
    elif rollback:
        print_columns(
            ("host", "release", "was"),
            [(host, each.id, each.previous) for host, each in done.items()],
        )
    else:
        _print_results(results, as_json)


def _state_of(info: ReleaseInfo) -> str:
    state = "current" if info.is_current else "kept"
    return state if info.is_whole else f"{state}, damaged"


def _print_results(paths: Sequence[Path], as_json: bool) -> None:
    """Prints where results.json lies, or what is in it: of several boards a list."""
    if not as_json:
        for path in paths:
            click.echo(path)
    elif len(paths) == 1:
        click.echo(paths[0].read_text(encoding="utf-8"), nl=False)
    else:
        print_json([json.loads(path.read_text(encoding="utf-8")) for path in paths])


@cli.command()
@model_argument
@board_option
@optimize_option
@takes_destination
@one_host_option
@takes_own_model
@build_option
@json_option
def bench(
    model: str,
    board: str,
    optimize: str,
    where: Destination,
    host: str | None,
    given: Given,
    build_dir: Path,
    as_json: bool,
) -> None:
    """Measure MODEL on a board: instructions, flash, RAM.

    MODEL is a .tflite file, a recipe, or a Keras model with --data. A real board is meant as for
    `edgekiln deploy`. On a board that runs Linux nothing is deployed.
    """
    from edgekiln import linux_deploy, pipeline
    from edgekiln.bench.results import to_json
    from edgekiln.firmware.boards import load_board

    chosen = load_board(board)
    with stdout_for_results():
        if chosen.linux is not None:
            _refuse_destination(chosen, where)
            hosts = [host] if host else []
            found = linux_deploy.bench_on_host(model, chosen, build_dir, optimize, given, hosts)
        else:
            _refuse_host(board, host)
            found = pipeline.bench_model(model, board, build_dir, optimize, given, where)
    if as_json:
        print_json(to_json(found))
    else:
        _print_bench(found)


def _print_bench(found: BenchResult) -> None:
    from edgekiln.export.inspect import short_tensor_name

    print_columns(
        ("node", "op", "name", "MACs", found.counted or "instructions"),
        [
            (each.index, each.op, short_tensor_name(each.name), each.macs, each.cost)
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
        *([("cycles are", found.cycles_model)] if found.cycles_model else []),
        ("latency", None if found.latency_us is None else f"{found.latency_us:,.0f} us"),
        (
            "flash",
            f"{found.flash_bytes:,} bytes: {found.flash_constants_bytes:,} of constants, "
            f"{found.flash_code_bytes:,} of code",
        ),
        (
            "RAM",
            f"{found.ram_bytes:,} bytes: arena {found.arena_bytes:,}"
            + ("" if found.stack_bytes is None else f", peak stack {found.stack_bytes:,}"),
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
@click.argument("models", nargs=-1)
@click.option("--train", "anew", is_flag=True, help="Train them and their variants anew instead.")
@click.option(
    "--device-samples",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Most held-out samples to run on the board, for each model.",
)
@build_option
@json_option
def zoo(
    models: tuple[str, ...], anew: bool, device_samples: int, build_dir: Path, as_json: bool
) -> None:
    """Measure the project's own models and their compressed variants on a board.

    MODELS are recipes, each with its variants, or single variants as RECIPE_VARIANT; none means
    all. They are measured as they are kept with the project.
    """
    from edgekiln import zoo as own

    with stdout_for_results():
        if anew:
            own.make_zoo(models, build_dir)
            return
        report = own.measure_zoo(models, build_dir, device_samples)
    if as_json:
        print_json(report)
    else:
        click.echo(own.zoo_markdown(report), nl=False)


@cli.command()
@click.option(
    "--try",
    "models",
    multiple=True,
    metavar="MODEL",
    help="Take MODEL to every microcontroller's emulator instead; where it does not fit, take "
    "the next MODEL given.",
)
@click.option("--board", "slugs", multiple=True, metavar="BOARD", help="Try it on these alone.")
@optimize_option
@build_option
@json_option
def boards(
    models: tuple[str, ...], slugs: tuple[str, ...], optimize: str, build_dir: Path, as_json: bool
) -> None:
    """List the boards, and whether their tools are installed.

    With --try every board whose tools are installed gets an image. Where there is an emulator it
    is run, and all output bytes are compared with those of the generated C on this machine. Exits
    with 1 when a byte differs.
    """
    if models:
        _try_boards(models, slugs, optimize, build_dir, as_json)
    elif slugs:
        raise click.UsageError("--board goes with --try")
    else:
        _list_boards(as_json)


def _list_boards(as_json: bool) -> None:
    from edgekiln.firmware.boards import board_slugs, load_board
    from edgekiln.firmware.flash.registry import installed_runners
    from edgekiln.firmware.installed import (
        missing_tools,
        packages_of,
        steps_to_install,
        tools_of,
    )

    known = [load_board(slug) for slug in board_slugs()]
    if as_json:
        print_json(
            {
                board.slug: {
                    "display_name": board.display_name,
                    "core": board.core,
                    "target": board.target,
                    "clock_hz": board.clock_hz,
                    "flash_bytes": board.flash_bytes,
                    "ram_bytes": board.ram_bytes,
                    "emulator": board.emulator.program if board.emulator else None,
                    "runners": dict(installed_runners(board)),
                    "installed": {tool.program: tool.is_installed for tool in tools_of(board)},
                    "missing": [tool.program for tool in missing_tools(board)],
                    "packages": list(packages_of(tools_of(board))),
                }
                for board in known
            }
        )
    else:
        print_columns(
            (
                *("board", "name", "target", "flash", "RAM"),
                *("compiler", "emulator", "flashed by", "to install"),
            ),
            [
                (
                    board.slug,
                    board.display_name,
                    board.target,
                    _kibibytes(board.flash_bytes),
                    _kibibytes(board.ram_bytes),
                    *(_is_there(board, purpose) for purpose in ("compiler", "emulator")),
                    ", ".join(
                        f"{name} (missing)" if why_not else name
                        for name, why_not in installed_runners(board)
                    )
                    or None,
                    steps_to_install(missing_tools(board)) or None,
                )
                for board in known
            ],
        )


def _is_there(board: Board, purpose: str) -> str | None:
    from edgekiln.firmware.installed import tools_of

    found = [tool.is_installed for tool in tools_of(board) if tool.purpose == purpose]
    if not found:
        return None
    return "yes" if all(found) else "missing"


def _try_boards(
    models: tuple[str, ...], slugs: tuple[str, ...], optimize: str, build_dir: Path, as_json: bool
) -> None:
    from edgekiln import trials

    with stdout_for_results():
        found = trials.try_everywhere(models, build_dir, optimize, slugs)
    if as_json:
        print_json({trial.board: asdict(trial) for trial in found})
    else:
        print_columns(
            (
                *("board", "core", "model", "flash", "RAM", "of it stack"),
                *("instructions", "cycles", "bytes equal"),
            ),
            [
                (
                    trial.board,
                    trial.core,
                    trial.model,
                    trial.flash_bytes,
                    trial.ram_bytes,
                    trial.stack_bytes,
                    trial.instructions,
                    trial.cycles,
                    f"all {trial.bytes_equal:,} of {trial.samples:,} samples"
                    if trial.bytes_equal
                    else trial.outcome,
                )
                for trial in found
            ],
        )
    trials.check(found)


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
