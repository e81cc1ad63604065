"""Recipes: the experiments of the papers as sequences of deltalens commands. No torch here."""

from deltalens.recipes.estimate import Cost, Speed, cost_of, total_of
from deltalens.recipes.library import load_recipe, recipe_names, recipes_for
from deltalens.recipes.plan import Places, Plan, PlannedFigure, PlannedStep, plan
from deltalens.recipes.schema import Recipe

__all__ = [
    "Cost",
    "Places",
    "Plan",
    "PlannedFigure",
    "PlannedStep",
    "Recipe",
    "Speed",
    "cost_of",
    "load_recipe",
    "plan",
    "recipe_names",
    "recipes_for",
    "total_of",
]
