"""Takes a model to boards that run Linux, several at once.

::

    build/<model>/<board>/<target>/c/         the generated C for one kind of core
                          <target>/release/   what is sent: files/, and program.json about it
                          hosts/<host>/run/   results.json, made by running the release there
                          hosts/<host>/       the same with report.html, for people: several hosts
                          .                   the same: one host
    build/virtual-pi/                         the disks of virtual Raspberry Pis

The boards are looked at first, so that what is missing there is known before anything is trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekiln.console import make_table, say, show
from edgekiln.errors import BadInputError, BoardError, CheckFailedError, EdgekilnError
from edgekiln.files import read_input_file
from edgekiln.pipeline import (
    BENCH_SAMPLES,
    PACKAGE,
    Given,
    Work,
    check_linux_tools,
    find_model,
    publish_results,
    results_paths,
    run_stage,
    show_results,
)

if TYPE_CHECKING:
    from edgekiln.bench.linux import Case, LinuxBoard, Place
    from edgekiln.bench.results import BenchResult
    from edgekiln.firmware.boards import Board, Linux, LinuxCore
    from edgekiln.firmware.linux.facts import Facts, RuntimeChoice
    from edgekiln.firmware.linux.hosts import Target
    from edgekiln.firmware.linux.install import Environment
    from edgekiln.firmware.linux.releases import Deployed, Release, ReleaseInfo
    from edgekiln.firmware.linux.runner.program import Program
    from edgekiln.firmware.linux.ssh import Connection

_MOST_AT_ONCE = 8
_FILES, _PROGRAM_JSON = "files", "program.json"

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class LinuxOptions:
    """How to deploy to boards that run Linux.

    Attributes:
        hosts: What the user named; empty for what the environment or the board's file says.
        runtimes: Whether LiteRT and ONNX Runtime are installed there, and measured too.
        service: Whether the model is served there by systemd; None leaves that as it is.
        http_port: The port of the loopback interface there on which the service answers; None
            for a Unix socket.
    """

    hosts: tuple[str, ...] = ()
    runtimes: bool = True
    service: bool | None = None
    http_port: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a deploy to one board ended; None for what was not reached.

    Attributes:
        target: The board.
        facts: What it has.
        deployed: What is current there now.
        results: The path of results.json.
        error: Why it failed.
    """

    target: Target
    facts: Facts | None = None
    deployed: Deployed | None = None
    results: Path | None = None
    error: EdgekilnError | None = None


@dataclass
class _Session:
    """A board while it is deployed to."""

    target: Target
    connection: Connection
    facts: Facts
    core: LinuxCore


def deploy_to_hosts(
    model: str,
    board: Board,
    build: Path,
    optimize: str,
    given: Given,
    options: LinuxOptions,
) -> tuple[Path, ...]:
    """Takes a model to boards that run Linux, makes it current there, and measures it.

    Args:
        model: As for `edgekiln.pipeline.deploy`.
        board: A board that runs Linux.
        build: The root of the build tree.
        optimize: What the compiler favours.
        given: Data and options for a Keras model.
        options: Where to, and what there.

    Returns:
        The paths of results.json, one for each host.

    Raises:
        EdgekilnError: It failed on one of them; the others have been dealt with all the same.
            What ran before still runs where a release has not become current.
    """
    from edgekiln.firmware.linux.hosts import choose_targets
    from edgekiln.firmware.linux.releases import check_name

    linux = _need_linux(board)
    targets = choose_targets(board, options.hosts)
    work = find_model(model, build, optimize, given)
    check_name(work.name)
    check_linux_tools(work)
    with contextlib.ExitStack() as stack:
        looked = _on_each(targets, lambda target: _look_at(target, linux, build, options, stack))
        sessions = [found for found in looked if isinstance(found, _Session)]
        outcomes = {o.target: o for o in looked if isinstance(o, Outcome)}
        if sessions:
            shared = _Shared(work, board)
            results = _results_places(work, board, targets)
            done = _on_each(
                sessions,
                lambda session: _deploy_one(
                    session, shared, linux, options, results[session.target]
                ),
            )
            outcomes |= {outcome.target: outcome for outcome in done}
    ordered = [outcomes[target] for target in targets]
    _show_outcomes(work.name, board, ordered)
    _raise_first(ordered)
    return tuple(outcome.results for outcome in ordered if outcome.results is not None)


def bench_on_host(
    model: str, board: Board, build: Path, optimize: str, given: Given, hosts: Sequence[str]
) -> BenchResult:
    """Measures a model's generated C on a board with a few inputs, without deploying it.

    Args:
        model: As for `deploy_to_hosts`.
        board: As for `deploy_to_hosts`.
        build: As for `deploy_to_hosts`.
        optimize: As for `deploy_to_hosts`.
        given: As for `deploy_to_hosts`.
        hosts: As for `open_board`.

    Raises:
        CheckFailedError: The board's output differs from that of the generated C on the host.
        EdgekilnError: Something else is wrong or missing; the message says what.
    """
    from edgekiln.bench.inputs import read_inputs_file
    from edgekiln.bench.linux_results import bench_linux

    work = find_model(model, build, optimize, given)
    check_linux_tools(work)
    with open_board(board, hosts, _disks(build)) as there:
        bundle = work.bundle(f"{board.slug}/{there.core.target}", there.core.target)
        few = read_inputs_file(work.inputs).head(BENCH_SAMPLES)
        return bench_linux(there, board, bundle, work.host_bundle, few.tensors)


@contextlib.contextmanager
def open_board(board: Board, hosts: Sequence[str], disks: Path) -> Iterator[LinuxBoard]:
    """Yields a board to run models on that are not deployed there.

    Args:
        board: A board that runs Linux.
        hosts: Which one: what the user named; empty for what the environment or the board's file
            says.
        disks: Where the disks of virtual Pis are kept.

    Raises:
        BadInputError: It is not one host, or nothing can be compiled for it.
        BoardError: It cannot be reached.
        ToolMissingError: The C compiler for it is missing.
    """
    from edgekiln.bench.linux import LinuxBoard
    from edgekiln.firmware.linux.facts import find_facts
    from edgekiln.firmware.linux.hosts import choose_targets, open_target

    linux = _need_linux(board)
    target, *others = choose_targets(board, hosts)
    if others:
        raise BadInputError(
            "this is for one host at a time",
            where=board.slug,
            got=", ".join(each.text for each in (target, *others)),
        )
    with open_target(target, disks) as connection:
        facts = find_facts(connection, linux.directory)
        say(f"{target.text}: {_describe(facts)}")
        yield LinuxBoard(connection, facts, _choose_core(target, linux, facts), linux.directory)


def list_on_hosts(
    model: str, board: Board, build: Path, options: LinuxOptions
) -> dict[str, tuple[ReleaseInfo, ...]]:
    """Returns the releases of a model on each host.

    Raises:
        EdgekilnError: A host cannot be reached, or MODEL is not a model.
    """
    from edgekiln.firmware.linux.releases import list_releases

    linux, name = _need_linux(board), find_model(model, build).name

    def list_one(connection: Connection) -> tuple[ReleaseInfo, ...]:
        return list_releases(connection, name, base=linux.directory)

    return _on_connections(board, build, options, list_one)


def roll_back_hosts(
    model: str, board: Board, build: Path, options: LinuxOptions
) -> dict[str, Deployed]:
    """Makes the release before the present one current again on each host.

    Raises:
        EdgekilnError: A host cannot be reached or has no earlier release; the others have been
            dealt with all the same.
    """
    from edgekiln.firmware.linux.facts import find_facts
    from edgekiln.firmware.linux.releases import rollback
    from edgekiln.firmware.linux.runner.assemble import selftest_command
    from edgekiln.firmware.linux.service import refresh_service

    linux, name = _need_linux(board), find_model(model, build).name

    def roll_back_one(connection: Connection) -> Deployed:
        facts = find_facts(connection, linux.directory)
        command = selftest_command(facts.python is not None)
        done = rollback(connection, name, base=linux.directory, selftest=command)
        if facts.has_systemd:
            refresh_service(connection, name)
        return done

    return _on_connections(board, build, options, roll_back_one)


def _on_connections(
    board: Board, build: Path, options: LinuxOptions, do: Callable[[Connection], T]
) -> dict[str, T]:
    """Does something on each host at once; returns what came of it by the host's name."""
    from edgekiln.firmware.linux.hosts import choose_targets, open_target

    def do_one(target: Target) -> T | EdgekilnError:
        try:
            with open_target(target, _disks(build)) as connection:
                return do(connection)
        except EdgekilnError as error:
            return error

    targets = choose_targets(board, options.hosts)
    found = dict(zip(targets, _on_each(targets, do_one), strict=True))
    failed = [Outcome(t, error=e) for t, e in found.items() if isinstance(e, EdgekilnError)]
    for outcome in failed[1:] if len(failed) == len(targets) else failed:
        say(f"{outcome.target.text}: {outcome.error}")
    _raise_first(failed, len(targets))
    return {t.text: value for t, value in found.items() if not isinstance(value, EdgekilnError)}


def _need_linux(board: Board) -> Linux:
    if board.linux is None:
        raise BadInputError(
            "hosts and releases are for boards that run Linux", where=board.slug, allowed="rpi"
        )
    return board.linux


def _disks(build: Path) -> Path:
    return build / "virtual-pi"


def _on_each(items: Sequence[S], do: Callable[[S], T]) -> list[T]:
    """Does something for each item, several at once; returns what came of it, in order."""
    with ThreadPoolExecutor(min(len(items), _MOST_AT_ONCE)) as pool:
        return list(pool.map(do, items))


def _look_at(
    target: Target, linux: Linux, build: Path, options: LinuxOptions, stack: contextlib.ExitStack
) -> _Session | Outcome:
    """Reaches a board and finds out what it is; the stack ends the connection."""
    from edgekiln.firmware.linux.facts import find_facts
    from edgekiln.firmware.linux.hosts import open_target

    try:
        # The stack is shared by threads; a list's append, which this is, is atomic.
        connection = stack.enter_context(open_target(target, _disks(build)))
        facts = find_facts(connection, linux.directory)
        say(f"{target.text}: {_describe(facts)}")
        _check_service(target, facts, options)
        return _Session(target, connection, facts, _choose_core(target, linux, facts))
    except EdgekilnError as error:
        return Outcome(target, error=error)


def _check_service(target: Target, facts: Facts, options: LinuxOptions) -> None:
    """Makes sure that the model can be served where that is wanted."""
    if not options.service:
        return
    if not facts.has_systemd:
        raise BoardError(
            "no systemd of the user runs there, so there is no service", where=target.text
        )
    if facts.python is None:
        raise BoardError(
            "the service needs python3", where=target.text, hint="sudo apt-get install python3"
        )


def _choose_core(target: Target, linux: Linux, facts: Facts) -> LinuxCore:
    """Returns what is compiled for, once it is sure that it can be done."""
    from edgekiln.firmware.toolchain import find_tool

    core = linux.find_core(facts.architecture, facts.features)
    if core is None:
        raise BadInputError(
            "nothing can be compiled for its processor",
            where=target.text,
            got=facts.architecture,
            allowed=", ".join(dict.fromkeys(core.architecture for core in linux.cores)),
        )
    find_tool(core.toolchain, "gcc")
    missing = [name for name in ("rsync", "flock") if not getattr(facts, f"has_{name}")]
    if missing:
        packages = {"rsync": "rsync", "flock": "util-linux"}
        raise BoardError(
            f"{' and '.join(missing)} not installed there",
            where=target.text,
            hint=f"sudo apt-get install {' '.join(packages[name] for name in missing)}",
        )
    return core


def _describe(facts: Facts) -> str:
    """Returns in a line what a board is."""
    python = ".".join(map(str, facts.python)) if facts.python else "none"
    parts = [facts.model or "unknown board", facts.os, facts.architecture, f"Python {python}"]
    parts += [f"{facts.cores} cores", f"{facts.free_disk_bytes >> 20:,} MiB free"]
    return ", ".join(filter(None, parts))


class _Shared:
    """What boards have in common: made once, by whichever comes first."""

    def __init__(self, work: Work, board: Board) -> None:
        self.work = work
        self.board = board
        self._lock = threading.Lock()
        # All that does not depend on a board is made before several of them ask for it at once.
        self.exported, self.host_bundle = work.exported, work.host_bundle

    def release(self, core: LinuxCore, *, has_python: bool) -> tuple[Release, Program]:
        """Returns what is sent to boards with such a core."""
        with self._lock:
            return _make_release(self.work, self.board, core, has_python=has_python)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others from running stages meanwhile."""
        with self._lock:
            yield


def _make_release(
    work: Work, board: Board, core: LinuxCore, *, has_python: bool
) -> tuple[Release, Program]:
    """Compiles a model for a core, and puts together what is sent."""
    from edgekiln.bench.inputs import read_inputs_file
    from edgekiln.files import MANIFEST_NAME, Stage
    from edgekiln.firmware.linux.releases import make_release
    from edgekiln.firmware.linux.runner.assemble import assemble_release, selftest_command
    from edgekiln.firmware.linux.runner.program import (
        build_program,
        load_program,
        save_program,
    )
    from edgekiln.firmware.toolchain import compiler_version

    place = f"{board.slug}/{core.target}" + ("" if has_python else "-without-python")
    bundle = work.bundle(place, core.target)

    def make(directory: Path) -> None:
        program = build_program(
            bundle,
            core.architecture,
            directory / "edgekiln-model",
            toolchain=core.toolchain,
        )
        assemble_release(
            program,
            directory / _FILES,
            class_names=read_inputs_file(work.inputs).class_names,
            tflite=read_input_file(work.tflite),
            has_python=has_python,
        )
        save_program(program, directory / _PROGRAM_JSON)

    stage = Stage(
        name=f"release for {core.target}",
        directory=work.directory / place / "release",
        inputs=[
            *sorted(path for path in bundle.iterdir() if path.name != MANIFEST_NAME),
            *(work.tflite, work.inputs),
        ],
        options={
            "compiler": compiler_version(core.toolchain),
            "flags": core.toolchain.cpu_flags,
            "has_python": has_python,
        },
        code=(PACKAGE / "firmware",),
    )
    directory = run_stage(stage, make)
    release = make_release(
        directory / _FILES,
        work.name,
        architecture=core.architecture,
        selftest=selftest_command(has_python),
    )
    return release, load_program(directory / _PROGRAM_JSON, directory / "edgekiln-model", bundle)


def _deploy_one(
    session: _Session, shared: _Shared, linux: Linux, options: LinuxOptions, results: str
) -> Outcome:
    """Deploys to one board that has been looked at, and measures there."""
    from edgekiln.firmware.linux.facts import choose_runtime
    from edgekiln.firmware.linux.releases import deploy_release

    outcome = Outcome(session.target, session.facts)
    try:
        choice = choose_runtime(session.facts)
        environment, why = _prepare(session, choice, linux, options)
        has_python = session.facts.python is not None
        release, program = shared.release(session.core, has_python=has_python)
        deployed = deploy_release(
            session.connection, release, base=linux.directory, facts=session.facts
        )
        outcome = dataclasses.replace(outcome, deployed=deployed)
        say(f"{session.target.text}: {_describe_deployed(deployed)}")
        place = _place(session, linux, release.name, deployed, choice, environment, why)
        try:
            _serve(session, release.name, linux, options)
            cases = _cases(shared.work) if options.runtimes else ()
            path = _measure(session, shared, program, place, cases, results)
        except CheckFailedError as error:
            went_back = _go_back(session, release, deployed, linux)
            raise CheckFailedError(f"{error}{went_back}") from None
        return dataclasses.replace(outcome, results=path)
    except EdgekilnError as error:
        return dataclasses.replace(outcome, error=error)


def _go_back(session: _Session, release: Release, deployed: Deployed, linux: Linux) -> str:
    """Makes the release before current again after the new one has failed; tells of it."""
    from edgekiln.firmware.linux.releases import rollback
    from edgekiln.firmware.linux.service import refresh_service

    if deployed.is_unchanged or not deployed.previous:
        return "; there is no other release to go back to"
    back = None
    try:
        back = rollback(
            session.connection,
            release.name,
            base=linux.directory,
            selftest=release.selftest,
            only_from=deployed.id,
        )
        if session.facts.has_systemd:
            refresh_service(session.connection, release.name)
    except EdgekilnError as error:
        if back is None:
            return f"; going back to release {deployed.previous} failed: {error}"
        return f"; release {back.id} is current again, but: {error}"
    return f"; release {back.id} is current again"


def _prepare(
    session: _Session, choice: RuntimeChoice, linux: Linux, options: LinuxOptions
) -> tuple[Environment | None, str]:
    """Installs the runtimes; without them the generated C is deployed all the same."""
    from edgekiln.firmware.linux.install import prepare_environment

    host = session.target.text
    if not options.runtimes:
        return None, "left out by --no-runtimes"
    for reason in choice.why_not:
        say(f"{host}: left out: {reason}")
    if not choice.requirements:
        return None, ""
    try:
        made = prepare_environment(
            session.connection, choice.requirements, facts=session.facts, base=linux.directory
        )
    except BoardError as error:
        say(f"{host}: goes on without LiteRT and ONNX Runtime: {error.what}")
        return None, error.what
    if not made.was_there:
        say(f"{host}: installed {', '.join(choice.requirements)}")
    return made, ""


def _describe_deployed(deployed: Deployed) -> str:
    if deployed.is_unchanged:
        return f"release {deployed.id} is current already; nothing was sent"
    before = f", was {deployed.previous}" if deployed.previous else ""
    return f"release {deployed.id} is current{before}; {deployed.sent_bytes:,} bytes sent"


def _serve(session: _Session, name: str, linux: Linux, options: LinuxOptions) -> None:
    """Starts, stops or restarts the service that serves the model."""
    from edgekiln.firmware.linux.service import install_service, refresh_service, remove_service

    connection, host = session.connection, session.target.text
    if options.service:
        for line in install_service(
            connection, name, base=linux.directory, http_port=options.http_port
        ):
            say(f"{host}: {line}")
    elif options.service is not None:
        remove_service(connection, name)
        say(f"{host}: the service is removed")
    elif session.facts.has_systemd and refresh_service(connection, name):
        say(f"{host}: the service runs the current release")


def _place(
    session: _Session,
    linux: Linux,
    name: str,
    deployed: Deployed,
    choice: RuntimeChoice,
    environment: Environment | None,
    why: str,
) -> Place:
    from edgekiln.bench.linux import Place

    return Place(
        facts=session.facts,
        base=linux.directory,
        release=deployed.directory,
        name=name,
        choice=choice,
        python=None if environment is None else environment.python,
        why_no_python=why,
    )


def _measure(
    session: _Session,
    shared: _Shared,
    program: Program,
    place: Place,
    cases: tuple[Case, ...],
    results: str,
) -> Path:
    """Measures a release, unless that has been done, and writes results.json and the report."""
    from edgekiln.bench.linux_results import measure_linux
    from edgekiln.bench.results import write_results
    from edgekiln.files import Stage

    work, board = shared.work, shared.board

    def make(directory: Path) -> None:
        with shared.alone():
            reals = work.float_inputs() if any(case.is_real for case in cases) else ()
            subject = work.subject(
                board,
                program.as_image(board.slug),
                shared.host_bundle,
                str(program.path.parent.parent.relative_to(work.directory)),
            )
        for stale in results_paths(work, results):
            stale.unlink(missing_ok=True)
        measured = measure_linux(
            session.connection,
            place,
            subject,
            program_bytes=program.bytes,
            cases=cases,
            reals=reals,
        )
        write_results(directory / "results.json", measured)

    stage = Stage(
        name=f"run on {session.target.text}",
        directory=work.directory / board.slug / "hosts" / session.target.directory / "run",
        inputs=(work.tflite, work.inputs, *(case.file for case in cases)),
        options={
            "release": place.release,
            "environment": place.python,
            "why": place.why_no_python,
            "board": _lasting_facts(session.facts),
        },
        code=(PACKAGE / "bench", PACKAGE / "firmware" / "linux"),
    )
    made = run_stage(stage, make) / "results.json"
    with shared.alone():
        return publish_results(work, results, made)


def _cases(work: Work) -> tuple[Case, ...]:
    """Returns the models that runtimes on the board run, those of them that there are."""
    from edgekiln.bench.linux import Case

    floating, exported = work.int8.with_name("float.tflite"), work.exported
    int8_onnx = exported / f"{work.name}_int8.onnx"
    float_onnx = exported / f"{work.name}_float.onnx"
    cases = [
        Case("litert", work.tflite, is_real=False),
        Case("litert-reference", work.tflite, is_real=False),
        Case("onnxruntime", int8_onnx, is_real=False),
    ]
    if work.is_quantized_here:
        cases += [
            Case("litert", floating, is_real=True),
            Case("onnxruntime", float_onnx, is_real=True),
        ]
    return tuple(case for case in cases if case.file.exists())


def _lasting_facts(facts: Facts) -> dict[str, object]:
    """Returns what measurements depend on, of that what stays the same from day to day."""
    fleeting = {"temperature_c", "throttled", "free_memory_bytes", "free_disk_bytes"}
    values = {key: value for key, value in vars(facts).items() if key not in fleeting}
    return {
        key: sorted(value) if isinstance(value, frozenset) else value
        for key, value in values.items()
    }


def _results_places(work: Work, board: Board, targets: Sequence[Target]) -> dict[Target, str]:
    """Returns where each board's results go, below the model's directory."""
    if len(targets) == 1:
        return {targets[0]: board.slug}
    return {target: f"{board.slug}/hosts/{target.directory}" for target in targets}


def _show_outcomes(name: str, board: Board, outcomes: Sequence[Outcome]) -> None:
    """Prints the outcome: of one board all that was measured, of several a line each."""
    from edgekiln.bench.report import percent
    from edgekiln.bench.results import read_results

    if len(outcomes) == 1:
        if outcomes[0].results is not None:
            show_results(read_results(outcomes[0].results))
        return
    rows = []
    for outcome in outcomes:
        deployed, facts = outcome.deployed, outcome.facts
        share = latency = "-"
        if outcome.results is not None:
            results = read_results(outcome.results)
            if results.accuracy.int8_device is not None:
                share = percent(results.accuracy.int8_device)
            if results.latency_us is not None:
                latency = f"{results.latency_us:,.0f} µs"
        outcome_text = "done" if outcome.error is None else "failed"
        if facts and facts.is_emulated:
            outcome_text += ", emulated"
        cells = (facts.architecture if facts else "-", deployed.id[:8] if deployed else "-")
        rows.append((outcome.target.text, *cells, share, latency, outcome_text))
    columns = ("host", "core", "release", "accuracy", "latency", "outcome")
    show(make_table(f"{name} on {board.slug}", columns, rows))
    for outcome in outcomes:
        if outcome.error is not None:
            say(f"{outcome.target.text}: failed: {outcome.error}")


def _raise_first(outcomes: Sequence[Outcome], count: int | None = None) -> None:
    """Raises the first error; of several boards it says how many have failed."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    count = len(outcomes) if count is None else count
    if not failed:
        return
    first = failed[0].error
    assert first is not None
    if count > 1:
        first = type(first)(f"{len(failed)} of {count} hosts failed; the first: {first}")
    raise first
