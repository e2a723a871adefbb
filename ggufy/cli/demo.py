"""ggufy demo"""

from __future__ import annotations

import click


@click.command(name="demo")
@click.option("--fresh", is_flag=True, help="Do everything again.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=3407, show_default=True)
def command(fresh: bool, seed: int) -> None:
    """The whole line on this CPU with the built-in tiny model, in about a minute.

    Trains it on 20 questions and answers, exports q8_0 and q4_k_m, and asks both files every question.
    """
    from ggufy.cli import demo_run

    demo_run.run(fresh=fresh, seed=seed)
