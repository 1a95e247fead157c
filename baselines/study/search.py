r"""The search for the weakest regulariser that reaches a target, by bisection on a log scale."""

from dataclasses import dataclass, field

FIRST, FACTOR = (10.0,), 10.0  # where it begins, and how far it goes until two weights straddle the target
WEAKEST, STRONGEST = 0.01, 10_000.0
CLOSE = 1.2  # two weights no further apart than this, one below the target and one at it, end the search


@dataclass
class Search:
    r"""What was tried so far, the measure that each nu reached, and what to try next."""

    target: float
    first: tuple[float, ...] = FIRST
    tried: dict[float, float] = field(default_factory=dict)

    def following(self) -> float | None:
        r"""The next nu; None when the search is over."""
        for nu in self.first:
            if nu not in self.tried:
                return nu
        strong = self._reaching()
        if not strong:
            stronger = FACTOR * max(self.tried)
            return stronger if stronger <= STRONGEST else None
        weak = [nu for nu in self.tried if nu < min(strong)]
        if not weak:
            weaker = min(strong) / FACTOR
            return weaker if weaker >= WEAKEST else None
        low, high = max(weak), min(strong)
        return float(f"{(low * high) ** 0.5:.3g}") if high / low > CLOSE else None

    def chosen(self) -> float:
        r"""The smallest nu that reaches the target, or the nearest to it."""
        return min(self._reaching(), default=max(self.tried, key=self.tried.__getitem__))

    def _reaching(self) -> list[float]:
        return [nu for nu, reached in self.tried.items() if reached >= self.target]
