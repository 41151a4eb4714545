//! What is wrong with a TLS connection to a database: a certificate that isn't trusted won't be a moment later, though the
//! driver gives it out as trouble with the network.

use std::io;

use rustls::{AlertDescription, Error};

/// What is wrong with a certificate, if that is what the error is about: the server's, or ours.
pub(crate) fn certificate(cause: &io::Error) -> Option<String> {
    match cause.get_ref()?.downcast_ref::<Error>()? {
        error @ (Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => Some(error.to_string()),
        error @ Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA,
        ) => Some(error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;

    use super::*;

    #[test]
    fn trouble_with_a_certificate_is_told_from_that_with_the_network() {
        let told = |error: Error| certificate(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert!(told(Error::InvalidCertificate(CertificateError::UnknownIssuer)).is_some());
        assert!(told(Error::AlertReceived(AlertDescription::CertificateRequired)).is_some());
        assert!(told(Error::AlertReceived(AlertDescription::InternalError)).is_none());
        assert!(certificate(&io::ErrorKind::ConnectionReset.into()).is_none());
    }
}
