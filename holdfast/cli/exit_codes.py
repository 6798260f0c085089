"""The exit codes of the `holdfast` command, as docs/reference/cli.md lists them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended, for the script that ran it."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    SETUP = 4
    BUG = 70
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.REFUSED: "refused: the service, or a check, said no (for example too little stock)",
    ExitCode.USAGE: "the command was not given what it takes",
    ExitCode.UNREACHABLE: "the service or the store could not be reached, or could not answer now",
    ExitCode.SETUP: "something in the setup is wrong, or the service could not start or stay up",
    ExitCode.BUG: "a bug in Holdfast",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}
