//! SIGINT and SIGTERM, caught once for the whole process.

use std::sync::OnceLock;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether somebody asked the process to stop; catching begins with the first call.
pub(crate) fn asked() -> watch::Receiver<bool> {
    static ASKED: OnceLock<watch::Sender<bool>> = OnceLock::new();
    ASKED
        .get_or_init(|| {
            let sender = watch::Sender::new(false);
            for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
                match signal(kind) {
                    Ok(mut signals) => {
                        let sender = sender.clone();
                        tokio::spawn(async move {
                            if signals.recv().await.is_some() {
                                sender.send_replace(true);
                            }
                        });
                    }
                    Err(error) => tracing::error!(%error, "could not catch a signal"),
                }
            }
            sender
        })
        .subscribe()
}
