r"""What layers share or hold on to: parameters that two of them have, and whether they are trained."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from torch import nn

from equilayers.convert._report import Entry, Outcome, Refused, Replaced


class SharedParameters:
    r"""The parameters that several modules of a model have, so that what takes their place shares them too."""

    def __init__(self, model: nn.Module) -> None:
        owners = defaultdict(list)
        for path, module in model.named_modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners[parameter].append(path)
        self.owners = {parameter: paths for parameter, paths in owners.items() if len(paths) > 1}
        self.made: dict[nn.Parameter, tuple[nn.Module, nn.Parameter]] = {}

    def carried(self, path: str, module: nn.Module, outcome: Outcome, *, frozen: bool) -> Outcome:
        r"""The outcome with parameters that were made before for the same ones; refused where they do not fit.

        frozen: whether the new ones are to be trained where the old ones were, and there alone.
        """
        if not isinstance(outcome, Replaced):
            return outcome
        for part in list(outcome.module.modules()):
            for name, new in part._parameters.items():
                old = module._parameters.get(name)
                if old is None or new is None:
                    continue
                if frozen:
                    new.requires_grad_(old.requires_grad)
                if old in self.owners:
                    like, tied = self.made.setdefault(old, (module, new))
                    if type(like) is not type(module) or tied.shape != new.shape:
                        others = ", ".join(other for other in self.owners[old] if other != path)
                        return Refused(f"its {name} is that of {others} too, which becomes another one")
                    part._parameters[name] = tied
        return outcome

    def checked(self, entries: list[Entry]) -> list[Entry]:
        r"""The entries, with those refused that shared a parameter with something that stayed as it was."""
        done = {entry.path: entry.done for entry in entries}
        untied = {
            path: ", ".join(other for other in paths if done.get(other) != "replaced")
            for paths in self.owners.values()
            for path in paths
            if done.get(path) == "replaced" and any(done.get(other) != "replaced" for other in paths)
        }
        return [
            dataclasses.replace(
                entry, done="refused", reason=f"it shared a parameter with {untied[entry.path] or 'the model'}"
            )
            if entry.path in untied
            else entry
            for entry in entries
        ]
