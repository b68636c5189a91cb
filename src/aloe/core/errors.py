"""The errors a user may see.

    AloeError            our promise: what is wrong, where, what to do; no traceback
      RecipeError        the recipe, the machine file or an override cannot be used
      SourceError        data, documents or tasks cannot be read
      ModelError         a model, tokenizer or chat template cannot be used
      ArtifactError      something under --runs is damaged, missing or locked
      MachineError       the machine cannot do it (disk, memory, a missing package)
      GateFailed         a gate stage said no (exit code 3)

Anything else that escapes is a defect of ours (exit code 1, with traceback).
"""

from __future__ import annotations


class AloeError(Exception):
    """A mistake or circumstance the user can mend. `what`, `where` and `do` are printed on a line each."""

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.do = what, where, do

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.do:
            lines.append(f"  do:    {self.do}")
        return "\n".join(lines)


class RecipeError(AloeError):
    """The recipe, the machine file or an override cannot be used as written."""


class SourceError(AloeError):
    """A data source, a document folder or an evaluation task cannot be read."""


class ModelError(AloeError):
    """A model folder, tokenizer or chat template cannot be used."""


class ArtifactError(AloeError):
    """A stage's directory is damaged, missing or in use."""


class MachineError(AloeError):
    """The machine lacks what the run needs."""


class GateFailed(AloeError):
    """A gate's limit was crossed; the table is in the message."""

    exit_code = 3
