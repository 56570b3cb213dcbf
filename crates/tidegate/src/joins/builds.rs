//! What is built from sources, answered by the builder of the serverless half.

use api::builds::{BuildOrder, Builder, Finished, Offer, UnderWay};
use api::door::BoxFuture;
use serverless::builds::{self, BuildLog, Buildpack, Method, Order};
use std::sync::Arc;
use tokio::sync::watch;

/// Builds by the builder.
#[derive(Clone, Debug)]
pub(crate) struct SourceBuilds {
    pub(crate) builder: builds::Builder,
}

/// A build that goes on by itself.
#[derive(Debug)]
struct Going {
    log: Arc<BuildLog>,
    outcome: watch::Receiver<Option<Result<Finished, String>>>,
}

impl Builder for SourceBuilds {
    fn runtimes(&self) -> BoxFuture<'_, Vec<Offer>> {
        Box::pin(async {
            let offered = self.builder.runtimes().await;
            let offer = |runtime: builds::runtimes::Runtime| Offer {
                name: runtime.to_string(),
                title: runtime.title(),
            };
            offered.into_iter().map(offer).collect()
        })
    }

    fn start(&self, order: BuildOrder) -> Arc<dyn UnderWay> {
        let log = Arc::new(BuildLog::default());
        let (ended, outcome) = watch::channel(None);
        let going = Arc::new(Going { log: log.clone(), outcome });
        let builder = self.builder.clone();
        tokio::spawn(async move {
            let built = builder.build(&ordered(order), &log).await;
            let finished = built.map(|built| Finished { digest: built.digest });
            ended.send_replace(Some(finished.map_err(|error| error.to_string())));
        });
        going
    }

    fn forget(&self, reference: &str) {
        if let Err(error) = self.builder.forget(reference) {
            tracing::warn!(%error, reference, "the name of an image stays");
        }
    }
}

impl UnderWay for Going {
    fn log(&self) -> String {
        self.log.text()
    }

    fn finished(&self) -> BoxFuture<'_, Result<Finished, String>> {
        let mut outcome = self.outcome.clone();
        Box::pin(async move {
            let found = outcome.wait_for(Option::is_some).await.map(|found| found.clone());
            found.ok().flatten().unwrap_or_else(|| Err("The build was given up.".to_owned()))
        })
    }
}

fn ordered(order: BuildOrder) -> Order {
    let BuildOrder { source, reference, has_dockerfile, runtime, function, environment } = order;
    let method = match has_dockerfile {
        true => Method::Dockerfile,
        false => Method::Buildpack(Buildpack { runtime, function, signature: None, environment }),
    };
    Order { source, reference, method }
}
