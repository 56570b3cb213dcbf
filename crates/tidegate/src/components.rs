//! The program gcloud starts for `run services logs tail`, which Google ships apart from gcloud and
//! not in its Debian packages: this binary under that program's name.
//!
//! Links to it stand in the data directory, and `tidegate env` puts their folder on PATH. Invariant:
//! a link says by where it stands which server is meant.

use crate::client::Client;
use crate::commands::logs;
use crate::data_dir::DataDir;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The name gcloud looks for.
const LOG_STREAMING: &str = "log-streaming";
/// The folder of the links inside the data directory.
const FOLDER: &str = "bin";

/// What gcloud tells the program.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    project: String,
    filter: String,
    token: String,
}

/// Makes the links, where they are missing or lead elsewhere; their folder.
pub(crate) fn linked(dir: &DataDir) -> io::Result<PathBuf> {
    let folder = dir.join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    let (link, program) = (folder.join(LOG_STREAMING), std::env::current_exe()?);
    if std::fs::read_link(&link).ok().as_ref() != Some(&program) {
        // Renaming takes the place of what was there, so that nobody finds nothing.
        let fresh = folder.join(format!(".{LOG_STREAMING}.{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        std::os::unix::fs::symlink(&program, &fresh)?;
        std::fs::rename(&fresh, &link)?;
    }
    Ok(folder)
}

/// PATH with the folder of the links in front, once.
pub(crate) fn path_with(folder: &Path, path: &str) -> String {
    let folder = folder.display().to_string();
    let others = path.split(':').filter(|entry| !entry.is_empty() && *entry != folder);
    std::iter::once(folder.as_str()).chain(others).collect::<Vec<_>>().join(":")
}

/// The server whose link this program was started by, if it was started as the component.
pub(crate) fn server_of_link() -> Option<PathBuf> {
    let name = PathBuf::from(std::env::args_os().next()?);
    let is_component = name.file_name() == Some(LOG_STREAMING.as_ref());
    let folder = name.parent().filter(|_| is_component)?;
    folder.parent().map(Path::to_owned)
}

/// Prints what is logged from now on, until it is stopped.
pub(crate) async fn stream_logs(data_dir: &Path) -> anyhow::Result<()> {
    let wanted = wanted(std::env::args_os().skip(1))?;
    let (client, running) = Client::of(&DataDir::of(Some(data_dir))?)?;
    let client = match wanted.token.as_str() {
        "" => client,
        token => Client::new(running.api, token.to_owned()),
    };
    logs::tail(&client, &wanted.project, &wanted.filter).await
}

fn wanted(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Wanted> {
    let mut wanted = Wanted::default();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().and_then(|value| value.into_string().ok());
        let value = value.with_context(|| format!("{} needs a value", flag.display()))?;
        match flag.to_str() {
            Some("-projectId") => wanted.project = value,
            Some("-filter") => wanted.filter = value,
            Some("-token") => wanted.token = value,
            // There is one format; gcloud asks for the one of Cloud Run.
            Some("-format") => {}
            _ => bail!("{} is not known", flag.display()),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gclouds_words_are_understood() {
        let line = ["-projectId", "p", "-filter", "a=b severity>=DEFAULT", "-format", "run"];
        let read = wanted(line.into_iter().map(OsString::from)).unwrap();
        let filter = "a=b severity>=DEFAULT".to_owned();
        assert_eq!(read, Wanted { project: "p".into(), filter, token: String::new() });
        assert!(wanted(["-projectId"].into_iter().map(OsString::from)).is_err());
        assert!(wanted(["-colour", "red"].into_iter().map(OsString::from)).is_err());
    }

    #[test]
    fn the_folder_comes_first_and_once() {
        let folder = Path::new("/d/bin");
        assert_eq!(path_with(folder, "/usr/bin:/bin"), "/d/bin:/usr/bin:/bin");
        assert_eq!(path_with(folder, "/usr/bin:/d/bin:/bin"), "/d/bin:/usr/bin:/bin");
        assert_eq!(path_with(folder, ""), "/d/bin");
    }
}
