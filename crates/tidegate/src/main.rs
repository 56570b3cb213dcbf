//! The binary: the command line and the wiring. It decides nothing about a resource.

mod admin;
mod applier;
mod behind;
mod cli;
mod client;
mod collector;
mod commands;
mod components;
mod data_dir;
mod handover;
mod joins;
mod limit_flags;
mod metrics;
mod question;
mod screen;
mod server;
mod signals;
mod table;
mod vm_shell;

use clap::Parser;
use cli::{Cli, Verb};
use data_dir::DataDir;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Containers and client VMs run in helper processes of this same binary.
    if let Some(ended) = vpc::helper_main() {
        return ended;
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == serverless::runtime::HELPER_ARGUMENT) {
        return serverless::runtime::helper_main();
    }
    let component = components::server_of_link();
    let cli = component.is_none().then(Cli::parse);
    start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("could not start")),
    };
    let answered = runtime.block_on(async {
        match (cli, component) {
            (Some(cli), _) => run(cli).await,
            (None, Some(server)) => components::stream_logs(&server).await.map(|()| String::new()),
            (None, None) => Ok(String::new()),
        }
    });
    match answered {
        Ok(text) => {
            if !text.is_empty() {
                say(&text);
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<String> {
    let dir = DataDir::of(cli.place.data_dir.as_deref())?;
    match cli.verb {
        Verb::Up(options) => commands::up::run(&dir, &options).await.map(|()| String::new()),
        Verb::Demo(options) => commands::demo::run(&dir, &options).await.map(|()| String::new()),
        Verb::Down => commands::down::run(&dir).await,
        Verb::Env(how) => commands::env::run(&dir, &how),
        Verb::Gcloud(how) => commands::env::gcloud(&dir, &how),
        Verb::Doctor(how) => commands::doctor::run(how),
        Verb::Status(how) => commands::status::run(&dir, how).await,
        Verb::Explain(how) => commands::explain::run(&dir, &how).await,
        Verb::Lint(how) => commands::explain::lint(&dir, &how).await,
        Verb::Logs(how) => commands::logs::run(&dir, &how).await.map(|()| String::new()),
        Verb::Image(verb) => commands::image::run(&dir, verb).await,
    }
}

/// The log goes to standard error; `TIDEGATE_LOG` takes the directives of `tracing`'s filter.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEGATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

#[allow(clippy::print_stdout, reason = "the answer of a verb goes to standard output")]
fn say(text: &str) {
    use std::io::Write;
    // Whoever reads may have seen enough, as `head` has.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[allow(clippy::print_stderr, reason = "the reason of a failure goes to standard error")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("tidegate: {error:#}");
    ExitCode::FAILURE
}
