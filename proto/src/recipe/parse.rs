//! From text to a recipe. Keys are put one by one into the table of defaults, so that every complaint knows its key,
//! its value and where it was set.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::error::{Origin, RecipeError};
use super::types::{DataKind, Recipe, Shortcut};
use super::{builtin, check};

impl Recipe {
    /// What a recipe that says nothing of it has on GPUs; for [`load_over`](Self::load_over).
    pub const ON_GPUS: [&str; 2] = ["train.reduction=fast", "train.bucket_bytes=8388608"];

    /// Reads, resolves and checks. `source` names the text in errors; its file stem is the name of a recipe that has
    /// none.
    ///
    /// # Errors
    /// Anything but an I/O error.
    pub fn from_toml(text: &str, source: &str) -> Result<Self, RecipeError> {
        Self::build(text, source, (&[], &[]))
    }

    /// The same, then applies `--set a.b=c` in order.
    ///
    /// # Errors
    /// Anything but an I/O error.
    pub fn with_sets(text: &str, source: &str, sets: &[String]) -> Result<Self, RecipeError> {
        Self::build(text, source, (&[], sets))
    }

    /// Reads a built-in recipe or a file, then applies `--set a.b=c` in order. A value is TOML; one that is not is a
    /// string.
    ///
    /// # Errors
    /// An unknown name (64), a missing file (66), or anything wrong with the recipe (64).
    pub fn load(name_or_path: &str, sets: &[String]) -> Result<Self, RecipeError> {
        Self::load_over(&[], name_or_path, sets)
    }

    /// The same, where `defaults`, written as `a.b=c`, stand in for keys that nobody sets.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_over(defaults: &[String], name_or_path: &str, sets: &[String]) -> Result<Self, RecipeError> {
        if let Some(found) = builtin().iter().find(|builtin| builtin.name == name_or_path) {
            return Self::build(found.toml, found.name, (defaults, sets));
        }
        let path = Path::new(name_or_path);
        match std::fs::read_to_string(path) {
            Ok(text) => Self::build(&text, name_or_path, (defaults, sets)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_found(name_or_path)),
            Err(error) => Err(RecipeError::Unreadable { path: path.to_owned(), error }),
        }
    }

    /// The resolved recipe with every key: what the run directory keeps.
    pub fn to_toml(&self) -> String {
        // invariant: a recipe holds tables, strings, numbers, booleans and lists of numbers only
        toml::to_string(self).unwrap_or_default()
    }

    fn build(text: &str, source: &str, (defaults, sets): (&[String], &[String])) -> Result<Self, RecipeError> {
        let mut settings = defaults.iter().map(|set| parse_set(set)).collect::<Result<Vec<_>, _>>()?;
        settings.extend(file_settings(text, source)?);
        for set in sets {
            settings.push(parse_set(set)?);
        }
        let mut recipe = Table::new();
        let mut origins = BTreeMap::new();
        for Setting { path, value, at } in settings {
            apply(&mut recipe, &path, value, &at)?;
            origins.insert(path.join("."), at);
        }
        // invariant: every key was tried when it was applied
        let recipe = Recipe::deserialize(Value::Table(recipe)).map_err(|error| RecipeError::Syntax {
            at: Origin::Line { source: source.to_owned(), line: 1 },
            what: error.message().to_owned(),
        })?;
        let is_set = |key: &str| origins.contains_key(key);
        let recipe = recipe.resolved(source, is_set);
        check::check(&recipe).map_err(|error| match error {
            RecipeError::Value { key, value, expected, .. } => {
                RecipeError::Value { at: origins.get(&key).cloned(), key, value, expected }
            }
            other => other,
        })?;
        Ok(recipe)
    }

    /// Fills in what depends on other keys.
    fn resolved(mut self, source: &str, is_set: impl Fn(&str) -> bool) -> Self {
        if self.name.is_empty() {
            let stem = Path::new(source).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            self.name = stem.unwrap_or_default();
        }
        if self.data.path.is_empty() {
            self.data.path = match self.data.kind {
                DataKind::Cifar10 => "data/cifar-10-batches-bin".to_owned(),
                DataKind::Cifar100 => "data/cifar-100-binary".to_owned(),
                DataKind::Shapes => String::new(),
                DataKind::ImageFolder => "data/imagenet".to_owned(),
                DataKind::Webdataset => "data/imagenet-shards".to_owned(),
            };
        }
        if !is_set("model.width") {
            self.model.width = self.model.usual_width();
        }
        if self.model.arch.is_imagenet() && !is_set("model.shortcut") {
            self.model.shortcut = Shortcut::B;
        }
        self
    }
}

/// One key that somebody set.
struct Setting {
    path: Vec<String>,
    value: Value,
    at: Origin,
}

fn file_settings(text: &str, source: &str) -> Result<Vec<Setting>, RecipeError> {
    let line = |span: Option<Range<usize>>| {
        let before = text.as_bytes().get(..span.map_or(0, |span| span.start)).unwrap_or_default();
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    };
    let syntax = |error: toml::de::Error| RecipeError::Syntax {
        at: Origin::Line { source: source.to_owned(), line: line(error.span()) },
        what: error.message().to_owned(),
    };
    let spanned = DeTable::parse(text).map_err(syntax)?;
    let values: Table = toml::from_str(text).map_err(syntax)?;
    let mut settings = Vec::new();
    let mut visit = |path: &[String], value: Value, span: Range<usize>| {
        let at = Origin::Line { source: source.to_owned(), line: line(Some(span)) };
        settings.push(Setting { path: path.to_vec(), value, at });
    };
    walk(&known(), spanned.get_ref(), values, &mut Vec::new(), &mut visit);
    Ok(settings)
}

/// Visits what is to be set: tables of the recipe are entered, anything else is a value.
fn walk(
    known: &Table,
    spans: &DeTable<'_>,
    values: Table,
    path: &mut Vec<String>,
    visit: &mut impl FnMut(&[String], Value, Range<usize>),
) {
    let spans: BTreeMap<&str, _> = spans.iter().map(|(key, value)| (key.get_ref().as_ref(), (key, value))).collect();
    for (name, value) in values {
        // invariant: both were parsed from the same text
        let Some((key, spanned)) = spans.get(name.as_str()) else { continue };
        path.push(name.clone());
        match (known.get(&name), spanned.get_ref(), value) {
            (Some(Value::Table(known)), DeValue::Table(spans), Value::Table(values)) => {
                walk(known, spans, values, path, visit);
            }
            (_, _, value) => visit(path, value, key.span()),
        }
        path.pop();
    }
}

fn parse_set(text: &str) -> Result<Setting, RecipeError> {
    let wrong = |what: &str| RecipeError::Set { text: text.to_owned(), what: what.to_owned() };
    let (key, value) = text.split_once('=').ok_or_else(|| wrong("no `=`"))?;
    let path: Vec<String> = key.trim().split('.').map(|part| part.trim().to_owned()).collect();
    if path.iter().any(String::is_empty) {
        return Err(wrong("the key is empty"));
    }
    let value = value.trim();
    let value = match toml::from_str::<Table>(&format!("value = {value}")) {
        Ok(mut table) if table.len() == 1 => table.remove("value"),
        _ => None,
    }
    .unwrap_or_else(|| Value::String(value.to_owned()));
    Ok(Setting { path, value, at: Origin::Set { text: text.to_owned() } })
}

/// Every key with its default.
pub(super) fn known() -> Table {
    // invariant: a recipe is a table
    Table::try_from(Recipe::default()).unwrap_or_default()
}

/// Sets one key of `recipe`, after it was tried on the defaults.
fn apply(recipe: &mut Table, path: &[String], value: Value, at: &Origin) -> Result<(), RecipeError> {
    let known = known();
    let key = path.join(".");
    match lookup(&known, path) {
        None => return Err(RecipeError::UnknownKey { nearest: nearest_key(&known, path), key, at: at.clone() }),
        // `data.augment = { … }` on the command line: each of its keys in turn.
        Some(Value::Table(_)) if value.is_table() => {
            let Value::Table(values) = value else { return Ok(()) };
            for (name, value) in values {
                apply(recipe, &[path, &[name]].concat(), value, at)?;
            }
            return Ok(());
        }
        Some(_) => {}
    }
    let mut trial = known;
    insert(&mut trial, path, value.clone());
    if let Err(error) = Recipe::deserialize(Value::Table(trial)) {
        let expected = expected(error.message());
        return Err(RecipeError::Value { key, value: value.to_string(), expected, at: Some(at.clone()) });
    }
    insert(recipe, path, value);
    Ok(())
}

fn lookup<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(first)?;
    if rest.is_empty() { Some(value) } else { lookup(value.as_table()?, rest) }
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => {
            table.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let inner = table.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// All keys with their values, tables entered.
pub(super) fn flatten(table: &Table) -> BTreeMap<String, Value> {
    fn enter(table: &Table, prefix: &str, into: &mut BTreeMap<String, Value>) {
        for (name, value) in table {
            match value {
                Value::Table(inner) => enter(inner, &format!("{prefix}{name}."), into),
                other => {
                    into.insert(format!("{prefix}{name}"), other.clone());
                }
            }
        }
    }
    let mut keys = BTreeMap::new();
    enter(table, "", &mut keys);
    keys
}

/// The key or table with the most similar last part; of equals, one in the same table.
fn nearest_key(known: &Table, path: &[String]) -> Option<String> {
    let (name, parent) = path.split_last()?;
    let parent = parent.join(".");
    let tables = known.iter().filter(|(_, value)| value.is_table()).map(|(name, _)| name.clone());
    let keys = flatten(known).into_keys().chain(tables);
    let scored = keys.map(|key| {
        let (table, last) = key.rsplit_once('.').unwrap_or(("", &key));
        let mut distance = strsim::osa_distance(&name.to_lowercase(), last);
        if name.len() >= 4 && last.contains(name.as_str()) {
            distance = distance.min(2); // `workers` means `min_workers`
        }
        (distance * 2 + usize::from(table != parent), distance, key)
    });
    let (_, distance, key) = scored.min()?;
    (distance <= 1 + name.chars().count() / 3).then_some(key)
}

/// What the deserialiser expected, in the words of someone who writes TOML.
fn expected(message: &str) -> String {
    let what = message.rsplit_once("expected ").map_or(message, |(_, what)| what).trim();
    match what {
        "u64" | "u32" | "i64" | "a nonzero u32" => "a whole number that is not negative".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ if what.starts_with("struct ") => "a table".to_owned(),
        _ if what.starts_with('`') => what.replace('`', "\"").replace(" or ", ", "),
        _ if what.starts_with("one of ") => what.replace('`', "\""),
        _ => what.to_owned(),
    }
}

fn not_found(name: &str) -> RecipeError {
    let bare = name.strip_prefix("recipes/").unwrap_or(name);
    let bare = bare.strip_suffix(".toml").unwrap_or(bare);
    let scored = builtin().iter().map(|builtin| {
        let last = builtin.name.rsplit('/').next().unwrap_or(builtin.name);
        (strsim::osa_distance(bare, builtin.name).min(strsim::osa_distance(bare, last)), builtin.name)
    });
    let nearest = scored.min().filter(|(distance, _)| *distance <= 1 + bare.chars().count() / 3);
    let nearest = nearest.map(|(_, name)| name.to_owned());
    if name.ends_with(".toml") || name.starts_with(['.', '/']) {
        RecipeError::NotFound { path: PathBuf::from(name), nearest }
    } else {
        RecipeError::UnknownRecipe { name: name.to_owned(), nearest }
    }
}
