"""What every section of a recipe is."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from steadyrl.errors import UserError
from steadyrl.options.bounds import NotAbove, OnlyWith


class RecipeError(UserError):
    """A recipe, or a flag, that cannot be run. The message names the field, the value and the way out."""


class Section(BaseModel):
    """A part of the recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, field in type(self).model_fields.items():
            for rule in field.metadata:
                if isinstance(rule, NotAbove | OnlyWith) and (fault := rule.fault(name, values)):
                    raise ValueError(fault)
        return self
