"""The plan stage: plans of recipes, with the speeds that trainings on this machine have measured."""

from __future__ import annotations

from ggufy.data import source
from ggufy.plan import base_sizes, estimate, planner
from ggufy.plan.plan import Plan
from ggufy.plan.planner import Device, Measured
from ggufy.recipe import recipe
from ggufy.recipe.schema import Recipe
from ggufy.runs import history


def plan(wanted: Recipe, where: Device) -> Plan:
    """What a recipe needs on a device."""
    known = [Measured(*one) for one in history.measured()]
    return planner.make(wanted, base_sizes.base_of(wanted, source.sample_texts()), where, known)


def plan_all(where: Device) -> list[Plan]:
    """The plans of ggufy's own recipes, those that fit and end in time first, best first."""
    wanted = [recipe.load(name) for name in recipe.names()]
    hopeless = {one.name for one in wanted if not where.cuda and estimate.is_hopeless(one)}
    plans = [plan(one, where) for one in wanted]
    best = planner.recommended([one for one in plans if one.recipe not in hopeless])
    return best + [one for one in plans if one not in best]
