"""Readers, from the bytes of a published dataset's files to a Dataset: one function for each published form."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.dataset import Dataset
from jaxrec.ratings import Ratings

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "amazon_sequences",
    "gowalla",
    "jester5k",
    "ml_1m",
    "ml_1m_ncf",
    "ml_1m_sequences",
    "ml_1m_without_times",
    "ml_100k",
    "ml_100k_recbole",
    "ml_latest_small",
]

Files = Mapping[str, bytes]
Movie = tuple[int, str, str | None, list[str]]  # raw id, title, release date, genres

# In the order of the flags in u.item, which is also that of the words in ml-100k.item.
GENRES = (  # noqa: SIM905
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()

# The meanings of the codes in users.dat, from its README.
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 and over"}
OCCUPATIONS = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)


def ml_100k(files: Files) -> Dataset:
    """Reads MovieLens 100K in its official form: no headers, latin-1, one flag per genre."""
    movies: list[Movie] = []
    for line in files["u.item"].splitlines():
        raw, title, date, _, _, *flags = line.decode("latin-1").split("|")
        genres = [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]
        movies.append((int(raw), title.strip(), date or None, genres))  # three titles end in a space
    return _ml_100k(files["u.data"], files["u.user"].replace(b"|", b"\t"), movies)


def ml_100k_recbole(files: Files) -> Dataset:
    """Reads MovieLens 100K as in RecBole's wheel: headers, UTF-8, genres as words, no dates, titles without years."""
    rows = {name: content.partition(b"\n")[2] for name, content in files.items()}
    movies: list[Movie] = []
    for line in rows["ml-100k.item"].splitlines():
        raw, title, year, genres = line.decode().split("\t")
        # Movie 267 has neither title nor year; its title in u.item is "unknown".
        movies.append((int(raw), "unknown" if title == "unkonwn" else f"{title} ({year})", None, genres.split()))
    return _ml_100k(rows["ml-100k.inter"], rows["ml-100k.user"], movies)


def _ml_100k(data: bytes, user: bytes, movies: list[Movie]) -> Dataset:
    """Builds the Dataset of either form from tab-separated rows without a header, and the movies."""
    import polars as pl

    rows = _tab_separated(data, user=pl.Int64, item=pl.Int64, rating=pl.Float32, time=pl.Int64)
    users = _tab_separated(
        user, user_id=pl.Int64, age=pl.Int64, sex=pl.String, occupation=pl.String, zip_code=pl.String
    )
    items = pl.DataFrame(
        movies,
        schema={"item_id": pl.Int64, "title": pl.String, "release_date": pl.String, "genres": pl.List(pl.String)},
        orient="row",
    )
    items = items.select("item_id", "title", _year(), "release_date", "genres")
    ratings = Ratings.from_columns(
        *(rows[name].to_numpy() for name in ("user", "item", "rating")),
        time=rows["time"].to_numpy(),
        user_ids=users["user_id"].to_numpy(),
        item_ids=items["item_id"].to_numpy(),
    )
    # u1 .. u5 are the consecutive fifths of u.data: the files u1.test, u2.test, ... contain exactly these rows.
    fifth = np.arange(len(ratings)) * 5 // len(ratings)
    published = {f"u{k + 1}": fifth == k for k in range(5)}
    titles = np.array([movie[1] for movie in movies])
    return Dataset("ml-100k", ratings, titles, users, items, scale=(1.0, 5.0), published=published)


def ml_1m(files: Files) -> Dataset:
    """Reads MovieLens 1M in its official form: '::' between columns, latin-1."""
    rows = np.array(files["ratings.dat"].replace(b"::", b" ").split(), np.int64).reshape(-1, 4)
    return _ml_1m(files, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])


def ml_1m_without_times(files: Files) -> Dataset:
    """Reads MovieLens 1M with the ratings as NumPy arrays in the order of the lines, without times."""
    with np.load(io.BytesIO(files["ratings.npz"]), allow_pickle=False) as rows:
        user, item, value = (rows[name].astype(np.int64) for name in ("user", "movie", "rating"))
    return _ml_1m(files, user, item, value, None)


def _ml_1m(files: Files, user: Any, item: Any, value: Any, time: Any) -> Dataset:
    import polars as pl

    split = lambda name: [line.split("::") for line in files[name].decode("latin-1").splitlines()]
    people = [
        (int(k), AGES[int(age)], sex, OCCUPATIONS[int(job)], code) for k, sex, age, job, code in split("users.dat")
    ]
    users = pl.DataFrame(people, schema=["user_id", "age", "sex", "occupation", "zip_code"], orient="row")
    movies = [(int(raw), title, genres.split("|")) for raw, title, genres in split("movies.dat")]
    items = pl.DataFrame(movies, schema=["item_id", "title", "genres"], orient="row")
    items = items.select("item_id", "title", _year(), "genres")
    raw_ids = users["user_id"].to_numpy(), items["item_id"].to_numpy()
    ratings = Ratings.from_columns(user, item, value, time=time, user_ids=raw_ids[0], item_ids=raw_ids[1])
    return Dataset("ml-1m", ratings, np.array([movie[1] for movie in movies]), users, items, scale=(1.0, 5.0))


def ml_1m_ncf(files: Files) -> Dataset:
    """Reads the leave-one-out protocol on MovieLens 1M: train rows, each user's held-out row, 99 negatives per user."""
    import polars as pl

    train = _tab_separated(files["ml-1m.train.notime.rating"], user=pl.Int64, item=pl.Int64, rating=pl.Float32)
    test = _tab_separated(files["ml-1m.test.rating"], user=pl.Int64, item=pl.Int64, rating=pl.Float32, time=pl.Int64)
    lines = [line.split("\t") for line in files["ml-1m.test.negative"].decode().splitlines()]
    pairs = [tuple(map(int, line[0].strip("()").split(","))) for line in lines]
    if pairs != list(zip(test["user"], test["item"], strict=True)):
        raise ValueError("ml-1m.test.negative: expected the users and items of ml-1m.test.rating, in their order.")
    raw = np.loadtxt(io.BytesIO(files["item_map.tsv"]), np.int64, comments="#")
    join = lambda name: np.concatenate([train[name].to_numpy(), test[name].to_numpy()])
    n_users, n_items = len(test), len(raw)
    ratings = Ratings(
        join("user"), join("item"), join("rating"), n_users, n_items, item_ids=raw[np.argsort(raw[:, 0]), 1]
    )
    held_out = np.arange(len(ratings)) >= len(train)
    negatives = np.array([line[1:] for line in lines], np.int32)[np.argsort(test["user"].to_numpy())]
    return Dataset("ml-1m-ncf", ratings, scale=(1.0, 5.0), published={"leave-one-out": held_out}, negatives=negatives)


def ml_latest_small(files: Files) -> Dataset:
    """Reads MovieLens latest-small: csv files with headers, UTF-8."""
    import polars as pl

    rows = pl.read_csv(files["ratings.csv"], schema_overrides={"rating": pl.Float32})
    items = (
        pl.read_csv(files["movies.csv"]).rename({"movieId": "item_id"}).with_columns(pl.col("title").str.strip_chars())
    )
    links = pl.read_csv(files["links.csv"], schema_overrides={"imdbId": pl.String}).rename(
        {"movieId": "item_id", "imdbId": "imdb_id", "tmdbId": "tmdb_id"}
    )
    no_genres = pl.col("genres") == "(no genres listed)"
    genres = pl.when(no_genres).then(pl.lit([], pl.List(pl.String))).otherwise(pl.col("genres").str.split("|"))
    items = items.select("item_id", "title", _year(), genres.alias("genres"))
    items = items.join(links, on="item_id", how="left", maintain_order="left")
    ratings = Ratings.from_columns(
        *(rows[name].to_numpy() for name in ("userId", "movieId", "rating")),
        time=rows["timestamp"].to_numpy(),
        item_ids=items["item_id"].to_numpy(),
    )
    return Dataset("ml-latest-small", ratings, items["title"].to_numpy().astype(str), items=items, scale=(0.5, 5.0))


def jester5k(files: Files) -> Dataset:
    """Reads the sample of 5,000 users of Jester: real-valued ratings of jokes, with their texts as titles."""
    import polars as pl

    rows = pl.read_csv(files["ratings.csv"], schema_overrides={"rating": pl.Float32})
    jokes = pl.read_csv(files["jokes.csv"]).rename({"joke": "item_id", "text": "title"})
    ratings = Ratings.from_columns(
        *(rows[name].to_numpy() for name in ("user", "joke", "rating")), item_ids=jokes["item_id"].to_numpy()
    )
    return Dataset("jester5k", ratings, jokes["title"].to_numpy().astype(str), items=jokes, scale=(-10.0, 10.0))


def gowalla(files: Files) -> Dataset:
    """Reads Gowalla check-ins in LightGCN's split: train rows, then test rows, all with value 1."""

    def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
        lines = [np.array(line.split(), np.int32) for line in files[name].splitlines()]
        users = np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines])
        return users, np.concatenate([line[1:] for line in lines])

    raw = lambda name: np.loadtxt(io.BytesIO(files[name]), np.int64, skiprows=1)
    raw_ids = [ids[np.argsort(ids[:, 1]), 0] for ids in (raw("user_list.txt"), raw("item_list.txt"))]
    (train_user, train_item), (test_user, test_item) = rows("train.txt"), rows("test.txt")
    user, item = np.concatenate([train_user, test_user]), np.concatenate([train_item, test_item])
    value = np.ones(len(user), np.float32)
    ratings = Ratings(user, item, value, len(raw_ids[0]), len(raw_ids[1]), user_ids=raw_ids[0], item_ids=raw_ids[1])
    return Dataset("gowalla", ratings, published={"lightgcn": np.arange(len(user)) >= len(train_user)})


def ml_1m_sequences(files: Files) -> Dataset:
    """Reads MovieLens 1M as sequences: a line is "user item", each user's lines oldest first, and has no value."""
    (content,) = files.values()
    user, item = np.array(content.split(), np.int64).reshape(-1, 2).T
    return Dataset("ml-1m-sequences", _in_order(user, item))


def amazon_sequences(files: Files, *, name: str) -> Dataset:
    """Reads Amazon reviews as sequences: a line is "user item item ...", oldest first, and has no values."""
    (content,) = files.values()
    lines = [np.array(line.split(), np.int64) for line in content.splitlines()]
    user = np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines])
    return Dataset(name, _in_order(user, np.concatenate([line[1:] for line in lines])))


def _in_order(user: np.ndarray, item: np.ndarray) -> Ratings:
    """Ratings of 1 in the file's order; a user may have an item twice."""
    (user_ids, users), (item_ids, items) = (np.unique(raw, return_inverse=True) for raw in (user, item))
    ones = np.ones(len(user), np.float32)
    return Ratings(users, items, ones, len(user_ids), len(item_ids), user_ids=user_ids, item_ids=item_ids)


def _tab_separated(content: bytes, **types: type[pl.DataType]) -> pl.DataFrame:
    import polars as pl

    return pl.read_csv(content, separator="\t", has_header=False, quote_char=None, schema=types)


def _year() -> pl.Expr:
    """Returns the last four-digit number in parentheses; text may follow it, as in "... (1995) (V)"."""
    import polars as pl

    return pl.col("title").str.extract(r".*\((\d{4})\)").cast(pl.Int64).alias("year")
