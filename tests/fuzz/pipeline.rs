//! The pipeline file: whatever its text is, it is a pipeline or a list of mistakes, each at a place within the file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use haulage_plan::{Diagnostics, Draft};

use crate::corpus::{Corpus, mutate};
use crate::random::Random;

const OWN: [&str; 6] = [
    "pipeline: p\nsources: {a: {csv: a.csv, columns: {x: int!, y: text}}}\nsteps:\n  s: SELECT x, y FROM a WHERE x > 1\nloads:\n  l: {from: s, to: w, table: t, mode: append}\n",
    "pipeline: p\nparams: {day: {type: date, default: 2013-01-31}, n: int}\nsources:\n  a: {csv: \"{{ day }}.csv\", columns: {x: int}}\n  b: {json: b.jsonl, lookup: true, columns: {x: int, z: text}}\nsteps:\n  s: |\n    SELECT a.x, b.z\n    FROM a LEFT JOIN b ON b.x = a.x\n    WHERE a.x < $n\n  v: {from: s, reject: {odd: x % 2 = 1, none: z IS NULL}}\nloads:\n  l: {from: v, to: w, table: q.t, mode: merge, key: [x], keep_previous: 3}\nchecks:\n  - {unique: [x], load: l}\n  - {rejects: \"< 1%\", on_fail: warn}\n",
    "pipeline: p\nsources: &s {a: &a {csv: a.csv, columns: {x: int}}, b: *a}\nsteps: {s: >-\n  SELECT *\n  FROM a}\nloads: {l: {from: s, to: w, table: t, mode: replace}}\n",
    "pipeline: p\nsources:\n  o: {postgres: crm, table: public.orders}\n  r: {postgres: crm, query: \"SELECT id FROM orders WHERE at >= $day\", columns: {id: bigint!}}\n  n: {sqlite: n.db, table: notes}\nparams: {day: date}\nloads:\n  l: {from: r, to: w, table: t, mode: append}\n",
    "---\n%YAML 1.2\n---\npipeline: !!str p\n...\n---\n",
    "\u{feff}pipeline: \"p\\u00e9\\x41\"\r\nsources: {a: {parquet: a.parquet}}\r\n",
];
const SPECIAL: [&[u8]; 44] = [
    b": ",
    b"\n",
    b"\n  ",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b", ",
    b"'",
    b"\"",
    b"|\n",
    b">-\n",
    b"&a ",
    b"*a",
    b"!!int ",
    b"<<: ",
    b"#",
    b"\t",
    b"\r\n",
    b"? ",
    b"%",
    b"---\n",
    b"...\n",
    b"~",
    b"null",
    b"\0",
    "é".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{feff}".as_bytes(),
    b"{{ day }}",
    b"$day",
    b"$",
    b"SELECT ",
    b"(",
    b")",
    b" UNION ALL SELECT 1",
    b" CASE WHEN ",
    b"NOT ",
    b"999999999999999999999",
    b"-1",
    b"''",
    b"\\",
    b"\x1b[31m",
];
/// Pieces that nest, repeated.
const NESTING: [&[u8]; 14] = [
    b"[",
    b"{a: ",
    b"- ",
    b"? ",
    b"(",
    b"NOT ",
    b"- (",
    b"CASE WHEN ",
    b"SELECT * FROM (",
    b" AND x = 1",
    b" + x",
    b"((SELECT ",
    b"&a [*a, ",
    b"\n ",
];
/// What a submission may have at most.
const MOST: usize = 1 << 20;

pub(crate) fn corpus(folders: &[&Path]) -> Result<Corpus> {
    Corpus::new(&OWN, folders, &[".yaml", ".yml"])
}

pub(crate) fn case(random: &mut Random, corpus: &Corpus, folder: &Path) -> Result<usize> {
    let mut data = corpus.whole(random).to_vec();
    let other = corpus.whole(random);
    if !random.once_in(20) {
        mutate(&mut data, random, &SPECIAL, other);
    }
    if random.once_in(12) {
        let depth = if random.once_in(4) {
            random.below(100_000)
        } else {
            random.below(600)
        };
        let at = random.below(data.len() + 1);
        drop(data.splice(at..at, random.pick(&NESTING).repeat(depth)));
    }
    data.truncate(MOST);
    let text = String::from_utf8_lossy(&data);
    std::fs::write(folder.join("pipeline.yaml"), text.as_bytes())?;
    let mut params = BTreeMap::new();
    if random.once_in(2) {
        let value = *random.pick(&[&"2013-01-31", &"7", &"", &"x' OR 1 = 1", &"2013-02-30"]);
        params.insert("day".to_owned(), value.to_owned());
    }
    let mut draft = Draft::of(&text, "fuzz.yaml", &params);
    if random.once_in(2) {
        draft = draft.require_values();
    }
    // As `haulage validate` does it, with the SQL of every step.
    if let Err(wrong) = draft.check(&BTreeMap::new()) {
        check_mistakes(&wrong, &text)?;
    } else if let Err(wrong) = haulage_plan::parse_and_bind(&text, "fuzz.yaml", &params) {
        // Sound but for values that are missing.
        check_mistakes(&wrong, &text)?;
    }
    Ok(data.len())
}

/// Fails unless there are mistakes, each with a place in the file and a message that steers no terminal.
fn check_mistakes(wrong: &Diagnostics, text: &str) -> Result<()> {
    ensure!(!wrong.is_empty(), "refused without a mistake");
    // As YAML counts them.
    let lines: Vec<&str> = text
        .split('\n')
        .flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
        .collect();
    for one in wrong.iter() {
        let (line, column) = (one.place.line as usize, one.place.column as usize);
        let within = line == 0 || (column >= 1 && line <= lines.len() && column <= lines[line - 1].chars().count() + 1);
        ensure!(
            within,
            "a mistake at {line}:{column} of {} lines: {}",
            lines.len(),
            one.message
        );
    }
    let said = wrong.to_string();
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    ensure!(!said.contains(steers), "a message with control characters: {said:?}");
    Ok(())
}
