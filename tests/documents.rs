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
