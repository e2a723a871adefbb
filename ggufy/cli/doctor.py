"""ggufy doctor"""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check what works on this machine, and show the command that fixes what does not.

    Exit code 0 if everything that is needed works, 1 if something is broken. What is only missing, such as a
    GPU, does not count as broken.
    """
    from ggufy.plan import doctor

    found = []
    for check in doctor.checks():
        found.append(check)
        if not as_json:
            click.echo("\n".join(doctor.in_lines(check)))
    well = doctor.healthy(found)
    if as_json:
        click.echo(json.dumps({"ok": well, "checks": [asdict(check) for check in found]}, indent=2))
    ctx.exit(0 if well else 1)
