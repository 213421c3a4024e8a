"""Whether a table can be used, as coded findings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from tsde.config import load_experiment
from tsde.table import Finding, check_table

_MOST = 10  # findings of one code, where a person reads


def run(table: Path, config: Path | None, columns: Mapping[str, Any]) -> list[Finding]:
    """Everything there is to say about a table under the columns of a configuration and the options."""
    anything = None if config else "1"  # an experiment needs a horizon; a table's soundness does not depend on it
    return check_table(table, load_experiment(config, horizon=anything, data=columns).data)


def sound(findings: list[Finding]) -> bool:
    """Whether the table can be read."""
    return all(finding.severity != "error" for finding in findings)


def as_text(table: Path, findings: list[Finding]) -> str:
    """A line per finding, errors first, at most ten of one kind, and a verdict."""
    lines = []
    for _, alike in groupby(sorted(findings, key=_rank), key=_rank):
        same = list(alike)
        lines += [_line(finding, finding.message) for finding in same[:_MOST]]
        if len(same) > _MOST:
            lines.append(_line(same[0], f"... and {len(same) - _MOST} more; --json lists them all"))
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    verdict = f"{table}: {errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    return "\n".join([*lines, verdict])


def _rank(finding: Finding) -> tuple[str, str]:
    return finding.severity, finding.code


def _line(finding: Finding, text: str) -> str:
    return f"{finding.severity:<7}  {finding.code:<22}  {text}"


def as_json(table: Path, findings: list[Finding]) -> str:
    """The same for programs, in ASCII, so that any pipe and any odd file name will do."""
    document = {"table": str(table), "ok": sound(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(document, indent=1)
