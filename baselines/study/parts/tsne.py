r"""Fig. 2: the penultimate layer in the plane, with the orbits of some images traced."""

import statistics

import numpy as np
import torch
from torch import Tensor, nn

from baselines.common.figures import figure
from baselines.common.runner import Result
from baselines.study.measures import BATCHES, exact
from baselines.study.parts.base import Finding, Page, Picture, RunPart
from baselines.study.parts.plots import NAMES, bare, drawn
from baselines.study.runs import Subject
from baselines.study.tables import grouped

SAMPLES = 200  # test images, each with its whole orbit
TRACED = 16  # of them


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    r"""What goes into the last linear layer for inputs x (N, ...): (N, features).

    Raises:
        ValueError: a model without a linear layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"penultimate: expected a model with a linear layer, got {type(model).__name__}. Add a head.")
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            model(x)
    finally:
        handle.remove()
    return seen[-1].flatten(1)


def plane(features: Tensor, seed: int = 0) -> Tensor:
    r"""t-SNE of features (N, F): (N, 2), the same for the same seed.

    Source: van der Maaten and Hinton 2008, Visualizing data using t-SNE.
    """
    from sklearn.manifold import TSNE

    places = TSNE(n_components=2, perplexity=min(30, len(features) / 4), init="pca", random_state=seed, n_jobs=1)
    return torch.from_numpy(places.fit_transform(features.double().numpy()).astype(np.float64))


class TsnePart(RunPart):
    r"""Where orbits go in the features a network classifies by."""

    title = "Orbits in feature space"
    claim = (
        "In the penultimate layer of weight tying an orbit is one point; augmentation spreads it over the cluster of "
        "its class (Fig. 2)."
    )

    def measure(self, trained: Subject) -> Result:
        model, group = trained.model, trained.group
        x, y = trained.data.test.x[:SAMPLES], trained.data.test.y[:SAMPLES]
        exact(model)
        size = BATCHES[trained.run.model].logits
        orbits = [group.act(g, x) for g in range(group.order)]
        features = torch.stack([torch.cat([penultimate(model, part) for part in gx.split(size)]) for gx in orbits])
        wide = features.double()
        within = (wide[1:] - wide[0]).norm(dim=2).mean()
        apart = torch.pdist(wide[0]).mean()
        measured: Result = {"orbit_spread": float(within / apart), "tsne_images": len(x)}
        if trained.run.seed == 0:
            places = plane(features.flatten(0, 1)).view(group.order, len(x), 2)
            measured["places"] = [[[round(v, 3) for v in p] for p in g] for g in places.tolist()]
            measured["classes"] = y.tolist()
        return measured

    def page(self, results: list[Result]) -> Page:
        runs = grouped(results)
        spread = {key: statistics.fmean(run["orbit_spread"] for run in seeds) for key, seeds in runs.items()}
        findings = []
        for (group, method), value in spread.items():
            size = "exactly 0" if value == 0 else f"{value:.3g}"
            text = f"{group}: the orbits of {method} have a size of {size} relative to the distance between images."
            claims = {"WT": (value == 0,), "DA": (value > 0.1,)}.get(method, ())
            findings.append(Finding(text, claims))
        what = (
            f"Size: mean distance of the features of gx from those of x by the mean distance between those of "
            f"{results[0]['tsne_images']} test images. Drawings: seed 0; t-SNE keeps neighbours, not distances."
        )
        pictures = [_drawing(group, runs) for group in dict.fromkeys(group for group, _ in runs)]
        return Page([*findings, Finding(what)], pictures=pictures)


def _drawing(group: str, runs: dict[tuple[str, str], list[Result]]) -> Picture:
    places_of, classes_of = drawn(runs, group, "places"), drawn(runs, group, "classes")
    made = figure(3.4 * len(places_of), 3.6)
    for ax, method in zip(made.subplots(1, len(places_of), squeeze=False)[0], places_of, strict=True):
        places, classes = np.array(places_of[method]), np.array(classes_of[method])
        for place in places:
            ax.scatter(*place.T, c=classes, cmap="tab10", vmin=0, vmax=9, s=5, alpha=0.5, linewidths=0)
        for orbit in places[:, :TRACED].transpose(1, 0, 2):
            closed = np.concatenate((orbit, orbit[:1]))
            ax.plot(*closed.T, color="black", linewidth=0.7, alpha=0.8)
            ax.scatter(*orbit[0], color="black", s=9, zorder=3)
        ax.set_title(NAMES[method])
        bare(ax)
    made.suptitle(f"{group}: penultimate layer, a colour for each class, {TRACED} orbits traced")
    alt = f"{group}: t-SNE of the penultimate layer for each method, with the orbits of {TRACED} images traced."
    return Picture(f"tsne-{group}", made, alt)
