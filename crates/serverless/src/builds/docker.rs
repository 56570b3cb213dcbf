//! Sources with a Dockerfile: built by Docker Engine, where there is one.
//!
//! Invariant: what the engine was given to build is taken away from it again; the image lives in
//! the store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{BuildImageOptionsBuilder, RemoveImageOptions};
use bollard::{API_DEFAULT_VERSION, Docker, body_full};
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

use super::{BuildError, BuildLog, Order, blocking, files, log};

/// How long the engine may take to answer at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Builds the source and writes the image to `saved`, as `docker save` does.
pub(super) async fn build(
    socket: &Path,
    order: &Order,
    workspace: &Path,
    saved: &Path,
    log: &Arc<BuildLog>,
) -> Result<(), BuildError> {
    let engine = connect(socket).await?;
    let context = workspace.with_extension("context");
    let (from, to) = (workspace.to_owned(), context.clone());
    blocking(move || {
        files::pack(&[(&from, "")], &to).map_err(BuildError::host("packing the source"))
    })
    .await?;
    let context =
        tokio::fs::read(&context).await.map_err(BuildError::host("reading the source"))?;
    let options =
        BuildImageOptionsBuilder::default().t(&order.reference).rm(true).forcerm(true).build();
    let mut messages = engine.build_image(options, None, Some(body_full(context.into())));
    let failed = |reason: String| BuildError::Step { step: "docker build".to_owned(), reason };
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| failed(told(&error, log)))?;
        for line in message.stream.iter().flat_map(|text| text.lines()) {
            if !line.trim().is_empty() {
                log.say(line);
            }
        }
        if let Some(error) = message.error_detail.and_then(|detail| detail.message) {
            return Err(failed(error));
        }
    }
    drop(messages);
    let kept = save(&engine, &order.reference, saved).await;
    let options = Some(RemoveImageOptions { force: true, ..RemoveImageOptions::default() });
    // The image is ours now; an engine that keeps it costs disk and nothing else.
    if let Err(error) = engine.remove_image(&order.reference, options, None).await {
        tracing::debug!(%error, "the engine keeps an image");
    }
    kept
}

async fn connect(socket: &Path) -> Result<Docker, BuildError> {
    let shown = socket.display().to_string();
    let absent = |reason: String| {
        BuildError::Unsupported(format!(
            "The source has a Dockerfile, which Docker Engine builds, and none answers at {shown} \
             ({reason}). Start one, or deploy an image"
        ))
    };
    let seconds = ANSWER_WITHIN.as_secs();
    let engine = Docker::connect_with_unix(&shown, seconds, API_DEFAULT_VERSION)
        .map_err(|error| absent(error.to_string()))?;
    engine.ping().await.map_err(|error| absent(error.to_string()))?;
    Ok(engine)
}

/// The engine's words for what failed, or what was written before.
fn told(error: &bollard::errors::Error, log: &BuildLog) -> String {
    match error {
        bollard::errors::Error::DockerStreamError { error } => {
            let text = log.text();
            let last = text.rfind("Step ").map_or(&*text, |at| &text[at..]);
            format!("{}\n{error}", log::reason(last))
        }
        other => other.to_string(),
    }
}

async fn save(engine: &Docker, reference: &str, saved: &Path) -> Result<(), BuildError> {
    let failed = |reason: String| BuildError::Step { step: "docker save".to_owned(), reason };
    let mut file = tokio::fs::File::create(saved).await.map_err(BuildError::host("saving"))?;
    let mut pieces = engine.export_image(reference);
    while let Some(piece) = pieces.try_next().await.map_err(|error| failed(error.to_string()))? {
        file.write_all(&piece).await.map_err(BuildError::host("saving"))?;
    }
    file.flush().await.map_err(BuildError::host("saving"))
}
