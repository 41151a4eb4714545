"""Asks DuckDB about a table of files, as README says how to.

    python lake.py FOLDER SQL    prints the rows as one JSON document: {"columns": [[name, type]], "rows": [[value]]}

In the SQL `$files` is what README's `jq` makes of the newest version's manifest: the files' paths, quoted, with commas.
Paths are relative to FOLDER, the table's.
"""

import json
import os
import sys


def main(folder: str, sql: str) -> None:
    import duckdb

    os.chdir(folder)
    with open("_haulage/table.json", encoding="utf-8") as state:
        manifest = json.load(state)["head"]["manifest"]
    with open(manifest, encoding="utf-8") as text:
        files = json.load(text)["files"]
    found = duckdb.connect().execute(sql.replace("$files", ",".join("'" + file["path"] + "'" for file in files)))
    columns = [[column[0], str(column[1])] for column in found.description]
    print(json.dumps({"columns": columns, "rows": found.fetchall()}, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
