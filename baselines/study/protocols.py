r"""What is trained by default with a model on a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from baselines.study.training import Recipe

FORMS = ("logit", "distribution", "normalized_logit")  # of the regulariser
LADDER = (1.0, 3.0, 10.0, 20.0, 30.0, 60.0, 80.0, 150.0, 300.0, 600.0, 1000.0, 3000.0)  # of nu, tried in this order
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


def _mlp(nu: Nu) -> Protocol:
    return Protocol(Recipe(epochs=300, batch_size=512, lr=8e-4), saliency_samples=1000, seeds=4, nu=nu)


# SI of the plain CNN reaches the target with no nu; it is highest from 1 to 3, and accuracy falls beyond.
_CNN_NU = {(group, form): 1.0 for group in ("C2", "C4", "D1", "D2", "D4") for form in FORMS}
_CNN = Protocol(Recipe(epochs=20, batch_size=128, lr=0.01, one_cycle=True), saliency_samples=100, seeds=4, nu=_CNN_NU)
PROTOCOLS = {
    # Few images need many small steps before the regulariser has done its work.
    ("mlp", "digits"): Protocol(
        Recipe(epochs=300, batch_size=32, lr=1.5e-3, one_cycle=True),
        saliency_samples=200,
        seeds=2,
        nu=_nu(C4=(30, 100, 500), T3=(80, 450, 500)),
    ),
    ("mlp", "mnist"): _mlp(_nu(C4=(20, 300, 2000), T3=(150, 800, 700))),
    ("mlp", "fashion-mnist"): _mlp({}),
    ("cnn", "digits"): Protocol(
        Recipe(epochs=30, batch_size=32, lr=0.01, one_cycle=True), saliency_samples=100, seeds=2, nu=_CNN_NU
    ),
    ("cnn", "mnist"): _CNN,
    ("cnn", "fashion-mnist"): _CNN,
}
GROUPS = {"mlp": ["C4", "T3"], "cnn": ["C4", "D4"]}
