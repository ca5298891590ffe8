"""Every reader on a few hand-written rows of its form, hard cases first, and on the real files if they are there."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from jaxrec import data
from jaxrec.data import datasets, published_files, readers

FOLDER = os.environ.get("JAXREC_DATA") and Path(os.environ["JAXREC_DATA"]).absolute()


def lines(*rows, encoding="utf-8"):
    return "".join(f"{row}\n" for row in rows).encode(encoding)


ML_1M = {
    "users.dat": lines("1::F::1::10::48067", "2::M::56::16::70072-123", "3::M::25::0::T8H1N"),
    "movies.dat": lines(
        "1::Misérables, Les (1995)::Drama|Musical", "5::Ten :: (1001) (1984)::Comedy", encoding="latin-1"
    ),
}
RATINGS_1M = np.array([[3, 5, 4, 978300760], [1, 1, 5, 978302109], [1, 5, 3, 978301968]])


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def official_1m():
    return ML_1M | {"ratings.dat": lines(*("::".join(map(str, row)) for row in RATINGS_1M))}


def arrays_1m():
    user, movie, rating, _ = RATINGS_1M.T
    return ML_1M | {"ratings.npz": npz(user=user.astype(np.uint16), movie=movie.astype(np.uint16), rating=rating)}


@pytest.mark.parametrize("form", ["official", "arrays"])
def test_ml_1m(form):
    # the real file has no title with the separator in it
    files = official_1m() if form == "official" else arrays_1m()
    files["movies.dat"] = files["movies.dat"].replace(b"Ten ::", b"Ten")
    dataset = readers.ml_1m(files) if form == "official" else readers.ml_1m_without_times(files)
    ratings = dataset.ratings
    np.testing.assert_array_equal(ratings.user_ids[ratings.user], RATINGS_1M[:, 0])
    np.testing.assert_array_equal(ratings.item_ids[ratings.item], RATINGS_1M[:, 1])
    np.testing.assert_array_equal(ratings.value, RATINGS_1M[:, 2])
    if form == "official":
        np.testing.assert_array_equal(ratings.time, RATINGS_1M[:, 3])
    else:
        assert ratings.time is None
        with pytest.raises(ValueError, match="no times"):
            data.splits.leave_last(ratings)
    assert (ratings.n_users, ratings.n_items, dataset.scale) == (3, 2, (1.0, 5.0))
    assert dataset.titles.tolist() == ["Misérables, Les (1995)", "Ten (1001) (1984)"]
    assert dataset.items["year"].to_list() == [1995, 1984]
    assert dataset.items["genres"].to_list() == [["Drama", "Musical"], ["Comedy"]]
    assert dataset.users.rows()[:2] == [
        (1, "under 18", "F", "K-12 student", "48067"),
        (2, "56 and over", "M", "self-employed", "70072-123"),
    ]


def ncf():
    return {
        "ml-1m.train.notime.rating": lines("0\t2\t5", "1\t0\t3", "0\t1\t4"),
        "ml-1m.test.rating": lines("0\t0\t4\t978824351", "1\t2\t1\t978300174"),
        "ml-1m.test.negative": lines("(0,0)\t3\t4", "(1,2)\t3\t1"),
        "item_map.tsv": lines("# ncf_item\tml1m_movie", "1\t661", "0\t1193", "2\t10", "3\t11", "4\t12"),
    }


def test_ml_1m_ncf():
    dataset = readers.ml_1m_ncf(ncf())
    train, test = data.splits.canonical(dataset, "leave-one-out")
    assert train.user.tolist() == [0, 1, 0]
    assert train.item.tolist() == [2, 0, 1]
    assert (test.user.tolist(), test.item.tolist(), test.value.tolist()) == ([0, 1], [0, 2], [4.0, 1.0])
    assert dataset.ratings.item_ids.tolist() == [1193, 661, 10, 11, 12]
    assert dataset.negatives.tolist() == [[3, 4], [3, 1]]
    assert dataset.negatives.dtype == np.int32


def test_ml_1m_ncf_whose_files_disagree():
    files = ncf() | {"ml-1m.test.negative": lines("(0,1)\t3\t4", "(1,2)\t3\t1")}
    with pytest.raises(ValueError, match="expected the users and items of ml-1m.test.rating"):
        readers.ml_1m_ncf(files)


def test_ml_latest_small():
    files = {
        "ratings.csv": lines("userId,movieId,rating,timestamp", "7,30,0.5,964982703", "7,1,4.5,964981247"),
        "movies.csv": lines(
            "movieId,title,genres",
            "1,Toy Story (1995),Adventure|Comedy",
            '30,"American President, The (1995)",(no genres listed)',
            "40,No year ,Drama",
        ),
        "links.csv": lines("movieId,imdbId,tmdbId", "1,0114709,862", "30,0112346,", "40,0000001,5"),
    }
    dataset = readers.ml_latest_small(files)
    ratings = dataset.ratings
    assert (ratings.user.tolist(), ratings.item.tolist()) == ([0, 0], [1, 0])
    assert (ratings.value.tolist(), ratings.time.tolist()) == ([0.5, 4.5], [964982703, 964981247])
    assert (ratings.user_ids.tolist(), ratings.item_ids.tolist()) == ([7], [1, 30, 40])
    assert dataset.titles.tolist() == ["Toy Story (1995)", "American President, The (1995)", "No year"]
    assert dataset.items["genres"].to_list() == [["Adventure", "Comedy"], [], ["Drama"]]
    assert dataset.items["year"].to_list() == [1995, 1995, None]
    assert dataset.items["imdb_id"].to_list() == ["0114709", "0112346", "0000001"]
    assert dataset.items["tmdb_id"].to_list() == [862, None, 5]
    assert dataset.scale == (0.5, 5.0)


def test_jester5k():
    files = {
        "ratings.csv": lines("user,joke,rating", "u7452,1,-1.6", "u12,3,9.95", "u12,1,0"),
        "jokes.csv": lines("joke,text", '1,"""Well,"" he said, twice."', "2,two", "3,three"),
    }
    dataset = readers.jester5k(files)
    ratings = dataset.ratings
    assert ratings.user_ids[ratings.user].tolist() == ["u7452", "u12", "u12"]
    np.testing.assert_array_equal(ratings.value, np.array([-1.6, 9.95, 0.0], np.float32))
    assert ratings.item.tolist() == [0, 2, 0]
    assert dataset.titles[0] == '"Well," he said, twice.'
    assert dataset.scale == (-10.0, 10.0)


def test_gowalla():
    files = {
        "train.txt": lines("0 2 0", "1 1"),
        "test.txt": lines("0 1", "1 "),  # a user whose line is empty
        "user_list.txt": lines("org_id remap_id", "343 0", "8 1"),
        "item_list.txt": lines("org_id remap_id", "8975 0", "99 2", "5 1"),
    }
    dataset = readers.gowalla(files)
    train, test = data.splits.canonical(dataset, "lightgcn")
    assert (train.user.tolist(), train.item.tolist()) == ([0, 0, 1], [2, 0, 1])
    assert (test.user.tolist(), test.item.tolist(), test.value.tolist()) == ([0], [1], [1.0])
    assert (dataset.ratings.user_ids.tolist(), dataset.ratings.item_ids.tolist()) == ([343, 8], [8975, 5, 99])


def test_ncf_is_found_inside_ml_1m_too(tmp_path, monkeypatch):
    folder = tmp_path / "ml-1m" / "ncf"
    folder.mkdir(parents=True)
    for name, content in ncf().items():
        (folder / name).write_bytes(content)
    (form,) = published_files.FORMS["ml-1m-ncf"]
    rows = [f"{form.folder}/{name} {datasets._sha256(content)}\n" for name, content in ncf().items()]
    (tmp_path / "registry.txt").write_text("".join(rows))
    monkeypatch.setattr(datasets, "REGISTRY", tmp_path / "registry.txt")
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path))
    assert data.load("ml-1m-ncf").source == str(folder)


def test_sequences_keep_the_order_of_the_file_and_repeated_items():
    pairs = readers.ml_1m_sequences({"ml-1m.txt": lines("7 30", "7 10", "9 30", "7 30")})
    lists = readers.amazon_sequences({"Beauty.txt": lines("7 30 10 30", "9 30")}, name="amazon-beauty")
    assert (pairs.name, lists.name) == ("ml-1m-sequences", "amazon-beauty")
    assert (pairs.ratings.user.tolist(), pairs.ratings.item.tolist()) == ([0, 0, 1, 0], [1, 0, 1, 1])
    assert (lists.ratings.user.tolist(), lists.ratings.item.tolist()) == ([0, 0, 0, 1], [1, 0, 1, 1])
    for dataset in (pairs, lists):
        ratings = dataset.ratings
        assert (ratings.user_ids.tolist(), ratings.item_ids.tolist()) == ([7, 9], [10, 30])
        assert ratings.time is None
        assert ratings.value.tolist() == [1] * 4


def test_a_shared_folder_counts_for_the_datasets_whose_files_it_has(tmp_path, monkeypatch):
    folder, content = tmp_path / "sequences", lines("1 5 4 6")
    folder.mkdir()
    (folder / "Beauty.txt").write_bytes(content)
    names = [
        f"{forms[0].folder}/{forms[0].names[0]}" for name, forms in published_files.FORMS.items() if name[:3] == "ama"
    ]
    (tmp_path / "registry.txt").write_text("".join(f"{name} {datasets._sha256(content)}\n" for name in names))
    monkeypatch.setattr(datasets, "REGISTRY", tmp_path / "registry.txt")
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert data.load("amazon-beauty").source == str(folder)
    with pytest.raises(data.DatasetNotFound, match=r"no folder .*amazon-toys or .*sequences"):
        data.load("amazon-toys")
    (folder / "Beauty.txt").write_bytes(content[:-2])
    with pytest.raises(ValueError, match="expected sha256"):
        data.load("amazon-beauty")


@pytest.mark.parametrize("name", ["ml-1m-ncf", "jester5k", "gowalla", *published_files.SEQUENCES])
def test_without_a_published_zip_the_error_says_what_to_get_and_where(tmp_path, monkeypatch, name):
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (form,) = published_files.FORMS[name]
    with pytest.raises(data.DatasetNotFound) as error:
        data.load(name)
    message = str(error.value)
    assert form.origin in message
    assert ", ".join(form.names) in message
    assert f"load({name!r}, path=THE_FOLDER)" in message
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.load(name, path=tmp_path / "nothing")
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="expected a folder"):
        data.load(name, path=tmp_path / "a.zip")


REAL = {  # name: ratings, users, items, rated items, mean
    "ml-1m": (1_000_209, 6040, 3883, 3706, 3.5816),
    "ml-1m-ncf": (1_000_209, 6040, 3706, 3706, 3.5816),
    "ml-latest-small": (100_836, 610, 9742, 9724, 3.5016),
    "jester5k": (363_209, 5000, 100, 100, 0.9159),
    "gowalla": (1_027_370, 29_858, 40_981, 40_981, 1.0),
    "ml-1m-sequences": (999_611, 6040, 3416, 3416, 1.0),
    "amazon-beauty": (198_502, 22_363, 12_101, 12_101, 1.0),
    "amazon-sports": (296_337, 35_598, 18_357, 18_357, 1.0),
    "amazon-toys": (167_597, 19_412, 11_924, 11_924, 1.0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    places = [FOLDER / place for place in (name, *published_files.OTHER_SUBFOLDERS.get(name, ()))] if FOLDER else []
    if not any(place.is_dir() for place in places):
        pytest.skip(f"no real {name} in $JAXREC_DATA")
    dataset = data.load(name)
    r = dataset.ratings
    n, users, items, rated, mean = REAL[name]
    assert (len(r), r.n_users, r.n_items, len(np.unique(r.item))) == (n, users, items, rated)
    assert r.value.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-4)
    if dataset.scale is not None:
        assert dataset.scale[0] <= r.value.min()
        assert r.value.max() <= dataset.scale[1]
    if name == "ml-1m-ncf":
        train, test = data.splits.canonical(dataset, "leave-one-out")
        assert (len(train), len(test)) == (994_169, 6040)
        seen = np.zeros((users, items), bool)
        seen[train.user, train.item] = True
        assert not seen[np.arange(users)[:, None], dataset.negatives].any()
        held_out = np.empty(users, np.int32)
        held_out[test.user] = test.item
        assert (dataset.negatives == held_out[:, None]).any(1).sum() == 156  # published so; the docstring says it
    if name == "gowalla":
        assert [len(part) for part in data.splits.canonical(dataset, "lightgcn")] == [810_128, 217_242]
    if name in ("ml-1m", "ml-1m-ncf"):  # the same ratings under two sets of ids
        assert np.bincount(r.value.astype(int)).tolist() == [0, 56174, 107557, 261197, 348971, 226310]
