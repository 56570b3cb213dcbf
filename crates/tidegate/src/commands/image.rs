//! `tidegate image`: what the server's image store holds, through the server.

use crate::cli::{Format, Image};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::table::Table;
use anyhow::Context;
use serde_json::{Value, json};

const IMAGES: &str = "http://tidegate.googleapis.com/v1/images";

pub(crate) async fn run(dir: &DataDir, verb: Image) -> anyhow::Result<String> {
    let (client, _) = Client::of(dir)?;
    match verb {
        Image::Load { path } => {
            let path = std::path::absolute(&path)
                .with_context(|| format!("`{}` is not a file name", path.display()))?;
            let loaded = client.post(&format!("{IMAGES}:load"), &json!({ "path": path })).await?;
            let lines = loaded["references"].as_array().into_iter().flatten();
            let lines: Vec<_> = lines.filter_map(Value::as_str).collect();
            Ok(lines
                .iter()
                .map(|reference| format!("Loaded {reference}"))
                .collect::<Vec<_>>()
                .join("\n"))
        }
        Image::List(how) => {
            let list = client.get(IMAGES).await?;
            Ok(if how.format == Format::Json { format!("{list:#}") } else { table(&list) })
        }
        Image::Remove { reference } => {
            client.post(&format!("{IMAGES}:remove"), &json!({ "reference": reference })).await?;
            Ok(format!("Removed {reference}"))
        }
    }
}

fn table(list: &Value) -> String {
    let mut table = Table::new(&["IMAGE", "DIGEST", "SIZE", "USED"]);
    for image in list["images"].as_array().into_iter().flatten() {
        let text = |field: &str| image[field].as_str().unwrap_or_default().to_owned();
        let size = crate::table::bytes(image["sizeBytes"].as_u64().unwrap_or_default());
        let used = if image["inUse"].as_bool().unwrap_or_default() { "yes" } else { "no" };
        table.row(vec![text("reference"), text("digest"), size, used.into()]);
    }
    table.or("No images yet: `tidegate image load FILE`, or deploy one from a registry.")
}
