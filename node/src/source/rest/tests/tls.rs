//! A server whose certificate nobody has signed.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;

use haulage_core::failure::Class;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::*;

/// Of this test alone; it signs itself, for a hundred years.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgePSvoV8ULJXxMi8c
C7uQSJHrt0m+07DwIGgm7+1tLRGhRANCAATLyHFFCv+CvVePacRCKIbXlzKKnkVf
qk+XcWR1fEhFoBqvXo8VPk+Npbbr6Sw5S8+xdGPDB+mdDNoc+EZkL3J5
-----END PRIVATE KEY-----
";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIUL+dRxLYEiQpZkV+vLUOnplAYmsowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyOTAzMjkyMloYDzIxMjYxMTA1
MDMyOTIyWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATLyHFFCv+CvVePacRCKIbXlzKKnkVfqk+XcWR1fEhFoBqvXo8VPk+N
pbbr6Sw5S8+xdGPDB+mdDNoc+EZkL3J5o2QwYjAdBgNVHQ4EFgQUjy1kgjGfjc0Y
TvSD4q9sCRlGQ4UwHwYDVR0jBBgwFoAUjy1kgjGfjc0YTvSD4q9sCRlGQ4UwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
IHAOz38djoAClWWRgc/3f0dcdvN0c5kg+lwQZzMorBqOAiEAuXlSMDZXLFjYffvw
s/BDrzCAG8+aQ2JoCHbw1keqj5g=
-----END CERTIFICATE-----
";

/// Takes connections for as long as the process lives, and says how many there were.
fn serve() -> (String, Arc<std::sync::atomic::AtomicUsize>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (Ok(mut connection), Ok(mut tls)) = (connection, ServerConnection::new(Arc::clone(&config))) else {
                return;
            };
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let mut stream = rustls::Stream::new(&mut tls, &mut connection);
            // A client that doesn't trust it goes away.
            drop(stream.write_all(b"HTTP/1.1 200 fine\r\ncontent-length: 2\r\n\r\n[]"));
        }
    });
    (address, taken)
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_said_at_once() {
    let (address, taken) = serve();
    let plain = Http::start(|_, _| Answer::new(200, "[]")).await.unwrap();
    let rest = RestSource {
        url: format!("{address}/orders"),
        ..declared(&plain)
    };
    let failure = refused(rest).await;
    assert_eq!(failure.class, Class::Permanent, "{failure}");
    for part in ["its certificate is not trusted", "SSL_CERT_FILE"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), 1, "it is asked once");
}
