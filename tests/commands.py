"""Commands of the program, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from pipelines.cli import app


def tsde(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = tsde(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(code: int, *arguments: object) -> str:
    """The one message on stderr of a command that fails with this code."""
    result = tsde(*arguments)
    assert result.exit_code == code, f"{result.exit_code}: {result.output}"
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1 and result.stderr.startswith("error: "), result.stderr
    return result.stderr
