//! The link over TLS, against a server with a root of its own.

use super::*;

/// A TLS server on loopback with the test certificate; gives back what the client sent first.
fn tls_server(listener: TcpListener, gate: Receiver<()>) -> std::thread::JoinHandle<Option<Vec<String>>> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_slice(include_bytes!("../../../fixtures/tls/server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../../fixtures/tls/server.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    beside(move || {
        let (socket, _) = listener.accept().ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        let session = rustls::ServerConnection::new(Arc::new(config)).ok()?;
        let mut server = tungstenite::accept(rustls::StreamOwned::new(session, socket)).ok()?;
        let filler = "x".repeat(20_000);
        for n in 0..500u64 {
            let frame = json!({"v":1,"type":"deliver","agent":"al","msg_id":n.to_string(),"seq":n,"payload":filler});
            server.send(Message::text(frame.to_string())).ok()?;
        }
        let _ = gate.recv_timeout(PATIENCE);
        let mut texts = Vec::new();
        loop {
            match server.read() {
                Ok(Message::Text(text)) => texts.push(text.to_string()),
                Ok(Message::Close(_)) => {
                    let _ = server.flush();
                    return Some(texts);
                }
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
}

#[test]
fn tls_with_a_private_root_carries_both_directions() {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let (listener, base) = listener();
    let base = base.replace("http:", "https:");
    let (open, gate) = crossbeam_channel::bounded(1);
    let server = tls_server(listener, gate);
    let root = CertificateDer::from_pem_slice(include_bytes!("../../../fixtures/tls/ca.pem")).unwrap();
    let trust = Some(Arc::new(crate::sys::tls::trusting([root])));
    let bench = Bench::new(&base, Options { trust, ..Options::default() });
    bench.connect(1);
    bench.opened(1);
    for n in 0..150 {
        bench.send(NodeCommand::Send { generation: 1, frame: ack(n, "y".repeat(200_000)) }).unwrap();
    }
    for n in 0..500 {
        match bench.note() {
            NodeNote::Frame { frame: FromEngine::Deliver(deliver), .. } => assert_eq!(deliver.seq, n),
            other => panic!("{other:?}"),
        }
    }
    // More than the socket holds is under way by now: the TLS buffer is full, the writer waits for the peer.
    std::thread::park_timeout(Duration::from_millis(300));
    open.send(()).unwrap();
    bench.send(NodeCommand::Close { generation: 1 }).unwrap();
    assert_eq!(bench.closed(1), "closed by the broker");
    assert_eq!(server.join().unwrap().expect("a session").len(), 150);
}

#[test]
fn tls_with_an_unknown_root_is_refused() {
    let (listener, base) = listener();
    let server = tls_server(listener, crossbeam_channel::never());
    let trust = Some(Arc::new(crate::sys::tls::trusting([])));
    let bench = Bench::new(&base.replace("http:", "https:"), Options { trust, ..Options::default() });
    bench.connect(1);
    let why = bench.refused();
    assert!(matches!(&why, Refusal::Io(words) if words.contains("certificate")), "{why:?}");
    assert!(server.join().unwrap().is_none());
}
