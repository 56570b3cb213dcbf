//! `tidegate up`: the server in the foreground, until it is asked to stop.

use crate::cli::Up;
use crate::data_dir::DataDir;
use crate::screen::Screen;
use crate::server::Server;

pub(crate) async fn run(dir: &DataDir, options: &Up) -> anyhow::Result<()> {
    let screen = Screen::new();
    let server = Server::start(dir, options).await?;
    let (running, place) = (server.running(), dir.root().display());
    screen.line(&format!(
        "Tidegate {} is ready.
  data     {place}
  API      {}
  metrics  http://{}/metrics
  run.app  {}
  project  {}

Point a shell at it:
  eval \"$(tidegate env --data-dir {place})\"

Ctrl-C stops it and leaves the host as it was found.",
        running.version,
        running.api,
        running.metrics,
        running
            .run_app
            .map_or_else(String::new, |at| format!("http://{} https://{}", at.http, at.https)),
        running.project,
    ));
    tokio::select! {
        () = crate::server::asked_to_stop() => {
            screen.line("Stopping.");
            server.stop().await
        }
        () = server.replaced() => {
            screen.line("Another process serves in this one's place; finishing what is under way.");
            server.retire().await
        }
    }
}
