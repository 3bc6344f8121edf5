//! A web server of files with ranges, for trying shards behind a URL:
//! `cargo run -p lockstep-data --example serve -- FOLDER`. Prints its address; ends with its standard input.

use std::path::PathBuf;

use tower_http::services::ServeDir;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("which folder?");
        std::process::exit(64);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    println!("http://{}", listener.local_addr()?);
    let files = axum::Router::new().fallback_service(ServeDir::new(folder));
    runtime.spawn(async move { axum::serve(listener, files).await });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)
}
