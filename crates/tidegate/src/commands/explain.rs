//! `tidegate explain` and `tidegate lint`: why a request is answered as it is, and what a map hides.

use crate::cli::{Explain, Format, Lint};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::question::Question;
use anyhow::{Context, bail};
use api::compute::url_maps::parse_document;
use model::url_map::UrlMap;
use model::{Inventory, Resource};
use plan::fleet::{Caller, FleetPlan};
use plan::routing::{self, ORDINARY_DICE};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

const EXPLAIN: &str = "http://tidegate.googleapis.com/v1/explain";
const LINT: &str = "http://tidegate.googleapis.com/v1/lint";

pub(crate) async fn run(dir: &DataDir, how: &Explain) -> anyhow::Result<String> {
    if let Some(file) = &how.map {
        return by_map(file, how);
    }
    let (client, _) = Client::of(dir)?;
    let question = json!({
        "url": how.url,
        "method": how.method,
        "headers": how.headers,
        "network": how.network,
        "address": how.address,
        "project": how.project,
    });
    let answer = client.post(EXPLAIN, &question).await?;
    Ok(match how.format {
        Format::Json => format!("{answer:#}"),
        Format::Text => answer["text"].as_str().unwrap_or_default().to_owned(),
    })
}

/// Explains by a map in a file; nothing is known of what its backend services lead to.
fn by_map(file: &Path, how: &Explain) -> anyhow::Result<String> {
    let map = read_map(file)?;
    let question = Question::new(&how.url, &how.method, &how.headers)?;
    let mut world = Inventory::default();
    let name = map.name.clone();
    world.insert(Resource::UrlMap(Arc::new(map)));
    let (routing, _) = routing::compile(&world, &routing::Routing::default());
    let plan = routing.url_map(&name).context("the map does not compile")?;
    let explanation =
        plan.explain(&FleetPlan::default(), &question.head(), Caller::Anonymous, ORDINARY_DICE);
    Ok(match how.format {
        Format::Json => serde_json::to_string_pretty(&explanation)?,
        Format::Text => explanation.to_string(),
    })
}

/// Fails, with the findings, when there are any: CI stops on them. A server that runs in the data directory
/// is asked, for it knows the URL masks behind the map; without one the map is looked over by itself.
pub(crate) async fn lint(dir: &DataDir, how: &Lint) -> anyhow::Result<String> {
    let map = read_map(&how.map)?;
    let findings = match Client::of(dir) {
        Ok((client, _)) => {
            let document = std::fs::read_to_string(&how.map)?;
            let answer = client.post(LINT, &json!({ "document": document })).await?;
            serde_json::from_value(answer["findings"].clone())?
        }
        Err(_) => routing::lint(&map),
    };
    let text = match how.format {
        Format::Json => serde_json::to_string_pretty(&findings)?,
        Format::Text => findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    if findings.is_empty() {
        return Ok(match how.format {
            Format::Json => text,
            Format::Text => format!("{}: nothing to remark.", how.map.display()),
        });
    }
    bail!("{} has {} findings\n{text}", how.map.display(), findings.len())
}

/// The map of a file; what no world could mend is an error.
fn read_map(file: &Path) -> anyhow::Result<UrlMap> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("could not read `{}`", file.display()))?;
    let (map, problems) =
        parse_document(&text).with_context(|| format!("`{}` is not a URL map", file.display()))?;
    if problems.is_empty() {
        return Ok(map);
    }
    let problems: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
    bail!("`{}` would be refused:\n{}", file.display(), problems.join("\n"))
}
