"""`mobilenets recipes`: the training recipes, shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilenets.arguments import checked
from mobilenets.console import Notebook
from mobilenets.training.recipes import RECIPES, TRIED, Recipe, recipe

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class RecipeBook(Notebook):
    """Recipes by name; of a single one, every field."""

    recipes: dict[str, Recipe]

    def to_json(self) -> dict[str, Any]:
        return {n: {**dataclasses.asdict(TRIED[n]), "recipe": r.to_json()} for n, r in self.recipes.items()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import table

        parts: list[RenderableType] = []
        for name, r in self.recipes.items():
            t = table(name, ["", "value"], left=("", "value"))
            for key, value in dataclasses.asdict(TRIED[name]).items():
                t.add_row(key, value)
            parts.append(t)
            unlike = [f"{k} {_short(v)}" for k, v in r.to_json().items() if v != getattr(RECIPES["modern"], k)]
            if len(self.recipes) > 1 and unlike:
                t.add_row("unlike modern", ", ".join(unlike))
            if len(self.recipes) == 1:
                options = table("", ["option", "value", "what it is"], left=("option", "what it is"))
                for f in dataclasses.fields(Recipe):
                    value = _short(getattr(r, f.name))
                    options.add_row(f"--{f.name.replace('_', '-')}", value, f.metadata["help"])
                parts.append(options)
        return Group(*parts)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@checked
def recipes(name: str | None = None) -> RecipeBook:
    """Every training recipe: its command, data, hardware, duration and the score to expect.

    Parameters
    ----------
    name
        One of them, with every field.

    Returns
    -------
    RecipeBook
        `recipes`, each a `Recipe`, by name.

    Raises
    ------
    UserError
        For an unknown name.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.recipes("finetune").recipes["finetune"].epochs
    20
    """
    return RecipeBook({name: recipe(name)} if name else RECIPES)
