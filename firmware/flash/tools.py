"""The runners that call a program: their exact commands, and what those programs say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.files import read_input_file
from edgekiln.firmware.flash.diagnosis import Symptom, Trouble
from edgekiln.firmware.flash.runner import UNKNOWN_PORT, Job, Runner, Step
from edgekiln.firmware.flash.settings import (
    AvrdudeSettings,
    DfuUtilSettings,
    GdbSettings,
    OpenocdSettings,
    PyocdSettings,
    Stm32flashSettings,
)

_SERIAL_NUMBER = re.compile(r"[0-9A-Za-z]+")
_SERVER = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})")

_PORT_SYMPTOMS = (
    Symptom(r"[Pp]ermission denied", Trouble.NO_ACCESS_PORT),
    Symptom(r"[Rr]esource (temporarily un|un)?available|[Dd]evice or resource busy", Trouble.BUSY),
    Symptom(r"is already open", Trouble.BUSY),
    Symptom(r"No such file or directory|[Cc]annot open port|Failed to open port", Trouble.NO_PORT),
)
_USB_SYMPTOMS = (
    Symptom(
        r"LIBUSB_ERROR_ACCESS|[Pp]ermission denied|Access denied|access error",
        Trouble.NO_ACCESS_USB,
    ),
    Symptom(
        r"LIBUSB_ERROR_BUSY|Resource busy|already in use|[Cc]annot claim interface", Trouble.BUSY
    ),
)


class Stm32flash(Runner):
    """Stm32flash: ST's bootloader in ROM, over a serial port."""

    name = "stm32flash"
    programs = ("stm32flash",)
    packages = ("stm32flash",)
    needs_port = True
    symptoms = (
        Symptom(r"Failed to verify", Trouble.NOT_VERIFIED),
        Symptom(
            r"[Rr]ead.?protected|write-protected|Got NACK from device on command 0x(11|31|4[34])",
            Trouble.LOCKED,
        ),
        Symptom(r"[Uu]nknown/unsupported device", Trouble.WRONG_CHIP),
        Symptom(
            r"Failed to (re)?(init|send init|resend init)|Failed to init device", Trouble.NO_ANSWER
        ),
        *_PORT_SYMPTOMS,
    )

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns one run: write, verify, start."""
        assert isinstance(self.settings, Stm32flashSettings)
        origin = f"0x{job.flash_origin:08x}"
        line = (self.program, "-b", "115200", "-m", self.settings.mode)
        work = ("-w", _name_of(job.image.bin), "-v", "-S", origin, "-g", origin)
        return (
            Step(
                (*line, *work, job.port or UNKNOWN_PORT),
                proof=r"Wrote and verified address .*\(100\.00%\)",
                needs="not all of the image was verified",
            ),
        )


class Openocd(Runner):
    """OpenOCD with a debug probe."""

    name = "openocd"
    programs = ("openocd",)
    packages = ("openocd",)
    symptoms = (
        Symptom(r"\*\* Verify Failed \*\*|contents differ|checksum mismatch", Trouble.NOT_VERIFIED),
        *_USB_SYMPTOMS,
        Symptom(
            r"unable to find a matching CMSIS-DAP|No J-Link device found|Error: open failed"
            r"|no device found|unable to open ftdi|No device selected",
            Trouble.NO_PROBE,
        ),
        Symptom(
            r"UNEXPECTED idcode|Unexpected idcode|expected 1 of 1|Cannot identify target",
            Trouble.WRONG_CHIP,
        ),
        Symptom(
            r"APPROTECT|[Dd]evice (security|protection)|read.?out protect|RDP|is protected"
            r"|Core access is protected",
            Trouble.LOCKED,
        ),
        Symptom(
            r"[Ii]nit mode failed|unable to connect to the target|Error connecting DP"
            r"|[Ee]xamination failed|[Tt]arget not examined|JTAG scan chain interrogation failed"
            r"|cannot read IDR|all zeroes|all ones",
            Trouble.NO_TARGET,
        ),
    )

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns one run: write, verify, reset."""
        chosen = self.settings
        assert isinstance(chosen, OpenocdSettings)
        argv = [self.program]
        if job.probe:  # first: a board's file may connect
            argv += ["-c", f"adapter serial {_plain(job.probe)}"]
        argv += ["-f", chosen.interface]
        if chosen.transport:
            argv += ["-c", f"transport select {chosen.transport}"]
        if chosen.target:
            argv += ["-f", chosen.target]
        if chosen.speed_khz:
            argv += ["-c", f"adapter speed {chosen.speed_khz}"]
        argv += ["-c", f"program {_name_of(job.image.elf)} verify reset exit"]
        return (Step(tuple(argv), proof=r"\*\* Verified OK \*\*", needs="nothing was verified"),)


class Pyocd(Runner):
    """PyOCD with a debug probe."""

    name = "pyocd"
    programs = ("pyocd",)
    symptoms = (
        Symptom(r"Mismatched byte", Trouble.NOT_VERIFIED),
        *_USB_SYMPTOMS,
        Symptom(r"No connected debug probe|No target device available|no probe", Trouble.NO_PROBE),
        Symptom(r"[Pp]ages? program .*fail|flash program page failure", Trouble.NOT_VERIFIED),
        Symptom(r"APPROTECT|[Ll]ocked|protected", Trouble.LOCKED),
        Symptom(r"Target type .* not recognized", Trouble.WRONG_CHIP),
        Symptom(
            r"No ACK|No cores were discovered|Unexpected ACK|Transfer (fault|timed out)"
            r"|WAIT ACK|SWD/JTAG communication failure",
            Trouble.NO_TARGET,
        ),
    )

    def how_to_get(self) -> str:
        """Returns the clause that tells how to install it."""
        return f"install it with: {Path(sys.executable).name} -m pip install 'edgekiln[probe]'"

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns two runs: one writes, one compares and resets."""
        assert isinstance(self.settings, PyocdSettings)
        chip: tuple[str, ...] = ("--no-wait", "--target", self.settings.target)
        if job.probe:
            chip += ("--uid", _plain(job.probe))
        origin, name = f"0x{job.flash_origin:08x}", _name_of(job.image.bin)
        return (
            Step((self.program, "load", *chip, "--format", "bin", f"{name}@{origin}")),
            Step(
                (
                    *(self.program, "commander", *chip),
                    *("-c", "halt", "-c", f"compare {origin} {name}", "-c", "reset"),
                ),
                proof=r"All \d+ bytes match",
                needs="nothing was verified",
            ),
        )


class StFlash(Runner):
    """St-flash with an ST-LINK."""

    name = "st-flash"
    programs = ("st-flash",)
    packages = ("stlink-tools",)
    symptoms = (
        Symptom(r"Verification of flash failed", Trouble.NOT_VERIFIED),
        *_USB_SYMPTOMS,
        Symptom(
            r"Couldn't find any ST-Link|Couldn't find .* ST-Link|Could not open USB device",
            Trouble.NO_PROBE,
        ),
        Symptom(r"write protected|Flash unlock failed|RDP", Trouble.LOCKED),
        Symptom(
            r"[Uu]nknown (coreid|chip)|unsupported chip|Failed to parse flash type",
            Trouble.WRONG_CHIP,
        ),
        Symptom(
            r"Failed to (connect to target|enter SWD mode|read core_id|halt the core)"
            r"|Target voltage|Can not connect",
            Trouble.NO_TARGET,
        ),
    )

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns one run: write, verify, reset."""
        argv: tuple[str, ...] = (self.program, "--reset")
        if job.probe:
            argv += ("--serial", _plain(job.probe))
        argv += ("write", _name_of(job.image.bin), f"0x{job.flash_origin:08x}")
        return (Step(argv, proof=r"Flash written and verified", needs="nothing was verified"),)


class DfuUtil(Runner):
    """Dfu-util: ST's bootloader in ROM, over USB."""

    name = "dfu-util"
    programs = ("dfu-util",)
    packages = ("dfu-util",)
    symptoms = (
        *_USB_SYMPTOMS,
        Symptom(r"No DFU capable USB device available", Trouble.NO_DEVICE),
        Symptom(r"More than one DFU capable USB device", Trouble.BUSY),
        Symptom(
            r"Programmed memory failed verification|Memory erase check failed", Trouble.NOT_VERIFIED
        ),
        Symptom(r"errVENDOR|not (readable|writeable)|Device's firmware is corrupt", Trouble.LOCKED),
        Symptom(
            r"does not match device|No valid DfuSe signature|Failed to parse memory layout",
            Trouble.WRONG_CHIP,
        ),
    )

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns two runs: one writes, one reads back and starts the board."""
        assert isinstance(self.settings, DfuUtilSettings)
        device = (self.program, "-d", f",{self.settings.usb_id}", "-a", "0")
        origin, name = f"0x{job.flash_origin:08x}", _name_of(job.image.bin)
        back = _read_back(job)
        return (
            Step(
                (*device, "-s", origin, "-D", name),
                proof=r"File downloaded successfully",
                needs="not all of the image was written",
            ),
            Step(
                (*device, "-s", f"{origin}:{job.image.flash_bytes}:leave", "-U", str(back)),
            ),
        )

    def write(self, job: Job) -> None:
        """Writes, reads back and compares. Raises as `Runner.write` does."""
        assert job.image.bin is not None
        back = _read_back(job)
        back.unlink(missing_ok=True)  # dfu-util overwrites no file
        try:
            super().write(job)
            if read_input_file(back) != read_input_file(job.image.bin):
                raise CheckFailedError(
                    Trouble.NOT_VERIFIED.what,
                    where=f"{job.board.slug}, {self.name}",
                    hint=Trouble.NOT_VERIFIED.hint,
                )
        finally:
            back.unlink(missing_ok=True)


class Avrdude(Runner):
    """Avrdude with the bootloader of an Arduino board."""

    name = "avrdude"
    programs = ("avrdude",)
    packages = ("avrdude",)
    needs_port = True
    symptoms = (
        Symptom(r"verification (error|mismatch)|first mismatch at byte", Trouble.NOT_VERIFIED),
        Symptom(
            r"[Dd]evice signature .*(not|doesn't)|expected signature|signature .* is wrong",
            Trouble.WRONG_CHIP,
        ),
        *_PORT_SYMPTOMS[:3],
        Symptom(
            r"not in sync|not responding|getsync\(\)|timeout communicating|recv\(\) error"
            r"|unable to (synchronise|sign on)|protocol expects (sync|OK) byte"
            r"|initialization failed",
            Trouble.NO_ANSWER,
        ),
        *_PORT_SYMPTOMS[3:],
    )

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns one run, which verifies by default."""
        chosen = self.settings
        assert isinstance(chosen, AvrdudeSettings)
        part = (self.program, "-p", chosen.part, "-c", chosen.programmer)
        line = ("-P", job.port or UNKNOWN_PORT, "-b", str(chosen.baud))
        work = ("-D", "-U", f"flash:w:{_name_of(job.image.hex)}:i")
        return (
            Step(
                (*part, *line, *work),
                proof=r"bytes of flash verified",
                needs="nothing was verified",
            ),
        )


class Gdb(Runner):
    """GDB with the server of any debug probe."""

    name = "gdb"
    takes_to = True
    programs = ("gdb-multiarch", "arm-none-eabi-gdb")
    packages = ("gdb-multiarch",)
    symptoms = (
        Symptom(r"MIS-MATCHED", Trouble.NOT_VERIFIED),
        Symptom(
            r"could not connect|Connection (refused|timed out)|[Nn]ame or service not known"
            r"|No route to host|unknown host",
            Trouble.NO_SERVER,
        ),
        Symptom(
            r"Error erasing flash|Error finishing flash|[Ll]oad failed|flash.*protect",
            Trouble.LOCKED,
        ),
        Symptom(
            r"warning: Selected architecture .* is not compatible|Truncated register|"
            r"Remote 'g' packet reply is too long",
            Trouble.WRONG_CHIP,
        ),
        Symptom(
            r"Remote (connection closed|communication error|replied unexpectedly)",
            Trouble.NO_TARGET,
        ),
    )

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns one run: load, compare, reset."""
        chosen = self.settings
        assert isinstance(chosen, GdbSettings)
        commands = (
            "set confirm off",
            "set tcp connect-timeout 5",
            f"target extended-remote {_check_server(chosen.server if job.to is None else job.to)}",
            "load",
            "compare-sections",
            f"monitor {chosen.reset}",
            "detach",
        )
        argv = [self.program, "-nx", "-q", "-batch"]
        for command in commands:
            argv += ["-ex", command]
        return (
            Step(
                (*argv, _name_of(job.image.elf)),
                proof=r"Transfer rate:[\s\S]*Section [^\n]* matched\.",
                needs="nothing was verified",
                disproof=r"MIS-MATCHED",
                silence_s=120.0,  # it says nothing while a section is written
            ),
        )


def _name_of(path: Path | None) -> str:
    """Returns the name of one of an image's files, which all tools find where they are run."""
    if path is None:
        raise AssertionError("the host is not flashed")
    return path.name


def _plain(serial_number: str) -> str:
    """Returns a probe's serial number, which goes into a tool's own language.

    Raises:
        BadInputError: It is more than letters and digits.
    """
    if not _SERIAL_NUMBER.fullmatch(serial_number):
        raise BadInputError(
            "the debug probe's serial number cannot be used",
            got=repr(serial_number),
            allowed="letters and digits",
            hint="attach that probe alone",
        )
    return serial_number


def _check_server(server: str) -> str:
    """Returns where GDB's server listens; GDB would run what follows a bar as a command.

    Raises:
        BadInputError: It is not ``host:port``.
    """
    match = _SERVER.fullmatch(server)
    if not match or not 0 < int(match[2]) < 65536:
        raise BadInputError("not a GDB server", got=repr(server), allowed="host:port")
    return server


def _read_back(job: Job) -> Path:
    return job.log.absolute().with_name("readback.bin")
