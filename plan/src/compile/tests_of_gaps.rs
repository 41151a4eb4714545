//! What is still found in a file with gaps: parameters without a value, broken sources, unknown columns. And that one
//! mistake is not reported twice.

use std::collections::BTreeMap;

use crate::{Draft, Sound};

const FILE: &str = "\
pipeline: p
params:
  day: date
  unit: text
  least: {type: int, default: 5}
sources:
  raw: {csv: 'd/{{ day }}.csv', columns: {id: int!, carrier: text, delay: int, at: timestamp}}
  bare: {csv: 'b/{{ day }}.csv'}
steps:
  late: SELECT id, carrier, delay FROM raw WHERE delay > $least AND at < $day
  judged:
    from: late
    reject:
      odd: delay > $least * 100
  cut: SELECT id, date_trunc($unit, at) AS at FROM raw
  loose: SELECT * FROM bare
loads:
  late: {from: judged, to: w, table: late, mode: append}
  cut: {from: cut, to: w, table: cut, mode: append}
";

/// Checks the file with `sound` replaced by `broken`, without any parameter given.
fn check(sound: &str, broken: &str) -> Result<Sound, Vec<String>> {
    assert!(FILE.contains(sound), "{sound:?} is not in the file");
    let draft = Draft::of(&FILE.replacen(sound, broken, 1), "p.yaml", &BTreeMap::new());
    draft.check(&BTreeMap::new()).map_err(|wrong| {
        let line = |one: &crate::Diagnostic| format!("{} {}", one.place.line, one.message);
        wrong.iter().map(line).collect()
    })
}

fn found(sound: &str, broken: &str) -> Vec<String> {
    check(sound, broken).expect_err("a mistake")
}

#[test]
fn parameters_without_a_value_are_named_and_leave_nothing_unchecked() {
    let sound = check("", "").expect("a sound file");
    assert_eq!(sound.open, ["day", "unit"]);
    assert_eq!(sound.unchecked, ["bare"]);
    for (right, wrong, expected) in [
        ("SELECT id, carrier", "SELECT id, carier", "10 unknown column `carier`"),
        ("at < $day", "at < $dya", "10 unknown parameter `$dya`"),
        ("at < $day", "$day", "10 "),
        ("odd: delay", "odd: dealy", "14 unknown column `dealy`"),
        ("FROM bare", "FROM bear", "16 step `loose` reads `bear`"),
        ("SELECT * FROM bare", "SELEC * FROM bare", "16 "),
        ("cut, mode", "cut, key: [idd], mode", "19 "),
    ] {
        let found = found(right, wrong);
        assert!(
            matches!(found.as_slice(), [only] if only.starts_with(expected)),
            "{wrong:?}: {found:?}"
        );
    }
}

#[test]
fn a_load_with_provenance_has_its_columns_alone() {
    let marked = "table: cut, mode: append, provenance: true";
    check("table: cut, mode: append", marked).expect("sound");
    let text = FILE.replacen("table: cut, mode: append", marked, 1);
    let text = text.replacen("AS at FROM raw", "AS _haulage_line FROM raw", 1);
    let draft = Draft::of(&text, "p.yaml", &BTreeMap::new());
    let wrong = draft.check(&BTreeMap::new()).expect_err("a name that is taken");
    let found: Vec<&str> = wrong.iter().map(|one| one.message.as_str()).collect();
    assert_eq!(
        found,
        ["load `cut` has a column `_haulage_line`, which `provenance` adds"]
    );
}

#[test]
fn a_run_wants_the_values_and_says_the_rest_beside_it() {
    let text = FILE.replacen("SELECT id, carrier", "SELECT id, carier", 1);
    let draft = Draft::of(&text, "p.yaml", &BTreeMap::new()).require_values();
    let wrong = draft.check(&BTreeMap::new()).expect_err("two values and a column");
    let found: Vec<&str> = wrong.iter().map(|one| one.message.as_str()).collect();
    assert_eq!(
        found[..2],
        ["the parameter `day` has no value", "the parameter `unit` has no value"]
    );
    assert!(found[2].starts_with("unknown column `carier`"), "{found:?}");
}

#[test]
fn a_wrong_key_hides_no_mistake_in_the_sql() {
    let text = FILE
        .replacen("loads:", "load:", 1)
        .replacen("SELECT id, carrier", "SELECT id, carier", 1);
    let draft = Draft::of(&text, "p.yaml", &BTreeMap::new());
    let wrong = draft.check(&BTreeMap::new()).expect_err("two mistakes").to_string();
    assert!(wrong.contains("unknown key `load`"), "{wrong}");
    assert!(wrong.contains("unknown column `carier`"), "{wrong}");
}

#[test]
fn what_reads_a_broken_table_is_not_blamed_for_it() {
    for (sound, broken, expected) in [
        ("id: int!,", "id: itn!,", "7 unknown type `itn`"),
        (
            "raw: {csv: ",
            "raw: {cvs: ",
            "7 source `raw` doesn't say where its rows are",
        ),
        ("sources:", "sorces:", "1 the file has no `sources`"),
        (
            "from: late\n",
            "from: [late]\n",
            "12 `from` of step `judged` must be a text",
        ),
        ("day: date", "day: {type: dte}", "3 unknown type `dte`"),
        (
            "day: date",
            "day: {type: date, default: soon}",
            "3 the default of `day` is not a date",
        ),
        ("day: date", "dya: date", "7 the path names an unknown parameter `day`"),
    ] {
        let found = found(sound, broken);
        assert!(found[0].starts_with(expected), "{broken:?}: {found:?}");
        let wrong_sql = found
            .iter()
            .any(|one| one.contains("reads `") || one.contains("unknown column"));
        assert!(!wrong_sql, "{broken:?}: {found:?}");
    }
}
