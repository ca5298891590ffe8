"""Features of users and films (or jokes) from their metadata, shared by the content experiments."""

from typing import Any

import jax.numpy as jnp

from jaxrec.data import features
from jaxrec.models.hybrid import Content
from jaxrec.types import Dataset


def region(zip_code: Any) -> str:
    """The region of a US zip code: its first digit, which a group of states shares; anything else is abroad."""
    return zip_code[0] if zip_code and zip_code[0].isdigit() else "abroad"


def content(dataset: Dataset) -> tuple[Content, features.Encoder, features.Encoder]:
    """(features, the users' encoder, the items' encoder) of a dataset; columns that it lacks are left out.

    Films have years and genres. Jester's jokes have neither; their features are the TF-IDF weights of their words. No
    rating is used. The encoders are fitted to the full tables, so every category is known.
    """
    n_users, n_items = dataset.ratings.n_users, dataset.ratings.n_items
    users: dict[str, Any] = {"user": [1] * n_users}  # without metadata: one constant column
    items: dict[str, Any] = {"item": [1] * n_items}
    if dataset.users is not None and "zip_code" in dataset.users.columns:
        users = {name: dataset.users[name].to_list() for name in ("age", "sex", "occupation", "zip_code")}
        users["region"] = [region(code) for code in users.pop("zip_code")]
    if dataset.items is not None and "genres" in dataset.items.columns:
        items = {name: dataset.items[name].to_list() for name in ("year", "genres")}
    elif dataset.titles is not None and dataset.name == "jester5k":  # its titles are the jokes' texts
        items = {"text": dataset.titles.tolist()}
    user_encoder, item_encoder = (
        features.fit_encoder(table, {name: _column(name, values) for name, values in table.items()})
        for table in (users, items)
    )
    tags = jnp.ones((n_items, 1))  # without genres: one tag that every film has
    if "genres" in items:
        tags = jnp.asarray(features.fit_encoder(items, {"genres": features.Tags()})(items))
    return Content(jnp.asarray(user_encoder(users)), jnp.asarray(item_encoder(items)), tags), user_encoder, item_encoder


def _column(name: str, values: list[Any]) -> features.Column:
    """How a column is encoded, by its name and the type of its values."""
    if name == "text":
        return features.Text()
    if isinstance(values[0], list):
        return features.Tags()
    if any(isinstance(value, str) for value in values):
        return features.Category()
    return features.Numeric()
