//! TLS between the coordinator and everyone who calls it: PEM files, named by flags.
//!
//! | side | certificate and key | authority |
//! |---|---|---|
//! | coordinator | its own | whoever calls must show a certificate of it: mutual TLS |
//! | caller | what it shows, where it is asked | the coordinator's certificate must be of it |

use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::exit::ExitCode;

/// Which files; all may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, own one first.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Certificates of the authority.
    pub ca: Option<PathBuf>,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("{flag} {}: {error}", path.display())]
    Unreadable {
        /// Which.
        flag: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A certificate without its key, or the other way round.
    #[error("{given} needs {missing} too: a certificate is of use only with its key")]
    Half {
        /// What is there.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// A coordinator that could check certificates and has none.
    #[error(
        "--tls-ca asks callers for certificates over TLS; that needs --tls-cert and --tls-key, the coordinator's own"
    )]
    NoIdentity,
    /// Nothing to check the other side with.
    #[error("{url}: https needs --tls-ca, the authority that signed the coordinator's certificate")]
    NoAuthority {
        /// Who was to be called.
        url: String,
    },
    /// Files that would not be used.
    #[error("{url}: TLS files are given, but the address says http; write https://")]
    Unused {
        /// Who was to be called.
        url: String,
    },
}

impl TlsError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreadable { .. } => ExitCode::NoInput,
            _ => ExitCode::Usage,
        }
    }
}

impl TlsFiles {
    /// Whether a coordinator with them asks callers for a certificate.
    pub fn is_mutual(&self) -> bool {
        self.ca.is_some()
    }

    /// A coordinator's side; `None` without files.
    ///
    /// # Errors
    /// Files that cannot be read or do not go together. What is in them is checked when it is used.
    pub fn server(&self) -> Result<Option<ServerTlsConfig>, TlsError> {
        let authority = self.authority()?;
        match (self.identity()?, authority) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(TlsError::NoIdentity),
            (Some(identity), None) => Ok(Some(ServerTlsConfig::new().identity(identity))),
            (Some(identity), Some(ca)) => Ok(Some(ServerTlsConfig::new().identity(identity).client_ca_root(ca))),
        }
    }

    /// A caller's side; `None` where `url` is not https.
    ///
    /// # Errors
    /// Files that cannot be read, or do not go together or with the URL.
    pub fn client(&self, url: &str) -> Result<Option<ClientTlsConfig>, TlsError> {
        let url = || url.to_owned();
        let (identity, authority) = (self.identity()?, self.authority()?);
        match (url().starts_with("https://"), identity, authority) {
            (false, None, None) => Ok(None),
            (false, ..) => Err(TlsError::Unused { url: url() }),
            (true, _, None) => Err(TlsError::NoAuthority { url: url() }),
            (true, None, Some(ca)) => Ok(Some(ClientTlsConfig::new().ca_certificate(ca))),
            (true, Some(identity), Some(ca)) => Ok(Some(ClientTlsConfig::new().ca_certificate(ca).identity(identity))),
        }
    }

    fn identity(&self) -> Result<Option<Identity>, TlsError> {
        match (&self.cert, &self.key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some(Identity::from_pem(read("--tls-cert", cert)?, read("--tls-key", key)?))),
            (Some(_), None) => Err(TlsError::Half { given: "--tls-cert", missing: "--tls-key" }),
            (None, Some(_)) => Err(TlsError::Half { given: "--tls-key", missing: "--tls-cert" }),
        }
    }

    fn authority(&self) -> Result<Option<Certificate>, TlsError> {
        self.ca.as_deref().map(|ca| Ok(Certificate::from_pem(read("--tls-ca", ca)?))).transpose()
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Unreadable { flag, path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T>(result: Result<T, TlsError>) -> (ExitCode, String) {
        match result {
            Ok(_) => panic!("was accepted"),
            Err(error) => (error.exit_code(), error.to_string()),
        }
    }

    #[test]
    fn files_that_do_not_go_together_are_refused_with_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "PEM").unwrap();
            Some(path)
        };
        let (cert, key, ca) = (file("cert"), file("key"), file("ca"));
        let half = TlsFiles { cert: cert.clone(), ..TlsFiles::default() };
        assert!(refused(half.server()).1.contains("--tls-key"));
        let other_half = TlsFiles { key: key.clone(), ..TlsFiles::default() };
        assert!(refused(other_half.client("https://a:1")).1.contains("--tls-cert"));
        let only_ca = TlsFiles { ca: ca.clone(), ..TlsFiles::default() };
        assert_eq!(refused(only_ca.server()).0, ExitCode::Usage);
        assert!(only_ca.client("https://a:1").unwrap().is_some());
        assert!(refused(only_ca.client("http://a:1")).1.contains("https://"));
        let all = TlsFiles { cert, key, ca };
        assert!(all.server().unwrap().is_some() && all.is_mutual());
        let none = TlsFiles::default();
        assert!(none.server().unwrap().is_none() && none.client("http://a:1").unwrap().is_none());
        assert!(refused(none.client("https://a:1")).1.contains("--tls-ca"));
        let lost = TlsFiles { ca: Some("/nowhere/ca.crt".into()), ..TlsFiles::default() };
        assert_eq!(refused(lost.client("https://a:1")).0, ExitCode::NoInput);
    }
}
