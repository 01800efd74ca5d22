"""Images with several classes each, from a cell with a separator and from a column for each class."""

import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from sklearn.preprocessing import MultiLabelBinarizer

from vit_core import InputError, ViTConfig
from vit_train.config import Data, Schedule, TrainConfig
from vit_train.data.batches import Batches, EvaluationBatches
from vit_train.data.checking import missing_classes
from vit_train.data.classes import Occurrences
from vit_train.data.sources import Split, open_split

SETS = [("cat", "dog"), (), ("eel",), ("dog", "cat", "eel"), ("dog",), ("cat",), ("eel", "cat"), ("cat", "dog")]
CLASSES = ("cat", "dog", "eel")
CONFIG = TrainConfig(
    model=ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=1, mlp_dim=8, num_classes=3),
    loss="sigmoid",
    schedule=Schedule(warmup_steps=1),
    steps=3,
    batch_size=4,
)
SEPARATED = {"label_separator": ";"}
COLUMNS = {"label_columns": CLASSES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images with both kinds of tables: cells.csv and columns.csv."""
    rng = np.random.default_rng(0)
    paths = [f"{i}.png" for i in range(len(SETS))]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(tmp_path / path)
    cells = ["; ".join(names) for names in SETS]
    pandas.DataFrame({"path": paths, "label": cells}).to_csv(tmp_path / "cells.csv", index=False)
    columns = pandas.DataFrame(indicators(SETS), columns=CLASSES)
    columns.insert(0, "path", paths)
    columns.to_csv(tmp_path / "columns.csv", index=False)
    return tmp_path


def indicators(sets: list[tuple[str, ...]]) -> np.ndarray:
    """0 or 1 for each image and class, by scikit-learn."""
    return np.asarray(MultiLabelBinarizer(classes=CLASSES).fit_transform(sets))


def opened(path: Path, which: str = "train", **fields: object) -> Split:
    return open_split(Data(name=str(path), held_out=0.0, **fields), which)  # type: ignore[arg-type]


def test_both_tables_give_the_same_multi_hot_targets(folder: Path) -> None:
    cells, columns = opened(folder / "cells.csv", **SEPARATED), opened(folder / "columns.csv", **COLUMNS)
    assert cells.labels == columns.labels == CLASSES
    assert cells.multilabel
    batches = [Batches(split, CONFIG)[i] for split in (cells, columns) for i in range(3)]
    assert [b.fingerprint() for b in batches[:3]] == [b.fingerprint() for b in batches[3:]]
    for batch in batches:
        np.testing.assert_array_equal(batch.targets_BC, indicators(SETS)[batch.ids_B])
    np.testing.assert_array_equal(Occurrences.of(cells).counts_C, indicators(SETS).sum(axis=0))
    found = EvaluationBatches(cells, CONFIG.preprocessing, 8)[0]
    np.testing.assert_array_equal(found.labels_B, indicators(SETS).astype(bool))


def test_lists_in_json_lines_give_the_same_split(folder: Path) -> None:
    lines = [json.dumps({"path": f"{i}.png", "label": list(names)}) for i, names in enumerate(SETS)]
    (folder / "lists.jsonl").write_text("\n".join(lines))
    lists, cells = opened(folder / "lists.jsonl"), opened(folder / "cells.csv", **SEPARATED)
    assert lists.multilabel
    assert lists.fingerprint() == cells.fingerprint()
    lines[5] = json.dumps({"path": "5.png", "label": "cat"})
    (folder / "lists.jsonl").write_text("\n".join(lines))
    assert opened(folder / "lists.jsonl").fingerprint() == cells.fingerprint(), "text is one class"
    numbers = [{"path": f"{i}.png", "label": [CLASSES.index(name) for name in names]} for i, names in enumerate(SETS)]
    (folder / "numbers.jsonl").write_text("\n".join(map(json.dumps, numbers)))
    found = opened(folder / "numbers.jsonl")
    assert found.labels == ("0", "1", "2")
    assert [found.examples[i]["label"] for i in range(8)] == [cells.examples[i]["label"] for i in range(8)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("[1, 0, 0]", "line 1: label has 0 twice in its list; expected the names or numbers of the image's classes"),
        ('["cat", 0.5]', "line 1: label has 0.5 in its list; expected names or numbers of classes"),
        ("[true]", "line 1: label has True in its list"),
        ('[["cat"]]', r"line 1: label has \['cat'\] in its list"),
        ('["cat", " "]', "line 1: label has ' ' in its list"),
    ],
)
def test_lists_that_are_refused(label: str, message: str, folder: Path) -> None:
    lines = [f'{{"path": "{i}.png", "label": {one}}}' for i, one in enumerate([label, *['["dog"]'] * 7])]
    (folder / "lists.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        opened(folder / "lists.jsonl")


def test_columns_of_flags_are_named_where_there_are_no_labels(folder: Path) -> None:
    message = "no column label or labels or class; found: path, cat, dog, eel; set --data.label-column; or, for the 3 "
    message += "columns that have 1 or 0 in every line, --data.label-columns cat dog eel"
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        opened(folder / "columns.csv")


def test_a_part_of_all_images_is_held_out(folder: Path) -> None:
    data = Data(name=str(folder / "cells.csv"), held_out=0.25, label_separator=";")
    train, evaluation = open_split(data, "train"), open_split(data, "eval")
    assert (len(train), len(evaluation)) == (6, 2)
    named = {split.name(i): split.examples[i]["label"] for split in (train, evaluation) for i in range(len(split))}
    assert {Path(name).stem: sorted(CLASSES[n] for n in numbers) for name, numbers in named.items()} == {
        str(i): sorted(names) for i, names in enumerate(SETS)
    }


def test_classes_without_images_are_named(folder: Path) -> None:
    table = pandas.read_csv(folder / "columns.csv").assign(fox=0)
    table.to_csv(folder / "more.csv", index=False)
    assert missing_classes(opened(folder / "more.csv", label_columns=(*CLASSES, "fox"))) == ("fox",)


@pytest.mark.parametrize(
    ("fields", "cell", "message"),
    [
        (COLUMNS, "maybe", r"columns.csv, line 2: cat is 'maybe'; expected 1 or 0"),
        ({"label_columns": ("cat", "fox")}, "1", r"columns.csv: data.label_columns: no column 'fox'; found: path, cat"),
    ],
)
def test_bad_columns(fields: dict[str, object], cell: str, message: str, folder: Path) -> None:
    table = pandas.read_csv(folder / "columns.csv", dtype=str)
    table.loc[0, "cat"] = cell
    table.to_csv(folder / "columns.csv", index=False)
    with pytest.raises(InputError, match=message):
        opened(folder / "columns.csv", **fields)


def test_an_unknown_class_in_evaluation(folder: Path) -> None:
    table = pandas.read_csv(folder / "cells.csv").assign(split=["train"] * 7 + ["val"])
    table.loc[7, "label"] = "cat;fox"
    table.to_csv(folder / "cells.csv", index=False)
    with pytest.raises(
        InputError, match="cells/val: training has no class of this name: 'fox'; expected one of its 3 classes"
    ):
        opened(folder / "cells.csv", "eval", **SEPARATED)


def test_a_forgotten_separator_is_named_with_the_combination_that_training_lacks(folder: Path) -> None:
    rows = [
        (f"{i}.png", label, split)
        for i, (label, split) in enumerate(
            [("cat", "train"), ("dog", "train"), ("cat; dog", "train"), ("dog; cat", "val")]
        )
    ]
    pandas.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "few.csv", index=False)
    message = (
        "few/val: training has no class of this name: 'dog; cat'; expected one of its 3 classes; 2 labels contain ';' "
        "and are used as single classes: 'cat; dog', 'dog; cat'; if it separates several classes of an image, set "
        "--data.label-separator ';'"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        opened(folder / "few.csv", "eval")
    assert len(opened(folder / "few.csv", "eval", **SEPARATED)) == 1


def test_one_way_to_say_it() -> None:
    with pytest.raises(InputError, match="label_columns: there is a column for each class"):
        Data(name="a.csv", label_columns=("a", "b"), label_separator=";")
    with pytest.raises(InputError, match="label_separator: expected one character or more"):
        Data(name="a.csv", label_separator="")
