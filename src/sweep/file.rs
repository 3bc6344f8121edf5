//! A sweep file: one table of results, as TOML.
//!
//! ```toml
//! title = "Block variants, 20 layers"        # above the table; the file's name if there is none
//! recipe = "cifar10/resnet20"                # a built-in recipe, or a file relative to this one
//! seeds = [0, 1, 2]                          # of every row that names none; [0] if there are none
//! [set]                                      # keys of the recipe, for every row
//! model.init = "seed"
//! [[row]]
//! label = "ReLU, BN after add"
//! set.model.bn_position = "after_add"        # may also have: recipe, seeds, seed_test_error, paper_test_error, note
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::builtin as recipes;
use serde::Deserialize;
use toml::{Spanned, Table, Value};

use crate::failure::Failure;

/// Keys of a file and of a row.
const KEYS: [&str; 9] =
    ["title", "recipe", "seeds", "set", "row", "label", "seed_test_error", "paper_test_error", "note"];

/// A sweep file that makes sense by itself; whether its recipes do is found by [`Plan::new`](super::plan::Plan::new).
#[derive(Clone, Debug, PartialEq)]
pub struct SweepFile {
    /// The file's name without `.toml`: the name of the table.
    pub name: String,
    /// Heading of the table.
    pub title: String,
    /// Names the file in errors.
    pub source: String,
    /// Rows, in order.
    pub rows: Vec<FileRow>,
}

/// A row as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileRow {
    /// What the table calls it; unique in the file.
    pub label: String,
    /// Line of its `[[row]]`, from 1.
    pub line: usize,
    /// A built-in recipe, or a path.
    pub recipe: String,
    /// Keys that differ from that recipe, with values as TOML: the file's `[set]`, then the row's.
    pub sets: BTreeMap<String, String>,
    /// Its seeds; never empty.
    pub seeds: Vec<u64>,
    /// Published figures.
    pub reference: Reference,
}

/// What others published for a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    /// Test error of the public Torch7 project, a fraction.
    pub seed_test_error: Option<f64>,
    /// Test error of He et al. 2015, a fraction.
    pub paper_test_error: Option<f64>,
    /// What should be known about these figures.
    pub note: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    title: Option<String>,
    recipe: Option<String>,
    seeds: Option<Vec<u64>>,
    #[serde(default)]
    set: Table,
    #[serde(default)]
    row: Vec<Spanned<RowText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RowText {
    label: String,
    recipe: Option<String>,
    seeds: Option<Vec<u64>>,
    #[serde(default)]
    set: Table,
    seed_test_error: Option<f64>,
    paper_test_error: Option<f64>,
    note: Option<String>,
}

impl SweepFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read (66), or is not a sweep (64).
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| Failure::unreadable(path, error))?;
        Self::parse(&text, &path.display().to_string(), path.parent())
    }

    /// Makes sense of a text. `source` names it in errors and, without folder and ending, the table; `folder` is where
    /// relative recipes are looked for.
    ///
    /// # Errors
    /// Not TOML, an unknown key, or a value that makes no sense (64).
    pub fn parse(text: &str, source: &str, folder: Option<&Path>) -> Result<Self, Failure> {
        let line = |span: Option<Range<usize>>| line_of(text, span);
        let file: FileText = toml::from_str(text)
            .map_err(|error| usage(format!("{source}, line {}: {}", line(error.span()), explained(error.message()))))?;
        let name = Path::new(source).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let shared = flatten(&file.set);
        let seeds = file.seeds.unwrap_or_else(|| vec![0]);
        let mut labels = BTreeSet::new();
        let mut rows = Vec::new();
        for spanned in file.row {
            let line = line(Some(spanned.span()));
            let row = spanned.into_inner();
            let wrong = |what: String| usage(format!("{source}, line {line}: row {:?}: {what}", row.label));
            if !labels.insert(row.label.clone()) {
                return Err(wrong("a row of this label stands above; give it another label".into()));
            }
            let Some(recipe) = row.recipe.as_ref().or(file.recipe.as_ref()) else {
                return Err(wrong("has no recipe; name one here or, for all rows, above them".into()));
            };
            for (key, error) in [("seed_test_error", row.seed_test_error), ("paper_test_error", row.paper_test_error)] {
                if let Some(error) = error.filter(|error| !(0.0..=1.0).contains(error)) {
                    return Err(wrong(format!("`{key}` is {error}, expected a fraction from 0 to 1")));
                }
            }
            let seeds = row.seeds.clone().unwrap_or_else(|| seeds.clone());
            check_seeds(&seeds).map_err(wrong)?;
            let mut sets = shared.clone();
            sets.extend(flatten(&row.set));
            rows.push(FileRow {
                recipe: resolve(recipe, folder),
                line,
                sets,
                seeds,
                reference: Reference {
                    seed_test_error: row.seed_test_error,
                    paper_test_error: row.paper_test_error,
                    note: row.note.clone(),
                },
                label: row.label,
            });
        }
        if rows.is_empty() {
            return Err(usage(format!("{source}: has no [[row]]; a sweep is a table of at least one")));
        }
        Ok(Self { title: file.title.unwrap_or_else(|| name.clone()), name, source: source.to_owned(), rows })
    }
}

/// Seeds make sense when there is one, and none twice. TOML's numbers have 63 bits.
pub(super) fn check_seeds(seeds: &[u64]) -> Result<(), String> {
    if seeds.is_empty() {
        return Err("`seeds` is empty, expected at least one".into());
    }
    let mut seen = BTreeSet::new();
    match seeds.iter().find(|seed| !seen.insert(**seed) || i64::try_from(**seed).is_err()) {
        Some(seed) => Err(format!("`seeds` has {seed} twice, or it is larger than 9223372036854775807")),
        None => Ok(()),
    }
}

fn usage(reason: String) -> Failure {
    Failure::new(ExitCode::Usage, reason)
}

/// From 1.
fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let before = text.as_bytes().get(..span.map_or(0, |span| span.start)).unwrap_or_default();
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The parser's words, and the nearest key when one is unknown.
fn explained(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let key = rest.split('`').next().unwrap_or_default();
    let near = KEYS.iter().map(|known| (strsim::osa_distance(key, known), *known)).min();
    match near.filter(|(distance, _)| *distance <= 1 + key.chars().count() / 3) {
        Some((_, known)) => format!("unknown key `{key}`; did you mean `{known}`?"),
        None => format!("unknown key `{key}`; keys of the recipe go below [set] or, in a row, as set.KEY = VALUE"),
    }
}

/// A built-in name as it is; a path from the folder of the sweep. What is neither is left for the recipe's own error.
fn resolve(recipe: &str, folder: Option<&Path>) -> String {
    if recipes().iter().any(|known| known.name == recipe) {
        return recipe.to_owned();
    }
    let path: PathBuf = folder.unwrap_or(Path::new("")).join(recipe);
    let is_path = recipe.ends_with(".toml") || recipe.starts_with(['.', '/']) || path.is_file();
    if is_path { path.display().to_string() } else { recipe.to_owned() }
}

/// `a.b` → value, as TOML.
pub(super) fn flatten(table: &Table) -> BTreeMap<String, String> {
    fn enter(table: &Table, prefix: &str, into: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            match value {
                Value::Table(inner) => enter(inner, &format!("{prefix}{name}."), into),
                value => {
                    into.insert(format!("{prefix}{name}"), value.to_string());
                }
            }
        }
    }
    let mut keys = BTreeMap::new();
    enter(table, "", &mut keys);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SweepFile, String> {
        SweepFile::parse(text, "some/table.toml", Some(Path::new("some"))).map_err(|failure| failure.reason)
    }

    #[test]
    fn a_row_has_its_own_keys_over_those_of_the_file() {
        let file = parse(
            "title = \"A title\"\nrecipe = \"demo\"\nseeds = [3, 4]\n[set]\nmodel.n = 2\ntrain.batch = 8\n\
             [[row]]\nlabel = \"a\"\nset.model = { n = 5, final_relu = false }\nseed_test_error = 0.1\nnote = \"x\"\n\
             [[row]]\nlabel = \"b\"\nrecipe = \"../c.toml\"\nseeds = [1]\nset.data.kind = \"shapes\"\n",
        )
        .unwrap();
        assert_eq!((&*file.name, &*file.title), ("table", "A title"));
        let sets = |row: &FileRow| row.sets.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
        assert_eq!(sets(&file.rows[0]), ["model.final_relu=false", "model.n=5", "train.batch=8"]);
        assert_eq!(sets(&file.rows[1]), ["data.kind=\"shapes\"", "model.n=2", "train.batch=8"]);
        assert_eq!((&*file.rows[0].recipe, &*file.rows[1].recipe), ("demo", "some/../c.toml"));
        assert_eq!((&*file.rows[0].seeds, &*file.rows[1].seeds), (&[3, 4][..], &[1][..]));
        assert_eq!(file.rows[0].reference.seed_test_error, Some(0.1));
        assert_eq!((file.rows[0].line, file.rows[1].line), (7, 12));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let wrong = |text: &str| parse(text).unwrap_err();
        let row = "[[row]]\nlabel = \"a\"\n";
        let said = wrong(&format!("recipe = \"demo\"\ntitel = \"x\"\n{row}"));
        assert_eq!(said, "some/table.toml, line 2: unknown key `titel`; did you mean `title`?");
        let said = wrong(&format!("recipe = \"demo\"\n{row}model.n = 3\n"));
        let expected = "unknown key `model`; keys of the recipe go below [set] or, in a row, as set.KEY = VALUE";
        assert_eq!(said, format!("some/table.toml, line 4: {expected}"));
        let said = wrong(&format!("recipe = \"demo\"\n{row}\n{row}"));
        let expected = "row \"a\": a row of this label stands above; give it another label";
        assert_eq!(said, format!("some/table.toml, line 5: {expected}"));
        let said = wrong(row);
        let expected = "row \"a\": has no recipe; name one here or, for all rows, above them";
        assert_eq!(said, format!("some/table.toml, line 1: {expected}"));
        let said = wrong("recipe = \"demo\"\n");
        assert_eq!(said, "some/table.toml: has no [[row]]; a sweep is a table of at least one");
        let said = wrong(&format!("recipe = \"demo\"\n{row}seed_test_error = 8.29\n"));
        let expected = "row \"a\": `seed_test_error` is 8.29, expected a fraction from 0 to 1";
        assert_eq!(said, format!("some/table.toml, line 2: {expected}"));
        let said = wrong(&format!("recipe = \"demo\"\nseeds = []\n{row}"));
        assert_eq!(said, "some/table.toml, line 3: row \"a\": `seeds` is empty, expected at least one");
        assert!(wrong("recipe = \n").starts_with("some/table.toml, line 1: "));
        assert!(wrong("recipe = \"demo\"\n[[row]]\n").contains("missing field `label`"));
    }
}
