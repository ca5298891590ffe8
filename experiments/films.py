"""What is known of users and films (or jokes) beside the ratings, as features: shared by the content experiments."""

from typing import Any

import jax.numpy as jnp

from jaxrec.data import features
from jaxrec.models.hybrid import Content
from jaxrec.types import Dataset


def region(zip_code: Any) -> str:
    """The first digit of a US zip code is a region of some states; what begins otherwise is abroad."""
    return zip_code[0] if zip_code and zip_code[0].isdigit() else "abroad"


def content(dataset: Dataset) -> tuple[Content, features.Encoder, features.Encoder]:
    """(features, the users' encoder, the items' encoder) of a dataset; what it lacks is left out.

    Films have years and genres; jester's jokes, which have neither, the words of their texts by TF-IDF. No rating is
    looked at. The tables are whole, so that nothing in them is unknown.
    """
    n_users, n_items = dataset.ratings.n_users, dataset.ratings.n_items
    users: dict[str, Any] = {"user": [1] * n_users}  # where nothing is known: one column, the same for all
    items: dict[str, Any] = {"item": [1] * n_items}
    if dataset.users is not None and "zip_code" in dataset.users.columns:
        users = {name: dataset.users[name].to_list() for name in ("age", "sex", "occupation", "zip_code")}
        users["region"] = [region(code) for code in users.pop("zip_code")]
    if dataset.items is not None and "genres" in dataset.items.columns:
        items = {name: dataset.items[name].to_list() for name in ("year", "genres")}
    elif dataset.titles is not None and dataset.name == "jester5k":  # its titles are the jokes
        items = {"text": dataset.titles.tolist()}
    declare = lambda name, values: (
        features.Text()
        if name == "text"
        else features.Tags()
        if isinstance(values[0], list)
        else features.Category()
        if any(isinstance(value, str) for value in values)
        else features.Numeric()
    )
    of_users, of_items = (
        features.fit_encoder(table, {name: declare(name, values) for name, values in table.items()})
        for table in (users, items)
    )
    tags = jnp.ones((n_items, 1))  # one tag that every film has
    if "genres" in items:
        tags = jnp.asarray(features.fit_encoder(items, {"genres": features.Tags()})(items))
    return Content(jnp.asarray(of_users(users)), jnp.asarray(of_items(items)), tags), of_users, of_items
