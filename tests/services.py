"""A whole service for the tests: `holdfast serve` as a user starts it, and commands run on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner, Result

from holdfast import processes
from holdfast.cli import main

READY_SECONDS: Final = 30.0
END_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 0.02


def clean_environment() -> dict[str, str]:
    """The environment without settings of the machine that the tests run on."""
    return {name: text for name, text in os.environ.items() if not name.startswith("HOLDFAST_")}


class RunningService:
    """A `holdfast serve` on a data directory and a port of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        """Start it, with more options of `serve` if need be, and wait until it is ready."""
        self.data_dir = directory / "data"
        self._said = directory / "serve.out"
        command = [sys.executable, "-m", "holdfast", "serve", "--json", "--port", "0", *options]
        with self._said.open("wb") as output:
            self.process: subprocess.Popen[bytes] = processes.spawn(
                [*command, "--data-dir", str(self.data_dir)],
                environment=clean_environment(),
                output=output,
            )
        self.url = self._ready_url()

    def _ready_url(self) -> str:
        give_up_at = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up_at and self.process.poll() is None:
            for line in self.said().splitlines():
                if '"message"' in line and "is ready at " in line:
                    message: str = json.loads(line)["message"]
                    return message.partition("is ready at ")[2].partition(" ")[0]
            time.sleep(CHECK_SECONDS)
        self.process.kill()
        raise AssertionError(f"the service did not become ready; it said: {self.said()}")

    def said(self) -> str:
        """Everything that it wrote so far."""
        return self._said.read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a command finds it."""
        return {"HOLDFAST_URL": self.url, "HOLDFAST_DATA_DIR": str(self.data_dir)}

    def stop(self) -> int:
        """Stop it as Ctrl-C does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class CommandLine:
    """Runs the command in this process, against one service."""

    def __init__(self, environment: Mapping[str, str], merchant: str) -> None:
        """Take the variables that say where the service is, and whose stock it is about."""
        self.environment = dict(environment)
        self.merchant = merchant

    def run(self, *arguments: object, expect: int = 0, stdin: str | bytes | None = None) -> Result:
        """Run `holdfast ARGUMENTS` and check its exit code, and that it showed no traceback."""
        settings: dict[str, str | None] = {
            name: None for name in os.environ if name.startswith("HOLDFAST_")
        }
        settings |= {"HOLDFAST_MERCHANT": self.merchant, **self.environment}
        result = CliRunner().invoke(main, [str(word) for word in arguments], stdin, env=settings)
        assert result.exit_code == expect, (result.stdout, result.stderr, result.exception)
        assert "Traceback" not in result.output
        return result

    def json(self, *arguments: object, expect: int = 0, stdin: str | None = None) -> Any:
        """Run it with `--json` and return its one document."""
        result = self.run(*_with_json(arguments), expect=expect, stdin=stdin)
        assert result.stdout.count("\n") == 1, result.stdout
        return json.loads(result.stdout)

    def rows(self, *arguments: object) -> list[Any]:
        """Run it with `--json` and return its documents, one a line."""
        return [json.loads(line) for line in self.run(*_with_json(arguments)).stdout.splitlines()]


def _with_json(arguments: Sequence[object]) -> list[object]:
    """Add `--json` where it is an option still, so before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], "--json", *arguments[end:]]
