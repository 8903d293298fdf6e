//! Listening: from the first connection to the last answer.

use crate::{ServeError, Service, connection::LimitedListener};
use std::{
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{runtime, sync::oneshot, time};

/// Threads that serve connections; the model has its own.
const THREADS: usize = 2;
/// Texts that are tokenized at once.
const TOKENIZING_THREADS: usize = 4;
/// Time between two looks at the flag that stops the server.
const LOOK: Duration = Duration::from_millis(50);
/// Time for connections to end once every sequence has.
const CLOSE: Duration = Duration::from_secs(2);
/// Time that a write may wait for the client to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// When a server stops.
#[derive(Clone, Debug)]
pub struct Lifetime {
    /// Set when it has to stop.
    pub stop: Arc<AtomicBool>,
    /// Time for the requests that were accepted until then.
    pub drain: Duration,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request that was accepted has been finished.
    Finished,
    /// Some requests were ended, after the time to finish them.
    Cancelled,
}

/// Listens at a port of `host`, an address or name; port 0 is any free one.
///
/// # Errors
/// The port is in use, or cannot be listened at.
pub fn bind(host: &str, port: u16) -> Result<TcpListener, ServeError> {
    TcpListener::bind((host, port)).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::PortInUse { host: host.to_owned(), port },
        _ => ServeError::Bind { host: host.to_owned(), port, source },
    })
}

/// Serves until `lifetime` ends: then refuses new requests, finishes those that were accepted, and
/// ends what is left after the time for it.
///
/// # Errors
/// The system gives no threads or sockets, or the engine thread has ended by itself.
pub fn serve(service: Service, listener: TcpListener, lifetime: Lifetime) -> Result<Ended, ServeError> {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(THREADS).max_blocking_threads(TOKENIZING_THREADS).enable_all();
    let runtime = builder.build().map_err(ServeError::Start)?;
    let result = runtime.block_on(run(service, listener, lifetime));
    // Handlers that still wait for slow clients are dropped.
    runtime.shutdown_background();
    result
}

async fn run(mut service: Service, listener: TcpListener, lifetime: Lifetime) -> Result<Ended, ServeError> {
    listener.set_nonblocking(true).map_err(ServeError::Start)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Start)?;
    let listener = LimitedListener { listener, write_timeout: WRITE_TIMEOUT };
    let (close, closing) = oneshot::channel::<()>();
    let connections = axum::serve(listener, service.router()).with_graceful_shutdown(async {
        _ = closing.await;
    });
    let connections = tokio::spawn(connections.into_future());
    tokio::select! {
        () = service.stopped() => return Err(ServeError::EngineStopped),
        () = flag(&lifetime.stop) => {}
    }
    tracing::info!("finishing the requests that were accepted");
    service.drain();
    // The listener closes: a new connection is refused by the system.
    drop(close);
    let mut ended = Ended::Finished;
    if time::timeout(lifetime.drain, service.stopped()).await.is_err() {
        service.cancel();
        service.stopped().await;
        ended = Ended::Cancelled;
    }
    _ = time::timeout(CLOSE, connections).await;
    Ok(ended)
}

async fn flag(stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        time::sleep(LOOK).await;
    }
}
