"""pipelines.query on Parquet parts that the tests write."""

import csv
import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import InputError
from pipelines import query
from pipelines.records import FAILURE_SCHEMA, PREDICTION_SCHEMA


def prediction(image_id, label, predicted, score, source="a"):
    return {
        "image_id": image_id,
        "source": source,
        "position": 0,
        "label": label,
        "predicted_class": predicted,
        "score": score,
        "probabilities": [score, 1 - score],
        "brightness": 0.5,
        "width": 227,
        "height": 227,
        "image_sha256": "0" * 64,
        "model_fingerprint": "f" * 64,
    }


ROWS = [
    prediction("a/1.jpg", "crack", "crack", 0.75),
    prediction("a/2.jpg", "crack", "sound", 0.5),
    prediction("b/1.jpg", "sound", "crack", 1.0, source="b"),
    prediction("b/2.jpg", None, "crack", 0.625, source="b"),
]
UNITS = pa.Table.from_pylist(
    [
        {"unit": "0-x", "source": "a", "images": 2, "predictions": 2, "failures": 0, "seconds": 0.5, "error": None},
        {"unit": "1-y", "source": "b", "images": 3, "predictions": 2, "failures": 1, "seconds": 2.0, "error": "cut"},
    ],
    schema=query.UNIT_SCHEMA,
)
FAILURE = {
    "image_id": "b/3.jpg",
    "source": "b",
    "position": 2,
    "stage": "decode",
    "code": "truncated",
    "message": "cut",
}


@pytest.fixture
def connection(tmp_path):
    parts = []
    for number, rows in enumerate((ROWS[:2], ROWS[2:])):
        parts.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA), parts[-1])
    failures = str(tmp_path / "failures.parquet")
    pq.write_table(pa.Table.from_pylist([FAILURE], schema=FAILURE_SCHEMA), failures)
    with query.connect(parts, [failures], UNITS) as opened:
        yield opened


def test_tables_hold_the_parts(connection):
    joined = query.run_sql(
        connection,
        "SELECT p.source, count(*) AS n, max(u.seconds) AS s FROM predictions p JOIN units u USING (source) "
        "GROUP BY ALL ORDER BY ALL",
    )
    assert joined.to_pylist() == [{"source": "a", "n": 2, "s": 0.5}, {"source": "b", "n": 2, "s": 2.0}]
    assert query.run_sql(connection, "SELECT code FROM failures").to_pylist() == [{"code": "truncated"}]


def test_a_run_without_parts_has_empty_tables_with_their_columns():
    with query.connect([], [], query.UNIT_SCHEMA.empty_table()) as connection:
        empty = query.run_sql(connection, "SELECT * FROM predictions")
        assert (empty.num_rows, empty.column_names) == (0, PREDICTION_SCHEMA.names)
        assert query.run_sql(connection, "SELECT * FROM failures").column_names == FAILURE_SCHEMA.names
        assert query.run_sql(connection, "SELECT count(*) AS n FROM units").to_pylist() == [{"n": 0}]
        assert query.format_table(empty, "json") == "[]\n"


def test_parts_of_an_object_store_are_read():
    with fsspec.open("memory://run/part.parquet", "wb") as stream:
        pq.write_table(pa.Table.from_pylist(ROWS, schema=PREDICTION_SCHEMA), stream)
    with query.connect(["memory://run/part.parquet"], [], UNITS) as connection:
        assert query.run_sql(connection, "SELECT count(*) AS n FROM predictions").to_pylist() == [{"n": 4}]


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.parquet"):
        query.connect([str(tmp_path / "gone.parquet")], [], UNITS)


def test_a_damaged_part_is_an_input_error(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is none")
    with query.connect([str(tmp_path / "bad.parquet")], [], UNITS) as connection, pytest.raises(InputError) as caught:
        query.run_sql(connection, "SELECT * FROM predictions")
    assert "bad.parquet" in str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "COPY units TO '{target}'",
        "EXPORT DATABASE '{target}'",
        "ATTACH '{target}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/etc']",
        "RESET lock_configuration",
    ],
)
def test_the_rest_of_the_machine_is_out_of_reach(connection, tmp_path, sql):
    target = tmp_path / "target"
    with pytest.raises(InputError, match=r"disabled|locked"):
        query.run_sql(connection, sql.format(target=target))
    assert not target.exists()


def test_python_variables_are_out_of_reach(connection, monkeypatch):
    monkeypatch.setattr(query, "secret", pa.table({"x": [1]}), raising=False)
    with pytest.raises(InputError, match="secret does not exist"):
        query.run_sql(connection, "SELECT * FROM secret")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM units", '"nope" not found'),
        ("SELECT 1 FROM (", "syntax error"),
        ("SELECT error('first\nsecond')", "first second"),
        ("SELECT CAST(unit AS INTEGER) FROM units", "Could not convert"),
        ("", "gives no table"),
    ],
)
def test_bad_sql_is_an_input_error_of_one_line(connection, sql, said):
    with pytest.raises(InputError) as caught:
        query.run_sql(connection, sql)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aligned_table(connection):
    result = query.run_sql(
        connection, "SELECT image_id AS id, label, score, probabilities FROM predictions ORDER BY score DESC LIMIT 2"
    )
    assert query.format_table(result, "table") == (
        "id       label  score  probabilities\n"
        "-------  -----  -----  -------------\n"
        "b/1.jpg  sound      1  [1, 0]\n"
        "a/1.jpg  crack   0.75  [0.75, 0.25]\n"
        "(2 rows)\n"
    )


def test_table_shows_null_and_defuses_terminal_codes(connection):
    text = query.format_table(query.run_sql(connection, "SELECT NULL AS a, 'x' || chr(27) || '[2J' AS b"), "table")
    assert text.splitlines()[2].split() == ["NULL", "x\ufffd[2J"]


def test_json_keeps_lists_nulls_and_numbers(connection):
    result = query.run_sql(
        connection,
        "SELECT label, probabilities, 'nan'::FLOAT AS nan, sum(2) AS total, DATE '2020-01-31' AS day, {'a': [1]} AS s, "
        "1.5::DECIMAL(4, 1) AS part, 1 AS twice, 2 AS twice FROM predictions WHERE image_id = 'b/2.jpg' GROUP BY ALL",
    )
    (row,) = json.loads(query.format_table(result, "json"))
    assert row == {
        "label": None,
        "probabilities": [0.625, 0.375],
        "nan": None,
        "total": 2,
        "day": "2020-01-31",
        "s": {"a": [1]},
        "part": 1.5,
        "twice": 1,
        "twice_2": 2,
    }


def test_csv_has_lists_as_json_and_empty_nulls(connection):
    result = query.run_sql(
        connection,
        "SELECT label, '\"a\", b' AS text, probabilities, sum(width) AS w FROM predictions WHERE source = 'b' "
        "GROUP BY ALL ORDER BY label NULLS LAST",
    )
    rows = list(csv.DictReader(io.StringIO(query.format_table(result, "csv"))))
    assert rows[0] == {"label": "sound", "text": '"a", b', "probabilities": "[1.0, 0.0]", "w": "227"}
    assert rows[1]["label"] == ""


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="yaml"):
        query.format_table(UNITS, "yaml")


def test_describe_names_columns_and_examples_work(connection):
    text = query.describe(connection)
    for name in (*PREDICTION_SCHEMA.names, *FAILURE_SCHEMA.names, *query.UNIT_SCHEMA.names):
        assert name in text
    results = []
    for title, sql in query.EXAMPLES:
        assert title in text
        assert sql in text
        results.append(query.run_sql(connection, sql).to_pylist())
    assert [row["image_id"] for row in results[0]] == ["b/1.jpg", "a/2.jpg"]
    assert [(row["source"], row["predicted_class"], row["images"]) for row in results[1]] == [
        ("a", "crack", 1),
        ("a", "sound", 1),
        ("b", "crack", 2),
    ]
    assert [row["unit"] for row in results[2]] == ["1-y", "0-x"]
    assert [(row["code"], row["images"]) for row in results[3]] == [("truncated", 1)]


def test_duckdb_leaves_no_file_behind(connection, tmp_path):
    before = sorted(tmp_path.iterdir())
    query.run_sql(connection, "CREATE TABLE kept AS SELECT * FROM predictions")
    assert query.run_sql(connection, "SELECT count(*) AS n FROM kept").to_pylist() == [{"n": 4}]
    assert sorted(tmp_path.iterdir()) == before
    assert not Path(".tmp").exists()
