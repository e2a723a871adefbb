"""ggufy demo"""

from __future__ import annotations

import click


@click.command(name="demo")
@click.option("--fresh", is_flag=True, help="Do everything again.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=3407, show_default=True)
def command(fresh: bool, seed: int) -> None:
    """Train, export and question the built-in tiny model on this CPU, in about a minute.

    The model is trained on 20 questions and answers and exported as q8_0 and q4_k_m; both files get every question.
    """
    from ggufy.cli import demo_run

    demo_run.run(fresh=fresh, seed=seed)
