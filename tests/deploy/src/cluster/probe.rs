//! What a kubelet asks a container: over HTTP, and over gRPC by the standard health service.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::api::status;

const PATIENCE: Duration = Duration::from_secs(3);

/// Asks for a path; the status of the answer.
pub fn http(address: &str, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer); // the status is enough
    status(&answer)
}

/// Asks for the health of the server as a whole.
///
/// # Errors
/// When it does not answer, or not that it serves.
pub fn grpc(address: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(PATIENCE).timeout(PATIENCE);
        let mut client = HealthClient::new(endpoint.connect().await?);
        let answer = client.check(HealthCheckRequest { service: String::new() }).await?.into_inner();
        ensure!(answer.status() == ServingStatus::Serving, "it says {:?}", answer.status());
        Ok(())
    })
}
