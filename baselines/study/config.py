r"""What one invocation of the study is to do: read from the command line, and written into its results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from baselines.study.models import UPRIGHT, WIDTHS
from baselines.study.protocols import FORMS, GROUPS, PROTOCOLS, Nu, Protocol
from baselines.study.runs import Run, Source
from baselines.study.tables import group_name, paper_label
from baselines.study.training import Recipe
from equilayers.groups import CyclicRotation, Dihedral, as_group


@dataclass(frozen=True)
class Plan:
    r"""Everything that the results depend on.

    groups are names such as "C4"; nu holds (group, form, weight) of the regulariser, None: to be tuned.
    """

    source: Source
    model: str
    width: str
    groups: tuple[str, ...]
    methods: tuple[str, ...]
    parts: tuple[str, ...]
    forms: tuple[str, ...]  # of the regulariser, of those that decay compares
    seeds: int
    recipe: Recipe
    epochs: int | None  # as asked for
    nu: tuple[tuple[str, str, float | None], ...]

    def runs(self, methods: Iterable[str], forms: Sequence[str] = FORMS[:1]) -> list[Run]:
        r"""The trainings of these methods, those of IR in these forms, group by group; only with a nu that is known."""
        kinds = [(method, form) for method in methods for form in (forms if method == "IR" else FORMS[:1])]
        firsts = [self.first(group, method, form) for group in self.groups for method, form in kinds]
        return [replace(first, seed=seed) for first in firsts if first is not None for seed in range(self.seeds)]

    def first(self, group: str, method: str, form: str = FORMS[0], nu: float | None = None) -> Run | None:
        r"""The run of seed 0; None for IR without a weight."""
        weight = 0.0
        if method == "IR":
            known = nu if nu is not None else self.weight(group, form)
            if known is None:
                return None
            weight = known
        how = replace(self.recipe, nu=weight, form=form if method == "IR" else FORMS[0], augment=method != UPRIGHT)
        return Run(self.source, self.model, self.width, group, method, 0, how)

    def weight(self, group: str, form: str) -> float | None:
        r"""The weight of the regulariser."""
        return next((nu for name, kind, nu in self.nu if (name, kind) == (group, form)), None)

    def with_nu(self, chosen: Nu) -> Plan:
        r"""The same plan, with the weights that were tuned."""
        return replace(self, nu=tuple((group, form, chosen.get((group, form), nu)) for group, form, nu in self.nu))

    def configuration(self) -> dict[str, Any]:
        r"""As JSON, groups by the paper's labels; where the files lie is not part of it."""
        configuration = asdict(self)
        del configuration["source"]["data_dir"]
        configuration["groups"] = [paper_label(name) for name in self.groups]
        configuration["nu"] = [(paper_label(name), form, nu) for name, form, nu in self.nu]
        return configuration


def plan_of(args: argparse.Namespace, data_dir: str | None) -> Plan:
    r"""The plan that the command line asks for.

    Raises:
        ValueError: a group that is none, that the model has no use for, or with one element; a nu that is no weight.
    """
    protocol = PROTOCOLS[args.model, args.data]
    groups = [group_name(label) for label in args.groups or GROUPS[args.model]]
    _check_model(args.model, args.width, groups)
    given = {"logit": args.nu, "distribution": args.nu_distribution, "normalized_logit": args.nu_normalized_logit}
    weights = tuple(
        (group, form, nu) for form in FORMS for group, nu in _weights(form, groups, given[form], protocol).items()
    )
    return Plan(
        Source(args.data, data_dir, protocol.saliency_samples),
        args.model,
        args.width,
        tuple(groups),
        tuple(args.methods),
        tuple(args.parts),
        tuple(args.forms),
        args.seeds or protocol.seeds,
        replace(protocol.recipe, epochs=args.epochs or protocol.recipe.epochs),
        args.epochs,
        weights,
    )


def _check_model(model: str, width: str, groups: list[str]) -> None:
    if model == "mlp" and width != WIDTHS[0]:
        hint = "The two perceptrons have equal width as well; leave it out, or take --model cnn."
        raise ValueError(f"study: expected --width {WIDTHS[0]} with --model mlp, got {width}. {hint}")
    for name in groups:
        group = as_group("study", name, exact=True)
        if group.order == 1:
            raise ValueError(f"study: expected --groups of more than one element, got {name}. Try C4 or T3.")
        if model == "cnn" and not isinstance(group, CyclicRotation | Dihedral):
            hint = "There is nothing to tie: convolutions commute with shifts already. Take C4 or D4, or --model mlp."
            raise ValueError(f"study: expected --groups of rotations and mirrors with --model cnn, got {name}. {hint}")


def _weights(form: str, groups: list[str], given: list[str] | None, protocol: Protocol) -> dict[str, float | None]:
    r"""The weight of the regulariser for each group, None where it is to be tuned."""
    option = "--nu" if form == FORMS[0] else f"--nu-{form.replace('_', '-')}"
    if given is None:
        return {group: protocol.nu.get((group, form)) for group in groups}
    if len(given) not in (1, len(groups)):
        raise ValueError(
            f"study: expected one {option}, or one for each group, got {len(given)}. The groups: {groups}."
        )
    each = given if len(given) == len(groups) else given * len(groups)
    return {group: _number(option, nu) for group, nu in zip(groups, each, strict=True)}


def _number(option: str, nu: str) -> float | None:
    if nu == "auto":
        return None
    try:
        number = float(nu)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError(f"study: expected {option} to be a positive number or auto, got {nu!r}. Try 10.")
    return number
