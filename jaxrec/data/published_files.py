"""The files of the named datasets: which are needed, who reads them, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from jaxrec.data import readers
from jaxrec.dataset import Dataset

__all__ = ["FORMS", "OTHER_SUBFOLDERS", "SHARED_SUBFOLDER", "Form"]


@dataclass(frozen=True)
class Form:
    """One published form of a dataset.

    Attributes:
        read: a function from the bytes of the files, by name, to the Dataset.
        folder: the files' folder in the archive; `registry.txt` has the files by FOLDER/NAME.
        names: the files needed.
        archive: the zip that holds them, by its name in `registry.txt`; None if they are not published as one zip. Then
            the user puts them in place.
        origin: where the user finds them, without an archive.
    """

    read: Callable[[Mapping[str, bytes]], Dataset]
    folder: str
    names: Sequence[str]
    archive: str | None = None
    origin: str = ""

    @property
    def files(self) -> list[str]:
        """The files by their names in the archive and in `registry.txt`."""
        return [f"{self.folder}/{name}" for name in self.names]


# Other subfolders of $JAXREC_DATA where a dataset may be.
SHARED_SUBFOLDER = "sequences"  # holds the files of several datasets
SEQUENCES = {
    "ml-1m-sequences": "ml-1m.txt",
    "amazon-beauty": "Beauty.txt",
    "amazon-sports": "Sports_and_Outdoors.txt",
    "amazon-toys": "Toys_and_Games.txt",
}
OTHER_SUBFOLDERS = {"ml-1m-ncf": ("ml-1m/ncf",)} | dict.fromkeys(SEQUENCES, (SHARED_SUBFOLDER,))

# The forms of each dataset: the publisher's first, then those tried if the publisher cannot be reached.
FORMS: dict[str, tuple[Form, ...]] = {
    "ml-100k": (
        Form(readers.ml_100k, "ml-100k", ("u.data", "u.item", "u.user"), archive="ml-100k.zip"),
        Form(
            readers.ml_100k_recbole,
            "recbole/dataset_example/ml-100k",
            ("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
            archive="recbole-1.2.1-py3-none-any.whl",
        ),
    ),
    "ml-1m": (
        Form(readers.ml_1m, "ml-1m", ("users.dat", "movies.dat", "ratings.dat"), archive="ml-1m.zip"),
        Form(
            readers.ml_1m_without_times,
            "ml-1m",
            ("users.dat", "movies.dat", "ratings.npz"),
            origin="the project's data folder",
        ),
    ),
    "ml-1m-ncf": (
        Form(
            readers.ml_1m_ncf,
            "ml-1m-ncf",
            ("ml-1m.train.notime.rating", "ml-1m.test.rating", "ml-1m.test.negative", "item_map.tsv"),
            origin="github.com/hexiangnan/neural_collaborative_filtering (Data/ml-1m.*; its train file without times, "
            "and a map of its item ids to MovieLens')",
        ),
    ),
    "ml-latest-small": (
        Form(
            readers.ml_latest_small,
            "ml-latest-small",
            ("ratings.csv", "movies.csv", "links.csv"),
            archive="ml-latest-small.zip",
        ),
    ),
    "jester5k": (
        Form(
            readers.jester5k,
            "jester5k",
            ("ratings.csv", "jokes.csv"),
            origin="the Jester5k data of the R package recommenderlab, written as ratings.csv (user,joke,rating) and "
            "jokes.csv (joke,text)",
        ),
    ),
    "gowalla": (
        Form(
            readers.gowalla,
            "gowalla",
            ("train.txt", "test.txt", "user_list.txt", "item_list.txt"),
            origin="github.com/gusye1234/LightGCN-PyTorch (data/gowalla)",
        ),
    ),
    "ml-1m-sequences": (
        Form(
            readers.ml_1m_sequences,
            "ml-1m-sequences",
            (SEQUENCES["ml-1m-sequences"],),
            origin="github.com/kang205/SASRec (data/ml-1m.txt)",
        ),
    ),
    **{
        name: (
            Form(
                partial(readers.amazon_sequences, name=name),
                name,
                (SEQUENCES[name],),
                origin=f"github.com/RUCAIBox/CIKM2020-S3Rec (data/{SEQUENCES[name]})",
            ),
        )
        for name in ("amazon-beauty", "amazon-sports", "amazon-toys")
    },
}
