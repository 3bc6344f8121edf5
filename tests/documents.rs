//! What is written must be true.

use lockstep_proto::exit::ExitCode;

#[test]
fn the_readme_has_the_table_of_exit_codes() {
    let readme = include_str!("../README.md");
    let rows: Vec<(u8, &str)> = readme
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?))
        })
        .collect();
    let table: Vec<(u8, &str)> = ExitCode::ALL.iter().map(|code| (code.code(), code.meaning())).collect();
    assert_eq!(rows, table);
}

#[test]
fn every_recipe_in_the_folder_is_inside_the_program() {
    let mut files = Vec::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path.strip_prefix(&root).unwrap().with_extension("").display().to_string());
            }
        }
    }
    files.retain(|file| !file.starts_with("sweeps/"));
    let mut builtin: Vec<String> = lockstep_proto::recipe::builtin().iter().map(|r| r.name.to_owned()).collect();
    files.sort();
    builtin.sort();
    assert_eq!(files, builtin);
}

/// Code blocks of one language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(&*fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_queries_on_the_page_about_run_directories_run() {
    let dir = tempfile::tempdir().unwrap();
    lockstep_coordinator::store::Store::open(dir.path()).unwrap().close().unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("run.db")).unwrap();
    let queries = blocks(include_str!("../docs/reading-runs.md"), "sql");
    assert_eq!(queries.len(), 6);
    for query in queries {
        let mut statement = connection.prepare(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        let mut rows = statement.query([]).unwrap();
        while rows.next().unwrap_or_else(|error| panic!("{query}: {error}")).is_some() {}
    }
}

#[test]
fn the_columns_on_the_page_about_run_directories_exist() {
    let recipe = lockstep_proto::recipe::Recipe::default().to_toml();
    let contract = concat!(
        "step epoch generation world_size lr loss error samples images_per_s data_s compute_s comm_s ",
        "images train_loss train_error test_loss test_error test_error_top5 seconds ",
    );
    // Tables of a recipe, what the page itself builds, and words of pandas.
    let known: Vec<&str> =
        contract.split_whitespace().chain(["schedule", "train", "seed", "count", "mean", "min", "std"]).collect();
    let code = blocks(include_str!("../docs/reading-runs.md"), "python").join("\n");
    let mut found = 0;
    for word in code.split("[\"").skip(1).flat_map(|rest| rest.split(']').next().unwrap_or_default().split("\", \"")) {
        let word = word.trim_matches('"');
        assert!(known.contains(&word) || recipe.contains(&format!("{word} = ")), "no column or key `{word}`");
        found += 1;
    }
    assert!(found > 10, "{found}");
}
