//! A web server of files with ranges, for trying shards behind a URL:
//! `cargo run -p lockstep-data --example serve -- FOLDER [LATE_MS [ERRORS_EVERY]]`. With LATE_MS every tar file's answer waits
//! so long, with ERRORS_EVERY each so-manieth is a 503. Prints its address; ends with its standard input, and then says how
//! often tar files were asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use tower_http::services::ServeDir;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(folder) = args.next() else {
        eprintln!("which folder?");
        std::process::exit(64);
    };
    let mut number = || args.next().and_then(|text| text.parse().ok()).unwrap_or(0_u64);
    let (late, every) = (Duration::from_millis(number()), number());
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let slow = from_fn(move |request: Request, next: Next| {
        let is_shard = request.uri().path().ends_with(".tar");
        let number = if is_shard { count.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        async move {
            if is_shard {
                tokio::time::sleep(late).await;
            }
            let fails = is_shard && every > 0 && number.is_multiple_of(every);
            if fails { StatusCode::SERVICE_UNAVAILABLE.into_response() } else { next.run(request).await }
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    println!("http://{}", listener.local_addr()?);
    let files = axum::Router::new().fallback_service(ServeDir::new(folder)).layer(slow);
    runtime.spawn(async move { axum::serve(listener, files).await });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    println!("{} requests", asked.load(Ordering::Relaxed));
    Ok(())
}
