"""The result of `evaluate`: every user's metrics, their means with standard errors, and how they were measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Evaluation"]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Mapping[str, np.ndarray]):
    """Metrics of every user, and what was measured. Printed, it is a table of means and standard errors.

    A mapping too: `evaluation["ndcg@10"]` is `evaluation.per_user["ndcg@10"]`; "@10" may be left out if there is one k.

    Attributes:
        per_user: name -> float32 [n_users], such as "ndcg@10"; NaN where a user has nothing relevant.
        n_users: the number of users with something relevant, over whom the means are taken.
        left_out: why other users have no value -> how many of them.
        protocol: what was ranked and how: 'candidates', 'seen', 'ties', 'relevant'.
        user_ids: the raw ids of the users, or None.
    """

    per_user: Mapping[str, np.ndarray]
    n_users: int
    left_out: Mapping[str, int]
    protocol: Mapping[str, str]
    user_ids: np.ndarray | None = None

    @property
    def mean(self) -> dict[str, float]:
        """Name -> the mean over users with something relevant, summed in float64; NaN if there are none."""
        return {name: float(np.mean(found)) if len(found) else math.nan for name, found in self._found().items()}

    @property
    def standard_error(self) -> dict[str, float]:
        """Name -> the standard deviation over users / sqrt(n_users), with n_users - 1 in it; NaN below two users."""
        error = lambda found: float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        return {name: error(found) for name, found in self._found().items()}

    def _found(self) -> dict[str, np.ndarray]:
        return {name: values[~np.isnan(values)].astype(np.float64) for name, values in self.per_user.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Every user's metric, by its name, with or without "@k" if there is one k."""
        if name in self.per_user:
            return self.per_user[name]
        matching = [each for each in self.per_user if each.rpartition("@")[0] == name]
        if len(matching) != 1:
            raise KeyError(f"expected one of {', '.join(self.per_user)}, got {name!r}.")
        return self.per_user[matching[0]]

    def __iter__(self) -> Iterator[str]:
        """The names of the metrics."""
        return iter(self.per_user)

    def __len__(self) -> int:
        """The number of metrics."""
        return len(self.per_user)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: means, standard errors (None where there is no number), counts and protocol."""
        or_none = lambda numbers: {name: None if math.isnan(x) else x for name, x in numbers.items()}
        return {
            "mean": or_none(self.mean),
            "standard_error": or_none(self.standard_error),
            "n_users": self.n_users,
            "left_out": dict(self.left_out),
            "protocol": dict(self.protocol),
        }

    def to_polars(self) -> pl.DataFrame:
        """One row per user: the user's id, and a column of each metric; null where a user has nothing relevant."""
        import polars as pl

        return pl.DataFrame(self._columns()).fill_nan(None)

    def to_pandas(self) -> pd.DataFrame:
        """One row per user: the user's id, and a column of each metric; NaN where a user has nothing relevant."""
        import pandas as pd

        return pd.DataFrame(self._columns())

    def _columns(self) -> dict[str, np.ndarray]:
        n = len(next(iter(self.per_user.values())))
        return {"user": np.arange(n) if self.user_ids is None else self.user_ids, **self.per_user}

    def __repr__(self) -> str:
        """A table: metric, mean, standard error; then the number of users and the protocol."""
        width = max(len("metric"), *map(len, self.per_user))
        lines = [f"{'metric':<{width}}    mean  std. error"]
        errors = self.standard_error
        lines += [f"{name:<{width}}  {mean:6.4f}  {errors[name]:10.4f}" for name, mean in self.mean.items()]
        left_out = "; ".join(f"{n} {why}" for why, n in self.left_out.items() if n)
        lines.append(f"{self.n_users} users" + (f", and {left_out}" if left_out else ""))
        lines.append("; ".join(f"{name}: {value}" for name, value in self.protocol.items()))
        return "\n".join(lines)
