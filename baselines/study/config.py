r"""What one invocation of the study is to do: protocols, the command line over them, and what results say of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from baselines.study.models import UPRIGHT, WIDTHS
from baselines.study.runs import Run, Source
from baselines.study.search import FIRST
from baselines.study.tables import group_name, paper_label
from baselines.study.training import CENTRED, Recipe
from equilayers.groups import CyclicRotation, Dihedral, as_group

FORMS = ("logit", "distribution", "normalized_logit")  # of the regulariser
OPTIONS = {form: "--nu" + (f"-{form.replace('_', '-')}" if form != FORMS[0] else "") for form in (*FORMS, CENTRED)}
SALIENCY_TARGET = 0.95  # of the regulariser: what the paper tunes nu for
Nu = dict[tuple[str, str], float]  # by group and form


@dataclass(frozen=True)
class Protocol:
    r"""What is trained by default with a model on a data set; nu, by group and form, is tuned where it is not held."""

    recipe: Recipe
    saliency_samples: int
    seeds: int
    nu: Nu = field(default_factory=dict)


def _nu(**of: tuple[float, float, float]) -> Nu:
    r"""Weights found by `--nu auto` and trials between its steps, by group, in the order of `FORMS`."""
    return {(group, form): nu for group, weights in of.items() for form, nu in zip(FORMS, weights, strict=True)}


_MLP = Recipe(epochs=300, batch_size=512, lr=8e-4)
# SI of the plain CNN reaches the target with no nu; it is highest from 1 to 3, and accuracy falls beyond.
_CNN_NU = {(group, form): 1.0 for group in ("C2", "C4", "D1", "D2", "D4") for form in FORMS}
_CNN = Protocol(Recipe(epochs=20, batch_size=128, lr=0.01, schedule="one-cycle"), 100, seeds=4, nu=_CNN_NU)
_VIT = Protocol(Recipe(20, 128, 1e-3, schedule="one-cycle"), 100, seeds=2, nu=_CNN_NU)
PROTOCOLS = {
    # Few images need many small steps before the regulariser has done its work.
    ("mlp", "digits"): Protocol(
        Recipe(300, 32, 1.5e-3, schedule="one-cycle"), 200, seeds=2, nu=_nu(C4=(30, 100, 500), T3=(80, 450, 500))
    ),
    ("mlp", "mnist"): Protocol(_MLP, 1000, seeds=4, nu=_nu(C4=(20, 300, 2000), T3=(150, 800, 700))),
    ("mlp", "fashion-mnist"): Protocol(_MLP, 1000, seeds=4),
    ("cnn", "digits"): Protocol(Recipe(30, 32, 0.01, schedule="one-cycle"), 100, seeds=2, nu=_CNN_NU),
    ("cnn", "mnist"): _CNN,
    ("cnn", "fashion-mnist"): _CNN,
    ("vit", "digits"): Protocol(Recipe(40, 32, 2e-3, schedule="one-cycle"), 100, seeds=2, nu=_CNN_NU),
    ("vit", "mnist"): _VIT,
    ("vit", "fashion-mnist"): _VIT,
}
GROUPS = {"mlp": ["C4", "T3"], "cnn": ["C4", "D4"], "vit": ["C4", "D4"]}
# The arms of mitigation: what is unlike the plain regulariser, and the weights of its curve.
_DECAYING = {"schedule": "cosine", "select": "last"}
_WHOLE = {**_DECAYING, "elements": "all"}
ARMS: dict[str, tuple[dict[str, str], tuple[float, ...]]] = {
    "constant": ({}, (3.16, 10.0, 31.6, 100.0)),
    "cosine": (_DECAYING, (3.16, 10.0, 31.6, 100.0)),
    "orbits": (_WHOLE, (0.03, 3.16, 31.6, 316.0)),
    "tied": ({**_WHOLE, "init": "symmetric"}, (0.03, 0.316, 3.16)),
}


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
    form: str  # of the regulariser
    forms: tuple[str, ...]  # those that decay compares
    seeds: int
    recipe: Recipe
    epochs: int | None  # as asked for
    nu: tuple[tuple[str, str, float | None], ...]
    curves: tuple[tuple[str, str, tuple[float, ...]], ...] = ()  # of mitigation: group, arm, weights
    first_nu: tuple[float, ...] = FIRST  # that the search begins with

    def runs(self, methods: Iterable[str], forms: Sequence[str] = ()) -> list[Run]:
        r"""The trainings of these methods, those of IR in these forms, group by group; only with a nu that is known."""
        forms = forms or (self.form,)
        kinds = [(method, form) for method in methods for form in (forms if method == "IR" else FORMS[:1])]
        firsts = [self.first(group, method, form) for group in self.groups for method, form in kinds]
        return [replace(first, seed=seed) for first in firsts if first is not None for seed in range(self.seeds)]

    def first(self, group: str, method: str, form: str = FORMS[0], nu: float | None = None) -> Run | None:
        r"""The run of seed 0; None for IR without a weight."""
        if method != "IR":
            form, nu = FORMS[0], 0.0
        elif nu is None:
            nu = next((weight for *key, weight in self.nu if key == [group, form]), None)
        if nu is None:
            return None
        elements = self.recipe.elements if method == "IR" else "random"
        how = replace(self.recipe, nu=nu, form=form, augment=method != UPRIGHT, elements=elements)
        return Run(self.source, self.model, self.width, group, method, 0, how)

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
    _check_model(args.model, args.width, args.init, groups)
    forms = (*FORMS, *((CENTRED,) if CENTRED in (args.form, *args.forms) else ()))
    given = {form: getattr(args, option[2:].replace("-", "_")) for form, option in OPTIONS.items()}
    weights = tuple(weight for form in forms for weight in _weights(form, groups, given[form], protocol))
    saliency = (args.saliency_baseline, args.saliency_target)
    recipe = replace(
        protocol.recipe,
        epochs=args.epochs or protocol.recipe.epochs,
        schedule=args.lr_schedule or protocol.recipe.schedule,
        elements=args.regulariser_elements,
        init=args.init,
        select=args.select,
    )
    return Plan(
        Source(args.data, data_dir, protocol.saliency_samples, args.padding, *saliency),
        args.model,
        args.width,
        tuple(groups),
        tuple(args.methods),
        tuple(args.parts),
        args.form,
        tuple(args.forms),
        args.seeds or protocol.seeds,
        recipe,
        args.epochs,
        weights,
        curves_of(groups, args.curve),
        tuple(_number("--first-nu", nu) for nu in args.first_nu),
    )


def _check_model(model: str, width: str, init: str, groups: list[str]) -> None:
    if init == "symmetric" and model != "mlp":
        hint = "It ties the first two layers of a perceptron; take --model mlp."
        raise ValueError(f"study: expected --init torch, glorot or he with --model {model}, got symmetric. {hint}")
    if model == "mlp" and width != WIDTHS[0]:
        hint = "The two perceptrons have equal width as well; leave it out, or take --model cnn."
        raise ValueError(f"study: expected --width {WIDTHS[0]} with --model mlp, got {width}. {hint}")
    for name in groups:
        group = as_group("study", name, exact=True)
        if group.order == 1:
            raise ValueError(f"study: expected --groups of more than one element, got {name}. Try C4 or T3.")
        if model != "mlp" and not isinstance(group, CyclicRotation | Dihedral):
            hint = "There is nothing to tie: convolutions commute with shifts already. Take C4 or D4, or --model mlp."
            wanted = f"--groups of rotations and mirrors with --model {model}"
            raise ValueError(f"study: expected {wanted}, got {name}. {hint}")


def _weights(
    form: str, groups: list[str], given: list[str] | None, protocol: Protocol
) -> list[tuple[str, str, float | None]]:
    r"""Group, form and weight of the regulariser for each group, None where it is to be tuned."""
    option = OPTIONS[form]
    if given is None:
        return [(group, form, protocol.nu.get((group, form))) for group in groups]
    if len(given) not in (1, len(groups)):
        got = f"{len(given)}. The groups: {groups}."
        raise ValueError(f"study: expected one {option}, or one for each group, got {got}")
    each = given if len(given) == len(groups) else given * len(groups)
    return [
        (group, form, None if nu == "auto" else _number(option, nu)) for group, nu in zip(groups, each, strict=True)
    ]


def curves_of(groups: Sequence[str], given: Sequence[str] | None) -> tuple[tuple[str, str, tuple[float, ...]], ...]:
    r"""Group, arm and weights of each curve of mitigation, from "ARM=NU,NU" or "ARM:GROUP=NU"; by default `ARMS`.

    Raises:
        ValueError: an arm that is none, or a weight that is no positive number.
    """
    if given is None:
        return tuple((group, arm, weights) for group in groups for arm, (_, weights) in ARMS.items())
    curves = []
    for text in given:
        where, _, numbers = text.partition("=")
        arm, _, group = where.partition(":")
        if arm not in ARMS or (group and group_name(group) not in groups):
            hint = f"Arms: {', '.join(ARMS)}; groups: {', '.join(groups)}."
            raise ValueError(f"study: expected --curve ARM=NU,NU or ARM:GROUP=NU, got {text!r}. {hint}")
        weights = tuple(_number("--curve", number) for number in numbers.split(","))
        curves += [(name, arm, weights) for name in groups if name == group_name(group or name)]
    return tuple(curves)


def _number(option: str, nu: str) -> float:
    try:
        number = float(nu)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        or_auto = " or auto" if option in OPTIONS.values() else ""
        raise ValueError(f"study: expected {option} to be a positive number{or_auto}, got {nu!r}. Try 10.")
    return number
