//! The TLS side of every connection we open: one client configuration, made at the first use, so that a broker which
//! speaks only plain text never loads a root certificate.
//!
//! Roots are the bundled ones and the system's store together; `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the system's
//! paths. The crypto provider is named, because an implicit default panics as soon as two are linked.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

static SHARED: OnceLock<Arc<ClientConfig>> = OnceLock::new();

/// The configuration of this process: bundled and system roots. The first call reads the system's store (about 30 ms).
pub fn client_config() -> Arc<ClientConfig> {
    SHARED
        .get_or_init(|| {
            let native = rustls_native_certs::load_native_certs();
            for error in native.errors.iter().take(3) {
                log::warn!("a system root certificate cannot be used: {error}");
            }
            Arc::new(trusting(native.certs))
        })
        .clone()
}

/// A configuration that trusts the bundled roots and `extra`; certificates that are no usable root are left out.
pub fn trusting(extra: impl IntoIterator<Item = CertificateDer<'static>>) -> ClientConfig {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let (added, ignored) = roots.add_parsable_certificates(extra);
    log::debug!("TLS roots: {added} from the system, {ignored} unusable");
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_made_once() {
        assert!(Arc::ptr_eq(&client_config(), &client_config()));
    }
}
